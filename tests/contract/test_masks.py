"""The mask protocol, over every registered mask."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.masks.base import EMPTY, FULL, PARTIAL, Mask, reach
from positionbias.tokens import sequential

AXIS = "masks"
EXAMPLES = {
    "sliding_window": ["sliding_window(width=1)", "sliding_window(width=3)"],
    "prefix": ["prefix(length=0)", "prefix(length=4)"],
    "dilated_window": ["dilated_window(width=2, dilation=3)"],
    "window_with_sinks": ["window_with_sinks(width=2, sinks=1)"],
    "power_of_two": ["power_of_two", "power_of_two(window=2, sinks=1, block=2)"],
    "modality_mutual": ["modality_mutual(modality=1, question=2)"],
    "condition_causal": ["condition_causal(condition=1)"],
    "neighborhood": ["neighborhood(width=3)", "neighborhood(width=2, dilation=3)", "neighborhood(width=64)"],
    "random_permutation_window": [
        "random_permutation_window(width=2)",
        "random_permutation_window(width=2, seed=7, circular=True)",
    ],
    "random_graph": ["random_graph(p=0.0)", "random_graph(p=0.3)", "random_graph(p=1.0, seed=3)"],
    "from_file": ["from_file(path=None, matrix='12x11:2c8f01e95ab37d604418fe92c3a5d70860')"],
    "block_causal": ["block_causal", "block_causal(group='segment')"],
    "block_causal_with_summary": ["block_causal_with_summary(summary=1)"],
    "scale_causal": ["scale_causal", "scale_causal(group='frame')"],
    "aligned_cross": ["aligned_cross", "aligned_cross(ratio=2)"],
    "by_rank": ["by_rank", "by_rank(strict=True)"],
    "switch": [
        "switch(first=causal, second=bidirectional)",
        "switch(first=~causal & segments, second=neighborhood(width=2), share=0.25)",
    ],
}


def made(length, seed):
    """Tokens with every field in play."""
    random = np.random.default_rng(seed)
    valid = random.random(length) < 0.8
    plain = set(sequential(length)._fields) - {"index", "position", "valid"}
    fields = {name: random.integers(0, 3, length).astype(np.int32) for name in sorted(plain)}
    return sequential(length, valid=valid, **fields)


QUERIES, KEYS = made(7, 0), made(11, 1)


def sides(mask):
    """Tokens for both sides: other queries than keys, unless the mask is for self-attention only."""
    try:
        copy.deepcopy(mask).bind(QUERIES, KEYS)
    except spec.ConfigError:
        return KEYS, KEYS
    return QUERIES, KEYS


def on_device(*tokens):
    return [jax.tree.map(jnp.asarray, t) for t in tokens]


def check_elementwise(mask):
    """One boolean per pair, the same under numpy, jax.numpy, in tiles, traced, and a pair at a time."""
    q, k = sides(mask)
    given, mask = mask, mask.bind(q, k)
    found = mask.allowed(q.rows(), k.columns())
    assert found.dtype == np.bool_, "allowed() must return booleans"
    assert found.shape == (q.length, 11), "allowed() must broadcast to [T, S]"
    device = on_device(q, k)
    traced = jax.jit(lambda q, k: given.bind(q, k).allowed(q.rows(), k.columns()))(*device)
    np.testing.assert_array_equal(traced, found, "a traced rule differs from numpy")
    tile = mask.allowed(q.cut(2, 5).rows(), k.cut(3, 9).columns())
    np.testing.assert_array_equal(tile, found[2:5, 3:9], "a tile differs from the same part of the whole")
    one = jax.jit(lambda q, k: jax.vmap(lambda qi: jax.vmap(lambda kj: mask.allowed(qi, kj))(k))(q))(*device)
    np.testing.assert_array_equal(one, found, "pairs taken one at a time differ from the whole")


def check_dense(mask):
    """`dense` is the rule with padding taken out last, under negation too, and over leading axes."""
    q, k = sides(mask)
    both = q.valid[:, None] & k.valid
    rule = mask.bind(q, k).allowed(q.rows(), k.columns())
    np.testing.assert_array_equal(mask.dense(q, k), rule & both)
    np.testing.assert_array_equal((~mask).dense(q, k), ~rule & both)

    def twice(tokens):
        """The tokens, and the same stored elsewhere and backwards."""
        elsewhere = tokens._replace(index=tokens.index + 3, frame=tokens.frame * 2)
        return type(tokens)(*(np.stack([f, g[::-1]]) for f, g in zip(tokens, elsewhere, strict=True)))

    stacked = [twice(q), twice(k)]
    found = mask.dense(*stacked)
    assert found.shape == (2, q.length, 11)
    for row in range(2):
        np.testing.assert_array_equal(found[row], mask.dense(*(type(t)(*(f[row] for f in t)) for t in stacked)))


def check_bind(mask):
    """What is bound is the same mask if it is bound again, and leaves the mask that it was made from as it was."""
    q, k = sides(mask)
    fresh = copy.deepcopy(mask)
    wanted = mask.dense(q, k)
    bound = mask.bind(q, k)
    np.testing.assert_array_equal(bound.bind(q, k).dense(q, k), wanted, "bound twice, it is another mask")
    np.testing.assert_array_equal(mask.dense(k, k), fresh.dense(k, k), "binding changed the mask")
    np.testing.assert_array_equal(jax.jit(mask.dense)(*on_device(q, k)), wanted, "traced, it binds to something else")


def check_blocks(mask):
    """`blocks` classifies tiles as the dense matrix does, ragged lengths included."""
    q, k = sides(mask)
    full = mask.dense(q, k)
    for rows, columns in [(1, 1), (2, 3), (3, 4), (7, 11), (8, 16)]:
        classes = [
            [FULL if t.all() else PARTIAL if t.any() else EMPTY for t in tiles]
            for tiles in (
                [full[i : i + rows, j : j + columns] for j in range(0, 11, columns)] for i in range(0, q.length, rows)
            )
        ]
        np.testing.assert_array_equal(mask.blocks(q, k, (rows, columns)), classes)


def attention(x, visible, weights):
    """A layer with a residual: softmax over what is visible, nothing where nothing is."""
    scores = (x @ weights[0]) @ (x @ weights[1]).T
    score = jnp.where(visible, scores, -jnp.inf)
    share = jnp.where(visible, jnp.exp(score - jnp.max(jnp.where(visible, scores, -1e9), axis=-1, keepdims=True)), 0)
    return x + share / jnp.maximum(share.sum(axis=-1, keepdims=True), 1e-9) @ (x @ weights[2])


def check_reach(mask):
    """What `reach` says of two layers is what gradients flow along: exactly none elsewhere, some wherever it says."""
    visible = np.asarray(mask.dense(KEYS, KEYS))
    size, width = visible.shape[0], 4
    x, *weights = jnp.split(0.3 * jax.random.normal(jax.random.key(0), (size + 6 * width, width)), [size])
    layers = weights[0].reshape(2, 3, width, width)
    model = jax.jit(jax.jacobian(lambda x: attention(attention(x, visible, layers[0]), visible, layers[1])))
    flow = np.abs(np.asarray(model(x))).max(axis=(1, 3))
    np.testing.assert_array_equal(flow > 0, reach([visible] * 2), "gradients flow otherwise than reach says")


CHECKS = [check_elementwise, check_dense, check_bind, check_blocks, check_reach]


@pytest.mark.parametrize("check", CHECKS)
def test_protocol(built, check):
    check(built)


def test_text_round_trips(built):
    assert spec.build("masks", spec.canonical(built), "mask") == built
    assert hash(built) == hash(spec.build("masks", spec.canonical(built), "mask"))
    mixed = ~(built & spec.build("masks", "causal", "mask")) | built
    assert spec.build("masks", spec.canonical(mixed), "mask") == mixed


def test_is_documented(built):
    assert type(built).__doc__.strip().splitlines()[0].endswith(".")


@dataclasses.dataclass(frozen=True)
class ReturnsNumbers(Mask):
    """Not boolean."""

    def allowed(self, q, k):
        return (k.index <= q.index) * 1.0


@dataclasses.dataclass(frozen=True)
class NeedsNumpy(Mask):
    """Cannot be traced."""

    def allowed(self, q, k):
        return np.less_equal(np.asarray(k.index), np.asarray(q.index))


@dataclasses.dataclass(frozen=True)
class CountsFromItsTile(Mask):
    """Reads array shapes where it should read indices."""

    def allowed(self, q, k):
        return np.arange(k.index.shape[-1])[None, :] <= np.arange(q.index.shape[-2])[:, None]


@dataclasses.dataclass(frozen=True)
class DoesNotBroadcast(Mask):
    """Forgets the keys."""

    def allowed(self, q, k):
        return q.index >= 0


@dataclasses.dataclass(frozen=True)
class PaddingFirst(Mask):
    """Takes padding out in its own rule, where a negation lets it in again."""

    def allowed(self, q, k):
        return (k.index <= q.index) & k.valid

    def dense(self, q, k):
        return self.allowed(q.rows(), k.columns())


@dataclasses.dataclass(frozen=True)
class GuessesBlocks(Mask):
    """Overrides `blocks` with a rule for square tiles only."""

    def allowed(self, q, k):
        return k.index <= q.index

    def blocks(self, q, k, block):
        rows, columns = -(-q.length // block[0]), -(-k.length // block[1])
        return np.tri(rows, columns) + np.tri(rows, columns, -1)


@dataclasses.dataclass(frozen=True)
class ReadsItsTile(Mask):
    """Counts from the first key it is given, in place of the first of the sequence it was bound to."""

    def allowed(self, q, k):
        return (k.index - k.index.min()) % 2 == q.index % 2


@dataclasses.dataclass(frozen=True)
class TableOfNumpy(Mask):
    """Looks numbers up in a way that cannot be traced."""

    table: np.ndarray = None

    def bind(self, q, k):
        return TableOfNumpy(np.arange(k.length) % 3)

    def allowed(self, q, k):
        return self.table[k.index] <= q.index


@dataclasses.dataclass(frozen=True)
class OneSequenceForAll(Mask):
    """Binds to the first token of the whole batch, not of each sequence."""

    first: int = 0

    def bind(self, q, k):
        return OneSequenceForAll(k.index.min())

    def allowed(self, q, k):
        return k.index - self.first <= q.role


@dataclasses.dataclass(frozen=True)
class WidensWhenBound(Mask):
    """Adds up what it binds to."""

    width: int = 0

    def bind(self, q, k):
        return WidensWhenBound(self.width + k.length // 4)

    def allowed(self, q, k):
        return (q.index - k.index < self.width) & (k.index - q.index < self.width)


@dataclasses.dataclass(frozen=True)
class KeepsWhatItSaw(Mask):
    """Remembers the first sequence it was bound to."""

    seen: list = dataclasses.field(default_factory=list)

    def bind(self, q, k):
        self.seen.append(q.length)
        return self

    def allowed(self, q, k):
        return (k.index < self.seen[0]) & (q.index >= 0)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (ReturnsNumbers, check_elementwise),
        (NeedsNumpy, check_elementwise),
        (CountsFromItsTile, check_elementwise),
        (DoesNotBroadcast, check_elementwise),
        (ReadsItsTile, check_elementwise),
        (TableOfNumpy, check_elementwise),
        (PaddingFirst, check_dense),
        (OneSequenceForAll, check_dense),
        (WidensWhenBound, check_bind),
        (KeepsWhatItSaw, check_bind),
        (GuessesBlocks, check_blocks),
    ],
)
def test_a_broken_mask_is_caught(broken, check):
    with pytest.raises((AssertionError, jax.errors.TracerArrayConversionError)):
        check(broken())


@pytest.mark.parametrize("spec_text", ["prefix"])
def test_a_member_without_an_example_fails_and_says_where_to_add_one(spec_text, request):
    with pytest.raises(pytest.fail.Exception, match=r"needs the argument 'length'.*EXAMPLES in .*test_masks\.py"):
        request.getfixturevalue("built")
