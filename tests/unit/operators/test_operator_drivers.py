"""Which driver computes softmax attention: the one named, or the first that can; told in the manifest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import kernels, spec
from positionbias.config.build import build
from positionbias.errors import ConfigError
from positionbias.kernels import drivers
from positionbias.masks.order import Bidirectional, Causal
from positionbias.models.sites import Sites
from positionbias.operators.softmax import Softmax
from positionbias.positions.base import Dims, Placed
from positionbias.tokens import sequential
from positionbias.training import auto

T, N, H = 12, 2, 8


def placed(name):
    scheme = spec.build("positions", name, "test")
    dims = Dims(N * H, N, H, T)
    made = {
        key: jax.random.normal(jax.random.key(i), m.shape)
        for i, (key, m) in enumerate(scheme.layer_parameters(dims).items())
    }
    return Placed(scheme, made)


def queries(length):
    return jax.ShapeDtypeStruct((1, length, N, H), np.float32)


def test_a_cpu_takes_chunks_from_512_queries_on():
    for mask, length, driver in (
        (Causal(), 511, "xla_dense"),
        (Causal(), 512, "xla_chunked"),
        (Bidirectional(), 511, "xla_dense"),
        (Bidirectional(), 512, "xla_chunked"),
    ):
        told = sequential(length), sequential(length), mask, placed("none")
        assert Softmax().driver(queries(length), *told, "cpu") == driver


def test_a_driver_that_cannot_is_refused_with_its_reason():
    told = sequential(T), sequential(T), Causal()
    with pytest.raises(ConfigError, match="impl = 'mosaic_tpu' cannot do this: the platform is cpu"):
        Softmax(impl="mosaic_tpu").driver(queries(T), *told, placed("none"), "cpu")
    with pytest.raises(ConfigError, match="mirrored_rope has its own"):
        Softmax(impl="xla_dense").driver(queries(T), *told, placed("mirrored_rope"), "cpu")
    assert Softmax().driver(queries(T), *told, placed("mirrored_rope"), "cpu") is None
    with pytest.raises(ConfigError, match="unknown driver 'xla_chunk', did you mean 'xla_chunked'"):
        Softmax(impl="xla_chunk")


def test_a_run_tells_its_drivers_and_one_that_cannot_is_refused_before(tiny):
    assert auto.resolve(build(tiny()), "cpu", 2).describe()["attention"] == "xla_dense"
    assert auto.resolve(build(tiny()), "tpu", 2).describe()["attention"] == "mosaic_tpu"
    named = build(tiny({"model.operator": "softmax(impl='mosaic_tpu')"}))
    with pytest.raises(ConfigError, match=r"model\.operator: in layer 0, impl = 'mosaic_tpu' cannot do this"):
        auto.resolve(named, "cpu", 2)
    no_choice = build(tiny({"model.operator": "linear_scores"}))
    assert "attention" not in auto.resolve(no_choice, "cpu", 2).describe()


# Those that act on scores; what turns queries and keys, or embeds, does so before any driver.
SCHEMES = [name for name in sorted(spec.names("positions")) if placed(name).biases]


def test_every_layer_is_judged_by_its_own_mask(tiny):
    """Layers with equal operators and other masks: cuDNN has the causal one, and no window."""
    masks = "[causal, causal & sliding_window(3)]"
    config = tiny({"model.layers": 2, "model.mask": masks, "train.dtype": "bfloat16", "model.position": "none"})
    assert build(config).drivers(1, "gpu") == ["cudnn", "xla_chunked"]
    assert build(config).drivers(1, "cpu") == ["xla_dense"]


@pytest.mark.parametrize("name", sorted(spec.names("positions")))
def test_a_run_with_any_scheme_has_its_drivers_named(name, tiny):
    experiment = build(tiny({"model.position": name}))
    assert experiment.drivers(8, "cpu") == ([] if placed(name).multiplies else ["xla_dense"])


ORDERS = {"shuffled": np.array([3, 0, 7, 1, 2, 11, 4, 10, 5, 9, 6, 8], np.int32), "later": np.arange(5, 5 + T)}


@pytest.mark.parametrize(("name", "order"), [*((name, "shuffled") for name in SCHEMES), ("t5_bias", "later")])
def test_every_scheme_comes_out_of_every_driver_as_of_the_formula(name, order):
    """Positions that are not those of storage, so that a scheme is held to read what it is told."""
    position = placed(name)
    tokens = sequential(T)._replace(position=ORDERS[order])
    q, k, v = (jax.random.normal(jax.random.key(i), (2, T, N, H)) for i in range(3))

    def total(q, k, v, params, operator, record=()):
        sites = Sites(record=record)
        made = Placed(position.scheme, params)
        return (operator(q, k, v, tokens, tokens, Causal(), made, {}, sites) ** 2).sum()

    def both(operator, record=()):
        told = jax.value_and_grad(lambda *x: total(*x, operator, record), argnums=(0, 1, 2, 3))
        return jax.tree.leaves(jax.jit(told)(q, k, v, position.params))

    want = both(Softmax(), ("pattern",))
    for impl in ("xla_dense", "xla_chunked", "mosaic_tpu_interpret"):
        for one, other in zip(both(Softmax(impl=impl)), want, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("operator", "platform", "attention", "recurrence"),
    [
        ("linear_attention", "cpu", [], ["xla_quadratic"]),
        ("linear_attention", "tpu", [], ["mosaic_tpu"]),
        ("retention", "cpu", [], ["xla_chunked"]),  # it decays
        ("gated_delta", "cpu", [], ["xla_chunked"]),
        ("gated_delta", "tpu", [], ["mosaic_tpu"]),
        ("md_tpe", "cpu", [], ["xla_chunked"]),  # reads the stream
        ("based", "cpu", ["xla_dense"], ["xla_quadratic"]),  # its window is attention
        ("titans(memory='mlp')", "cpu", ["xla_dense"], []),  # a memory of two matrices is no kernel's
        ("titans", "cpu", ["xla_dense"], ["xla_chunked"]),
        ("[linear_attention, retention]", "cpu", [], ["xla_chunked", "xla_quadratic"]),
        ("softmax", "cpu", ["xla_dense"], []),
    ],
)
def test_a_run_tells_the_drivers_of_recurrences(operator, platform, attention, recurrence, tiny):
    layers = 1 + operator.startswith("[")
    experiment = build(tiny({"model.operator": operator, "model.layers": layers, "model.position": "none"}))
    found = auto.resolve(experiment, platform, 2).describe()
    assert found.get("attention", "") == " and ".join(attention)
    assert found.get("recurrence", "") == " and ".join(recurrence)


def test_what_is_noted_while_traced_is_what_is_chosen_when_called():
    """And nothing is noted afterwards: a call goes to the driver that it has chosen."""
    x = jnp.ones((1, 8, 2, 4))
    with drivers.noting("tpu") as found:
        jax.eval_shape(lambda x: kernels.linear_attention(x, x, x), x)
    assert found == [("linear_recurrence", "mosaic_tpu")]
    kernels.linear_attention(x, x, x)
    assert len(found) == 1
