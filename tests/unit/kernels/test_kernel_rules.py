"""What of a rule is computed outside, and what is run again on every tile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.errors import ConfigError
from positionbias.kernels.rules import Argument, split

BATCH, HEADS, ROWS, COLUMNS = 3, 2, 5, 7


def arguments(batch=BATCH, heads=HEADS, rows=ROWS, columns=COLUMNS):
    """The indices, as a call hands them to a rule."""
    b, h, q, k = (np.arange(n, dtype=np.int32) for n in (batch, heads, rows, columns))
    return [Argument(b, True), Argument(h[:, None, None]), Argument(q[:, None]), Argument(k[None])]


def cut(function, *more, score=False, **sizes):
    """The rule, and what it reads."""
    given = arguments(**sizes)
    pairs = tuple(argument.value.size for argument in given[1:])
    return split(function, [*given, *more], pairs, "the rule", np.float32 if score else None)


def whole(function, *more, score=None, **sizes):
    """The function on all pairs, an example after another, without splitting anything."""
    given = [*arguments(**sizes), *more]
    found = []
    for i in range(given[0].value.size):
        mine = [x.value[i] if x.own else x.value for x in given]
        found.append(function(*(() if score is None else (score[i],)), *mine))
    heads, rows, columns = (argument.value.size for argument in given[1:4])
    return np.stack([np.broadcast_to(x, (heads, rows, columns)) for x in found])


def shapes(rule):
    return [operand.shape for operand in rule.operands]


def check(function, *more, **sizes):
    """The rule on whole operands, and on tiles of them, is the function; the rule."""
    rule = cut(function, *more, **sizes)
    known = whole(function, *more, **sizes)
    batch, heads, rows, columns = known.shape
    for operand in rule.operands:
        assert operand.ndim == 4
        assert all(n in (1, most) for n, most in zip(operand.shape, known.shape, strict=True))
    np.testing.assert_array_equal(np.broadcast_to(rule(rule.operands), known.shape), known)
    part = {2: slice(rows // 2, None), 3: slice(0, (columns + 1) // 2)}

    def tile(x, b, h):
        at = [b if x.shape[0] > 1 else 0, h if x.shape[1] > 1 else 0]
        return x[(*at, *(part[axis] if x.shape[axis] > 1 else slice(None) for axis in (2, 3)))]

    for b, h in {(0, 0), (batch - 1, heads - 1)}:
        found = rule([tile(x, b, h) for x in rule.operands])
        wanted = known[b, h][part[2], part[3]]
        np.testing.assert_array_equal(np.broadcast_to(found, wanted.shape), wanted, f"on a tile of {b}, {h}")
    return rule


# What is hoisted.

NUMBERS = np.random.default_rng(0).integers(0, 4, (BATCH, COLUMNS)).astype(np.int32)
HOISTED = {
    "causal": (lambda b, h, q, k: k <= q, [(1, 1, 1, 7), (1, 1, 5, 1)]),
    "by head": (lambda b, h, q, k: q - k < 2 + h, [(1, 1, 5, 1), (1, 1, 1, 7), (1, 2, 1, 1)]),
    "by example": (lambda b, h, q, k: k < b + q, [(1, 1, 1, 7), (3, 1, 5, 1)]),
    "one side's division": (lambda b, h, q, k: k // 3 == q % 3, [(1, 1, 1, 7), (1, 1, 5, 1)]),
    "division of a pair": (lambda b, h, q, k: (q - k) // 2 % 3 == 0, [(1, 1, 5, 1), (1, 1, 1, 7)]),
    "remainder of a pair": (lambda b, h, q, k: jnp.remainder(k - q, 3) == 1, [(1, 1, 1, 7), (1, 1, 5, 1)]),
    "bits": (lambda b, h, q, k: ((q ^ k) & 1) | ((q >> 1) & (k << 1)) > 0, None),
    "where": (lambda b, h, q, k: jnp.where(h == 0, k <= q, k >= q), None),
    "clip": (lambda b, h, q, k: jnp.clip(q - k, -1, 2) == 0, None),
    "of a table of keys": (lambda b, h, q, k: jnp.asarray(NUMBERS)[0][k] == q % 4, [(1, 1, 1, 7), (1, 1, 5, 1)]),
    "of a table of keys by example": (
        lambda b, h, q, k: jnp.asarray(NUMBERS)[b, k] == q % 4,
        [(3, 1, 1, 7), (1, 1, 5, 1)],
    ),
    "reduced over keys": (lambda b, h, q, k: k - k.max() + 4 <= q, [(1, 1, 1, 7), (1, 1, 5, 1)]),
    "summed up along keys": (lambda b, h, q, k: jnp.cumsum(k % 2, axis=-1) <= q, [(1, 1, 1, 7), (1, 1, 5, 1)]),
    "a scalar": (lambda b, h, q, k: b > 0, [(3, 1, 1, 1)]),
    "a number": (lambda b, h, q, k: jnp.asarray(True), []),
    "a row": (lambda b, h, q, k: k > 2, [(1, 1, 1, 7)]),
    "a flat row": (lambda b, h, q, k: (k > 2)[0], [(1, 1, 1, 7)]),
    "a column": (lambda b, h, q, k: q > 2, [(1, 1, 5, 1)]),
    "heads": (lambda b, h, q, k: h > 0, [(1, 2, 1, 1)]),
    "heads and keys": (lambda b, h, q, k: h * 3 > k, [(1, 2, 1, 7)]),
    "heads and queries": (lambda b, h, q, k: (h[:, :, 0] * 2 + q[:, 0])[:, :, None] > k, [(1, 2, 5, 1), (1, 1, 1, 7)]),
}


@pytest.mark.parametrize("name", HOISTED)
def test_what_is_hoisted(name):
    function, wanted = HOISTED[name]
    rule = check(lambda *args: jnp.asarray(function(*args)))
    assert rule.dense_because is None
    if wanted is not None:
        assert sorted(shapes(rule)) == sorted(wanted)
    assert all(isinstance(operand, np.ndarray) for operand in rule.operands), "nothing traced went into it"


# Where pairs of both sides need more, all of them are computed.

TABLE = np.random.default_rng(1).random((8, 12)) < 0.5


def test_a_table_looked_up_by_both_sides_is_dense_and_says_why():
    rule = check(lambda b, h, q, k: jnp.asarray(TABLE)[q, k])
    assert shapes(rule) == [(1, 1, 5, 7)]
    assert "gather" in rule.dense_because
    assert "the rule" in rule.dense_because


def test_a_table_looked_up_by_both_sides_and_example_is_dense_for_each():
    rule = check(lambda b, h, q, k: jnp.asarray(np.stack([TABLE, ~TABLE, TABLE]))[b, q, k] & (h > 0))
    assert sorted(shapes(rule)) == [(1, 2, 1, 1), (3, 1, 5, 7)]


def test_a_given_array_of_pairs_is_dense_and_says_so():
    rule = check(lambda b, h, q, k: jnp.asarray(TABLE[:5, :7]) | (k < q))
    assert (1, 1, 5, 7) in shapes(rule)
    assert rule.dense_because == "a part of the rule is given for all pairs"


def test_a_lookup_by_the_lag_is_dense():
    assert shapes(check(lambda b, h, q, k: jnp.asarray(TABLE)[0][q - k + 6])) == [(1, 1, 5, 7)]


def test_elementwise_work_behind_a_dense_part_stays_on_tiles():
    rule = check(lambda b, h, q, k: (jnp.asarray(TABLE)[q, k] & (k < 5)) | (q == k))
    assert sorted(shapes(rule)) == [(1, 1, 1, 7), (1, 1, 1, 7), (1, 1, 5, 1), (1, 1, 5, 7)]


def test_a_sum_along_the_keys_of_pairs_is_dense():
    assert "cumsum" in check(lambda b, h, q, k: jnp.cumsum((k + q) % 2, axis=-1) <= q).dense_because


def test_a_transposed_pair_is_dense():
    check(lambda b, h, q, k: ((q - k) * 2 < 1).T, rows=5, columns=5, heads=1, batch=1)
    rule = check(lambda b, h, q, k: jnp.swapaxes(q * 0 + k * 2 - q, -1, -2) < 1, rows=5, columns=5)
    assert (1, 1, 5, 5) in shapes(rule)


# Sizes that coincide, or are 1, mislead nothing.


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (4, 4, 4, 4), (1, 3, 3, 7)], ids=str)
@pytest.mark.parametrize("name", [name for name in HOISTED if "table" not in name])
def test_sizes_that_coincide(name, sizes):
    rule = check(
        lambda *args: jnp.asarray(HOISTED[name][0](*args)),
        **dict(zip(("batch", "heads", "rows", "columns"), sizes, strict=True)),
    )
    assert rule.dense_because is None


@pytest.mark.parametrize("size", [1, 4])
def test_operands_by_heads_and_one_side_where_all_sizes_coincide(size):
    """[N, T, 1] and [N, 1, S] are no [T, S], whatever the sizes are."""
    random = np.random.default_rng(0)
    by_query, by_key = (random.integers(0, 3, shape) for shape in ((size, size, 1), (size, 1, size)))
    rule = check(
        lambda b, h, q, k, x, y: (x == y) & (q >= k),
        Argument(by_query),
        Argument(by_key),
        batch=size,
        heads=size,
        rows=size,
        columns=size,
    )
    assert rule.dense_because is None


def test_pairs_of_heads_and_queries_are_no_tile_where_all_sizes_coincide():
    """[N, T] spread along [N, T, S], which has the shape of a tile spread over heads."""
    sizes = dict.fromkeys(("batch", "heads", "rows", "columns"), 4)
    rule = check(
        lambda b, h, q, k: jax.lax.broadcast_in_dim(h[:, :, 0] * 2 + q[:, 0] ** 2, (4, 4, 4), (0, 1)) > k, **sizes
    )
    assert "broadcast_in_dim" in rule.dense_because
    check(lambda b, h, q, k: jax.lax.broadcast_in_dim(h[:, :, 0] - k, (4, 4, 4), (0, 2)) > q, **sizes)


@pytest.mark.parametrize("size", [2, 4])
def test_an_own_operand_where_all_sizes_coincide(size):
    given = np.random.default_rng(0).integers(0, 3, (size, size, 1))
    check(lambda b, h, q, k, x: x == k % 3, Argument(given, True), batch=size, heads=size, rows=size, columns=size)


def test_squeezed_and_reshaped_pairs():
    rule = check(lambda b, h, q, k: ((q - k)[None] < h)[:, None].reshape(HEADS, ROWS, COLUMNS))
    assert "reshape" in rule.dense_because, "heads were not where those of a tile are"
    check(lambda b, h, q, k: jnp.squeeze((q - k)[None, None], (0, 1)) < 2)
    check(lambda b, h, q, k: jnp.expand_dims(q - k, 0) * jnp.ones((HEADS, 1, 1), jnp.int32) > h)


# What a rule captures.


def test_a_captured_array_of_keys_is_an_operand():
    begun = np.arange(COLUMNS, dtype=np.int32) // 2
    assert sorted(shapes(check(lambda b, h, q, k: begun[None] <= q))) == [(1, 1, 1, 7), (1, 1, 5, 1)]


def test_captured_numbers_are_written_into_the_rule_unless_they_are_traced():
    assert shapes(cut(lambda b, h, q, k: k < np.int32(3) + q)) == [(1, 1, 1, 7), (1, 1, 5, 1)]

    def traced(most):
        rule = cut(lambda b, h, q, k: q - k < most)
        assert sorted(shapes(rule)) == [(1, 1, 1, 1), (1, 1, 1, 7), (1, 1, 5, 1)]
        kinds = {isinstance(operand, np.ndarray) for operand in rule.operands}
        assert kinds == {True, False}, "what no tracer goes into stays known"
        return jnp.broadcast_to(rule(rule.operands), (1, 1, ROWS, COLUMNS))

    found = jax.jit(traced)(2)
    np.testing.assert_array_equal(found[0, 0], np.arange(ROWS)[:, None] - np.arange(COLUMNS) < 2)


def test_a_captured_tracer_has_a_gradient():
    def summed(slope, table):
        rule = cut(lambda s, b, h, q, k: s - slope * jnp.abs(q - k) + table[k], score=True)
        return jnp.sum(rule(rule.operands, jnp.zeros((BATCH, HEADS, ROWS, COLUMNS))))

    slope, table = jax.grad(summed, (0, 1))(jnp.float32(2), jnp.zeros(COLUMNS))
    lags = np.abs(np.arange(ROWS)[:, None] - np.arange(COLUMNS)).sum()
    np.testing.assert_allclose(slope, -lags * BATCH * HEADS)
    np.testing.assert_allclose(table, np.full(COLUMNS, ROWS * BATCH * HEADS))


def test_rules_that_compute_the_same_have_one_text():
    first, second, other = (
        cut(function).text
        for function in (
            lambda b, h, q, k: k <= q,
            lambda one, two, queries, keys: keys <= queries,
            lambda b, h, q, k: k < q,
        )
    )
    assert first == second != other


# Rules on scores.


def check_score(function, *more):
    score = np.random.default_rng(2).normal(size=(BATCH, HEADS, ROWS, COLUMNS)).astype(np.float32)
    rule = cut(function, *more, score=True)
    known = whole(function, *more, score=score)
    np.testing.assert_allclose(np.broadcast_to(rule(rule.operands, score), known.shape), known, 1e-6, 1e-6)
    return rule


SCORES = {
    "as it is": (lambda s, b, h, q, k: s, []),
    "capped": (lambda s, b, h, q, k: 3.0 * jnp.tanh(s / 3.0), []),
    "relu": (lambda s, b, h, q, k: jax.nn.relu(s), []),
    "log_sigmoid": (lambda s, b, h, q, k: jax.nn.log_sigmoid(s), []),
    "gelu": (lambda s, b, h, q, k: jax.nn.gelu(s), []),
    "silu inside jit": (lambda s, b, h, q, k: jax.jit(jax.nn.silu)(s), []),
    "clipped": (lambda s, b, h, q, k: jnp.clip(s, -0.5, 0.5), []),
    "logaddexp": (lambda s, b, h, q, k: jnp.logaddexp(s, 0.0), []),
    "checkpointed": (lambda s, b, h, q, k: jax.checkpoint(jnp.sin)(s), []),
    "stopped": (lambda s, b, h, q, k: s + jax.lax.stop_gradient(s) ** 2, []),
    "by lag": (lambda s, b, h, q, k: s - 0.1 * jnp.abs(q - k), [(1, 1, 5, 1), (1, 1, 1, 7)]),
    "relu of a side": (lambda s, b, h, q, k: s + jax.nn.relu(k - 3.0), [(1, 1, 1, 7)]),
    "log_sigmoid of a pair": (
        lambda s, b, h, q, k: s + jax.nn.log_sigmoid(1.0 * (q - k)),
        [(1, 1, 5, 1), (1, 1, 1, 7)],
    ),
    "one number": (lambda s, b, h, q, k: jnp.float32(2.0), []),
    "a row": (lambda s, b, h, q, k: 1.0 * k, [(1, 1, 1, 7)]),
    "a column": (lambda s, b, h, q, k: 1.0 * q, [(1, 1, 5, 1)]),
}


@pytest.mark.parametrize("name", SCORES)
def test_rules_on_scores(name):
    function, wanted = SCORES[name]
    rule = check_score(function)
    assert sorted(shapes(rule)) == sorted(wanted)
    assert rule.dense_because is None


def test_a_learned_number_for_each_pair_is_dense():
    table = np.random.default_rng(0).normal(size=(9, 9)).astype(np.float32)
    rule = check_score(lambda s, b, h, q, k: s + jnp.asarray(table)[q, k])
    assert shapes(rule) == [(1, 1, 5, 7)]
    assert "gather" in rule.dense_because


REFUSED = {
    "softmax over keys": (lambda s, b, h, q, k: jax.nn.softmax(s, axis=-1), "reduce_max"),
    "mean over keys": (lambda s, b, h, q, k: s - s.mean(axis=-1, keepdims=True), "reduce_sum"),
    "largest over queries": (lambda s, b, h, q, k: s - s.max(axis=-2, keepdims=True), "reduce_max"),
    "summed up": (lambda s, b, h, q, k: jnp.cumsum(s, axis=-1), "cumsum"),
    "multiplied": (lambda s, b, h, q, k: s @ jnp.ones((COLUMNS, COLUMNS)), "dot_general"),
    "backwards": (lambda s, b, h, q, k: s[:, ::-1], "rev"),
    "shifted": (lambda s, b, h, q, k: jnp.roll(s, 1, axis=-1), "slice"),
    "looked up": (lambda s, b, h, q, k: jnp.arange(9.0)[s.astype(jnp.int32)], "gather"),
    "one head's": (lambda s, b, h, q, k: s[:1] + s, "slice"),
    "spread": (lambda s, b, h, q, k: s[None, :, :, :, None][0, :, :, :, 0] + s.reshape(-1)[0], "slice|gather"),
    "with another axis": (lambda s, b, h, q, k: s[:, None][:, 0] + s.reshape(-1).reshape(s.shape), "a change.*"),
    "sorted": (lambda s, b, h, q, k: jnp.sort(s, axis=-1), "sort"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_more_than_arithmetic_on_scores_is_refused(name):
    function, primitive = REFUSED[name]
    with pytest.raises(ConfigError, match=rf"the rule does more to a score than arithmetic .*\({primitive}\); allowed"):
        cut(function, score=True)


def test_transposed_scores_are_refused_where_no_shape_tells():
    with pytest.raises(ConfigError, match="transpose"):
        cut(lambda s, b, h, q, k: jnp.swapaxes(s, 1, 2), score=True, rows=4, columns=4, heads=4)
    with pytest.raises(ConfigError, match="transpose"):
        cut(lambda s, b, h, q, k: jnp.swapaxes(s, 0, 2), score=True, rows=4, columns=4, heads=4)


def test_scores_reduced_over_heads_are_refused_where_there_is_one():
    """With one head, such a sum has the shape of a tile."""
    with pytest.raises(ConfigError, match="reduce_sum"):
        cut(lambda s, b, h, q, k: s.sum(axis=0), score=True, heads=1)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda b, h, q, k: jnp.zeros((7, 5)), r"\[\[7, 5\]\]"),
        (lambda b, h, q, k: jnp.zeros(5), r"\[\[5\]\]"),
        (lambda b, h, q, k: jnp.zeros((3, 2, 5, 7)), r"\[\[3, 2, 5, 7\]\]"),
        (lambda b, h, q, k: (q, k), r"\[\[5, 1\], \[1, 7\]\]"),
    ],
)
def test_what_does_not_broadcast_is_refused(function, shape):
    with pytest.raises(ConfigError, match=rf"the rule returns arrays of shape {shape}; allowed: .* \[2, 5, 7\]"):
        cut(function)
