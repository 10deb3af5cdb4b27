"""BICO: next-token prediction and denoising that keeps its shift, by turns."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.objectives.denoising import MaskToken, always_said, hide, may_hide
from positionbias.spec import member, require
from positionbias.tasks.base import Batch, Condition, Task


@member("objectives", "bidirectional_causal")
@dataclasses.dataclass(frozen=True)
class BidirectionalCausal(MaskToken):
    """Bidirectional causal-LM optimisation against the reversal curse (BICO, Lv et al. 2023, arXiv 2311.07468).

    A batch that the mask reads in its first mode is trained as by `next_token`. In the second, inputs are hidden with
    chance `rate` and said by the row before theirs, so that the same readout fits. The paper's mask is
    `switch(causal, bidirectional & ~masked_keys)`, which shows nobody what is hidden, and its scheme `mirrored_rope`.
    The first token has no row before it and is never hidden. Measured is the first mode.
    """

    rate: float = 0.15

    tells = frozenset({"hidden"})
    two_modes = True

    def __post_init__(self) -> None:
        require(0 < self.rate <= 1, "rate", self.rate, "a number above 0 and at most 1")

    def prepare(self, key: jax.Array, batch: Batch, task: Task, condition: Condition) -> Batch:
        second = jnp.asarray(batch.tokens.mode) > 0
        before = _shifted(jnp.asarray(batch.tokens.valid) & ~always_said(batch))
        chosen = jax.random.bernoulli(key, self.rate, batch.inputs.shape) & may_hide(batch) & before & second
        hidden = hide(batch, chosen, task)
        says = jnp.roll(chosen, -1, axis=-1)  # the first is never chosen, so none comes round
        kept = jnp.where(second, always_said(batch) * batch.weights, batch.weights)
        return batch._replace(
            inputs=hidden.inputs,
            tokens=hidden.tokens,
            targets=jnp.where(says, jnp.roll(batch.inputs, -1, axis=-1), batch.targets),
            weights=jnp.where(says, 1.0, kept),
        )


def _shifted(rows: jax.Array) -> jax.Array:
    """What the row before each says; nothing stands before the first."""
    return jnp.roll(rows, 1, axis=-1).at[..., 0].set(False)
