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
    "linear_attention": [
        f"linear_attention(feature={name!r})" for name in ("elu", "relu", "taylor", "exp", "identity")
    ],
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
        "titans(memory='mlp', chunk=2, window=3, persistent=1)",
        "titans(form='mal', memory='mlp', chunk=3, window=2, persistent=1)",
        "titans(form='mac', chunk=2, persistent=2)",
    ],
    "chunk_hybrid": ["chunk_hybrid", "chunk_hybrid(chunk=2)"],
    "orthogonal_memory": [
        "orthogonal_memory(slots=3, window=2)",
        "orthogonal_memory(slots=2, join='sum')",
        "orthogonal_memory(slots=2, window=0)",
    ],
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
EACH = T + 1  # sequences of the program that most checks share
STEPS = slice(0, 1), slice(2, 4), slice(T - 1, T)
DRAWS = 40  # of arrays, until every visible value was seen
DIMS = Dims(width=HEADS * SIZE, heads=HEADS, head_size=SIZE, length=S, value_size=OUT)
NONE = spec.build("positions", "none", "position")
PATTERNS = set(typing.get_args(Pattern))


def drawn(seed, shape):
    """Standard normal, by NumPy: of programs so small, compiling is nearly all the time that a test takes."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def setting(operator, pattern, seed=0, batch=BATCH):
    """Arrays, tokens and a mask that fit operator and pattern: q, k, v of [B, T|S, N, H|K]."""
    columns = T if pattern.endswith("self") else S
    shapes = [(batch, T, HEADS, SIZE), (batch, columns, HEADS, SIZE), (batch, columns, HEADS, OUT)]
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


@functools.lru_cache(maxsize=8)
def mixing(operator, pattern):
    """What most checks ask, in one program: q, k, v, streams, slopes and rows' padding -> mixed, gradients, visible.

    So that one serves them all, it is of `EACH` sequences: one a row, and one that stays as it was drawn.
    """
    _, tokens_q, tokens_k, mask = setting(operator, pattern)

    def padded(tokens_q, tokens_k, valid):
        tokens_q = tokens_q._replace(valid=valid)
        return tokens_q, tokens_q if pattern.endswith("self") else tokens_k

    def both(arrays, slopes, valid, traced_q, traced_k):
        own = padded(tokens_q, tokens_k, valid)
        found, back = jax.vjp(lambda *y: run(operator, y[:3], *own, mask, given=y[3:]), *arrays)
        traced = padded(traced_q, traced_k, valid)
        return found, back(slopes), operator.visible(*traced, mask.dense(*traced))

    program = jax.jit(both)

    def called(arrays, slopes=None, valid=None):
        slopes = np.ones((EACH, T, HEADS, OUT), np.float32) if slopes is None else slopes
        valid = np.ones(T, bool) if valid is None else valid
        return jax.tree.map(np.asarray, program(tuple(arrays), slopes, valid, tokens_q, tokens_k))

    return called


@functools.lru_cache(maxsize=8)
def placed(operator, pattern):
    """What comes out without positions, with rotations, and with biases; and some rows by `step`, if it has one."""
    (q, k, v), tokens_q, tokens_k, mask = setting(operator, pattern)
    positions = {text: spec.build("positions", text, "position") for text in ("none", "rope", "alibi")}
    position = Placed(positions["rope" if operator.uses_rotation else "none"])
    params = made(operator, DIMS)

    def called(q, k, v):
        whole = {text: run(operator, (q, k, v), tokens_q, tokens_k, mask, one) for text, one in positions.items()}
        by_step = []
        for rows in STEPS if operator.steps else ():
            some = tokens_q.cut(rows.start, rows.stop)
            unseen = ~np.asarray(mask.dense(some, tokens_k)).any(axis=0)[:, None, None]
            k_left, v_left = (jnp.where(unseen, 7.0, x) for x in (k, v))
            told = some, tokens_k, mask.bind(tokens_q, tokens_k), position, params, Sites()
            by_step.append(operator.step(q[:, rows], k_left, v_left, *told))
        return whole, by_step

    return jax.tree.map(np.asarray, jax.jit(called)(q, k, v))


def covering(operator):
    """Patterns that have all that its patterns are made of, self or cross under a causal mask or another.

    A call is told no pattern, only tokens and a mask, so that what holds of each of the two holds of both.
    """
    found, parts = [], set()
    for pattern in ("causal_self", "noncausal_cross", "noncausal_self", "causal_cross"):
        if pattern in operator.patterns and not parts.issuperset(pattern.split("_")):
            found.append(pattern)
            parts.update(pattern.split("_"))
    return found


def check_patterns(operator):
    """At least one pattern is declared, and none but the four."""
    assert operator.patterns
    assert operator.patterns <= PATTERNS


def check_shape(operator):
    """[B, T, N, K] in the precision of the values, for every declared pattern."""
    for pattern in covering(operator):
        arrays, *rest = setting(operator, pattern)
        halves = [x.astype(jnp.bfloat16) for x in arrays]
        half = jax.eval_shape(lambda *x, rest=rest: run(operator, x, *rest), *halves)
        for found, dtype in ((half, jnp.bfloat16), (placed(operator, pattern)[0]["none"], jnp.float32)):
            assert found.shape == (BATCH, T, HEADS, OUT)
            assert found.dtype == dtype


def check_visible(operator):
    """`visible` lies within the mask, and out[i] depends on key and value j nowhere but where it says so.

    Nor on what made them: on its own row of the queries and their stream, on those of others that it sees if one
    sequence is both or if it says so, and on what is visible of the keys' stream. On every value that is visible it
    does depend, in one draw of a few at least, as weights can be zero and keys be chosen.
    """
    for pattern in operator.patterns:
        _, tokens_q, tokens_k, mask = setting(operator, pattern)
        allowed = mask.dense(tokens_q, tokens_k)
        visible = np.asarray(operator.visible(tokens_q, tokens_k, allowed))
        assert not (visible & ~allowed).any(), "an operator may not see past its mask"

        own = np.eye(*visible.shape, dtype=bool) & pattern.endswith("self")
        rows = visible | own if pattern.endswith("self") else asking(operator)
        # Fixed unequal weights, so that contributions cannot cancel: each sequence has those of one row alone.
        slopes = np.zeros((EACH, T, HEADS, OUT), np.float32)
        slopes[np.arange(T), np.arange(T)] = [1.0, 0.7, -0.4]
        reached = np.zeros_like(visible)
        for seed in range(DRAWS):
            arrays = setting(operator, pattern, seed, batch=1)[0]
            same = [np.repeat(x, EACH, axis=0) for x in [*arrays, *streams(arrays, seed)]]
            _, found, traced = mixing(operator, pattern)(same, slopes)
            np.testing.assert_array_equal(traced, visible, "visible is not written with array operators only")
            # The gradient of a decay, which keys may be, is a sum whose terms cancel but for rounding.
            for gradient, inside, rounding in zip(
                found,
                (rows, visible, visible, np.eye(T, dtype=bool), visible | own),
                (0.0, 1e-6, 0.0, 0.0, 1e-6),
                strict=True,
            ):
                touched = np.abs(gradient[:T]).reshape(T, gradient.shape[1], -1).sum(axis=-1)
                assert (touched[~inside] <= rounding * touched.max()).all(), "a gradient leaks outside visible"
            reached |= np.abs(found[2][:T]).sum(axis=(2, 3)) > 0
            if reached[visible].all():
                break
        assert reached[visible].all(), "visible claims what cannot be seen"


def asking(operator):
    """Which queries each row depends on across sequences: its own alone, unless the operator mixes them."""
    return np.full((T, T), True) if operator.mixes_queries else np.eye(T, dtype=bool)


def check_mixes_queries(operator):
    """Only what reads whole sequences at once may have rows tell of each other's queries; and they do."""
    if not operator.mixes_queries:
        return
    assert operator.patterns == {"noncausal_self", "noncausal_cross"}, "rows tell of later ones"
    assert operator.whole, "a row alone comes out otherwise than among others"
    arrays, others = ([*x, *streams(x)] for x in (setting(operator, "noncausal_cross", i, EACH)[0] for i in (0, 1)))
    first = np.where(np.arange(T)[:, None, None] > 0, others[0], arrays[0])
    known, found = (mixing(operator, "noncausal_cross")([q, *arrays[1:]])[0] for q in (arrays[0], first))
    assert np.abs(known[:, 0] - found[:, 0]).max() > 1e-3, "no row tells of another"


def check_unseen(operator):
    """A row comes out as before whatever stands where it does not see: no choice or order of others tells of it."""
    for pattern in operator.patterns:
        _, tokens_q, tokens_k, mask = setting(operator, pattern)
        visible = np.asarray(operator.visible(tokens_q, tokens_k, mask.dense(tokens_q, tokens_k)))
        own = np.eye(T, dtype=bool)
        rows = (visible | own) if pattern.endswith("self") else asking(operator)
        columns = (visible | own) if pattern.endswith("self") else visible

        for seed in range(6):
            arrays, others = (setting(operator, pattern, draw, batch=1)[0] for draw in (seed, 50 + seed))
            arrays, others = [*arrays, *streams(arrays, seed)], [*others, *streams(others, 50 + seed)]
            changed = []
            for keep, x, y in zip((rows, columns, columns, own, columns), arrays, others, strict=True):
                each = np.where(keep.reshape(*keep.shape, *[1] * (x.ndim - 2)), x, 5 * y)
                changed.append(np.concatenate([each, x]))
            found = mixing(operator, pattern)(changed)[0]
            np.testing.assert_allclose(found[np.arange(T), np.arange(T)], found[T], rtol=1e-5, atol=1e-5)


def check_padding(operator):
    """A row that sees nothing gives zero, and neither it nor its gradient is ever NaN; each sequence has its own.

    As XLA may leave out a division that it traces whole, padding is known to one program and given to another.
    """
    for pattern in covering(operator):
        arrays, tokens_q, tokens_k, mask = setting(operator, pattern, batch=EACH)
        given = streams(arrays)
        valid = np.ones((EACH, T), bool)
        valid[1, 0] = valid[2, 2] = False
        own = tokens_q._replace(valid=valid)
        rest = own, own if pattern.endswith("self") else tokens_k, mask
        known = jax.jit(lambda arrays, given, rest=rest: run(operator, arrays, *rest, given=given))(arrays, given)
        assert np.isfinite(known).all()
        assert (np.asarray(known)[~valid] == 0).all()
        for sequence in range(3):
            found, gradients, _ = mixing(operator, pattern)([*arrays, *given], valid=valid[sequence])
            np.testing.assert_allclose(known[sequence], found[sequence], rtol=1e-5, atol=1e-6)
            assert (found[:, ~valid[sequence]] == 0).all()
            for x in (found, *gradients):
                assert np.isfinite(x).all()
            assert (gradients[0][:, ~valid[sequence]] == 0).all()


def check_flags(operator):
    """An operator listens to rotations and biases exactly if it says so."""
    for pattern in covering(operator):
        whole, _ = placed(operator, pattern)
        for text, listens in (("rope", operator.uses_rotation), ("alibi", operator.uses_bias)):
            told = not np.array_equal(whole[text], whole["none"])
            assert told == listens, f"{text} is treated otherwise than the flag says"


def check_pattern(operator):
    """The pattern that is read is the one that mixes: zero where masked, and editable."""
    for pattern in covering(operator):
        arrays, *rest = setting(operator, pattern)

        def called(x, scale, rest=rest):
            kept = {}

            def read(name, value):
                kept.setdefault(name, value)
                return value * scale if name == "pattern" else value

            return run(operator, x, *rest, site=Reads(read)), kept

        if not operator.has_pattern:
            assert "pattern" not in jax.eval_shape(called, arrays, 1.0)[1]
            continue
        program = jax.jit(called)
        (found, kept), (silent, _) = program(arrays, 1.0), program(arrays, 0.0)
        assert "pattern" in kept
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
    if operator.reads == "qkv":
        wide = Dims(width=8, heads=2, head_size=4, length=16, value_size=9)
        assert operator.state_size(wide) > sizes[1], "wider values take no more"
    if operator.carries:
        rows = sequence(operator, "causal")
        state = jax.eval_shape(rows.begin, rows.drawn(0), rows.tokens(0), np.arange(7))[1]
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
    for pattern in covering(operator) if operator.steps else ():
        whole, by_step = placed(operator, pattern)
        assert len(by_step) == len(STEPS)
        for rows, found in zip(STEPS, by_step, strict=True):
            known = whole["rope" if operator.uses_rotation else "none"][:, rows]
            np.testing.assert_allclose(found, known, rtol=1e-5, atol=1e-5)


def check_priced(operator):
    """What it adds to the training loss is told of, as some rows alone would make another penalty."""
    if not operator.steps:
        return
    (q, k, v), *told = setting(operator, covering(operator)[0])
    site = Sites(record=["penalty"])
    jax.eval_shape(lambda: operator.step(q, k, v, *told, Placed(NONE), made(operator, DIMS), site))
    assert bool(site.recorded) == operator.priced


LONG, CONTEXT = 23, 5  # rows of a sequence that is read by a state, and how many of them are the context
PACKED = (11, 1, 11), (11, 11, 1)  # how long the segments of each sequence are
STARTS = [np.cumsum((0, *lengths))[:-1] for lengths in PACKED]
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
        self.sloped = jax.jit(self.slopes)
        self.whole = self.sloped_whole if "segments" in masks else jax.jit(self.called)
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

    def slopes(self, arrays, params, tokens, weights):
        """Gradients by arrays and parameters of the weighed sum of all that comes out, and that."""

        def weighed(arrays, params):
            found = self.called(arrays, tokens, params)
            return jnp.sum(found * weights), found

        return jax.grad(weighed, argnums=(0, 1), has_aux=True)(arrays, params)

    def weights(self):
        """For the sum, of all that comes out."""
        shape = (BATCH, LONG, *[1] * (1 if self.operator.reads == "stream" else 2))
        return np.cos(np.arange(BATCH * LONG)).astype(np.float32).reshape(shape)

    def sloped_whole(self, arrays, tokens):
        """All rows at once, by the program that has the gradients too."""
        return self.sloped(arrays, self.params, tokens, self.weights())[1]

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
            some, after = self.begin(*given) if state is None else self.go_on(*given, state)
            assert state is None or types(after) == types(state), "a state keeps its shapes and types"
            found, start, state = [*found, some], start + size, after
        assert start == LONG
        np.testing.assert_allclose(np.concatenate(found, axis=1), whole, rtol=1e-5, atol=1e-5)
        return True


def types(state):
    """The tree of a state, and what its leaves are."""
    return jax.tree.structure(state), [(x.shape, x.dtype) for x in jax.tree.leaves(state)]


@functools.lru_cache(maxsize=4)
def sequence(operator, masks):
    """Rows of the operator under a mask, whose programs more than one check calls."""
    return Rows(operator, masks)


def check_state(operator):
    """Row after row by a state, or seven at a time, they come out as all at once: also where some are padding.

    Under a second mask, if it may have one, only the beginning is another, of a row.
    """
    if not operator.carries:
        return
    begun = [CONTEXT] if "context" in operator.reads_tokens else [1]
    left = (LONG - begun[0]) % 7
    several, one = [*begun, 7, 7, *[7] * (left == 7), *[1] * (LONG - begun[0] - 14)], [7, 7] + [1] * (LONG - 14)
    more = (
        {"causal & dilated_window(2, 2)"}
        if operator.any_mask
        else {"causal & segments"}
        if not operator.endless
        else ()
    )
    for masks, all_sizes in {"causal": (one, several), **dict.fromkeys(more, (several,))}.items():
        rows = sequence(operator, masks)
        for sizes in all_sizes:
            for padding in range(len(VALID)):
                draws = range(padding, 60, len(VALID))
                assert any(rows.check(seed, sizes) for seed in draws), "no draw shows anything"
    given = rows.drawn(0, jnp.bfloat16), rows.tokens(0)
    some, state = jax.eval_shape(lambda: rows.advance(*given, jnp.arange(7), None))
    again = jax.eval_shape(lambda state: rows.advance(*given, jnp.arange(7, 9), state), state)[1]
    assert some.dtype == jnp.bfloat16
    assert types(again) == types(state), "a state keeps its shapes and types"


def check_segments(operator):
    """Segments packed into one sequence come out as each does alone, and so do gradients; or it says why not."""
    if not operator.carries:
        return
    packed, alone = sequence(operator, "causal & segments"), sequence(operator, "causal")
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

    arrays, weights = packed.drawn(0), packed.weights()
    gradients, found = jax.tree.map(np.asarray, packed.sloped(arrays, packed.params, tokens, weights))
    # All that are alone are one batch, as long as the longest: what follows the shorter ones is padding.
    apart = [(i, start, length) for i in range(BATCH) for start, length in zip(STARTS[i], PACKED[i], strict=True)]
    most = max(length for *_, length in apart)
    kept = np.arange(most) < np.array([[length] for *_, length in apart])

    def each(x):
        x = np.asarray(x)
        rows = [np.minimum(start + np.arange(most), LONG - 1) for _, start, _ in apart]
        return np.stack([x[i, its] for (i, *_), its in zip(apart, rows, strict=True)])

    arrays, tokens, weights = jax.tree.map(each, (arrays, tokens, weights))
    tokens = tokens._replace(index=np.broadcast_to(np.arange(most), kept.shape), valid=tokens.valid & kept)
    weights = weights * kept.reshape(*kept.shape, *[1] * (weights.ndim - 2))
    by_segment, known = jax.tree.map(np.asarray, alone.sloped(arrays, alone.params, tokens, weights))
    for number, (i, start, length) in enumerate(apart):
        here = slice(start, start + length)
        np.testing.assert_allclose(found[i, here], known[number, :length], rtol=1e-5, atol=1e-5)
        for name, x in by_segment[0].items():
            close(gradients[0][name][i, here], x[number, :length], gradients[0][name])
    for name, x in by_segment[1].items():
        close(gradients[1][name], x, gradients[1][name])


def close(found, known, whole):
    """A gradient, within what float32 leaves of the largest."""
    np.testing.assert_allclose(found, known, rtol=0, atol=1e-5 * max(1.0, np.abs(whole).max()))


CHECKS = [
    check_patterns,
    check_shape,
    check_visible,
    check_unseen,
    check_mixes_queries,
    check_padding,
    check_flags,
    check_pattern,
    check_state_size,
    check_step,
    check_priced,
    check_read_once,
    check_state,
    check_segments,
]


def check_stream(operator):
    """An operator that reads the stream: no position scheme, and gradients as `visible` says."""
    assert operator.patterns
    assert not any([operator.uses_rotation, operator.uses_bias, operator.has_pattern]), "there are no scores"
    params = made(operator, Dims(width=SIZE, heads=HEADS, head_size=SIZE, length=T))
    x = drawn(5, (BATCH, T, SIZE))
    segment = np.array([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
    tokens = jax.tree.map(lambda f: np.broadcast_to(f, (BATCH, T)), sequential(T))._replace(segment=segment)
    causal, free = (
        ("causal & segments", "segments & ~sliding_window(1)") if operator.any_mask else ("causal", "bidirectional")
    )
    for text in [causal] * ("causal_self" in operator.patterns) + [free] * ("noncausal_self" in operator.patterns):
        mask = spec.build("masks", text, "mask")
        for dtype in (jnp.float32, jnp.bfloat16):
            found = jax.eval_shape(
                lambda x, m=mask: operator.mix(x, sequential(T), m, params, Sites()), jnp.asarray(x, dtype)
            )
            assert found.shape == x.shape
            assert found.dtype == dtype
        slopes = jax.jit(jax.jacrev(lambda y, m=mask: operator.mix(y, tokens, m, params, Sites()).sum(axis=-1)))(x)
        touched = np.abs(np.einsum("btbsd->btsd", slopes)).sum(axis=-1) > 0
        allowed = mask.dense(tokens, tokens)
        visible = np.asarray(operator.visible(tokens, tokens, allowed))
        assert not (visible & ~allowed).any(), "an operator may not see past its mask"
        np.testing.assert_array_equal(touched, visible)


def check_stream_across(operator):
    """What it reads of another sequence's stream: as `visible` says, and of its own no row but its own.

    Zero where nothing is seen, without a NaN.
    """
    if not {"causal_cross", "noncausal_cross"} & operator.patterns:
        return
    own, other = drawn(5, (BATCH, T, 5)), drawn(6, (BATCH, S, 7))
    params = made(operator, Dims(width=5, heads=HEADS, head_size=SIZE, length=S, stream_width=7))
    valid = np.arange(T) != 2, np.array([np.arange(S) != 3, np.zeros(S, bool)])
    places = np.array([5, 20, 1, 9, 3, 7])  # of queries, between those of keys
    tokens_q = sequential(T, index=places, position=places, valid=valid[0])
    tokens_k = jax.tree.map(lambda f: np.broadcast_to(2 * f, (BATCH, S)), sequential(S))._replace(valid=valid[1])
    for pattern, text in (("causal_cross", "causal"), ("noncausal_cross", "bidirectional")):
        if pattern not in operator.patterns:
            continue
        mask = spec.build("masks", text, "mask")

        def mixed(x, stream, mask=mask):
            return operator.mix_across(x, stream, tokens_q, tokens_k, mask, params, Sites())

        for dtype in (jnp.float32, jnp.bfloat16):
            found = jax.eval_shape(mixed, jnp.asarray(own, dtype), jnp.asarray(other, dtype))
            assert found.shape == own.shape
            assert found.dtype == dtype
        summed = jax.jit(jax.jacrev(lambda x, y, mixed=mixed: mixed(x, y).sum(axis=-1), argnums=(0, 1)))
        visible = np.asarray(operator.visible(tokens_q, tokens_k, mask.dense(tokens_q, tokens_k)))
        slopes = [np.abs(np.einsum("btbsd->btsd", x)).sum(axis=-1) for x in summed(own, other)]
        assert np.isfinite(np.concatenate([x.ravel() for x in slopes])).all()
        np.testing.assert_array_equal(slopes[1] > 0, visible)
        assert (slopes[0][:, ~np.eye(T, dtype=bool)] == 0).all(), "a row reads another"
        assert (np.asarray(mixed(own, other))[~visible.any(axis=-1)] == 0).all()


def checks_of(operator):
    """The checks an operator is held to."""
    return (
        CHECKS
        if operator.reads == "qkv"
        else [check_stream, check_stream_across, check_state_size, check_read_once, check_state, check_segments]
    )


def test_protocol(built):
    for check in checks_of(built):
        check(built)


def test_text_round_trips(built):
    assert spec.build("operators", spec.canonical(built), "operator") == built
    assert hash(built) is not None


def test_is_documented(built):
    assert type(built).__doc__.strip().splitlines()[0].endswith(".")
