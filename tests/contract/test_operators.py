"""The operator protocol, over every registered operator: those that mix values and those that mix the stream."""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
from toys import Reads

from positionbias import spec
from positionbias.models.sites import Sites
from positionbias.operators.asked import Asked
from positionbias.operators.base import Pattern
from positionbias.positions.base import Dims, Placed
from positionbias.tokens import sequential

AXIS = "operators"
EXAMPLES = {
    "softmax": ["softmax", "softmax(scaled=False)"],
    "multimodal_softmax": ["multimodal_softmax(image=1)"],
    "lookahead": ["lookahead(most=1)", "lookahead(most=4, softness=0.1, price=0.5)"],
    "linear_scores": ["linear_scores", "linear_scores(scaled=True)"],
    "linear_attention": [f"linear_attention(feature={name!r})" for name in ("elu", "taylor", "exp", "identity")],
    "retention": ["retention", "retention(gated=False)"],
    "hla2": ["hla2", "hla2(norm='none', decay=0.9)", "hla2(norm='ratio')"],
    "lightnet": ["lightnet", "lightnet(lrpe=('position', 'frame'))"],
    "based": ["based", "based(features=2, window=0, convolution=0)", "based(features=2, window=2, convolution=0)"],
    "md_tpe": ["md_tpe", "md_tpe(axes=('role', 'segment'))"],
    "short_convolution": ["short_convolution", "short_convolution(width=2, gated=True)"],
    "titans": [
        "titans(chunk=3, window=2, persistent=2)",
        "titans(form='mal', chunk=3, window=2, persistent=0)",
        "titans(form='mac', memory='mlp', chunk=4, persistent=1)",
    ],
    "chunk_hybrid": ["chunk_hybrid", "chunk_hybrid(chunk=2)"],
    "orthogonal_memory": ["orthogonal_memory(slots=3, window=2)", "orthogonal_memory(slots=2, join='sum')"],
    "relu_attention": ["relu_attention", "relu_attention(count='length')"],
    "sigmoid_attention": ["sigmoid_attention", "sigmoid_attention(count='length', scaled=False)"],
    "softmax_plus_one": ["softmax_plus_one", "softmax_plus_one(learned=True)"],
    "power": ["power", "power(window=2, sinks=1, block=2)"],
    "neighborhood": ["neighborhood(width=3)", "neighborhood(width=2, dilation=2, causal=True)"],
    "stochastic": ["stochastic(width=2)", "stochastic(width=2, seed=1, circular=True)"],
    "combiner": [
        "combiner(span=2)",
        "combiner(span=2, pool='mean', causal=False)",
        "combiner(form='logsparse')",
        "combiner(form='axial', span=2)",
        "combiner(form='axial', span=4, causal=False)",
    ],
    "hyper_attention": [
        "hyper_attention",
        "hyper_attention(block=1, samples=2, exact=1)",
        "hyper_attention(causal=False, block=2, samples=2, exact=1)",
    ],
    "reversed": ["reversed", "reversed(selector=True, gate=True)"],
    "varied_window": ["varied_window(width=3)", "varied_window(width=6)"],
    "routing": [
        f"routing(region=2, {more})" for more in ("top=1", "top=2", "top=1, causal=False", "top=2, causal=False")
    ],
    "superlinear": ["superlinear", "superlinear(inside=1, top=1)", "superlinear(inside=1, back=1, front=0.5)"],
    "gated_stochastic": ["gated_stochastic(width=2)", "gated_stochastic(width=2, window=1)"],
}

BATCH, T, S, HEADS, SIZE, OUT = 2, 6, 8, 2, 4, 3
DRAWS = 16  # of arrays, until every visible value was seen
DIMS = Dims(width=HEADS * SIZE, heads=HEADS, head_size=SIZE, length=S, value_size=OUT)
NONE = spec.build("positions", "none", "position")
PATTERNS = set(typing.get_args(Pattern))


def drawn(seed, shape):
    """Standard normal, by NumPy: of programs so small, compiling is nearly all the time that a test takes."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def setting(operator, pattern, seed=0):
    """Arrays, tokens and a mask that fit operator and pattern: q, k, v of [B, T|S, N, H|K]."""
    columns = T if pattern.endswith("self") else S
    shapes = [(BATCH, T, HEADS, SIZE), (BATCH, columns, HEADS, SIZE), (BATCH, columns, HEADS, OUT)]
    arrays = [drawn(100 * seed + i, shape) for i, shape in enumerate(shapes)]
    text = "causal" if pattern.startswith("causal") else "bidirectional"
    if operator.any_mask:
        text = f"{text} & sliding_window(width=3)"
    tokens = [sequential(size, role=np.arange(size) % 2) for size in (T, columns)]
    return arrays, *tokens, spec.build("masks", text, "mask")


def streams(arrays, seed=0):
    """What queries and keys might have been made of."""
    return [drawn(100 * seed + 7 + i, (*x.shape[:2], HEADS * SIZE)).astype(x.dtype) for i, x in enumerate(arrays[:2])]


def run(operator, arrays, tokens_q, tokens_k, mask, position=NONE, site=None, given=None):
    params = made(operator, DIMS)
    params |= operator.projected(*(given or streams(arrays)), params)
    return operator(*arrays, tokens_q, tokens_k, mask, Placed(position), params, site or Sites())


def made(operator, dims):
    """Random parameters as the operator declares them."""
    declared = operator.parameters(dims).items()
    return {name: jnp.asarray(drawn(i, m.shape)) for i, (name, m) in enumerate(declared)}


def check_patterns(operator):
    """At least one pattern is declared, and none but the four."""
    assert operator.patterns
    assert operator.patterns <= PATTERNS


def check_shape(operator):
    """[B, T, N, K] in the precision of the values, for every declared pattern."""
    for pattern in operator.patterns:
        arrays, *rest = setting(operator, pattern)
        for dtype in (jnp.float32, jnp.bfloat16):
            given = [x.astype(dtype) for x in arrays]
            found = jax.eval_shape(lambda *x, rest=rest: run(operator, x, *rest), *given)
            assert found.shape == (BATCH, T, HEADS, OUT)
            assert found.dtype == dtype


def check_visible(operator):
    """`visible` lies within the mask, and out[i] depends on key and value j nowhere but where it says so.

    Nor on what made them: on its own row of the queries and their stream, on those of others that it sees if one
    sequence is both, and on what is visible of the keys' stream. On every value that is visible it does depend, in one
    draw of a few at least, as weights can be zero and keys be chosen.
    """
    for pattern in operator.patterns:
        _, tokens_q, tokens_k, mask = setting(operator, pattern)
        allowed = mask.dense(tokens_q, tokens_k)
        visible = np.asarray(operator.visible(tokens_q, tokens_k, allowed))
        traced = jax.jit(operator.visible)(tokens_q, tokens_k, allowed)
        np.testing.assert_array_equal(traced, visible, "visible is not written with array operators only")
        assert not (visible & ~allowed).any(), "an operator may not see past its mask"

        def sums(q, k, v, x, stream, rest=(tokens_q, tokens_k, mask)):
            # Fixed unequal weights, so that contributions cannot cancel.
            found = run(operator, (q, k, v), *rest, given=(x, stream))
            return jnp.einsum("BTNK,K->T", found, jnp.array([1.0, 0.7, -0.4]))

        own = np.eye(*visible.shape, dtype=bool) & pattern.endswith("self")
        rows = visible | own if pattern.endswith("self") else np.eye(T, dtype=bool)
        slopes = jax.jit(jax.jacrev(sums, argnums=(0, 1, 2, 3, 4)))
        reached = np.zeros_like(visible)
        for seed in range(DRAWS):
            q, k, v = (x[:1] for x in setting(operator, pattern, seed)[0])
            found = slopes(q, k, v, *streams((q, k), seed))
            # The gradient of a decay, which keys may be, is a sum whose terms cancel but for rounding.
            for gradient, inside, rounding in zip(
                found,
                (rows, visible, visible, np.eye(T, dtype=bool), visible | own),
                (0.0, 1e-6, 0.0, 0.0, 1e-6),
                strict=True,
            ):
                touched = np.abs(gradient).reshape(T, gradient.shape[2], -1).sum(axis=-1)
                assert (touched[~inside] <= rounding * touched.max()).all(), "a gradient leaks outside visible"
            reached |= np.abs(found[2]).sum(axis=(1, 3, 4)) > 0
            if reached[visible].all():
                break
        assert reached[visible].all(), "visible claims what cannot be seen"


def check_unseen(operator):
    """A row comes out as before whatever stands where it does not see: no choice or order of others tells of it."""
    for pattern in operator.patterns:
        _, tokens_q, tokens_k, mask = setting(operator, pattern)
        visible = np.asarray(operator.visible(tokens_q, tokens_k, mask.dense(tokens_q, tokens_k)))
        own = np.eye(T, dtype=bool)
        rows = (visible | own) if pattern.endswith("self") else own
        columns = (visible | own) if pattern.endswith("self") else visible

        def mixed(q, k, v, x, stream, rest=(tokens_q, tokens_k, mask)):
            return run(operator, (q, k, v), *rest, given=(x, stream))

        call = jax.jit(mixed)
        for seed in range(3):
            arrays, others = (setting(operator, pattern, draw)[0] for draw in (seed, 50 + seed))
            arrays, others = [*arrays, *streams(arrays, seed)], [*others, *streams(others, 50 + seed)]
            whole = call(*arrays)
            for row in range(T):
                kept = (rows[row], columns[row], columns[row], own[row], columns[row])
                changed = [
                    np.where(keep.reshape(-1, *[1] * (x.ndim - 2)), x, 5 * y)
                    for keep, x, y in zip(kept, arrays, others, strict=True)
                ]
                np.testing.assert_allclose(call(*changed)[:, row], whole[:, row], rtol=1e-5, atol=1e-5)


def check_empty_rows(operator):
    """A row that sees nothing gives zero, and neither it nor its gradient is ever NaN."""
    for pattern in operator.patterns:
        arrays, tokens_q, tokens_k, mask = setting(operator, pattern)
        valid = np.arange(T) != 2
        tokens_q = tokens_q._replace(valid=valid)
        if pattern.endswith("self"):
            tokens_k = tokens_q

        def both(*x, rest=(tokens_q, tokens_k, mask)):
            found, back = jax.vjp(lambda *y: run(operator, y, *rest), *x)
            return found, *back(jnp.ones_like(found))

        found, *gradients = map(np.asarray, jax.jit(both)(*arrays))
        assert (found[:, 2] == 0).all()
        for x in (found, *gradients):
            assert np.isfinite(x).all()
        assert (gradients[0][:, 2] == 0).all()


def check_batched_tokens(operator):
    """Tokens with a leading B serve each sequence with its own."""
    arrays, tokens_q, tokens_k, mask = setting(operator, "causal_self")
    if "causal_self" not in operator.patterns:
        return
    valid = np.ones((BATCH, T), bool)
    valid[1, 0] = False

    def called(arrays, given):
        both = run(operator, arrays, *(t._replace(valid=valid) for t in (tokens_q, tokens_k)), mask, given=given)
        alone = []
        for row in range(BATCH):
            own = [t._replace(valid=valid[row]) for t in (tokens_q, tokens_k)]
            mine = [x[row : row + 1] for x in given]
            alone.append(run(operator, [x[row : row + 1] for x in arrays], *own, mask, given=mine)[0])
        return both, jnp.stack(alone)

    both, alone = jax.jit(called)(arrays, streams(arrays))
    np.testing.assert_allclose(alone, both, rtol=1e-5, atol=1e-6)


def check_flags(operator):
    """An operator listens to rotations and biases exactly if it says so."""
    for pattern in operator.patterns:
        arrays, *rest = setting(operator, pattern)
        positions = [spec.build("positions", text, "position") for text in ("none", "rope", "alibi")]
        called = jax.jit(lambda x, rest=rest, of=positions: [run(operator, x, *rest, position=one) for one in of])
        plain, rope, alibi = called(arrays)
        for text, told, listens in (("rope", rope, operator.uses_rotation), ("alibi", alibi, operator.uses_bias)):
            assert (not np.array_equal(told, plain)) == listens, f"{text} is treated otherwise than the flag says"


def check_pattern(operator):
    """The pattern that is read is the one that mixes: zero where masked, and editable."""
    for pattern in operator.patterns:
        arrays, *rest = setting(operator, pattern)

        def called(x, rest=rest):
            kept = {}
            found = run(operator, x, *rest, site=Reads(lambda name, value: kept.setdefault(name, value)))
            silent = Reads(lambda name, value: value * 0 if name == "pattern" else value)
            return found, kept, run(operator, x, *rest, site=silent)

        found, kept, silent = jax.jit(called)(arrays)
        assert ("pattern" in kept) == operator.has_pattern
        if not operator.has_pattern:
            continue
        weights = np.asarray(kept["pattern"])
        assert weights.shape == (BATCH, HEADS, T, arrays[1].shape[1])
        assert (weights[:, :, ~rest[2].dense(*rest[:2])] == 0).all()
        np.testing.assert_allclose(np.einsum("BNTS,BSNK->BTNK", weights, arrays[2]), found, rtol=1e-5, atol=1e-5)
        assert (np.asarray(silent) == 0).all()


def check_state_size(operator):
    """A whole number that does not shrink with length, and of a state the numbers of what is carried on."""
    sizes = [operator.state_size(Dims(width=8, heads=2, head_size=4, length=n)) for n in (1, 16)]
    assert all(type(n) is int and n >= 0 for n in sizes)
    assert sizes[0] <= sizes[1]
    if operator.carries:
        rows = Rows(operator)
        state = jax.eval_shape(lambda: rows.advance(rows.drawn(0), rows.tokens(0), jnp.arange(LONG), None)[1])
        count = sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(state))
        assert count == operator.state_size(dataclasses.replace(DIMS, length=LONG - 1))


def check_read_once(operator):
    """It reads each row once, by its keys and values or by a state, or says why it cannot."""
    causal = "causal_self" in operator.patterns
    assert (operator.steps or operator.carries) == (operator.whole == "")
    assert causal or not operator.carries
    assert operator.whole == "" or operator.whole[0].islower()


def check_step(operator):
    """Some rows by `step` come out as they do among all, whatever stands at keys that they do not see."""
    if not operator.steps:
        return
    params = made(operator, DIMS)
    for pattern in operator.patterns:
        (q, k, v), tokens_q, tokens_k, mask = setting(operator, pattern)
        position = NONE if not operator.uses_rotation else spec.build("positions", "rope", "position")
        parts = slice(0, 1), slice(2, 4), slice(T - 1, T)

        def called(q, k, v, rest=(tokens_q, tokens_k, mask, position), parts=parts):
            tokens_q, tokens_k, mask, position = rest
            by_step = []
            for rows in parts:
                some = tokens_q.cut(rows.start, rows.stop)
                unseen = ~np.asarray(mask.dense(some, tokens_k)).any(axis=0)[:, None, None]
                k_left, v_left = (jnp.where(unseen, 7.0, x) for x in (k, v))
                told = some, tokens_k, mask.bind(tokens_q, tokens_k), Placed(position), params, Sites()
                by_step.append(operator.step(q[:, rows], k_left, v_left, *told))
            return run(operator, (q, k, v), tokens_q, tokens_k, mask, position), by_step

        whole, by_step = jax.jit(called)(q, k, v)
        for rows, found in zip(parts, by_step, strict=True):
            np.testing.assert_allclose(found, np.asarray(whole)[:, rows], rtol=1e-5, atol=1e-5)


LONG, CONTEXT = 23, 5  # rows of a sequence that is read by a state, and how many of them are the context
PACKED = (11, 1, 11), (11, 11, 1)  # how long the segments of each sequence are
SEGMENT = np.stack([np.repeat(np.arange(3), lengths) for lengths in PACKED])
VALID = (
    np.ones((BATCH, LONG), bool),
    np.arange(LONG) >= np.array([[0], [4]]),  # padded in front
    np.random.default_rng(3).random((BATCH, LONG)) > 0.25,
)


class Rows:
    """An operator on a sequence of LONG rows under a mask: on all at once, or on the next few by its state."""

    def __init__(self, operator, masks="causal"):
        self.operator, self.mask = operator, spec.build("masks", masks, "mask")
        self.position = Placed(spec.build("positions", "rope" if operator.uses_rotation else "none", "position"))
        drawn = made(operator, DIMS).items()
        self.params = {name: jnp.asarray(np.asarray(x) / 2) for name, x in drawn}  # or memories that learn run away
        self.whole = jax.jit(self.called)
        self.begin = jax.jit(lambda *given: self.advance(*given, None))
        self.go_on = jax.jit(self.advance)

    def drawn(self, seed, dtype=jnp.float32):
        """The stream, queries, keys and values."""
        draw = np.random.default_rng(seed)
        sizes = {"x": (HEADS * SIZE,), "q": (HEADS, SIZE), "k": (HEADS, SIZE), "v": (HEADS, OUT)}
        return {name: jnp.asarray(draw.normal(0, 0.5, (BATCH, LONG, *size)), dtype) for name, size in sizes.items()}

    def tokens(self, seed):
        """[B, S], with a context, frames and segments, and padding."""
        tokens = sequential(LONG, frame=np.arange(LONG) // 3).told_context(CONTEXT)
        tokens = jax.tree.map(lambda x: np.broadcast_to(x, (BATCH, LONG)), tokens)
        return tokens._replace(segment=SEGMENT, valid=VALID[seed % len(VALID)])

    def called(self, arrays, tokens, params=None):
        """All rows at once."""
        params = self.params if params is None else params
        x, q, k, v = (arrays[name] for name in "xqkv")
        if self.operator.reads == "stream":
            return self.operator.mix(x, tokens, self.mask, params, Sites())
        params = params | self.operator.projected(x, x, params)
        return self.operator(q, k, v, tokens, tokens, self.mask, self.position, params, Sites())

    def advance(self, arrays, tokens, rows, state):
        """The next rows, and the state behind them."""
        asked = Asked.of(jnp.broadcast_to(rows, (BATCH, len(rows))), tokens, self.mask)
        x, q, k, v = (jnp.take(arrays[name], rows, axis=1) for name in "xqkv")
        if self.operator.reads == "stream":
            return self.operator.advance_stream(x, asked, self.params, Sites(), state)
        params = self.params | self.operator.projected(x, x, self.params)
        return self.operator.advance(q, k, v, asked, self.position, params, Sites(), state)

    def check(self, seed, sizes):
        """So many rows after another come out as all at once; whether the draw can show it."""
        arrays, tokens = self.drawn(seed), self.tokens(seed)
        whole, found, state, start = np.asarray(self.whole(arrays, tokens)), [], None, 0
        if np.abs(whole).max() > 30:  # over a sum that is next to nothing
            return False
        for size in sizes:
            given = arrays, tokens, np.arange(start, start + size)
            some, state = self.begin(*given) if state is None else self.go_on(*given, state)
            found, start = [*found, some], start + size
        assert start == LONG
        np.testing.assert_allclose(np.concatenate(found, axis=1), whole, rtol=1e-5, atol=1e-5)
        return True


def check_state(operator):
    """Row after row by a state, or seven at a time, they come out as all at once: also where some are padding."""
    if not operator.carries:
        return
    first = CONTEXT if "context" in operator.reads_tokens else 1
    one, several = [first] + [1] * (LONG - first), [7, 7, 7, 1, 1]
    more = (
        {"causal & dilated_window(2, 2)"}
        if operator.any_mask
        else {"causal & segments"}
        if not operator.endless
        else ()
    )
    for masks, all_sizes in {"causal": (one, several), **dict.fromkeys(more, (several,))}.items():
        rows = Rows(operator, masks)
        for sizes in all_sizes:
            for padding in range(len(VALID)):
                draws = range(padding, 60, len(VALID))
                assert any(rows.check(seed, sizes) for seed in draws), "no draw shows anything"
    for dtype in (jnp.float32, jnp.bfloat16):
        given = rows.drawn(0, dtype), rows.tokens(0)
        some, state = jax.eval_shape(lambda given=given: rows.advance(*given, jnp.arange(7), None))
        again = jax.eval_shape(lambda state, given=given: rows.advance(*given, jnp.arange(7, 9), state), state)[1]
        assert some.dtype == dtype
        assert jax.tree.leaves(again) == jax.tree.leaves(state), "a state keeps its shapes and types"
        assert jax.tree.structure(again) == jax.tree.structure(state)


def check_segments(operator):
    """Segments packed into one sequence come out as each does alone, and so do gradients; or it says why not."""
    if not operator.carries:
        return
    packed, alone = Rows(operator, "causal & segments"), Rows(operator, "causal")
    tokens = packed.tokens(0)
    allowed = packed.mask.dense(tokens, tokens)
    visible = np.asarray(operator.visible(tokens, tokens, allowed))
    np.testing.assert_array_equal(jax.jit(operator.visible)(tokens, tokens, allowed), visible)
    if operator.endless:
        assert (visible & ~allowed).any(), "a mask of segments is not refused"
        assert operator.endless[0].islower()
        return
    assert not (visible & ~allowed).any(), "a segment sees another"
    assert operator.any_mask or (visible == allowed).all()

    def parts(rows, arrays, params, tokens, slopes):
        def weighed(arrays, params):
            found = rows.called(arrays, tokens, params)
            return jnp.sum(found * slopes), found

        return jax.grad(weighed, argnums=(0, 1), has_aux=True)(arrays, params)

    arrays = packed.drawn(0)
    slopes = np.cos(np.arange(BATCH * LONG)).reshape(BATCH, LONG, *[1] * (1 if operator.reads == "stream" else 2))
    gradients, found = jax.jit(functools.partial(parts, packed))(arrays, packed.params, tokens, slopes)
    arrays, gradients, found = jax.tree.map(np.asarray, (arrays, gradients, found))
    apart, of_params, rows = jax.jit(functools.partial(parts, alone)), [], np.arange(LONG)
    for i in range(BATCH):
        for segment in range(3):
            here = rows[SEGMENT[i] == segment]
            its = jax.tree.map(lambda x, i=i, here=here: x[i : i + 1, here], (arrays, tokens, slopes))
            given = its[0], alone.params, its[1]._replace(index=np.arange(len(here))[None]), its[2]
            (by_array, by_param), known = jax.tree.map(np.asarray, apart(*given))
            np.testing.assert_allclose(found[i, here], known[0], rtol=1e-5, atol=1e-5)
            for name, x in by_array.items():
                close(gradients[0][name][i, here], x[0], gradients[0][name])
            of_params.append(by_param)
    for name, x in gradients[1].items():
        close(x, sum(one[name] for one in of_params), x)


def close(found, known, whole):
    """A gradient, within what float32 leaves of the largest."""
    np.testing.assert_allclose(found, known, rtol=0, atol=1e-5 * max(1.0, np.abs(whole).max()))


CHECKS = [
    check_patterns,
    check_shape,
    check_visible,
    check_unseen,
    check_empty_rows,
    check_batched_tokens,
    check_flags,
    check_pattern,
    check_state_size,
    check_step,
    check_read_once,
    check_state,
    check_segments,
]


def check_stream(operator):
    """An operator that reads the stream: one sequence with itself, no position scheme, gradients as `visible` says."""
    assert operator.patterns
    assert operator.patterns <= {"causal_self", "noncausal_self"}, "the stream mixes with itself only"
    assert not any([operator.uses_rotation, operator.uses_bias, operator.has_pattern]), "there are no scores"
    params = made(operator, Dims(width=SIZE, heads=HEADS, head_size=SIZE, length=T))
    x = jax.random.normal(jax.random.key(5), (BATCH, T, SIZE))
    segment = np.array([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
    causal, free = (
        ("causal & segments", "segments & ~sliding_window(1)") if operator.any_mask else ("causal", "bidirectional")
    )
    for text in [causal] * ("causal_self" in operator.patterns) + [free] * ("noncausal_self" in operator.patterns):
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
    return (
        CHECKS
        if operator.reads == "qkv"
        else [check_stream, check_state_size, check_read_once, check_state, check_segments]
    )


def test_protocol(built):
    for check in checks_of(built):
        check(built)


def test_text_round_trips(built):
    assert spec.build("operators", spec.canonical(built), "operator") == built
    assert hash(built) is not None


def test_is_documented(built):
    assert type(built).__doc__.strip().splitlines()[0].endswith(".")
