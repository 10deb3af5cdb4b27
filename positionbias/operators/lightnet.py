"""LightNet: every key channel keeps a running softmax over time."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias import kernels
from positionbias.arrays import Bool, Float, Tree
from positionbias.masks.base import Mask
from positionbias.operators.asked import Asked, taken
from positionbias.operators.base import SiteFunction
from positionbias.operators.recurrent import (
    Recurrent,
    State,
    across,
    by_head,
    held,
    normed,
    of_one_sequence,
    only_valid,
    product,
    rotated,
    running,
    runs,
    sees_all,
    there,
)
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member, require
from positionbias.tokens import Tokens

NOTHING = -1e30  # the key of a token that is none
FORGETS = -80.0  # of the log of a decay: what has e^-80 of its weight left is nothing in float32


@member("operators", "lightnet")
@dataclasses.dataclass(frozen=True)
class LightNet(Recurrent):
    """o_i = silu(q_i) . [sum_j e^(k_j) v_j' / sum_j e^(k_j)], a quotient a key channel (Qin et al. 2024).

    arXiv 2405.21022: additive decay, causal or over all keys; each head's output over its root mean square, and through
    the sigmoid of a gate made of the stream by `rank` features. With `lrpe` (its MD-LRPE), names of fields of the
    tokens, silu(q) and the weights of keys are turned by angles of these, an equal share of the channels each (but for
    one channel, where they do not divide), cosines and sines side by side so that each channel keeps its own decay; the
    position scheme's own rotation is of k itself and of silu(q). Its MD-TPE, a recurrence over the embeddings, is the
    operator `md_tpe` of a layer in front. Of another sequence, whose keys sum up as they are stored, queries read all
    or those up to their own place.
    """

    rank: int = 16
    lrpe: tuple[str, ...] = ()

    patterns = frozenset({"causal_self", "noncausal_self", "causal_cross", "noncausal_cross"})

    def __post_init__(self) -> None:
        require(1 <= self.rank <= 65536, "rank", self.rank, "a whole number from 1 to 65536")
        known = set(Tokens._fields) - {"valid"}
        good = isinstance(self.lrpe, tuple) and set(self.lrpe) <= known
        require(good, "lrpe", self.lrpe, f"names among {', '.join(sorted(known))}")

    @property
    def reads_tokens(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset(self.lrpe)

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        allowed = f"at most as many names as a head has channels, {dims.head_size}"
        require(len(self.lrpe) <= dims.head_size, "lrpe", self.lrpe, allowed)
        return {
            "gate_in": Matrix((dims.width, self.rank), "gate", dims.width, "fan_in"),
            "gate_out": Matrix((self.rank, dims.heads * dims.values), "gate", self.rank, "fan_in"),
        }

    def projected(self, x: jax.Array, stream: jax.Array, params: Parameters) -> Parameters:
        return {"open": jax.nn.sigmoid(product(product(x, params["gate_in"]), params["gate_out"]))}

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
        asked = Asked.all(tokens_k, mask)
        return self._mixed(q, k, v, tokens_q, asked, position, params, None)[0]

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
        return self._mixed(q, k, v, asked.tokens_q, asked, position, params, state)

    def _mixed(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        tokens_q: Tokens,
        asked: Asked,
        position: Placed,
        params: Parameters,
        state: State | None,
    ) -> tuple[jax.Array, State]:
        """Keys and values are of the rows asked; queries, of these too or of another sequence."""
        if not (sees_all(asked.mask) or of_one_sequence(tokens_q, asked.tokens_q)):
            k, v, asked = _by_place(k, v, asked)
        tokens = asked.tokens_q
        q, k = rotated(position, jax.nn.silu(q), k, tokens_q, tokens)
        q, k = q.astype(jnp.float32), k.astype(jnp.float32)
        values = only_valid(v.astype(jnp.float32), tokens)
        valid = there(tokens, len(k))[..., None, None]
        k = jnp.where(valid, k, NOTHING)
        if sees_all(asked.mask):
            total = jax.nn.logsumexp(k, axis=1, keepdims=True)
            weights = jnp.where(valid, jax.nn.softmax(k, axis=1), 0.0)
            memory = jnp.einsum("BSNH,BSNK->BNHK", self._turned(weights, tokens), values)
            mixed = jnp.einsum("BTNH,BNHK->BTNK", self._turned(q, tokens_q), memory)
        else:
            resets = asked.resets()
            total, before = _totals(k, resets, held(state, "total"))
            log_decay = jnp.where(valid, jnp.maximum(before - total, FORGETS), 0.0)
            weights = jnp.where(valid, jnp.exp(k - total), 0.0)
            if self.lrpe:
                log_decay = jnp.concatenate([log_decay, log_decay], axis=-1)
            turned = self._turned(q, tokens_q), self._turned(weights, tokens)
            if of_one_sequence(tokens_q, tokens):
                memory = held(state, "memory")
                mixed, memory = kernels.linear_attention(
                    *turned, values, log_decay=log_decay, initial_state=memory, resets=resets
                )
            else:
                mixed, memory = across(*turned, values, tokens_q, tokens, log_decay), None
        mixed = normed(mixed) * by_head(params["open"], q.shape[2])
        return only_valid(mixed.astype(v.dtype), tokens_q), {"memory": memory, "total": total[:, -1]}

    def _turned(self, x: Float[jax.Array, "B T N H"], tokens: Tokens) -> Float[jax.Array, "B T N F"]:
        """Each channel as its cosine and its sine share."""
        if not self.lrpe:
            return x
        number = np.arange(x.shape[-1]) * len(self.lrpe) // x.shape[-1]  # of each channel's field
        first, share = np.searchsorted(number, number), np.bincount(number)[number]
        fields = jnp.broadcast_arrays(*(jnp.asarray(getattr(tokens, name)) for name in self.lrpe))
        places = jnp.stack(fields, axis=-1).astype(jnp.float32)[..., number]
        angle = places * (10000.0 ** ((first - np.arange(x.shape[-1])) / share)).astype(np.float32)
        angle = (angle if angle.ndim == 3 else angle[None])[:, :, None]
        return jnp.concatenate([x * jnp.cos(angle), x * jnp.sin(angle)], axis=-1)


def _by_place(k: jax.Array, v: jax.Array, asked: Asked) -> tuple[jax.Array, jax.Array, Asked]:
    """Keys and values in the order of their places, in which queries read them; several passes are not stored so."""
    index = asked.tokens_q.index
    if isinstance(index, np.ndarray) and (np.diff(index) >= 0).all():
        return k, v, asked
    order = jnp.argsort(jnp.broadcast_to(jnp.asarray(index), k.shape[:2]), axis=-1)
    k, v = (jnp.take_along_axis(x, order[..., None, None], axis=1) for x in (k, v))
    return k, v, Asked.all(taken(asked.tokens_q, order), asked.mask)


def _totals(
    k: Float[jax.Array, "B T N H"], resets: Bool[jax.Array, "... T"] | None, begun: Float[jax.Array, "B N H"] | None
) -> tuple[Float[jax.Array, "B T N H"], Float[jax.Array, "B T N H"]]:
    """log sum_j e^(k_j) up to each row and up to the one before it; the same two where there is none in its segment."""
    total = jax.lax.cumlogsumexp(k, axis=1) if resets is None else running(jnp.logaddexp, k, resets)
    if begun is None:
        begun = total[:, 0]
    elif resets is None:
        total = jnp.logaddexp(begun[:, None], total)
    else:
        total = jnp.where(runs(resets, 0)[..., None, None] == 0, jnp.logaddexp(begun[:, None], total), total)
    before = jnp.concatenate([begun[:, None], total[:, :-1]], axis=1)
    return total, before if resets is None else jnp.where(resets[..., None, None], total, before)
