"""The call that users and operators make: checks, the normaliser, and the choice of a driver."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Mapped
from positionbias.errors import ConfigError
from positionbias.kernels.drivers import Choice
from positionbias.kernels.given import checked_steps
from positionbias.kernels.linear_recurrence.ladder import choose
from positionbias.kernels.linear_recurrence.problem import LEAST, Feature, Problem, shape_of, sum_dtype


def linear_attention(
    q: Float[jax.Array, "B T N D"],
    k: Float[jax.Array, "B T N D"],
    v: Float[jax.Array, "B T N K"],
    *,
    log_decay: Float[jax.Array, "B T N"] | Float[jax.Array, "B T N H"] | None = None,
    value_log_decay: Float[jax.Array, "B T N K"] | None = None,
    initial_state: Float[jax.Array, "B N H K"] | None = None,
    inclusive: bool = True,
    reverse: bool = False,
    normalise: bool = False,
    resets: Bool[Mapped, "... T"] | None = None,
    valid: Bool[Mapped, "... T"] | None = None,
    feature: Feature | None = None,
    chunk: int | None = None,
    impl: str | None = None,
) -> tuple[Float[jax.Array, "B T N K"], Float[jax.Array, "B N H K"]]:
    """The gated linear recurrence: outputs [B, T, N, K], and the state after the last step.

        S_t = diag(e^log_decay_t) S_{t-1} diag(e^value_log_decay_t) + f(k_t) v_t^T,    o_t = f(q_t) S_t

    (Yang et al. 2024, Gated Linear Attention, equation 3; Katharopoulos et al. 2020 without decays). Nothing is scaled
    by 1 / sqrt(H). A step that is to leave no trace is not `valid`, or has k = 0, and decays of logarithm 0. Gradients
    reach q, k, v, both decays and the initial state, from outputs and from the last state, which one call hands to the
    next.

    log_decay: of keys, at most 0, -infinity included, which is not checked: one a head and step, or one a channel; None
        for no decay.
    value_log_decay: of values, likewise: one a channel; None for no decay.
    initial_state: of 32-bit numbers, or 64-bit ones if q is; [B, N, H, K + 1] with `normalise`; None for 0.
    inclusive: o_t = f(q_t) S_t; without, o_t = f(q_t) S_{t-1}, the state before this step's decay.
    reverse: from the last step to the first, so that the initial state comes after the last.
    normalise: o_t is divided by f(q_t) . z_t, where z_t is the sum of f(k) under the decays of keys; where that is 0,
        so is o_t. The last column of states is z.
    resets: where True, [T] or [B, T], S_{t-1} is 0, whatever the decays: a sequence begins there.
    valid: where False, [T] or [B, T], a step writes nothing: f(k_t) v_t^T is 0, and z takes up no key.
    feature: f, from the last axis of q and k, D, to H features of the same type; None for f(x) = x. Drivers by XLA make
        features of some steps at a time, and again for gradients, so that there are never those of all. Gradients do
        not reach arrays that f closes over.
    chunk: steps at a time, a power of two; None for what is fast.
    impl: a driver by name; None for the one that is chosen for the platform, which `linear_choice` tells. All but
        'xla_quadratic' have gradients backwards only.

    Raises ConfigError for what does not fit together, and with the reason where the driver named cannot do it.
    """
    problem = posed(
        q, k, v, log_decay, value_log_decay, initial_state, inclusive, reverse, normalise, resets, valid, feature, chunk
    )
    o, state = choose(problem, impl).driver.run(problem)
    return (divided(o) if normalise else o).astype(v.dtype), state


def divided(sums: Float[jax.Array, "... K+1"]) -> Float[jax.Array, "... K"]:
    """The columns but the last, over the last; 0 where that is 0, or nearer to it than 1e-32.

    Totals are brought to 1 before they divide: a quotient's derivative is over the square of what divides, which is 0
    in float32 of totals below 1e-22. Over the least of totals even a derivative by what is divided is infinite.
    """
    nothing = jnp.abs(sums[..., -1:]) < LEAST
    scaled = sums / jax.lax.stop_gradient(jnp.where(nothing, 1.0, sums[..., -1:]))
    return jnp.where(nothing, 0.0, scaled[..., :-1] / jnp.where(nothing, 1.0, scaled[..., -1:]))


def linear_choice(*args: Any, impl: str | None = None, platform: str | None = None, **kwargs: Any) -> Choice:
    """What `linear_attention` would choose for the same arguments, here or on a `platform` ('cpu', 'gpu', 'tpu').

    The choice has the `driver`, with its name, and those `passed_over`, each with the reason.
    """
    bound = inspect.signature(linear_attention).bind(*args, **kwargs)
    bound.apply_defaults()
    return choose(posed(**{name: value for name, value in bound.arguments.items() if name != "impl"}), impl, platform)


def posed(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None = None,
    value_log_decay: jax.Array | None = None,
    initial_state: jax.Array | None = None,
    inclusive: bool = True,
    reverse: bool = False,
    normalise: bool = False,
    resets: Bool[Mapped, "... T"] | None = None,
    valid: Bool[Mapped, "... T"] | None = None,
    feature: Feature | None = None,
    chunk: int | None = None,
) -> Problem:
    """The problem that a call poses, checked; what normalises is a last column of values that are 1."""
    mapped = _check_arrays(q, k, v, log_decay, value_log_decay, feature)
    for name, told in (("inclusive", inclusive), ("reverse", reverse), ("normalise", normalise)):
        if not isinstance(told, bool):
            raise ConfigError(f"{name} = {told!r} is not allowed; allowed: True or False.")
    whole = isinstance(chunk, int) and not isinstance(chunk, bool)
    if chunk is not None and not (whole and chunk >= 1 and chunk & (chunk - 1) == 0):
        raise ConfigError(f"chunk = {chunk!r} is not allowed; allowed: powers of two, or None to choose one.")
    fresh, writes = checked_steps("resets", resets, q), checked_steps("valid", valid, q)
    dtype = sum_dtype(q.dtype)
    if normalise:
        v = jnp.concatenate([v.astype(dtype), jnp.ones((*v.shape[:-1], 1), dtype)], axis=-1)
        if value_log_decay is not None:
            value_log_decay = jnp.pad(value_log_decay, [(0, 0)] * 3 + [(0, 1)])
    if writes is not None:
        v = v * writes[..., None, None].astype(v.dtype)
    shape = (mapped[0], *mapped[2:], v.shape[-1])
    if initial_state is None:
        initial_state = jnp.zeros(shape, dtype)
    elif np.shape(initial_state) != shape or initial_state.dtype != dtype:
        letters = "[B, N, H, K + 1]" if normalise else "[B, N, H, K]"
        raise ConfigError(
            f"initial_state is {_told(initial_state)}; allowed: {letters} = {list(shape)} of {jnp.dtype(dtype).name}."
        )
    if log_decay is not None and log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    return Problem(q, k, v, log_decay, value_log_decay, initial_state, inclusive, reverse, chunk, fresh, feature)


def _check_arrays(
    q: Any, k: Any, v: Any, log_decay: Any, value_log_decay: Any, feature: Feature | None
) -> tuple[int, ...]:
    """The shape of the features of queries."""
    arrays = {"q": q, "k": k, "v": v, "log_decay": log_decay, "value_log_decay": value_log_decay}
    for name, x in arrays.items():
        if x is not None and not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise ConfigError(f"{name} is {jnp.result_type(x)}; allowed: real numbers.")
    if len({x.dtype for x in (q, k, v)}) > 1:
        raise ConfigError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; allowed: one type for all three.")
    told = ", ".join(f"{name} {list(x.shape)}" for name, x in (("q", q), ("k", k), ("v", v)))
    shapes = {len(x.shape) for x in (q, k, v)}
    if shapes != {4} or q.shape != k.shape or v.shape[:3] != q.shape[:3] or 0 in (*q.shape, *v.shape):
        raise ConfigError(f"{told} do not fit together; allowed: q and k [B, T, N, H], v [B, T, N, K], none empty.")
    mapped = shape_of(q, feature)
    if log_decay is not None and log_decay.shape not in (mapped[:3], mapped):
        raise ConfigError(
            f"log_decay has shape {list(log_decay.shape)}; allowed: [B, T, N] = {list(mapped[:3])} or [B, T, N, H] ="
            f" {list(mapped)}."
        )
    if value_log_decay is not None and value_log_decay.shape != v.shape:
        raise ConfigError(
            f"value_log_decay has shape {list(value_log_decay.shape)}; allowed: [B, T, N, K] = {list(v.shape)}."
        )
    return mapped


def _told(x: Any) -> str:
    return f"{list(np.shape(x))} of {jnp.result_type(x).name}"
