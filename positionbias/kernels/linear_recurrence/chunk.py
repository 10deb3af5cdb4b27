"""The recurrence of one chunk of steps, from the state before it, and the gradient of that.

With P, F and A the products of decays from the chunk's beginning to a query, from after a key to its end, and over all
of it, of key channels and likewise p, f, a of value channels,

    o = p ((q P) S) + (q . k) v + sum over pairs,    S' = A S a + (k F)^T (v f).

Pairs are of a query and an earlier key. Those within blocks of `base` steps are summed by the matrix of their products;
others in parts, each of the pairs between the second half of a block and its first: p ((q P) (k F)^T) (v f), where the
products meet in the middle of the block. So no factor is above 1, whatever the decays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Float
from positionbias.kernels.linear_recurrence.decays import Halves, Spans, between, kept, spans, times
from positionbias.kernels.linear_recurrence.problem import power_from


class Chunk(NamedTuple):
    """Arrays of C steps; logarithms of decays, None for 0; `keeps` is 0 where the state is cleared first, else 1."""

    q: Float[jax.Array, "... C H"]
    k: Float[jax.Array, "... C H"]
    v: Float[jax.Array, "... C K"]
    log_decay: Float[jax.Array, "... C 1|H"] | None
    value_log_decay: Float[jax.Array, "... C K"] | None
    keeps: Float[jax.Array, "... C 1"] | None = None


class Gradients(NamedTuple):
    """Of a chunk, of the logarithms of its decays, and of the state before it."""

    q: Float[jax.Array, "... C H"]
    k: Float[jax.Array, "... C H"]
    v: Float[jax.Array, "... C K"]
    log_decay: Float[jax.Array, "... C 1|H"] | None
    value_log_decay: Float[jax.Array, "... C K"] | None
    state: Float[jax.Array, "... H K"]


def forward(
    chunk: Chunk, state: Float[jax.Array, "... H K"], inclusive: bool, base: int
) -> tuple[Float[jax.Array, "... C K"], Float[jax.Array, "... H K"]]:
    """Outputs and the state after the chunk; C is a power of two, and `base` another, 1 for decays by channel."""
    keys, values = _spans(chunk, inclusive)
    o = _of_earlier(chunk, state, keys, values, base)
    if inclusive:
        o = o + _dot(chunk.q, chunk.k) * chunk.v
    return o, _kept(state, keys, values) + _t(times(chunk.k, keys.until)) @ times(chunk.v, values.until)


def _of_earlier(chunk: Chunk, state: jax.Array, keys: Spans, values: Spans, base: int) -> jax.Array:
    """Outputs but for what each step itself writes."""
    o = times(times(chunk.q, keys.since) @ state, values.since)
    if base > 1:
        q, k, v = (_blocks(x, base) for x in chunk[:3])
        o = o + ((q @ _t(k)) * _scale(keys, base, v) @ v).reshape(o.shape)
    for n, key, value in _parts(keys, values, base):
        q, k, v = times(_second(chunk.q, n), key.since), times(_first(chunk.k, n), key.until), _first(chunk.v, n)
        o = o + _at_second(times((q @ _t(k)) @ times(v, value.until), value.since))
    return o


def backward(
    chunk: Chunk,
    state: Float[jax.Array, "... H K"],
    do: Float[jax.Array, "... C K"],
    dstate: Float[jax.Array, "... H K"],
    inclusive: bool,
    base: int,
) -> Gradients:
    """Gradients, from those of the outputs and of the state after the chunk.

    The logarithm of a key channel's decay at a step has the gradient sum over value channels of S dS, of the state
    after it less what it wrote. By the steps since the chunk began, that is the same sum of the state before the chunk
    less q dq and plus k dk of those steps, and for a value channel less o do and plus v dv. What a step reads of its
    own key is the same in both, and is left out of them.
    """
    keys, values = _spans(chunk, inclusive)
    far = times(do, values.since)
    dq = times(far @ _t(state), keys.since)
    dk = times(times(chunk.v, values.until) @ _t(dstate), keys.until)
    dv = times(times(chunk.k, keys.until) @ dstate, values.until)
    dfirst = _kept(dstate, keys, values) + _t(times(chunk.q, keys.since)) @ far
    if base > 1:
        q, k, v, near = (_blocks(x, base) for x in (*chunk[:3], do))
        scale = _scale(keys, base, v)
        weights, dscores = (q @ _t(k)) * scale, (near @ _t(v)) * scale
        dq = dq + (dscores @ k).reshape(dq.shape)
        dk = dk + (_t(dscores) @ q).reshape(dk.shape)
        dv = dv + (_t(weights) @ near).reshape(dv.shape)
    for n, key, value in _parts(keys, values, base):
        q, k = times(_second(chunk.q, n), key.since), times(_first(chunk.k, n), key.until)
        v, near = times(_first(chunk.v, n), value.until), times(_second(do, n), value.since)
        weights, dscores = q @ _t(k), near @ _t(v)
        dq = dq + _at_second(times(dscores @ k, key.since))
        dk = dk + _at_first(times(_t(dscores) @ q, key.until))
        dv = dv + _at_first(times(_t(weights) @ near, value.until))
    dlog, dvalue_log = None, None
    if chunk.log_decay is not None:
        begin, read, written = jnp.sum(state * dfirst, axis=-1)[..., None, :], chunk.q * dq, chunk.k * dk
        if chunk.log_decay.shape[-1] == 1:
            begin, read, written = (jnp.sum(x, axis=-1, keepdims=True) for x in (begin, read, written))
        dlog = of_decay(begin, read, written, inclusive, chunk.keeps)
    if chunk.value_log_decay is not None:
        o = _of_earlier(chunk, state, keys, values, base)
        begin = jnp.sum(state * dfirst, axis=-2)[..., None, :]
        dvalue_log = of_decay(begin, o * do, chunk.v * dv, inclusive, chunk.keeps)
    if inclusive:
        dscore = _dot(do, chunk.v)
        dq, dk, dv = dq + dscore * chunk.k, dk + dscore * chunk.q, dv + _dot(chunk.q, chunk.k) * do
    return Gradients(dq, dk, dv, dlog, dvalue_log, dfirst)


def _spans(chunk: Chunk, inclusive: bool) -> tuple[Spans, Spans]:
    """Those of keys, which clear the state too, and of values."""
    steps = chunk.q.shape[-2]
    keys = spans(chunk.log_decay, steps, inclusive, chunk.keeps)
    return keys, spans(chunk.value_log_decay, steps, inclusive)


def of_decay(
    begin: jax.Array, read: jax.Array, written: jax.Array, inclusive: bool, keeps: jax.Array | None
) -> jax.Array:
    """What the docstring of `backward` says: a query reads after its own decay if `inclusive`, else before.

    Of what was before the state was cleared the sum would be 0 but for rounding, and is left out.
    """
    earlier = jnp.asarray(np.tri(read.shape[-2], k=-1), read.dtype)
    if keeps is not None:
        run = jnp.cumsum(1 - keeps, axis=-2)
        earlier, begin = earlier * (run == _t(run)), begin * (run == 0)
    found = begin + earlier @ (written - read)
    return found if inclusive else found - read


def _kept(state: jax.Array, keys: Spans, values: Spans) -> jax.Array:
    """What the decays of all steps leave of it."""
    return kept(kept(state, None if keys.total is None else _t(keys.total)), values.total)


def _parts(keys: Spans, values: Spans, base: int) -> Iterator[tuple[int, Halves, Halves]]:
    """Halves of blocks from 2 `base` steps on, each with its size."""
    for i, (key, value) in enumerate(zip(keys.halves, values.halves, strict=True)):
        if 2**i >= base:
            yield 2**i, key, value


def _scale(keys: Spans, base: int, like: jax.Array) -> jax.Array:
    """What multiplies the scores within blocks."""
    return between(keys.halves[: base.bit_length() - 1], like.dtype)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """x . y of each step, [..., C, 1]."""
    return jnp.sum(x * y, axis=-1, keepdims=True)


def _t(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)


def _blocks(x: jax.Array, size: int) -> jax.Array:
    return x.reshape(*x.shape[:-2], -1, size, x.shape[-1])


def _first(x: jax.Array, n: int) -> jax.Array:
    """The first halves of blocks of 2 n steps."""
    return _blocks(x, 2 * n)[..., :n, :]


def _second(x: jax.Array, n: int) -> jax.Array:
    return _blocks(x, 2 * n)[..., n:, :]


def _at_first(x: jax.Array) -> jax.Array:
    """All steps, with these in the first halves and 0 in the second."""
    return _whole(x, (0, x.shape[-2]))


def _at_second(x: jax.Array) -> jax.Array:
    return _whole(x, (x.shape[-2], 0))


def _whole(x: jax.Array, more: tuple[int, int]) -> jax.Array:
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [more, (0, 0)])
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def at_once(
    chunk: Chunk, state: Float[jax.Array, "... H K"], inclusive: bool
) -> tuple[Float[jax.Array, "... C K"], Float[jax.Array, "... H K"]]:
    """Outputs and the state after it of a chunk of any length, with no decay by channel: all pairs in one block."""
    steps, log_decay, keeps = chunk.q.shape[-2], chunk.log_decay, chunk.keeps
    longer = power_from(steps)
    more = [(0, longer - steps), (0, 0)]
    if log_decay is not None:
        log_decay = jnp.pad(log_decay, [(0, 0)] * (log_decay.ndim - 2) + more)
    if keeps is not None:
        keeps = jnp.pad(keeps, [(0, 0)] * (keeps.ndim - 2) + more, constant_values=1)
    keys = spans(log_decay, longer, inclusive, keeps)
    scale = between(keys.halves, chunk.v.dtype)[..., 0, :steps, :steps]
    since, until = (None if x is None else x[..., :steps, :] for x in (keys.since, keys.until))
    o = times(chunk.q, since) @ state + (chunk.q @ _t(chunk.k) * scale) @ chunk.v
    if inclusive:
        o = o + _dot(chunk.q, chunk.k) * chunk.v
    none = spans(None, 1, inclusive)
    return o, _kept(state, keys, none) + _t(times(chunk.k, until)) @ chunk.v
