"""Recurrences that `compile_targets` compiles, as `compile_cases` has attentions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from positionbias.kernels.compile_cases import BATCH, HEADS, REPLICAS, ROWS, RefusedError
from positionbias.kernels.linear_recurrence.call import posed
from positionbias.kernels.linear_recurrence.ladder import DRIVERS


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """One recurrence of 300 steps, from a state: `head` is the size of keys and of values."""

    name: str
    decays: Sequence[str] = ()  # of 'head', 'key', 'value'
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    gradient: bool = True
    replicas: bool = False

    drivers = ("mosaic_tpu", "xla_chunked")

    def shapes(self, dtype: Any, head: int) -> list[tuple[tuple[int, ...], Any]]:
        """Of q, k, v, the state, and the decays."""
        steps = (BATCH, ROWS, HEADS)
        found: list[tuple[tuple[int, ...], Any]] = [((*steps, head), dtype)] * 3
        found.append(((BATCH, HEADS, head, head + self.options.get("normalise", False)), jnp.float32))
        found += [(steps if kind == "head" else (*steps, head), jnp.float32) for kind in self.decays]
        return [((REPLICAS, *shape), kind) for shape, kind in found] if self.replicas else found

    def function(self, driver: str, platform: str) -> Callable[..., Any]:
        """A loss of outputs and state, or its value and gradients."""
        names = ["value_log_decay" if kind == "value" else "log_decay" for kind in self.decays]

        def loss(q: jax.Array, k: jax.Array, v: jax.Array, state: jax.Array, *decays: jax.Array) -> jax.Array:
            told = dict(zip(names, decays, strict=True))
            asked = posed(q, k, v, initial_state=state, **told, **self.options)  # type: ignore[arg-type]
            why = DRIVERS[driver].unsupported_reason(asked, platform)
            if why is not None:
                raise RefusedError(why)
            o, last = DRIVERS[driver].run(asked)
            return jnp.sum(o.astype(jnp.float32)) + jnp.sum(jnp.square(last))

        def whole(*arrays: jax.Array) -> jax.Array:
            return jnp.sum(jax.vmap(loss)(*arrays)) if self.replicas else loss(*arrays)

        return jax.value_and_grad(whole, tuple(range(4 + len(names)))) if self.gradient else whole


RECURRENCES: Sequence[Recurrence] = (
    Recurrence("recurrence forward", ("head",), gradient=False),
    Recurrence("recurrence reversed", options={"reverse": True, "inclusive": False}),
    Recurrence("recurrence", ("head",)),
    Recurrence("recurrence of key channels", ("key",)),
    Recurrence("recurrence of value channels", ("head", "value"), {"inclusive": False}),
    Recurrence("recurrence normalised", ("key", "value"), {"normalise": True}),
    Recurrence("recurrence replicas", ("head",), replicas=True),
)
