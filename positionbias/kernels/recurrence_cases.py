"""Recurrences that `compile_targets` compiles, as `compile_cases` has attentions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.kernels.compile_cases import BATCH, HEADS, REPLICAS, ROWS, RefusedError
from positionbias.kernels.delta_recurrence import ladder as delta
from positionbias.kernels.delta_recurrence.call import posed_delta, posed_memory
from positionbias.kernels.drivers import Driver
from positionbias.kernels.linear_recurrence.call import posed
from positionbias.kernels.linear_recurrence.ladder import DRIVERS

CHUNK = 20  # steps of a memory's chunk, no whole number of tiles


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """One recurrence of 300 steps, from a state: `head` is the size of keys and of values."""

    name: str
    decays: Sequence[str] = ()  # of 'head', 'key', 'value'
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    gradient: bool = True
    replicas: bool = False

    @property
    def drivers(self) -> tuple[str, ...]:
        """Those that can do it on some chip."""
        return ("mosaic_tpu", *(("mosaic_gpu",) if set(self.decays) <= {"head"} else ()), "xla_chunked")

    def takes(self, driver: str, dtype: str) -> bool:
        """Whether a driver does it for such queries."""
        return driver != "mosaic_gpu" or dtype == "bfloat16"

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
            o, last = _run(DRIVERS[driver], asked, platform)
            return jnp.sum(o.astype(jnp.float32)) + jnp.sum(jnp.square(last))

        def whole(*arrays: jax.Array) -> jax.Array:
            return jnp.sum(jax.vmap(loss)(*arrays)) if self.replicas else loss(*arrays)

        return jax.value_and_grad(whole, tuple(range(4 + len(names)))) if self.gradient else whole


@dataclasses.dataclass(frozen=True)
class Corrected:
    """One corrected recurrence of 300 steps, from states: with `memory` that of `linear_memory`."""

    name: str
    gates: Sequence[str]
    memory: bool = False
    gradient: bool = True
    replicas: bool = False

    @property
    def drivers(self) -> tuple[str, ...]:
        """Those that can do it on some chip, and for GPUs what has kernels of its own: decays are in none of them."""
        return ("mosaic_tpu", *(("mosaic_gpu",) if "log_decay" in self.gates else ()), "xla_chunked")

    def takes(self, driver: str, dtype: str) -> bool:
        """Whether a driver does it for such queries."""
        return driver != "mosaic_gpu" or dtype == "bfloat16"

    def shapes(self, dtype: Any, head: int) -> list[tuple[tuple[int, ...], Any]]:
        """Of q, k, v, the states, and the gates."""
        steps = (BATCH, ROWS, HEADS)
        found: list[tuple[tuple[int, ...], Any]] = [((*steps, head), dtype)] * 3
        found += [((BATCH, HEADS, head, head), jnp.float32)] * (1 + self.memory)
        found += [(steps, jnp.float32) for _ in self.gates]
        return [((REPLICAS, *shape), kind) for shape, kind in found] if self.replicas else found

    def function(self, driver: str, platform: str) -> Callable[..., Any]:
        """A loss of outputs and states, or its value and gradients."""
        count = 1 + self.memory

        def loss(q: jax.Array, k: jax.Array, v: jax.Array, *more: jax.Array) -> jax.Array:
            states, gates = more[:count], dict(zip(self.gates, more[count:], strict=True))
            if self.memory:
                asked = posed_memory(q, k, v, gates, None, states, CHUNK)
            else:
                asked = posed_delta(q, k, v, gates, states[0])
            o, last = _run(delta.DRIVERS[driver], asked, platform)
            return jnp.sum(o.astype(jnp.float32)) + sum(jnp.sum(jnp.square(x)) for x in last)

        def whole(*arrays: jax.Array) -> jax.Array:
            return jnp.sum(jax.vmap(loss)(*arrays)) if self.replicas else loss(*arrays)

        return jax.value_and_grad(whole, tuple(range(3 + count + len(self.gates)))) if self.gradient else whole


def _run(driver: Driver, asked: Any, platform: str) -> Any:
    why = driver.unsupported_reason(asked, platform)
    if why is not None:
        raise RefusedError(why)
    return driver.run(asked)


RECURRENCES: Sequence[Recurrence | Corrected] = (
    Recurrence("recurrence forward", ("head",), gradient=False),
    Recurrence("recurrence reversed", options={"reverse": True, "inclusive": False}),
    Recurrence("recurrence", ("head",)),
    Recurrence("recurrence of key channels", ("key",)),
    Recurrence("recurrence of value channels", ("head", "value"), {"inclusive": False}),
    Recurrence("recurrence normalised", ("key", "value"), {"normalise": True}),
    Recurrence("recurrence cleared", ("head",), {"resets": np.arange(ROWS) % 77 == 5}),
    Recurrence("recurrence replicas", ("head",), replicas=True),
    Corrected("delta rule forward", ("strength", "log_decay"), gradient=False),
    Corrected("delta rule", ("strength",)),
    Corrected("delta rule with decays", ("strength", "log_decay")),
    Corrected("linear memory", ("rate", "momentum", "forget"), memory=True),
    Corrected("delta rule replicas", ("strength", "log_decay"), replicas=True),
)
