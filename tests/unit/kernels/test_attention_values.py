"""Outputs, statistics and gradients of every driver against the formula in float64.

70 queries are three chunks of rows, and tiles of 32 x 16 leave ragged ones on both sides.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels_oracle import TOLERANCE, Case, agree, check, drawn, drivers, formula, kernel

from positionbias.kernels import PerHead, PerKey, PerQuery, Relative, Scalar
from positionbias.kernels.softmax_attention import operands
from positionbias.kernels.softmax_attention.problem import STATS

BLOCKS = {"block_sizes": (32, 16)}
OF_ANY_WEIGHTS = ("received", "block_mass")  # statistics that weights without normalisation have


def causal(_):
    return lambda b, h, q, k: k <= q


def window(_):
    return lambda b, h, q, k: (k <= q) & (q - k < 5 + 3 * h + b)


def half_blind(_):
    """Queries in the middle see nothing, and in the second example none sees anything."""
    return lambda b, h, q, k: (k % 3 == h % 3) & ((q < 9) | (q > 42)) & (b == 0)


def wild(_):
    """No order at all."""
    return lambda b, h, q, k: (q * 7 + k * 5 + b * 3 + h) % 4 != 0


MASKS = {"none": None, "window": window, "half blind": half_blind, "wild": wild}


@pytest.mark.parametrize("mask", ["none", "window", "wild"])
def test_all_statistics_at_once(mask):
    check(Case(mask=MASKS[mask], options=BLOCKS), drawn(70, 41), stats=STATS)


def test_a_gradient_through_each_statistic():
    """Of all that are computed: one program whose sum has all, or one of them at a time."""
    case, params, through = Case(mask=half_blind, options=BLOCKS), drawn(70, 41), ("o", *STATS)
    known = formula(case, STATS, through)
    for impl in drivers():
        found = kernel(case, impl, STATS, through)
        for one in (None, *STATS):
            shares = {name: np.float32(one in (name, None)) for name in through}
            agree(found(params, shares), known(params, shares), about=f"{impl}, {one}:")


@pytest.mark.parametrize(
    "stat", [one if i % 3 == 0 else pytest.param(one, marks=pytest.mark.slow) for i, one in enumerate(STATS)]
)
def test_a_gradient_through_one_statistic_alone(stat):
    """Where no other is computed."""
    check(Case(mask=half_blind, options=BLOCKS), drawn(70, 41), stats=(stat,), through=(stat,))


def test_statistics_that_no_gradient_goes_through_change_none():
    check(Case(mask=window, options=BLOCKS), drawn(70, 41), stats=STATS, through=("o",))


def test_rows_without_keys_are_zero_and_so_are_their_gradients():
    params = drawn(70, 41)
    case = Case(mask=half_blind, options=BLOCKS)
    for impl in drivers():
        parts, gradients = kernel(case, impl, ("entropy", "mean_position", "received"), ("o", "entropy"))(params)
        blind = parts["o"][0, 9:43], parts["o"][1], parts["entropy"][0, :, 9:43], parts["received"][1]
        assert not any(x.any() for x in blind), impl
        assert not any(x.any() for x in (gradients["q"][0, 9:43], *(gradients[name][1] for name in "qkv"))), impl
        assert all(x.all() for x in (parts["o"][0, :9], gradients["q"][0, 43:])), impl


# Lengths that are no multiple of anything, with one row, one column, and one beyond a tile or a chunk.
SHORT = [(1, 1), (7, 63), (65, 1), (1, 65)]
LONG = [(200, 257), (257, 200)]


def lengths(rows, columns, impls):
    params = drawn(rows, columns, seed=rows) | {"key_bias": drawn(1, columns, seed=1)["k"][..., 0].swapaxes(1, 2)}
    check(Case(mask=window, options=BLOCKS), params, impls, ("lse", "received"))


@pytest.mark.parametrize("size", SHORT, ids=str)
def test_odd_lengths(size):
    lengths(*size, drivers())


@pytest.mark.parametrize("size", LONG, ids=str)
def test_long_odd_lengths(size):
    lengths(*size, [name for name in drivers() if name.startswith("xla")])


@pytest.mark.slow
@pytest.mark.parametrize("size", LONG, ids=str)
def test_long_odd_lengths_by_all(size):
    lengths(*size, drivers())


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 7, 63, 65, 200, 257])
@pytest.mark.parametrize("columns", [1, 7, 63, 65, 200, 257])
def test_all_pairs_of_odd_lengths(rows, columns):
    lengths(rows, columns, drivers())


@pytest.mark.parametrize(("size", "values"), [(8, 24), (256, 128)], ids=str)
def test_head_sizes(size, values):
    check(Case(mask=causal, options={"block_sizes": (16, 16)}), drawn(20, 24, size=size, values=values))


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 16, 32, 40, 64, 80, 96, 128, 192, 256])
def test_all_head_sizes(size):
    check(Case(mask=causal, options=BLOCKS), drawn(70, 41, size=size), stats=STATS)


@pytest.mark.parametrize(("heads", "groups"), [(6, 3), (4, 1)])
def test_query_heads_that_share_key_heads(heads, groups):
    params = drawn(70, 41, heads=heads, groups=groups)
    params |= {"key_bias": np.random.default_rng(5).normal(size=(2, groups, 41)).astype(np.float32)}
    params |= {"aux": {"slope": np.linspace(0.1, 1, heads, dtype=np.float32)}}

    def slanted(_):
        return lambda s, b, h, q, k, slope: s - slope * jnp.abs(q - k) * 0.05

    check(Case(mask=window, score=slanted, kinds={"slope": PerHead}, options=BLOCKS), params)


# Operands of every kind, and what functions capture.


def told(rows=70, columns=41, **more):
    """Parameters with an array of every kind."""
    random = np.random.default_rng(3)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    aux = {
        "query": normal(rows),
        "own_query": normal(2, rows),
        "key": normal(columns),
        "own_key": normal(2, columns),
        "head": normal(2),
        "one": normal(),
        "segment_q": random.integers(0, 3, (2, rows)).astype(np.int32),
        "segment_k": random.integers(0, 3, (2, columns)).astype(np.int32),
        "open": random.random(columns) < 0.9,
    }
    captured = {"sink": normal(), "table": normal(8), "by_head": normal(2, 5), "cap": np.float32(4.0)}
    return drawn(rows, columns) | {"aux": aux, "captured": captured} | more


KINDS = {
    "query": PerQuery,
    "own_query": PerQuery,
    "key": PerKey,
    "own_key": PerKey,
    "head": PerHead,
    "one": Scalar,
    "segment_q": PerQuery,
    "segment_k": PerKey,
    "open": PerKey,
}


def same_segment(_):
    return lambda b, h, q, k, segment_q, segment_k, open: (segment_q == segment_k) & open


def of_everything(captured):
    """A score that reads every kind of operand, and captures numbers, a table of keys and one of heads and queries."""

    def score(s, b, h, q, k, query, own_query, key, own_key, head, one):
        s = s * jax.nn.sigmoid(query) + own_query * key + jnp.sin(own_key) * head
        s = s + captured["table"][k % 8] + captured["by_head"][h, q % 5]
        s = captured["cap"] * jnp.tanh(s / captured["cap"])
        return jnp.where(k == 0, s + captured["sink"], s + one * jax.nn.relu(s))

    return score


EVERYTHING = Case(mask=same_segment, score=of_everything, kinds=KINDS, options=BLOCKS)


def test_gradients_of_all_operands_through_all_statistics():
    check(EVERYTHING, told(key_bias=drawn(1, 41, seed=8)["k"][..., 0].swapaxes(1, 2)), stats=STATS)


def test_gradients_of_all_operands_without_normalisation():
    case = Case(same_segment, of_everything, KINDS, BLOCKS | {"normalise": False, "scale": 0.1})
    check(case, told(), stats=OF_ANY_WEIGHTS)


def relative(_):
    return lambda s, b, h, q, k, lag, own_lag: s * (1 + 0.1 * own_lag) + lag


@pytest.fixture
def by_lag():
    random = np.random.default_rng(4)
    aux = {"lag": random.normal(size=70 + 41 - 1), "own_lag": random.normal(size=(2, 70 + 41 - 1))}
    return drawn(70, 41) | {"aux": {name: array.astype(np.float32) for name, array in aux.items()}}


RELATIVE = Case(mask=causal, score=relative, kinds={"lag": Relative, "own_lag": Relative}, options=BLOCKS)


def test_gradients_of_operands_by_lag(by_lag):
    check(RELATIVE, by_lag, stats=STATS)


def test_operands_by_lag_on_tiles_of_which_no_two_are_alike(by_lag, monkeypatch):
    """Whose sides share no factor: a tile a diagonal would be more than the matrix."""
    monkeypatch.delattr(operands, "diagonal_tiles")
    sizes = {"block_sizes": (40, 23)}
    check(dataclasses.replace(RELATIVE, options=sizes), by_lag, impls=("mosaic_tpu_interpret",), stats=("received",))


def test_gradients_of_learned_numbers_for_each_pair():
    """Of a head, of an example, and of either, which no side has for itself."""
    random = np.random.default_rng(6)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    captured = {
        "all": normal(70, 41),
        "own": normal(2, 70, 41),
        "head": normal(2, 70, 41),
        "both": normal(2, 2, 70, 41),
    }

    def score(table):
        return lambda s, b, h, q, k: (
            s * table["all"][q, k]
            + table["own"][b, q, k]
            + jnp.tanh(s * table["head"][h, q, k])
            + table["both"][b, h, q, k]
        )

    check(Case(causal, score, options=BLOCKS), drawn(70, 41) | {"captured": captured}, stats=("lse", "received"))


def test_a_whole_operand_by_lag_is_read_by_masks():
    lag = (np.random.default_rng(0).random(70 + 41 - 1) < 0.4).astype(np.int32)
    case = Case(mask=lambda _: lambda b, h, q, k, lag: lag == 1, kinds={"lag": Relative}, options=BLOCKS)
    check(case, drawn(70, 41) | {"aux": {"lag": lag}})


def test_a_score_of_one_number_for_all():
    """Which forgets the products: the weights are even, and q and k have no gradient."""
    case = Case(mask=causal, score=lambda one: lambda s, b, h, q, k: one, options=BLOCKS)
    check(case, drawn(70, 41) | {"captured": np.float32(0.3)}, stats=("lse", "entropy"))


def test_a_score_of_one_number_a_key():
    case = Case(mask=causal, score=lambda row: lambda s, b, h, q, k: row[k], options=BLOCKS)
    random = np.random.default_rng(0)
    check(case, drawn(70, 41) | {"captured": random.normal(size=41).astype(np.float32)}, stats=("lse", "entropy"))


def test_without_normalisation():
    options = BLOCKS | {"normalise": False, "scale": 0.05}
    check(Case(mask=half_blind, options=options), drawn(70, 41), stats=OF_ANY_WEIGHTS)


def test_scale():
    check(Case(mask=causal, options=BLOCKS | {"scale": -0.7}), drawn(70, 41))


def test_scores_of_hundreds():
    """Nothing overflows. A score of 200 is known to 1e-5 in float32, and so are its weights.

    At 400, the formula's own gradients underflow in float64.
    """
    bias = np.where(np.arange(41) % 4 == 0, 200.0, -200.0).astype(np.float32) * np.ones((2, 1, 1), np.float32)
    params = drawn(70, 41) | {"key_bias": bias}
    for stats in (STATS, ("entropy",)):
        check(Case(mask=window, options=BLOCKS), params, stats=stats, through=stats, tolerance=1e-4)


# Dropout.


@pytest.mark.parametrize("stats", [(), STATS], ids=["outputs", "statistics"])
def test_dropout(stats):
    """Statistics are those of the weights before it."""
    case = Case(mask=window, options=BLOCKS | {"dropout": (0.3, np.int32(11))})
    check(case, drawn(70, 41), stats=stats)


def test_dropout_without_normalisation():
    options = BLOCKS | {"dropout": (0.3, np.int32(11)), "normalise": False, "scale": 0.1}
    check(Case(mask=causal, options=options), drawn(70, 41))


def test_a_rate_of_nothing_drops_nothing():
    params = drawn(20, 20)
    for impl in drivers():
        plain, dropped = (
            kernel(Case(mask=causal, options={"block_sizes": (16, 16)} | more), impl)(params)
            for more in ({}, {"dropout": (0, 3)})
        )
        jax.tree.map(np.testing.assert_array_equal, plain, dropped)


# bfloat16: the formula reads the same rounded inputs.


@pytest.mark.parametrize("mask", ["half blind"])
def test_bfloat16(mask):
    check(
        Case(mask=MASKS[mask], options=BLOCKS),
        drawn(70, 41, size=32, dtype="bfloat16"),
        stats=STATS,
        tolerance=TOLERANCE["bfloat16"],
    )


def test_bfloat16_with_operands():
    params = told() | drawn(70, 41, size=32, dtype="bfloat16")
    check(EVERYTHING, params, tolerance=TOLERANCE["bfloat16"])


def test_bfloat16_with_dropout_and_shared_heads():
    case = Case(mask=causal, options=BLOCKS | {"dropout": (0.2, np.int32(5))})
    params = drawn(70, 41, heads=4, groups=2, size=32, dtype="bfloat16")
    check(case, params, tolerance=TOLERANCE["bfloat16"])


def test_outputs_and_gradients_have_the_type_of_the_inputs_and_statistics_are_float32():
    case = Case(mask=causal, options={"block_sizes": (16, 16)})
    for impl in drivers():
        parts, gradients = kernel(case, impl, STATS, ("o", *STATS))(drawn(20, 20, dtype="bfloat16"))
        assert parts.pop("o").dtype == jnp.bfloat16
        assert {x.dtype.name for x in parts.values()} == {"float32"}
        assert {x.dtype for x in gradients.values()} == {jnp.dtype("bfloat16")}


def test_a_wrong_gradient_is_seen():
    """The judge itself: an error of a hundred thousandth, a row that sees too much, and what is not finite."""
    case, params = Case(mask=half_blind), drawn(8, 8)
    known = formula(case, ("lse",), ("o", "lse"))(params)
    agree(known, known)
    for path in (lambda x: x[1]["q"], lambda x: x[0]["o"], lambda x: x[0]["lse"]):
        for change in (1e-5, np.nan):
            wrong = jax.tree.map(np.array, known)
            path(wrong)[0, 0, 0] += change
            with pytest.raises(AssertionError):
                agree(wrong, known)
