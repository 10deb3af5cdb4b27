"""Higher-order linear attention: linear attention whose keys or values are the outputs of another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from positionbias import kernels
from positionbias.arrays import Float, Tree
from positionbias.masks.base import Mask
from positionbias.operators.asked import Asked
from positionbias.operators.base import SiteFunction, reasons
from positionbias.operators.recurrent import Recurrent, held, normed, only_valid, rotated, sees_all
from positionbias.positions.base import Parameters, Placed
from positionbias.spec import member, require
from positionbias.tokens import Tokens

Norm = Literal["none", "rms", "ratio"]
_Linear = Callable[[str, jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class _HigherOrder(Recurrent):
    """LA(q, k, v) = sum over j <= i of g^(i - j) (q_i . k_j) v_j, nested; q . k is over sqrt(H).

    Padding between tokens counts in i - j, as in `retention`.
    """

    decay: float = 1.0
    norm: Norm = "rms"

    patterns = frozenset({"causal_self", "noncausal_self"})
    lacks = reasons(cross="a query and a key of the same token are multiplied")

    def __post_init__(self) -> None:
        require(0 < self.decay <= 1, "decay", self.decay, "a number above 0 and at most 1")

    def refuses(self, mask: Mask, tokens_q: Tokens, tokens_k: Tokens) -> str:
        if self.decay < 1 and sees_all(mask):
            return (
                "it forgets by how much earlier a token is, and where all see all none is earlier; allowed: decay=1.0,"
                " or model.mask = causal"
            )
        return super().refuses(mask, tokens_q, tokens_k)

    def _nested(self, q: jax.Array, k: jax.Array, v: jax.Array, one: _Linear) -> jax.Array:
        """`one(name, q, k, v)` is LA, with a state of that name."""
        raise NotImplementedError

    def advance(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        asked: Asked,
        position: Placed,
        params: Parameters,
        site: SiteFunction,
        state: Tree,
    ) -> tuple[jax.Array, Tree]:
        tokens, after = asked.tokens_q, {}
        q, k = rotated(position, q, k, tokens, tokens)
        root = q.shape[-1] ** -0.25
        q, k = (only_valid(x.astype(jnp.float32) * root, tokens) for x in (q, k))
        values = v.astype(jnp.float32)
        if self.norm == "ratio":
            values = jnp.concatenate([values, jnp.ones_like(values[..., :1])], axis=-1)

        def one(name: str, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            mixed, after[name] = self._linear(q, k, v, asked, held(state, name))
            return mixed

        mixed = self._nested(q, k, only_valid(values, tokens), one)
        if self.norm == "ratio":
            mixed = kernels.divided(mixed)
        mixed = mixed.astype(v.dtype)
        return only_valid(normed(mixed) if self.norm == "rms" else mixed, tokens), after

    def _linear(
        self, q: jax.Array, k: jax.Array, v: jax.Array, asked: Asked, state: jax.Array | None
    ) -> tuple[Float[jax.Array, "B T N K"], Float[jax.Array, "B N H K"]]:
        if sees_all(asked.mask):
            whole = jnp.einsum("BSNH,BSNK->BNHK", k, v)
            return jnp.einsum("BTNH,BNHK->BTNK", q, whole), whole
        log_decay = None if self.decay == 1 else jnp.full(q.shape[:3], math.log(self.decay), jnp.float32)
        return kernels.linear_attention(q, k, v, log_decay=log_decay, initial_state=state, resets=asked.resets())


@member("operators", "hla2")
@dataclasses.dataclass(frozen=True)
class SecondOrder(_HigherOrder):
    """((A A') o L) V of A = L o (Q K'): LA(q, LA(q, k, k), v) (HLA).

    Zhang et al. 2025 (arXiv 2510.27258, section 3): its masked form by two states in place of its five summaries, which
    is the same sum without its difference of large numbers. With `decay` each of the two forgets at that pace, so that
    a triple weighs g^(i - l), l the first of the three. `norm`: `ratio` divides by the same sum over ones (the paper's,
    whose sign may change), `rms` takes each head's output over its root mean square (ours), `none` neither.
    """

    known_as = ("hla",)

    def _nested(self, q: jax.Array, k: jax.Array, v: jax.Array, one: _Linear) -> jax.Array:
        return one("outer", q, one("inner", q, k, k), v)


@member("operators", "ahla")
@dataclasses.dataclass(frozen=True)
class AsymmetricSecondOrder(_HigherOrder):
    """A A V of A = L o (Q K'): LA(q, k, LA(q, k, v)), linear attention of linear attention (AHLA).

    Zhang et al. 2025 (arXiv 2510.27258, section 6). `decay` and `norm` are those of `hla2`.
    """

    def _nested(self, q: jax.Array, k: jax.Array, v: jax.Array, one: _Linear) -> jax.Array:
        return one("outer", q, k, one("inner", q, k, v))


@member("operators", "hla3")
@dataclasses.dataclass(frozen=True)
class ThirdOrder(_HigherOrder):
    """((A A') o L) A V of A = L o (Q K'): LA(q, LA(q, k, k), LA(q, k, v)).

    The third order of Zhang et al. 2025 (arXiv 2510.27258, section 7), by its exact masked operator: the corrections of
    its theorem 7.1 do not add up to that. `decay` and `norm` are those of `hla2`.
    """

    def _nested(self, q: jax.Array, k: jax.Array, v: jax.Array, one: _Linear) -> jax.Array:
        return one("outer", q, one("keys", q, k, k), one("values", q, k, v))
