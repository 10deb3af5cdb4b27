"""The operator protocol, over every registered operator: those that mix values and those that mix the stream."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import Reads, ShortConvolution

from positionbias import spec
from positionbias.models.sites import Sites
from positionbias.operators.base import Operator, Pattern
from positionbias.operators.softmax import Softmax
from positionbias.positions.base import Dims, Placed
from positionbias.tokens import sequential

AXIS = "operators"
EXAMPLES = {
    "softmax": ["softmax", "softmax(scaled=False)"],
    "multimodal_softmax": ["multimodal_softmax(image=1)"],
    "lookahead": ["lookahead(most=1)", "lookahead(most=4, softness=0.1, price=0.5)"],
    "linear_scores": ["linear_scores", "linear_scores(scaled=True)"],
}

BATCH, T, S, HEADS, SIZE, OUT = 2, 6, 8, 2, 4, 3
DIMS = Dims(width=HEADS * SIZE, heads=HEADS, head_size=SIZE, length=S)
NONE = spec.build("positions", "none", "position")
PATTERNS = set(typing.get_args(Pattern))


def setting(operator, pattern):
    """Arrays, tokens and a mask that fit operator and pattern: q, k, v of [B, T|S, N, H|K]."""
    columns = T if pattern.endswith("self") else S
    shapes = [(BATCH, T, HEADS, SIZE), (BATCH, columns, HEADS, SIZE), (BATCH, columns, HEADS, OUT)]
    arrays = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    text = "causal" if pattern.startswith("causal") else "bidirectional"
    if operator.any_mask:
        text = f"{text} & sliding_window(width=3)"
    tokens = [sequential(size, role=np.arange(size) % 2) for size in (T, columns)]
    return arrays, *tokens, spec.build("masks", text, "mask")


def streams(arrays):
    """What queries and keys might have been made of."""
    return [
        jax.random.normal(jax.random.key(7 + i), (*x.shape[:2], HEADS * SIZE), x.dtype)
        for i, x in enumerate(arrays[:2])
    ]


def run(operator, arrays, tokens_q, tokens_k, mask, position=NONE, site=None, given=None):
    params = made(operator, DIMS)
    params |= operator.projected(*(given or streams(arrays)), params)
    return operator(*arrays, tokens_q, tokens_k, mask, Placed(position), params, site or Sites())


def made(operator, dims):
    """Random parameters as the operator declares them."""
    declared = operator.parameters(dims).items()
    return {name: jax.random.normal(jax.random.key(i), m.shape) for i, (name, m) in enumerate(declared)}


def check_patterns(operator):
    """At least one pattern is declared, and none but the four."""
    assert operator.patterns
    assert operator.patterns <= PATTERNS


def check_shape(operator):
    """[B, T, N, K] in the precision of the values, for every declared pattern."""
    for pattern in operator.patterns:
        arrays, *rest = setting(operator, pattern)
        for dtype in (jnp.float32, jnp.bfloat16):
            found = run(operator, [x.astype(dtype) for x in arrays], *rest)
            assert found.shape == (BATCH, T, HEADS, OUT)
            assert found.dtype == dtype


def check_visible(operator):
    """`visible` lies within the mask, and out[i] depends on key and value j exactly where it says so.

    On the streams it depends nowhere else: on its own row of the queries', and on what is visible of the keys'.
    """
    for pattern in operator.patterns:
        arrays, tokens_q, tokens_k, mask = setting(operator, pattern)
        allowed = mask.dense(tokens_q, tokens_k)
        visible = np.asarray(operator.visible(tokens_q, tokens_k, allowed))
        traced = jax.jit(operator.visible)(tokens_q, tokens_k, allowed)
        np.testing.assert_array_equal(traced, visible, "visible is not written with array operators only")
        assert not (visible & ~allowed).any(), "an operator may not see past its mask"
        q, k, v = (x[:1] for x in arrays)

        def sums(k, v, x, stream, q=q, rest=(tokens_q, tokens_k, mask)):
            # Fixed unequal weights, so that contributions cannot cancel.
            found = run(operator, (q, k, v), *rest, given=(x, stream))
            return jnp.einsum("BTNK,K->T", found, jnp.array([1.0, 0.7, -0.4]))

        by_key, by_value, by_x, by_stream = jax.jacrev(sums, argnums=(0, 1, 2, 3))(k, v, *streams((q, k)))
        seen_or_own = visible | (np.eye(*visible.shape, dtype=bool) & pattern.endswith("self"))
        for gradient, inside in (
            (by_key, visible),
            (by_value, visible),
            (by_x, np.eye(T, dtype=bool)),
            (by_stream, seen_or_own),
        ):
            touched = np.abs(gradient).reshape(T, gradient.shape[2], -1).sum(axis=-1)
            assert (touched[~inside] == 0).all(), "a gradient leaks outside visible"
        assert (np.abs(by_value).sum(axis=(1, 3, 4))[visible] > 0).all(), "visible claims what cannot be seen"


def check_empty_rows(operator):
    """A row that sees nothing gives zero, and neither it nor its gradient is ever NaN."""
    for pattern in operator.patterns:
        arrays, tokens_q, tokens_k, mask = setting(operator, pattern)
        valid = np.arange(T) != 2
        tokens_q = tokens_q._replace(valid=valid)
        if pattern.endswith("self"):
            tokens_k = tokens_q
        found, back = jax.vjp(lambda *x, rest=(tokens_q, tokens_k, mask): run(operator, x, *rest), *arrays)
        assert (np.asarray(found)[:, 2] == 0).all()
        for x in (found, *back(jnp.ones_like(found))):
            assert np.isfinite(x).all()
        assert (np.asarray(back(jnp.ones_like(found))[0])[:, 2] == 0).all()


def check_batched_tokens(operator):
    """Tokens with a leading B serve each sequence with its own."""
    arrays, tokens_q, tokens_k, mask = setting(operator, "causal_self")
    if "causal_self" not in operator.patterns:
        return
    valid = np.ones((BATCH, T), bool)
    valid[1, 0] = False
    both = run(operator, arrays, *(t._replace(valid=valid) for t in (tokens_q, tokens_k)), mask)
    for row in range(BATCH):
        own = [t._replace(valid=valid[row]) for t in (tokens_q, tokens_k)]
        alone = run(operator, [x[row : row + 1] for x in arrays], *own, mask)
        np.testing.assert_allclose(alone[0], both[row], rtol=1e-5, atol=1e-6)


def check_flags(operator):
    """An operator listens to rotations and biases exactly if it says so."""
    for pattern in operator.patterns:
        arrays, *rest = setting(operator, pattern)
        plain = run(operator, arrays, *rest)
        for text, listens in (("rope", operator.uses_rotation), ("alibi", operator.uses_bias)):
            told = run(operator, arrays, *rest, position=spec.build("positions", text, "position"))
            assert (not np.array_equal(told, plain)) == listens, f"{text} is treated otherwise than the flag says"


def check_pattern(operator):
    """The pattern that is read is the one that mixes: zero where masked, and editable."""
    for pattern in operator.patterns:
        arrays, *rest = setting(operator, pattern)
        kept = {}
        found = run(operator, arrays, *rest, site=Reads(lambda name, value, kept=kept: kept.setdefault(name, value)))
        assert ("pattern" in kept) == operator.has_pattern
        if not operator.has_pattern:
            continue
        weights = np.asarray(kept["pattern"])
        assert weights.shape == (BATCH, HEADS, T, arrays[1].shape[1])
        assert (weights[:, :, ~rest[2].dense(*rest[:2])] == 0).all()
        np.testing.assert_allclose(np.einsum("BNTS,BSNK->BTNK", weights, arrays[2]), found, rtol=1e-5, atol=1e-5)
        silent = run(operator, arrays, *rest, site=Reads(lambda name, x: x * 0 if name == "pattern" else x))
        assert (np.asarray(silent) == 0).all()


def check_state_size(operator):
    """A whole number that does not shrink with length."""
    sizes = [operator.state_size(Dims(width=8, heads=2, head_size=4, length=n)) for n in (1, 16)]
    assert all(type(n) is int and n >= 0 for n in sizes)
    assert sizes[0] <= sizes[1]


def check_step(operator):
    """Some rows by `step` come out as they do among all, whatever stands at keys that they do not see."""
    if not operator.steps:
        return
    params = made(operator, DIMS)
    for pattern in operator.patterns:
        (q, k, v), tokens_q, tokens_k, mask = setting(operator, pattern)
        position = NONE if not operator.uses_rotation else spec.build("positions", "rope", "position")
        whole = run(operator, (q, k, v), tokens_q, tokens_k, mask, position)
        for rows in (slice(0, 1), slice(2, 4), slice(T - 1, T)):
            some = tokens_q.cut(rows.start, rows.stop)
            unseen = ~np.asarray(mask.dense(some, tokens_k)).any(axis=0)[:, None, None]
            k_left, v_left = (jnp.where(unseen, 7.0, x) for x in (k, v))
            told = some, tokens_k, mask.bind(tokens_q, tokens_k), Placed(position), params, Sites()
            found = operator.step(q[:, rows], k_left, v_left, *told)
            np.testing.assert_allclose(found, whole[:, rows], rtol=1e-5, atol=1e-5)


CHECKS = [
    check_patterns,
    check_shape,
    check_visible,
    check_empty_rows,
    check_batched_tokens,
    check_flags,
    check_pattern,
    check_state_size,
    check_step,
]


def check_stream(operator):
    """An operator that reads the stream: one sequence with itself, no position scheme, gradients as `visible` says."""
    assert operator.patterns
    assert operator.patterns <= {"causal_self", "noncausal_self"}, "the stream mixes with itself only"
    assert not any([operator.uses_rotation, operator.uses_bias, operator.has_pattern]), "there are no scores"
    params = made(operator, Dims(width=SIZE, heads=HEADS, head_size=SIZE, length=T))
    x = jax.random.normal(jax.random.key(5), (BATCH, T, SIZE))
    segment = np.array([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
    for text in ["causal & segments"] * ("causal_self" in operator.patterns) + ["segments & ~sliding_window(1)"] * (
        "noncausal_self" in operator.patterns
    ):
        mask = spec.build("masks", text, "mask")
        for dtype in (jnp.float32, jnp.bfloat16):
            found = operator.mix(x.astype(dtype), sequential(T), mask, params, Sites())
            assert found.shape == x.shape
            assert found.dtype == dtype
        tokens = jax.tree.map(lambda f: np.broadcast_to(f, (BATCH, T)), sequential(T))._replace(segment=segment)
        slopes = jax.jacrev(lambda y, t=tokens, m=mask: operator.mix(y, t, m, params, Sites()).sum(axis=-1))(x)
        touched = np.abs(np.einsum("btbsd->btsd", slopes)).sum(axis=-1) > 0
        allowed = mask.dense(tokens, tokens)
        visible = np.asarray(operator.visible(tokens, tokens, allowed))
        assert not (visible & ~allowed).any(), "an operator may not see past its mask"
        np.testing.assert_array_equal(touched, visible)


def checks_of(operator):
    """The checks an operator is held to."""
    return CHECKS if operator.reads == "qkv" else [check_stream, check_state_size]


def test_protocol(built):
    for check in checks_of(built):
        check(built)


def test_text_round_trips(built):
    assert spec.build("operators", spec.canonical(built), "operator") == built
    assert hash(built) is not None


def test_is_documented(built):
    assert type(built).__doc__.strip().splitlines()[0].endswith(".")


class Average(Operator):
    """The mean of the values a row may see: right, and the base of the broken ones."""

    patterns = frozenset({"causal_self"})
    uses_rotation = False
    uses_bias = False

    def __call__(self, q, k, v, tokens_q, tokens_k, mask, position, params, site):
        weights = jnp.asarray(mask.dense(tokens_q, tokens_k), v.dtype)
        total = jnp.maximum(weights.sum(axis=-1, keepdims=True), 1)
        return jnp.einsum("...TS,BSNK->BTNK" if weights.ndim == 2 else "BTS,BSNK->BTNK", weights / total, v)

    def state_size(self, dims):
        return dims.heads * dims.head_size


@pytest.mark.parametrize("operator", [Average(), ShortConvolution()], ids=["values", "stream"])
def test_a_right_operator_passes(operator):
    for check in checks_of(operator):
        check(operator)


class IgnoresTheMask(Average):
    """Averages everything."""

    def __call__(self, q, k, v, tokens_q, *rest):
        return jnp.broadcast_to(v.mean(axis=1, keepdims=True), (*q.shape[:3], v.shape[-1]))


class DividesByZero(Average):
    """NaN where nothing is seen."""

    def __call__(self, q, k, v, tokens_q, tokens_k, mask, *rest):
        weights = jnp.asarray(mask.dense(tokens_q, tokens_k), v.dtype)
        return jnp.einsum("TS,BSNK->BTNK", weights / weights.sum(axis=-1, keepdims=True), v)


class ClaimsMore(Average):
    """Says it sees its whole mask, and reads the diagonal."""

    def __call__(self, q, k, v, *rest):
        return v


class ClaimsTooLittle(Average):
    """Sees more than it says."""

    def visible(self, tokens_q, tokens_k, allowed):
        return allowed & np.eye(*allowed.shape, dtype=bool)


class ClaimsPastTheMask(Average):
    """Says it sees everything."""

    def visible(self, tokens_q, tokens_k, allowed):
        return allowed | True


class TracesNothing(Average):
    """A visible that only numpy can compute."""

    def visible(self, tokens_q, tokens_k, allowed):
        return np.asarray(allowed)


class ConvolvesThroughTheMask(ShortConvolution):
    """A convolution that knows no segments."""

    def mix(self, x, tokens, mask, params, site):
        return x * params["kernel"][0].astype(x.dtype) + jnp.roll(x, 1, axis=1) * params["kernel"][1].astype(x.dtype)


class ConvolvesScores(ShortConvolution):
    """Reads the stream and claims to hear rotations."""

    uses_rotation = True


class PromisesAPattern(Average):
    """Never shows the pattern it declares."""

    has_pattern = True


class PromisesABias(Average):
    """Declares that it listens to biases."""

    uses_bias = True


class NoPatterns(Average):
    """Serves nothing."""

    patterns = frozenset()


class StepsFromTheFront(Softmax):
    """Takes the rows of a step for the first ones."""

    def step(self, q, k, v, tokens_q, tokens_k, *more):
        return self(q, k, v, tokens_k.cut(0, tokens_q.length), tokens_k, *more)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (StepsFromTheFront, check_step),
        (IgnoresTheMask, check_visible),
        (ClaimsMore, check_visible),
        (ClaimsTooLittle, check_visible),
        (ClaimsPastTheMask, check_visible),
        (TracesNothing, check_visible),
        (ConvolvesThroughTheMask, check_stream),
        (ConvolvesScores, check_stream),
        (DividesByZero, check_empty_rows),
        (PromisesAPattern, check_pattern),
        (PromisesABias, check_flags),
        (NoPatterns, check_patterns),
    ],
)
def test_a_broken_operator_is_caught(broken, check):
    with pytest.raises((AssertionError, jax.errors.TracerArrayConversionError)):
        check(broken())
