"""Weights that are no softmax over the keys alone: relu, sigmoid, and a slot that holds nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.models.sites import Sites
from positionbias.operators.relu_attention import ReluAttention
from positionbias.operators.sigmoid_attention import SigmoidAttention
from positionbias.operators.softmax_plus_one import SoftmaxPlusOne
from positionbias.positions.base import Dims, Placed
from positionbias.spec import ConfigError
from positionbias.tokens import sequential

NONE = Placed(spec.build("positions", "none", "test"))
CAUSAL = spec.build("masks", "causal", "test")
# Scores 2, 1, -1 of the last of three queries, heads of size 1, values 1, 10, 100.
Q, K, V = (np.array(x, np.float32).reshape(1, 3, 1, 1) for x in ([5, 5, 1], [2, 1, -1], [1, 10, 100]))


def last(operator, mask=CAUSAL, params=None, tokens=None):
    """What the last of three rows gets, by what computes it and by the formula."""
    tokens = tokens or sequential(3)
    found = [
        operator(*map(jnp.asarray, (Q, K, V)), tokens, tokens, mask, NONE, params or {}, Sites(record=record))
        for record in ((), ("pattern",))
    ]
    np.testing.assert_allclose(*found, rtol=1e-5)
    return float(found[0][0, -1, 0, 0])


def test_relu_weights_are_divided_by_the_keys_in_sight():
    window = spec.build("masks", "causal & sliding_window(2)", "test")
    assert last(ReluAttention()) == pytest.approx((2 * 1 + 1 * 10) / 3)
    assert last(ReluAttention(), window) == pytest.approx(1 * 10 / 2)
    assert last(ReluAttention(count="length"), window) == pytest.approx(1 * 10 / 3)


def test_sigmoid_weights_are_lessened_by_the_log_of_the_keys_in_sight():
    def sigmoid(s, n):
        return 1 / (1 + n * np.exp(-s))

    window = spec.build("masks", "causal & sliding_window(2)", "test")
    wanted = {n: sigmoid(1, n) * 10 + sigmoid(-1, n) * 100 for n in (2, 3)}
    assert last(SigmoidAttention()) == pytest.approx(wanted[3] + sigmoid(2, 3), rel=1e-5)
    assert last(SigmoidAttention(), window) == pytest.approx(wanted[2], rel=1e-5)
    assert last(SigmoidAttention(count="length"), window) == pytest.approx(wanted[3], rel=1e-5)


def test_padding_counts_in_the_length_and_is_not_in_sight():
    padded = sequential(3, valid=np.array([False, True, True]))
    assert last(ReluAttention(), tokens=padded) == pytest.approx(10 / 2)
    assert last(ReluAttention(count="length"), tokens=padded) == pytest.approx(10 / 3)


@pytest.mark.parametrize("sink", [0.0, 1.5])
def test_a_null_slot_takes_a_share(sink):
    shares = np.exp([2.0, 1.0, -1.0])
    wanted = shares @ [1, 10, 100] / (np.exp(sink) + shares.sum())
    params = {"sink": jnp.full(1, sink)}
    assert last(SoftmaxPlusOne(learned=True), params=params) == pytest.approx(wanted, rel=1e-5)
    if sink == 0:
        assert last(SoftmaxPlusOne()) == pytest.approx(wanted, rel=1e-5)


def test_a_null_slot_far_below_all_scores_is_softmax():
    params = {"sink": jnp.full(1, -40.0)}
    softmax = spec.build("operators", "softmax", "test")
    assert last(SoftmaxPlusOne(learned=True), params=params) == pytest.approx(last(softmax), rel=1e-6)


def test_the_sink_is_a_number_a_head():
    dims = Dims(width=8, heads=4, head_size=2, length=6)
    assert SoftmaxPlusOne().parameters(dims) == {}
    assert SoftmaxPlusOne(learned=True).parameters(dims)["sink"].shape == (4,)


MASKS = ["causal", "causal & sliding_window(3)", "bidirectional & ~causal"]
BY_KERNEL = [SigmoidAttention(), SigmoidAttention(count="length", scaled=False), SoftmaxPlusOne(learned=True)]


@pytest.mark.parametrize("position", ["none", "alibi", "t5_bias(buckets=4, farthest=8)"])
@pytest.mark.parametrize("operator", BY_KERNEL, ids=repr)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_kernel_is_the_formula_and_so_are_its_gradients(operator, position, dtype):
    scheme = spec.build("positions", position, "test")
    dims = Dims(width=16, heads=2, head_size=8, length=11)
    table = {n: jax.random.normal(jax.random.key(8), m.shape) for n, m in scheme.layer_parameters(dims).items()}
    tokens = sequential(11, valid=np.arange(11) > 0)
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 11, 2, 8), dtype) for i in range(3))
    weight = jax.random.normal(jax.random.key(5), (2, 11, 2, 8))
    params = {"sink": jnp.array([0.5, -1.0])} if isinstance(operator, SoftmaxPlusOne) else {}

    def outputs(q, k, v, table, params, mask, record, impl):
        made = spec.build("operators", spec.canonical(operator).replace("impl=None", f"impl={impl!r}"), "test")
        return made(q, k, v, tokens, tokens, mask, Placed(scheme, table), params, Sites(record=record))

    def both(mask, record, impl):
        def loss(*given):
            found = outputs(*given, mask, record, impl)
            return jnp.sum(found.astype(jnp.float32) * weight), found

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True))(q, k, v, table, params)

    for text in MASKS if dtype == jnp.float32 else MASKS[:1]:
        mask = spec.build("masks", text, "test")
        wanted = jax.tree.leaves(both(mask, ("pattern",), None))
        for impl in (None, "xla_chunked", "mosaic_tpu_interpret"):
            for one, other in zip(jax.tree.leaves(both(mask, (), impl)), wanted, strict=True):
                # bfloat16 keeps 8 bits: of weights, of outputs, and of the cotangents that gradients are made of.
                bound = {"rtol": 1e-4, "atol": 3e-5} if dtype == jnp.float32 else {"rtol": 2**-5, "atol": 2**-5}
                np.testing.assert_allclose(np.float32(one), np.float32(other), **bound)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sigmoid_attention(impl='xla')", "impl: unknown driver 'xla'"),
        ("relu_attention(count='seen')", "operator.count: 'seen' is not allowed"),
    ],
)
def test_bad_arguments(text, message):
    with pytest.raises(ConfigError, match=message):
        spec.build("operators", text, "operator")
