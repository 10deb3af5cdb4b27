"""Context attention: how much of their attention rows of each role spend on the context, and whether answers gain."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from positionbias.analysis.base import Analysis, Axes, Subject, evenly, patterns
from positionbias.analysis.segments import (
    asked,
    check_context,
    check_items,
    context_rows,
    correlation,
    grouped,
    of_roles,
)
from positionbias.arrays import Key
from positionbias.spec import member
from positionbias.tasks.base import Batch


@member("analyses", "context_attention")
@dataclasses.dataclass(frozen=True)
class ContextAttention(Analysis):
    """Attention to the context, rows 0 to C - 1, of rows that answer by head, and of rows of each role by layer.

    What is asked for may stand in the context or in the weights: whether a model looks at the first. "context" is by
    head the sum of attention to the context, a mean over answers; "from_role" the same of all rows of a role, a mean
    over heads and over the items that have such rows; "to_role" the attention of rows that answer to all rows of a
    role. "_even" are those of rows that attend evenly to what they see. "relation" is the correlation over answers of
    "context" with the log-probability of what is right, "relation_shuffled" with that of the next item's.
    """

    axes: ClassVar[Axes] = {
        **dict.fromkeys(("context", "context_even", "relation", "relation_shuffled"), ("layer", "head")),
        **dict.fromkeys(("from_role", "from_role_even", "to_role", "to_role_even"), ("layer", "role")),
    }
    shown = "context"

    def check(self, subject: Subject) -> None:
        check_items(subject)
        check_context(subject, self)

    def measure(self, subject: Subject, layers: list[int], key: Key[jax.Array, ""]) -> dict[str, jax.Array]:
        heads, context = subject.run.config.model.heads, context_rows(subject)

        def one(batch: Batch) -> dict[str, jax.Array]:
            outputs, _ = subject.apply(batch)
            attention, role = patterns(subject, layers, batch), of_roles(subject, batch)
            read = jnp.broadcast_to(context[:, None], (len(role), len(context), 1)).astype(jnp.float32)
            each = jnp.ones((*batch.query.shape, 1))
            told = {"answer": subject.answers(outputs, batch)["log_probability"]}
            for name, x in (("", attention), ("_even", evenly(attention))):
                answers = asked(x, subject.run.answer_rows(batch))  # [L, B, N, A, T]
                told[f"context{name}"] = jnp.einsum("LBNAT,BT->BALN", answers, read[..., 0])
                told[f"from_role{name}"] = jnp.moveaxis(jnp.mean(grouped(x, role, read)[..., 0], axis=2), 1, 0)
                told[f"to_role{name}"] = jnp.moveaxis(jnp.mean(grouped(answers, each, role)[..., 0, :], axis=2), 1, 0)
            return told | {"has": jnp.any(role > 0, axis=1).astype(jnp.float32)}

        found = subject.each(subject.batch(key), one)
        answer, has = found.pop("answer"), found.pop("has")
        share = found["context"].reshape(-1, len(layers), heads)
        told = {name: jnp.mean(x.reshape(-1, *x.shape[-2:]), axis=0) for name, x in found.items()}
        for name in ("from_role", "from_role_even"):
            told[name] = told[name] / jnp.maximum(jnp.mean(has, axis=0), 1 / len(has))
        return told | {
            "relation": correlation(share, answer.reshape(-1)),
            "relation_shuffled": correlation(share, jnp.roll(answer, -1, axis=0).reshape(-1)),
        }
