"""Token norms: how large rows of each role and at each position are, how far layers turn them, and if sizes matter."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import STREAM, Analysis, Axes, Subject, recorded
from positionbias.analysis.segments import of_roles
from positionbias.arrays import Float, Key
from positionbias.models import edits
from positionbias.spec import member
from positionbias.tasks.base import Batch

EMBEDDING = "embedding"


def turned(x: Float[jax.Array, "... D"], y: Float[jax.Array, "... D"]) -> Float[jax.Array, "..."]:
    """1 - cos of the angle between two rows; 0 where one of them is nothing."""
    sizes = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
    return jnp.where(sizes > 0, 1 - jnp.sum(x * y, axis=-1) / jnp.where(sizes > 0, sizes, 1.0), 0.0)


@member("analyses", "token_norms")
@dataclasses.dataclass(frozen=True)
class TokenNorms(Analysis):
    """Norms of embeddings and of the stream by role and by position, and answers where all embeddings are of one norm.

    Qi et al. 2025 (arXiv 2503.17349): tokens of one kind with norms far above those of another drown what positions
    tell, which levelled norms restore; Li et al. 2025 (arXiv 2512.08374): behind a norm before each layer large tokens
    turn less. Euclidean norms, means over rows: "embedding" by role, before the first layer, "stream" by role behind
    every layer, "position" the same by position; "turned" is 1 - cos of the angle by which a layer turns rows of a
    role. "intact" is the log-probability (nats) of answers; "levelled" where every embedding is brought to the mean
    norm of its item; "swapped" where it gets the norm of the next row, the control: all norms change, and stay as
    unlike.
    """

    axes: ClassVar[Axes] = {
        "embedding": ("role",),
        **dict.fromkeys(("stream", "turned"), ("layer", "role")),
        "position": ("layer", "position"),
        **dict.fromkeys(("intact", "levelled", "swapped"), ()),
    }
    shown = "position"
    alike = (STREAM, EMBEDDING)
    whole = True

    def reads(self) -> tuple[str, ...]:
        return (STREAM, EMBEDDING)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        def one(batch: Batch) -> dict[str, jax.Array]:
            first = recorded(subject, [0], EMBEDDING, batch)
            streams = jnp.concatenate([first, recorded(subject, layers, STREAM, batch)])  # [L + 1, B, T, D]
            size, role = jnp.linalg.norm(streams, axis=-1), of_roles(subject, batch)
            mean = jnp.mean(size[0], axis=-1, keepdims=True)
            told = {
                "role": jnp.sum(role, axis=(0, 1)) / len(role),
                "size": jnp.einsum("LBT,BTU->LU", size, role) / len(role),
                "turned": jnp.einsum("LBT,BTU->LU", turned(streams[1:], streams[:-1]), role) / len(role),
                "position": jnp.mean(size[1:], axis=1),
            }
            outputs = {
                "intact": None,
                "levelled": mean / jnp.where(size[0] > 0, size[0], 1.0),
                "swapped": jnp.roll(size[0], -1, axis=-1) / jnp.where(size[0] > 0, size[0], 1.0),
            }
            for name, factor in outputs.items():
                edit = None if factor is None else {EMBEDDING: edits.scale(factor[..., None])}
                told[name] = jnp.mean(subject.answers(subject.apply(batch, (), edit)[0], batch)["log_probability"])
            return told

        found = subject.averaged(subject.batch(key), one)
        many = found.pop("role")  # rows of each role an item
        size, turn = (found.pop(name) / jnp.where(many > 0, many, 1.0) for name in ("size", "turned"))
        return found | {"embedding": size[0], "stream": size[1:], "turned": turn}
