"""Higher-order linear attention: linear attention whose keys or values are the outputs of another."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from positionbias import kernels
from positionbias.arrays import Float
from positionbias.masks.base import Mask
from positionbias.operators.base import SiteFunction
from positionbias.operators.linear_attention import unordered
from positionbias.operators.recurrent import Recurrent, normed, only_valid, rotated, sees_all
from positionbias.positions.base import Dims, Parameters, Placed
from positionbias.spec import member, require
from positionbias.tokens import Tokens

Norm = Literal["none", "rms", "ratio"]


@dataclasses.dataclass(frozen=True)
class _HigherOrder(Recurrent):
    """LA(q, k, v) = sum over j <= i of g^(i - j) (q_i . k_j) v_j, nested; q . k is over sqrt(H)."""

    decay: float = 1.0
    norm: Norm = "rms"

    patterns = frozenset({"causal_self", "noncausal_self"})

    def __post_init__(self) -> None:
        require(0 < self.decay <= 1, "decay", self.decay, "a number above 0 and at most 1")

    def _nested(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
        raise NotImplementedError

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        tokens_q: Tokens,
        tokens_k: Tokens,
        mask: Mask,
        position: Placed,
        params: Parameters,
        site: SiteFunction,
    ) -> jax.Array:
        q, k = rotated(position, q, k, tokens_q, tokens_k)
        root = q.shape[-1] ** -0.25
        q, k = (only_valid(x.astype(jnp.float32) * root, tokens_k) for x in (q, k))
        values = v.astype(jnp.float32)
        if self.norm == "ratio":
            values = jnp.concatenate([values, jnp.ones_like(values[..., :1])], axis=-1)
        mixed = self._nested(q, k, only_valid(values, tokens_k), mask)
        if self.norm == "ratio":
            mixed, total = mixed[..., :-1], mixed[..., -1:]
            mixed = jnp.where(total == 0, 0.0, mixed / jnp.where(total == 0, 1.0, total))
        mixed = mixed.astype(v.dtype)
        return only_valid(normed(mixed) if self.norm == "rms" else mixed, tokens_q)

    def _linear(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> Float[jax.Array, "B T N K"]:
        if sees_all(mask):
            return unordered(q, k, v, normalise=False)
        log_decay = None if self.decay == 1 else jnp.full(q.shape[:3], math.log(self.decay), jnp.float32)
        return kernels.linear_attention(q, k, v, log_decay=log_decay)[0]

    def _values(self, dims: Dims) -> int:
        return dims.values + (self.norm == "ratio")


@member("operators", "hla2")
@dataclasses.dataclass(frozen=True)
class SecondOrder(_HigherOrder):
    """((A A') o L) V of A = L o (Q K'): LA(q, LA(q, k, k), v) (HLA).

    Zhang et al. 2025 (arXiv 2510.27258, section 3): its masked form by two states in place of its five summaries, which
    is the same sum without its difference of large numbers. With `decay` each of the two forgets at that pace, so that
    a triple weighs g^(i - l), l the first of the three. `norm`: `ratio` divides by the same sum over ones (the paper's,
    whose sign may change), `rms` takes each head's output over its root mean square (ours), `none` neither.
    """

    def _nested(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
        return self._linear(q, self._linear(q, k, k, mask), v, mask)

    def state_size(self, dims: Dims) -> int:
        return dims.heads * dims.head_size * (dims.head_size + self._values(dims))


@member("operators", "ahla")
@dataclasses.dataclass(frozen=True)
class AsymmetricSecondOrder(_HigherOrder):
    """A A V of A = L o (Q K'): LA(q, k, LA(q, k, v)), linear attention of linear attention (AHLA).

    Zhang et al. 2025 (arXiv 2510.27258, section 6). `decay` and `norm` are those of `hla2`.
    """

    def _nested(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
        return self._linear(q, k, self._linear(q, k, v, mask), mask)

    def state_size(self, dims: Dims) -> int:
        return 2 * dims.heads * dims.head_size * self._values(dims)


@member("operators", "hla3")
@dataclasses.dataclass(frozen=True)
class ThirdOrder(_HigherOrder):
    """((A A') o L) A V of A = L o (Q K'): LA(q, LA(q, k, k), LA(q, k, v)).

    The third order of Zhang et al. 2025 (arXiv 2510.27258, section 7), by its exact masked operator: the corrections of
    its theorem 7.1 do not add up to that. `decay` and `norm` are those of `hla2`.
    """

    def _nested(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
        return self._linear(q, self._linear(q, k, k, mask), self._linear(q, k, v, mask), mask)

    def state_size(self, dims: Dims) -> int:
        return dims.heads * dims.head_size * (dims.head_size + 2 * self._values(dims))
