"""A memory that is a small network, trained on each token as it comes."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from positionbias.arrays import Bool, Float, Int
from positionbias.operators.recurrent import in_chunks, rejoined


class Memory(NamedTuple):
    """M(x) = W_2 silu(W_1 x), a head's weights; or as much of a change of them."""

    first: Float[jax.Array, "... H E"]
    second: Float[jax.Array, "... E K"]

    def read(self, x: Float[jax.Array, "... H"]) -> Float[jax.Array, "... K"]:
        """M(x)."""
        hidden = jax.nn.silu(jnp.einsum("...h,...he->...e", x, self.first))
        return jnp.einsum("...e,...ek->...k", hidden, self.second)


class Weight(NamedTuple):
    """M(x) = W x, a head's matrix; or as much of a change of it."""

    weight: Float[jax.Array, "... H K"]

    def read(self, x: Float[jax.Array, "... H"]) -> Float[jax.Array, "... K"]:
        """M(x)."""
        return jnp.einsum("...h,...hk->...k", x, self.weight)


AnyMemory = TypeVar("AnyMemory", Memory, Weight)


class Carried(NamedTuple, Generic[AnyMemory]):
    """What a memory carries from row to row."""

    memory: AnyMemory
    speed: AnyMemory  # its momentum
    begun: AnyMemory  # the memory that the chunk of the last row began with


def learned(
    carried: Carried[AnyMemory],
    k: Float[jax.Array, "B N H"],
    v: Float[jax.Array, "B N K"],
    rates: tuple[Float[jax.Array, "B N"], ...],
    valid: Bool[jax.Array, "B"],
) -> Carried[AnyMemory]:
    """After one row more, of the same chunk: the step that `network_memory` speaks of."""

    def wrong(memory: AnyMemory) -> jax.Array:
        return jnp.sum(jnp.square(memory.read(k) - v))

    rate, momentum, forget = (x[..., None, None] for x in rates)
    slope = jax.grad(wrong)(carried.begun)
    speed = jax.tree.map(lambda s, g: momentum * s - rate * g, carried.speed, slope)
    memory = jax.tree.map(lambda m, s: (1 - forget) * m + s, carried.memory, speed)
    here = valid[:, None, None, None]
    new = memory, speed, carried.begun
    return jax.tree.map(lambda x, y: jnp.where(here, x, y), Carried(*new), carried)  # type: ignore[no-any-return]


def begins(carried: Carried[AnyMemory], place: Int[jax.Array, "B"], chunk: int) -> Carried[AnyMemory]:
    """Before the row at `place`: a chunk begins with the memory as it is."""
    first = (place % chunk == 0)[:, None, None, None]
    return carried._replace(begun=jax.tree.map(lambda x, y: jnp.where(first, x, y), carried.memory, carried.begun))


def network_memory(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B T N H"],
    v: Float[jax.Array, "B T N K"],
    rate: Float[jax.Array, "B T N"],
    momentum: Float[jax.Array, "B T N"],
    forget: Float[jax.Array, "B T N"],
    valid: Bool[jax.Array, "B T"],
    state: tuple[Memory, Memory],
    chunk: int,
) -> tuple[Float[jax.Array, "B T N K"], tuple[Memory, Memory]]:
    """Outputs M_t(q_t), and the weights and the momentum after the last step.

    S_t = momentum_t S_(t-1) - rate_t grad |M(k_t) - v_t|^2, M_t = (1 - forget_t) M_(t-1) + S_t (Titans, Behrouz et al.
    2024, equations 13 and 14), the gradient that of the memory which the chunk of `chunk` steps begins with (16 and
    18). A step that is not `valid` hands both on as they are. All in float32.
    """

    def one_chunk(state: tuple[Memory, Memory], part: tuple[jax.Array, ...]) -> tuple[tuple[Memory, Memory], jax.Array]:
        begun = state[0]

        def wrong(memory: Memory, k: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.sum(jnp.square(memory.read(k) - v))

        def one(state: tuple[Memory, Memory], step: tuple[jax.Array, ...]) -> tuple[tuple[Memory, Memory], jax.Array]:
            q, k, v, rate, momentum, forget, valid = step
            slope = jax.grad(wrong)(begun, k, v)
            rate, momentum, forget = (x[..., None, None] for x in (rate, momentum, forget))
            change = Memory(*(momentum * s - rate * g for s, g in zip(state[1], slope, strict=True)))
            memory = Memory(*((1 - forget) * m + s for m, s in zip(state[0], change, strict=True)))
            here = valid[:, None, None, None] > 0
            state = jax.tree.map(lambda new, old: jnp.where(here, new, old), (memory, change), state)
            return state, memory.read(q)

        return jax.lax.scan(one, state, part)

    parts = tuple(in_chunks(x, chunk).swapaxes(1, 2) for x in (q, k, v, rate, momentum, forget, valid))
    state, read = jax.lax.scan(jax.checkpoint(one_chunk), state, parts)
    return rejoined(read.swapaxes(1, 2), q.shape[1]), state
