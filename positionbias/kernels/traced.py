"""A function as a list of primitives: what `rules` cuts in two."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where primitives that call a function keep it
CALLS = frozenset({"pjit", "jit", "closed_call", "core_call", "remat2", "checkpoint"})
# Such as relu: where it is jax's own, it is written out on tiles, and its gradient is that of what it does.
CUSTOM = "custom_jvp_call"
JAX = str(pathlib.Path(jax.__file__).parent)


@dataclasses.dataclass(frozen=True)
class Constant:
    """A number that stands in the rule."""

    value: Any


Ref = int | Constant


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One primitive applied."""

    primitive: Any
    params: dict[str, Any]
    reads: tuple[Ref, ...]
    writes: tuple[int, ...]

    def run(self, values: Sequence[Any]) -> list[Any]:
        """The outputs, as a list."""
        bound = self.primitive.get_bind_params(self.params)
        functions, params = bound if isinstance(bound, tuple) else ((), bound)  # jax 0.10 gives the latter alone
        found = self.primitive.bind(*functions, *values, **params)
        return list(found) if self.primitive.multiple_results else [found]


class Flat:
    """A traced function as one list of steps: what it calls is written out."""

    def __init__(self, closed: Any, tile: tuple[int, int]) -> None:
        self._tile = tile
        self._names = itertools.count()
        self.steps: list[Step] = []
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.made_by: dict[int, Step] = {}
        self.captured: dict[int, Any] = {}
        self.inputs = [self._new(var.aval.shape) for var in closed.jaxpr.invars]
        constants = [self._constant(value) for value in closed.consts]
        self.results = self._add(closed.jaxpr, [*constants, *self.inputs])

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Of the whole array."""
        return np.shape(ref.value) if isinstance(ref, Constant) else self.shapes[ref]

    def _new(self, shape: Sequence[int]) -> int:
        name = next(self._names)
        self.shapes[name] = tuple(shape)
        return name

    def _constant(self, value: Any) -> Ref:
        if np.ndim(value) == 0 and not is_traced(value):
            return Constant(np.asarray(value)[()])
        name = self._new(np.shape(value))
        self.captured[name] = value
        return name

    def _add(self, jaxpr: Any, given: Sequence[Ref]) -> list[Ref]:
        known: dict[Any, Ref] = dict(zip([*jaxpr.constvars, *jaxpr.invars], given, strict=True))

        def ref(atom: Any) -> Ref:
            return self._constant(atom.val) if hasattr(atom, "val") else known[atom]

        for eqn in jaxpr.eqns:
            reads = tuple(ref(atom) for atom in eqn.invars)
            inner = next((eqn.params[key] for key in INNER if key in eqn.params), None)
            opens = eqn.primitive.name in CALLS or (
                eqn.primitive.name == CUSTOM
                and any(var.aval.shape[-2:] == self._tile for var in eqn.outvars)
                and _of_jax(inner)
            )
            if opens and inner is not None:
                body = inner.jaxpr if hasattr(inner, "consts") else inner
                constants = [self._constant(value) for value in getattr(inner, "consts", ())]
                known.update(zip(eqn.outvars, self._add(body, [*constants, *reads]), strict=True))
                continue
            writes = tuple(self._new(var.aval.shape) for var in eqn.outvars)
            known.update(zip(eqn.outvars, writes, strict=True))
            self.steps.append(Step(eqn.primitive, eqn.params, reads, writes))
            self.made_by.update(dict.fromkeys(writes, self.steps[-1]))
        return [ref(atom) for atom in jaxpr.outvars]


def _of_jax(function: Any) -> bool:
    """Whether a function with a gradient of its own is one of jax's."""
    found = getattr(function.jaxpr.debug_info, "func_filename", None)
    return found is not None and found.startswith(JAX)


def is_traced(*values: Any) -> bool:
    """Whether one of them is not known while a program is traced."""
    return any(isinstance(value, jax.core.Tracer) for value in jax.tree.leaves(values))
