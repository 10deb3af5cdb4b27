"""The calls that users and operators make: checks, and the choice of a driver."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Mapped
from positionbias.errors import ConfigError
from positionbias.kernels.delta_recurrence import chunk as algebra
from positionbias.kernels.delta_recurrence.ladder import choose
from positionbias.kernels.delta_recurrence.problem import Problem, state_dtype
from positionbias.kernels.given import checked_steps


def delta_rule(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B T N H"],
    v: Float[jax.Array, "B T N K"],
    strength: Float[jax.Array, "B T N"],
    *,
    log_decay: Float[jax.Array, "B T N"] | None = None,
    initial_state: Float[jax.Array, "B N H K"] | None = None,
    resets: Bool[Mapped, "... T"] | None = None,
    chunk: int | None = None,
    impl: str | None = None,
) -> tuple[Float[jax.Array, "B T N K"], Float[jax.Array, "B N H K"]]:
    """The gated delta rule: outputs, of the type of v, and the last state (Yang et al. 2024, "Gated Delta Networks").

        S <- e^{log_decay_t} S;   S <- S + strength_t k_t (v_t - k_t S)^T;   o_t = q_t S

    Nothing is scaled or normalised: for |k_t| = 1 the state stays bounded with strengths from 0 to 2, and strength 1
    replaces what is stored under k_t by v_t. A step of strength 0 and log_decay 0 leaves the state as it is.

    log_decay: at most 0, -infinity included; None for 0. Without it this is the delta rule of Schlag et al. (2021).
    initial_state: 0 unless told.
    resets: where True, [T] or [B, T], S is 0 before the step: a sequence begins there. The same as a log_decay of
        -infinity, whose own gradient is 0.
    chunk: steps that are computed at once, for speed alone.
    impl: a driver by name; None for the one that is chosen for the platform. All have gradients backwards only.

    States are float32, or float64 where q, k and v are. Gradients reach all inputs, and go through the last state.
    Raises ConfigError for what does not fit together, and with the reason where the driver named cannot do it.
    """
    gates = {"strength": strength} | ({} if log_decay is None else {"log_decay": log_decay})
    problem = posed_delta(q, k, v, gates, initial_state, resets, chunk)
    o, states = choose(problem, impl).driver.run(problem)
    return o, states[0]


def linear_memory(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B T N H"],
    v: Float[jax.Array, "B T N K"],
    rate: Float[jax.Array, "B T N"],
    momentum: Float[jax.Array, "B T N"],
    forget: Float[jax.Array, "B T N"],
    *,
    chunk: int,
    valid: Bool[Mapped, "... T"] | None = None,
    initial_state: tuple[Float[jax.Array, "B N H K"], Float[jax.Array, "B N H K"]] | None = None,
    impl: str | None = None,
) -> tuple[Float[jax.Array, "B T N K"], tuple[Float[jax.Array, "B N H K"], Float[jax.Array, "B N H K"]]]:
    """Titans' memory, a matrix M trained on what it reads: outputs, of v's type, and the last (memory, momentum).

        S_t = momentum_t S_{t-1} - rate_t dl_t/dM,   M_t = (1 - forget_t) M_{t-1} + S_t,   o_t = q_t M_t

    with l_t = |k_t M - v_t|^2 and its gradient taken at the memory that the chunk of step t begins with (Behrouz et al.
    2024, "Titans", sections 3.1 and 3.2).

    rate, momentum, forget: from 0 to 1, both included; forget 1 clears the memory, though not the momentum.
    chunk: steps that share the memory of the gradient, counted from the first step of the call: part of the definition.
        A sequence continued from its state is the whole one if it is cut where a chunk ends.
    valid: where False, [T] or [B, T], a step hands memory and momentum on as they are. No rate, momentum and forget do
        that, since what momentum there is goes into the memory at every step.
    initial_state: 0 unless told.
    impl: as for `delta_rule`; so are types, gradients and errors.
    """
    gates = {"rate": rate, "momentum": momentum, "forget": forget}
    problem = posed_memory(q, k, v, gates, valid, initial_state, chunk)
    return choose(problem, impl).driver.run(problem)


def posed_delta(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    gates: dict[str, jax.Array],
    initial_state: Any = None,
    resets: Any = None,
    chunk: int | None = None,
) -> Problem:
    """The problem that a call of `delta_rule` poses, checked."""
    _check(q, k, v, gates)
    fresh = checked_steps("resets", resets, q)
    if fresh is not None:
        gates = gates | {"log_decay": jnp.where(fresh[..., None], -jnp.inf, gates.get("log_decay", 0.0))}
        gates["log_decay"] = jnp.broadcast_to(gates["log_decay"], q.shape[:3])
    _check_chunk(chunk, optional=True)
    states = () if initial_state is None else (initial_state,)
    return Problem(algebra.delta, q, k, v, _together(q, gates.values()), _states(q, v, states, 1), chunk)


def posed_memory(
    q: jax.Array, k: jax.Array, v: jax.Array, gates: dict[str, jax.Array], valid: Any, initial_state: Any, chunk: int
) -> Problem:
    """The problem that a call of `linear_memory` poses, checked."""
    _check(q, k, v, gates)
    _check_chunk(chunk, optional=False)
    told = checked_steps("valid", valid, q)
    if initial_state is not None and not (isinstance(initial_state, tuple | list) and len(initial_state) == 2):
        raise ConfigError("initial_state is no pair; allowed: (memory, momentum), each [B, N, H, K].")
    seen = jnp.ones(q.shape[:2], bool) if told is None else told
    together = _together(q, [*gates.values(), jnp.broadcast_to(seen[..., None], q.shape[:3])])
    return Problem(algebra.memory, q, k, v, together, _states(q, v, initial_state or (), 2), chunk)


def _together(q: Any, gates: Any) -> jax.Array:
    return jnp.stack([jnp.asarray(x, state_dtype(q)) for x in gates], axis=-1)


def _states(q: Any, v: Any, told: Any, count: int) -> tuple[jax.Array, ...]:
    """The states to begin with, of their type."""
    batch, _, heads, size = np.shape(q)
    shape = (batch, heads, size, np.shape(v)[3])
    for state in told:
        if np.shape(state) != shape or not jnp.issubdtype(jnp.result_type(state), jnp.floating):
            kind = f"{jnp.result_type(state)} {list(np.shape(state))}"
            raise ConfigError(f"initial_state is {kind}; allowed: floating numbers [B, N, H, K] = {list(shape)}.")
    if not told:
        return (jnp.zeros(shape, state_dtype(q)),) * count
    return tuple(jnp.asarray(state, state_dtype(q)) for state in told)


def _check(q: Any, k: Any, v: Any, gates: dict[str, Any]) -> None:
    shapes = {"q": np.shape(q), "k": np.shape(k), "v": np.shape(v)}
    told = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    kinds = {jnp.result_type(x) for x in (q, k, v)}
    if len(kinds) > 1 or not all(jnp.issubdtype(kind, jnp.floating) for kind in kinds):
        raise ConfigError(f"q, k and v are of {sorted(map(str, kinds))}; allowed: one floating type for all three.")
    good = all(len(shape) == 4 and 0 not in shape for shape in shapes.values())
    if not good or shapes["q"] != shapes["k"] or shapes["q"][:3] != shapes["v"][:3]:
        raise ConfigError(f"{told} are not allowed; allowed: q and k [B, T, N, H], v [B, T, N, K], none of them 0.")
    for name, gate in gates.items():
        if np.shape(gate) != shapes["q"][:3] or not jnp.issubdtype(jnp.result_type(gate), jnp.floating):
            kind = f"{jnp.result_type(gate)} {list(np.shape(gate))}"
            raise ConfigError(f"{name} is {kind}; allowed: floating numbers [B, T, N] = {list(shapes['q'][:3])}.")


def _check_chunk(chunk: Any, optional: bool) -> None:
    if (chunk is None and optional) or (isinstance(chunk, int) and not isinstance(chunk, bool) and chunk >= 1):
        return
    more = ", or None to choose one" if optional else ""
    raise ConfigError(f"chunk = {chunk!r} is not allowed; allowed: a whole number from 1{more}.")
