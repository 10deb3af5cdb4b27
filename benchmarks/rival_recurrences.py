"""The recurrences of flash-linear-attention, kernels by Triton for PyTorch, on the problems of `recurrences.py`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from timed import Skip

NAME = "fla"
LIBRARY = "flash-linear-attention"
# By kind of problem: module, function, and the names that our gates have there. Its decays are logarithms too.
FUNCTIONS: dict[str, tuple[str, str, dict[str, str]]] = {
    "plain": ("fla.ops.linear_attn", "chunk_linear_attn", {}),
    "scalar": ("fla.ops.simple_gla", "chunk_simple_gla", {"log_decay": "g"}),
    "channel": ("fla.ops.gla", "chunk_gla", {"log_decay": "g"}),
    "delta": ("fla.ops.delta_rule", "chunk_delta_rule", {"strength": "beta"}),
    "gated_delta": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule", {"log_decay": "g", "strength": "beta"}),
}
FLOAT32 = ("log_decay",)  # of sums over many steps


class Fla:
    """One of them as a whole program; `Skip` where it cannot be run."""

    def __init__(self, kind: str, arrays: Mapping[str, jax.Array], w: jax.Array, mode: str) -> None:
        if kind not in FUNCTIONS:
            raise Skip("the library has no such recurrence")
        for package in ("torch", "fla"):
            if importlib.util.find_spec(package) is None:
                raise Skip(f"{package} is not installed")
        import torch

        if not torch.cuda.is_available():
            raise Skip("torch has no CUDA device, which Triton needs")
        self._torch, self._mode = torch, mode
        module, function, gates = FUNCTIONS[kind]
        self._run = getattr(importlib.import_module(module), function)
        self._more: dict[str, Any] = {"scale": 1.0} | ({"normalize": False} if kind == "plain" else {})
        self._given = {gates.get(name, name): self._tensor(name, x, arrays["q"]) for name, x in arrays.items()}
        self._w = self._tensor("w", w, arrays["q"]).detach()
        self.wait(self.call())
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.wait(self.call())
        self.memory = int(torch.cuda.max_memory_allocated() - before)

    def _tensor(self, name: str, x: jax.Array, q: jax.Array) -> Any:
        kind = self._torch.float32 if name in FLOAT32 else getattr(self._torch, str(q.dtype))
        tensor = self._torch.tensor(np.asarray(x, np.float32), device="cuda").to(kind)
        return tensor.requires_grad_(self._mode == "train")

    def call(self) -> Any:
        """Start one run; returns what it makes."""
        if self._mode == "forward":
            with self._torch.no_grad():
                return self._run(**self._given, **self._more)[0]
        for x in self._given.values():
            x.grad = None
        o = self._run(**self._given, **self._more)[0]
        (o.float() * self._w.float()).sum().backward()
        return [x.grad for x in self._given.values()]

    def wait(self, made: Any) -> None:
        """Until it is there."""
        self._torch.cuda.synchronize()

    def output(self) -> np.ndarray:
        """What a forward run makes, [B, T, N, K]."""
        return self.call().float().cpu().numpy()
