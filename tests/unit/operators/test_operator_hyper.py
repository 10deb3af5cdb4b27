"""HyperAttention: its limits, blocks and samples by loops, an estimate that is right on average, and no look ahead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.models.sites import Sites
from positionbias.operators.hyper_attention import HyperAttention, _portion
from positionbias.operators.softmax import Softmax
from positionbias.positions.base import Placed
from positionbias.spec import ConfigError
from positionbias.tokens import sequential

N, H = 2, 4
NONE, ROPE = (Placed(spec.build("positions", name, "test")) for name in ("none", "rope"))


def arrays(length, dtype=jnp.float32, seed=0):
    return tuple(jax.random.normal(jax.random.key(seed + i), (2, length, N, H), dtype) for i in range(3))


def run(operator, given, mask, position=NONE):
    tokens = sequential(given[0].shape[1])
    return operator(*given, tokens, tokens, spec.build("masks", mask, "test"), position, {}, Sites())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("mask", "operator"),
    [
        ("causal", HyperAttention(block=1, exact=13)),
        ("causal", HyperAttention(block=7, exact=1, samples=0)),
        ("bidirectional", HyperAttention(causal=False, block=13, exact=1, samples=0)),
        ("bidirectional", HyperAttention(causal=False, block=1, exact=13)),
    ],
)
def test_one_block_or_a_short_sequence_is_softmax(mask, operator, dtype):
    def slopes(operator):
        def total(given):
            found = run(operator, given, mask, ROPE)
            return jnp.sum(jnp.sin(found.astype(jnp.float32))), found

        return jax.tree.leaves(jax.jit(jax.value_and_grad(total, has_aux=True))(arrays(13, dtype)))

    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == jnp.float32 else {"rtol": 4e-2, "atol": 4e-2}
    for one, other in zip(slopes(operator), slopes(Softmax()), strict=True):
        np.testing.assert_allclose(one.astype(jnp.float32), other.astype(jnp.float32), **tolerance)


def times_by_hand(operator, q, k, start):
    """m_ij of one example and head's hashes, one pair at a time."""
    rows, columns = len(q), len(k)
    order = sorted(range(columns), key=lambda j: (k[j], j))
    place = sorted(range(rows), key=lambda i: (q[i], i))
    drawn = operator._drawn(N, columns, start)
    assert (drawn.sum(axis=1) == operator.samples).all()
    found = np.zeros((N, rows, columns))
    for n, i, j in np.ndindex(found.shape):
        block = order.index(j) // operator.block
        if operator.causal:
            mine = min(sum(k < q[i]), columns - 1) // operator.block
        else:
            mine = place.index(i) * -(-columns // operator.block) // rows
        found[n, i, j] = 1 if block == mine else drawn[n, j] * columns / operator.samples
    return found


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rows", [11, 4, 17])
def test_blocks_and_samples_are_those_of_the_definition(rows, causal):
    operator = HyperAttention(causal, block=3, samples=4, exact=1)
    q, k = (np.random.default_rng(i).integers(0, 6, size) for i, size in enumerate((rows, 11)))
    told = [jnp.broadcast_to(jnp.asarray(x), (1, N, len(x))) for x in (q, k)]
    np.testing.assert_allclose(operator._times(*told, 5)[0], times_by_hand(operator, q, k, 5), rtol=1e-6)


def test_the_later_half_looks_back_and_both_go_on():
    operator = HyperAttention(block=1, samples=2, exact=2)
    q, k = (jnp.asarray(np.random.default_rng(i).integers(0, 6, (1, N, 8))) for i in (0, 1))
    found = operator._halved(q, k, 0)
    for at in (0, 2, 4, 6):
        np.testing.assert_array_equal(found[..., at : at + 2, at : at + 2], 1)
    np.testing.assert_array_equal(found[..., 4:, :4], operator._times(q[..., 4:], k[..., :4], 0))
    np.testing.assert_array_equal(found[..., 6:, 4:6], operator._times(q[..., 6:], k[..., 4:6], 4))
    np.testing.assert_array_equal(found[..., :4, 4:], 0)


def test_queries_find_their_block_where_rows_times_blocks_are_beyond_32_bits():
    """Blocks of one key: the query whose hash is the i-th takes the value of the key whose hash is the i-th."""
    length = 46_400
    operator = HyperAttention(False, block=1, samples=0, exact=1, projections=16)
    given = [jax.random.normal(jax.random.key(i), (1, length, 1, 8)) for i in range(3)]
    found = run(operator, given, "bidirectional")[0, :, 0]
    places = [np.argsort(operator._hash(x)[0, 0], kind="stable") for x in given[:2]]
    np.testing.assert_allclose(found[places[0]], given[2][0, places[1], 0], rtol=1e-6)


@pytest.mark.parametrize(("count", "size"), [(3, 7), (46_341, 99_991), (1 << 20, (1 << 21) - 1), (70_000, 65_536)])
def test_portions_are_whole_numbers_rounded_down(count, size):
    place = np.concatenate([np.arange(min(size, 100_000)), [size - 1]])
    found = _portion(jnp.asarray(place, jnp.int32), jnp.asarray([count]), jnp.asarray([size]))
    np.testing.assert_array_equal(found, place.astype(np.int64) * count // size)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [(3, 0), (0, 5), (2, 6)])
def test_padding_changes_no_block(padded, causal):
    """With keys behind that are padding, queries go where they go without; they never see a block of nothing else."""
    operator = HyperAttention(causal, block=2, samples=0, exact=1)
    sides = [np.random.default_rng(i).integers(0, 128, (1, N, size)) for i, size in enumerate((5, 8))]
    known = operator._times(*map(jnp.asarray, sides), 0)
    more = [
        np.pad(x, [(0, 0), (0, 0), (0, count)], constant_values=128) for x, count in zip(sides, padded, strict=True)
    ]
    found = operator._times(*map(jnp.asarray, more), 0)
    np.testing.assert_array_equal(found[..., :5, :8], known)
    assert (known.sum(axis=-1) == 2).all()


def test_samples_stand_for_the_others_on_average():
    """Over many seeds the sum of exp(score) comes near that over all keys."""
    k = jnp.broadcast_to(jnp.arange(12), (1, N, 12))
    times = [HyperAttention(False, block=3, samples=4, exact=1, seed=i)._times(k, k, 0) for i in range(600)]
    np.testing.assert_allclose(np.mean(times, axis=0), 1, atol=0.3)


def test_the_hash_is_a_gray_code_of_signs():
    operator = HyperAttention(projections=3)
    directions = np.asarray(jax.random.normal(jax.random.key(0), (H, 3)))
    x = arrays(50)[0]
    signs = (np.einsum("BTNH,HP->BNTP", x, directions) > 0).astype(int)
    gray = [i ^ (i >> 1) for i in range(8)]
    want = np.vectorize(gray.index)(signs @ [4, 2, 1])
    np.testing.assert_array_equal(operator._hash(x), want)


def test_what_comes_later_changes_no_row():
    given = arrays(16)
    changed = tuple(x.at[:, 9:].set(3 * y[:, 9:]) for x, y in zip(given, arrays(16, seed=9), strict=True))
    operator = HyperAttention(block=2, samples=2, exact=2)
    one, other = (run(operator, x, "causal", ROPE) for x in (given, changed))
    np.testing.assert_array_equal(one[:, :9], other[:, :9])
    assert np.abs(one[:, 9:] - other[:, 9:]).max() > 0.1


def test_nor_does_it_where_traced_indices_are_equal_and_not_the_same_array():
    operator, (q, k, v) = HyperAttention(block=2, samples=2, exact=2), arrays(300)  # of so many, pairs are gathered

    def mixed(v, index):
        twice = [sequential(300)._replace(index=one) for one in (index, index + 0)]
        return operator(q, k, v, *twice, spec.build("masks", "causal", "test"), NONE, {}, Sites())

    index = jnp.arange(300)
    changed = jax.jit(mixed)(v.at[:, 200:].add(1.0), index) - jax.jit(mixed)(v, index)
    assert not np.any(changed[:, :200])
    assert np.any(changed[:, 200:])


def test_the_form_says_which_pattern_it_serves():
    assert HyperAttention().patterns == {"causal_self", "noncausal_cross"}
    assert HyperAttention(causal=False).patterns == {"noncausal_self", "noncausal_cross"}


@pytest.mark.parametrize("told", ["block=0", "samples=-1", "projections=31"])
def test_bad_arguments(told):
    with pytest.raises(ConfigError, match="is not allowed; allowed: a"):
        spec.build("operators", f"hyper_attention({told})", "operator")
