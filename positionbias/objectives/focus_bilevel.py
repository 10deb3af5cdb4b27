"""FocuSFT: a step is taken at weights that were first fitted to its batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from positionbias.arrays import Tree
from positionbias.config import schema
from positionbias.objectives.next_token import CrossEntropy
from positionbias.spec import ConfigError, member, require

Path = tuple[str, ...]


@member("objectives", "focus_bilevel")
@dataclasses.dataclass(frozen=True)
class FocusBilevel(CrossEntropy):
    """Next token by FocuSFT's two loops (arXiv 2605.09932): fast low-rank weights, then slow ones at where these are.

    The inner loop adds s A B to every MLP matrix of the last `share` of layers, s = `alpha` / `rank`, A as Kaiming
    draws it and B zero, and takes `steps` steps of gradient descent on A and B at `rate`, their gradient clipped to
    norm `clip`, on the loss of the very batch. The outer gradient is that of the model's own weights with these added,
    which are not differentiated through and are thrown away; so the loss that is logged is that of fitted weights.
    Evaluation measures the model without them. A step costs `steps` + 1 gradients.
    """

    rank: int = 8
    alpha: float = 16.0
    steps: int = 2
    rate: float = 1.0
    clip: float = 1.0
    share: float = 0.35

    def __post_init__(self) -> None:
        require(1 <= self.rank <= 65536, "rank", self.rank, "a whole number from 1 to 65536")
        require(1 <= self.steps <= 1000, "steps", self.steps, "a whole number from 1 to 1000")
        for name in ("alpha", "rate", "clip"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        require(0 < self.share <= 1, "share", self.share, "a number above 0 and at most 1")

    def check_model(self, model: schema.Model) -> None:
        trained = model.mlp and not {"mlp_in", "mlp_out"} <= set(model.frozen)
        if not trained:
            raise ConfigError(
                f"objective: {self.spec_name!r} fits MLP matrices, of which model.mlp = {model.mlp} and model.frozen ="  # type: ignore[attr-defined]
                f" {list(model.frozen)} leave none; allowed: an MLP that is trained."
            )

    def tuned(self, key: jax.Array, params: Tree, gradient: Callable[[Tree], Tree]) -> Tree:
        leaves, shape = jax.tree_util.tree_flatten_with_path(params)
        paths = [_path(path) for path, _ in leaves]
        where = _last_mlps(paths, self.share)
        scale = self.alpha / self.rank
        sizes = [leaves[i][1].shape for i in where]
        keys = jax.random.split(key, len(where))
        bounds = [rows**-0.5 for rows, _ in sizes]  # Kaiming's as LoRA has it, with a slope of sqrt(5)
        down = [
            jax.random.uniform(k, (rows, self.rank), minval=-bound, maxval=bound)
            for k, bound, (rows, _) in zip(keys, bounds, sizes, strict=True)
        ]
        up = [jnp.zeros((self.rank, columns)) for _, columns in sizes]

        def added(down: list[jax.Array], up: list[jax.Array]) -> Tree:
            values = [leaf for _, leaf in leaves]
            for i, a, b in zip(where, down, up, strict=True):
                values[i] = values[i] + scale * a @ b
            return jax.tree_util.tree_unflatten(shape, values)

        for _ in range(self.steps):
            slopes = jax.tree.leaves(gradient(added(down, up)))
            by_down = [scale * slopes[i] @ b.T for i, b in zip(where, up, strict=True)]
            by_up = [scale * a.T @ slopes[i] for i, a in zip(where, down, strict=True)]
            norm = jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in [*by_down, *by_up]))
            rate = self.rate * jnp.minimum(1.0, self.clip / jnp.maximum(norm, 1e-9))
            down = [a - rate * d for a, d in zip(down, by_down, strict=True)]
            up = [b - rate * d for b, d in zip(up, by_up, strict=True)]
        return added(down, up)


def _path(path: tuple[object, ...]) -> Path:
    return tuple(str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part)))) for part in path)


def _last_mlps(paths: list[Path], share: float) -> list[int]:
    """Which parameters are MLP matrices of the last `share` of the layers of their stack, at least one layer."""
    layers: dict[Path, dict[int, list[int]]] = {}  # a stack's place in the model -> layer -> its parameters
    for i, path in enumerate(paths):
        if "mlp" in path and "weight" in path:
            at = path.index("mlp") - 1
            layers.setdefault(path[:at], {}).setdefault(int(path[at]), []).append(i)
    found = []
    for stack in layers.values():
        count = max(1, round(share * len(stack)))
        found += [i for layer in sorted(stack)[-count:] for i in stack[layer]]
    return found
