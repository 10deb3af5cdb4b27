"""The kernels for TPU are lowered for one by jax alone; a real compiler, which refuses more, is in compile_targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from positionbias.kernels import compile_cases, recurrence_cases
from positionbias.kernels.rules import ELEMENTWISE
from positionbias.kernels.softmax_attention import mosaic_tpu
from positionbias.kernels.softmax_attention.call import posed
from positionbias.kernels.softmax_attention.ladder import choose

# Lowering asks which chip it is for; without one, this says it.
CHIP = AbstractMesh(
    (1,),
    ("chip",),
    axis_types=(AxisType.Auto,),
    abstract_device=AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu"),
)

# Between them, on the scores and on indices, all that a rule may say to a kernel for TPU and that has a gradient.
ON_SCORES = {
    "abs": jnp.abs,
    "atan2": lambda s: jnp.arctan2(s, s + 1),
    "ceil, floor, round": lambda s: jnp.ceil(s) + jnp.floor(s) + jnp.round(s),
    "clamp": lambda s: lax.clamp(-1.0, s, 1.0),
    "circular": lambda s: jnp.cos(s) + jnp.sin(s) + jnp.tan(s),
    "div, rem": lambda s: s / (s + 3) + lax.rem(s, jnp.full_like(s, 3)),
    "erf_inv": lax.erf_inv,
    "exponentials": lambda s: jnp.exp(s) + jnp.exp2(s) + jnp.log(s) + jnp.log1p(s) + lax.logistic(s),
    "is_finite": lambda s: jnp.where(jnp.isfinite(s), s, 0),
    "max, min": lambda s: jnp.maximum(s, 0) - jnp.minimum(s, 1),
    "neg, sign": lambda s: -s * jnp.sign(s),
    "powers": lambda s: s**3 + jnp.abs(s) ** s + jnp.square(s) + jnp.sqrt(s) + lax.rsqrt(s),
    "stop_gradient": lambda s: s + lax.stop_gradient(s),
    "tanh": jnp.tanh,
    "comparisons": lambda s: jnp.where((s < 1) | (s > 2) | (s == 3), s, 2 * s),
    "bfloat16": lambda s: s.astype(jnp.bfloat16).astype(jnp.float32),
}
ON_INDICES = {  # each of both, since what is of one alone is computed outside
    "logic": lambda q, k: ((q < k) & (q >= k - 3)) | ~(q <= k) ^ (q != k),
    "bits": lambda q, k: ((q & k) | (q ^ k) | ~(q + k)) == 0,
    "counts": lambda q, k: (lax.clz(q ^ k) > 28) | (lax.population_count(q ^ k) > 2),
    "shifts": lambda q, k: ((q - k) << 2) > ((q - k) >> 1) + lax.shift_right_logical(q - k, 1),
    "remainders": lambda q, k: (q * k // 7 == 5) | ((q - k) % 3 == 0),
    "unsigned": lambda q, k: (q ^ k).astype(jnp.uint32) // np.uint32(3) < np.uint32(7),
    "small": lambda q, k: (q - k).astype(jnp.int8) > 3,
    "nextafter": lambda q, k: lax.nextafter((q - k) * 0.5, (q + k) * 0.5) > 2,
}


def lowered(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    with jax.sharding.use_abstract_mesh(CHIP):
        return export.export(jax.jit(function), platforms=["tpu"])(*arrays).mlir_module()


def small(dtype=jnp.float32, size=128, heads=1, head=8, **told):
    arrays = [jax.ShapeDtypeStruct((1, size, heads, head), dtype) for _ in range(3)]
    return posed(*arrays, **told)


def refused(**told):
    return mosaic_tpu.unsupported_reason(small(**told), "tpu")


@pytest.mark.parametrize("case", compile_cases.CASES, ids=lambda case: case.name)
def test_cases_are_lowered(case):
    shapes = case.shapes(jnp.bfloat16 if case.grouped else jnp.float32, 16)
    module = lowered(case.function("mosaic_tpu", "tpu"), *shapes)
    # Forwards a kernel, and one more if asked for what keys receive; backwards two.
    assert module.count("stablehlo.custom_call @tpu_custom_call") >= (3 if case.gradient else 1)


@pytest.mark.parametrize("case", recurrence_cases.RECURRENCES, ids=lambda case: case.name)
def test_recurrences_are_lowered(case):
    module = lowered(case.function("mosaic_tpu", "tpu"), *case.shapes(jnp.bfloat16, 16))
    assert module.count("stablehlo.custom_call @tpu_custom_call") == 1 + case.gradient


def test_all_that_a_rule_may_say_is_lowered_or_told():
    def score(s, b, h, q, k):
        return sum(function(s) for function in ON_SCORES.values())

    def every(b, h, q, k):
        found = q < 0 * k
        for function in ON_INDICES.values():
            found = found | function(q, k)
        return found

    asked = small(score=score, mask=every)
    assert ELEMENTWISE - asked.score.uses - asked.allowed.uses == mosaic_tpu.NOT_THERE & ELEMENTWISE

    def loss(*arrays):
        asked = posed(*arrays, mask=every, score=score)
        return jnp.sum(choose(asked, "mosaic_tpu", "tpu").driver.run(asked)[0])

    assert lowered(jax.grad(loss), *[((1, 128, 1, 8), jnp.float32)] * 3)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (jnp.arctan, "atan"),
        (jax.nn.elu, "expm1"),
        (lax.erf, "erf"),
        (lambda s: s.astype(jnp.float16).astype(jnp.float32), "float16"),
    ],
)
def test_what_kernels_for_tpu_do_not_have_is_told(function, what):
    told = refused(score=lambda s, b, h, q, k: function(s))
    assert told == f"score uses {what}, which kernels for tpu do not have"


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"dtype": jnp.float16}, "q is float16, and these kernels take float32 and bfloat16"),
        ({"block_sizes": (4, 128)}, "block_sizes[0] = 4 is no multiple of 8"),
        ({"block_sizes": (8, 128), "dtype": jnp.bfloat16}, "block_sizes[0] = 8 is no multiple of 16"),
        ({"block_sizes": (64, 64)}, "block_sizes[1] = 64 is no multiple of 128"),
        ({"block_sizes": (128, 128)}, None),
        (
            {"block_sizes": (1024, 1024)},
            "tiles of 1024 x 1024 with heads of 8 need about 36 MiB of vector memory, of which a kernel gets 16",
        ),
        (
            {"size": 1 << 16},
            "262144 tiles are more than the 131072 that scalar memory lists; larger block_sizes make fewer",
        ),
    ],
)
def test_what_does_not_fit_is_told(told, why):
    assert refused(**told) == why


def test_single_numbers_beyond_scalar_memory_are_told():
    table = np.zeros((1 << 18,), np.float32)
    asked = {"heads": 1 << 18, "size": 8, "score": lambda s, b, h, q, k: s + jnp.asarray(table)[h]}
    assert "262144 single numbers" in refused(**asked)
