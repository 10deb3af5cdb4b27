"""Titans: a memory that learns while it reads, beside, before or within attention to what is near."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from positionbias import kernels
from positionbias.arrays import Bool, Float
from positionbias.masks.base import Mask
from positionbias.masks.order import Causal, SlidingWindow
from positionbias.operators.base import SiteFunction
from positionbias.operators.neural_memory import Memory, network_memory
from positionbias.operators.recurrent import (
    Recurrent,
    all_convolved,
    convolution_matrices,
    convolution_state,
    in_chunks,
    normed,
    only_valid,
    product,
    rejoined,
    rotated,
    there,
    unit,
)
from positionbias.operators.softmax import masked_softmax
from positionbias.positions.base import Dims, Matrix, Parameters, Placed
from positionbias.spec import member, require
from positionbias.tokens import Tokens

State = tuple[jax.Array, jax.Array] | tuple[Memory, Memory]
RATES = ("rate", "momentum", "forget")


@member("operators", "titans")
@dataclasses.dataclass(frozen=True)
class Titans(Recurrent):
    """A memory M trained on |M(k_t) - v_t|^2 with momentum and forgetting while it reads (Behrouz et al. 2024).

    arXiv 2501.00663, sections 3 and 4. S_t = eta_t S_(t-1) - theta_t grad, M_t = (1 - alpha_t) M_(t-1) + S_t, the
    gradient at the memory that a chunk of `chunk` tokens begins with; theta, eta and alpha are sigmoids of linear maps
    of the token, a head. Queries, keys and values of the memory pass a SiLU and a causal convolution of `convolution`
    tokens, queries and keys are of length 1 then. `memory` is a matrix (`linear`) or a network with one hidden layer of
    `expansion` times the head size (`mlp`); both start from trained weights. `form`:

    mag: the product of softmax attention to the last `window` tokens and `persistent` trained ones, and of the sigmoid
        of the memory, each over its root mean square and times trained weights.
    mal: attention, to the same, of what the memory gives.
    mac: segments of `chunk` tokens attend to `persistent` trained tokens, to what the memory of the segments before
        holds for each of their own up to the query's (the paper lets queries see all of these, which would read
        later tokens), and to themselves; the memory then learns from what comes out, and its answer to that, through a
        sigmoid, multiplies it.

    At the start eta is 0.5, alpha 0.02 and theta 0.12, for a network 0.02, so that the steps of a chunk, all by the
    same memory, do not overshoot (ours).
    """

    form: Literal["mag", "mal", "mac"] = "mag"
    memory: Literal["linear", "mlp"] = "linear"
    chunk: int = 16
    window: int = 16
    persistent: int = 4
    convolution: int = 4
    expansion: int = 2

    def __post_init__(self) -> None:
        for name in ("chunk", "window", "convolution", "expansion"):
            require(1 <= getattr(self, name) <= 65536, name, getattr(self, name), "a whole number from 1 to 65536")
        require(0 <= self.persistent <= 65536, "persistent", self.persistent, "a whole number from 0 to 65536")

    def parameters(self, dims: Dims) -> dict[str, Matrix]:
        n, h, k = dims.heads, dims.head_size, dims.values
        made = {name: Matrix((dims.width, n), "gate", dims.width, "fan_in") for name in RATES}
        made |= {f"{name}_offset": Matrix((n,), "gate", dims.width, "constant(value=0.0)") for name in RATES}
        made |= convolution_matrices(self.convolution, dims)
        if self.memory == "linear":
            made["start"] = Matrix((n, h, k), "memory", h, "constant(value=0.0)")
        else:
            made["start_first"] = Matrix((n, h, self.expansion * h), "memory", h, "fan_in")
            made["start_second"] = Matrix((n, self.expansion * h, k), "memory", self.expansion * h, "fan_in")
        if self.persistent:
            made["persistent_key"] = Matrix((self.persistent, n, h), "memory", h, "fan_in")
            made["persistent_value"] = Matrix((self.persistent, n, k), "memory", k, "fan_in")
        if self.form == "mag":
            made |= {f"scale_{name}": Matrix((n, k), "gate", k, "constant(value=1.0)") for name in ("near", "far")}
        else:
            made |= {f"again_{name}": Matrix((n, k, h), "key", k, "fan_in") for name in ("q", "k")}
            made["again_v"] = Matrix((n, k, k), "value", k, "fan_in")
        return made

    def projected(self, x: jax.Array, stream: jax.Array, params: Parameters) -> Parameters:
        begun = {"rate": -2.0 if self.memory == "linear" else -4.0, "momentum": 0.0, "forget": -4.0}
        return {
            f"made_{name}": jax.nn.sigmoid(product(stream, params[name]) + params[f"{name}_offset"] + begun[name])
            for name in RATES
        }

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
        rates = tuple(site(name, params[f"made_{name}"]) for name in RATES)
        made = all_convolved(jax.nn.silu(q), jax.nn.silu(k), jax.nn.silu(v), tokens_k, params)
        asked, key, value = (x.astype(jnp.float32) for x in made)
        asked, key = unit(asked), unit(key)
        near_q, near_k = rotated(position, q, k, tokens_q, tokens_k)
        if self.form == "mac":
            mixed = self._as_context(asked, near_q, near_k, v, rates, tokens_k, params)
        else:
            far, _ = self._read(asked, key, value, rates, there(tokens_k, len(q)), self._start(len(q), params))
            if self.form == "mag":
                near = self._near(near_q, near_k, v, tokens_q, tokens_k, params)
                opened = jax.nn.sigmoid(normed(far) * params["scale_far"].astype(jnp.float32))
                mixed = normed(near.astype(jnp.float32)) * params["scale_near"].astype(jnp.float32) * opened
            else:
                q, k, v = (_each_head(far, params[f"again_{name}"]).astype(v.dtype) for name in "qkv")
                q, k = rotated(position, q, k, tokens_q, tokens_k)
                mixed = self._near(q, k, v, tokens_q, tokens_k, params)
        return only_valid(mixed.astype(v.dtype), tokens_q)

    def _start(self, batch: int, params: Parameters) -> State:
        """The memory and the momentum before the first token."""
        names = ("start",) if self.memory == "linear" else ("start_first", "start_second")
        held = [jnp.broadcast_to(params[x].astype(jnp.float32), (batch, *params[x].shape)) for x in names]
        still = [jnp.zeros_like(x) for x in held]
        return (held[0], still[0]) if self.memory == "linear" else (Memory(*held), Memory(*still))

    def _read(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        rates: tuple[jax.Array, ...],
        valid: Bool[jax.Array, "B T"],
        state: State,
    ) -> tuple[Float[jax.Array, "B T N K"], State]:
        """What the memory answers, having learned each token first."""
        if self.memory == "linear":
            return kernels.linear_memory(q, k, v, *rates, valid=valid, initial_state=state, chunk=self.chunk)  # type: ignore[arg-type]
        rate, momentum, forget = rates
        return network_memory(q, k, v, rate, momentum, forget, valid, state, self.chunk)  # type: ignore[arg-type]

    def _asked(self, q: jax.Array, state: State) -> Float[jax.Array, "B T N K"]:
        """What a memory answers without learning."""
        if self.memory == "linear":
            return jnp.einsum("BTNH,BNHK->BTNK", q, state[0])
        held: Memory = state[0]  # type: ignore[assignment]
        return Memory(*(x[:, None] for x in held)).read(q)

    def _near(
        self, q: jax.Array, k: jax.Array, v: jax.Array, tokens_q: Tokens, tokens_k: Tokens, params: Parameters
    ) -> Float[jax.Array, "B T N K"]:
        """Softmax attention to the window and the persistent tokens."""
        near = Causal() & SlidingWindow(self.window)
        mixed, stats = kernels.attention(q, k, v, mask=near, tokens=(tokens_q, tokens_k), stats=("lse",))
        if not self.persistent:
            return mixed  # type: ignore[no-any-return]
        names = ("persistent_key", "persistent_value")
        always = [jnp.broadcast_to(params[x].astype(q.dtype), (len(q), *params[x].shape)) for x in names]
        more, more_stats = kernels.attention(q, *always, stats=("lse",))
        return kernels.merge((mixed, stats.lse), (more, more_stats.lse))[0]

    def _as_context(
        self,
        asked: jax.Array,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        rates: tuple[jax.Array, ...],
        tokens: Tokens,
        params: Parameters,
    ) -> Float[jax.Array, "B T N K"]:
        """Segment after segment."""
        always_k, always_v = jnp.zeros((0, *q.shape[2:])), jnp.zeros((0, *v.shape[2:]))
        if self.persistent:
            always_k, always_v = (params[f"persistent_{x}"].astype(jnp.float32) for x in ("key", "value"))
        causal = jnp.tril(jnp.ones((self.chunk, self.chunk), bool))

        def one(state: State, part: tuple[jax.Array, ...]) -> tuple[State, jax.Array]:
            asked, q, k, v, valid, *rates = part
            held = self._asked(asked, state)
            held_k, held_v = (_each_head(held, params[f"again_{name}"]) for name in "kv")
            scores = [jnp.einsum("BTNH,PNH->BNTP", q, always_k)]
            scores += [jnp.einsum("BTNH,BSNH->BNTS", q, x) for x in (held_k, k)]
            seen = causal & (valid > 0)[:, None, None]
            free = jnp.ones(scores[0].shape, bool)
            allowed = [free, *(jnp.broadcast_to(seen, x.shape) for x in scores[1:])]
            weights = masked_softmax(
                jnp.concatenate(scores, axis=-1) * q.shape[-1] ** -0.5, jnp.concatenate(allowed, axis=-1)
            )
            ends = np.cumsum([x.shape[-1] for x in scores])[:-1]
            by_always, by_held, by_own = jnp.split(weights, ends, axis=-1)
            mixed = jnp.einsum("BNTP,PNK->BTNK", by_always, always_v)
            mixed += jnp.einsum("BNTS,BSNK->BTNK", by_held, held_v) + jnp.einsum("BNTS,BSNK->BTNK", by_own, v)
            q, k, v = (_each_head(mixed, params[f"again_{name}"]) for name in "qkv")
            answer, state = self._read(unit(q), unit(k), v, tuple(rates), valid > 0, state)
            return state, mixed * jax.nn.sigmoid(answer)

        parts = tuple(in_chunks(x, self.chunk) for x in (asked, q, k, v, there(tokens, len(q)), *rates))
        _, found = jax.lax.scan(one, self._start(len(q), params), parts)
        return rejoined(found, q.shape[1])

    def state_size(self, dims: Dims) -> int:
        size, hidden = dims.head_size, self.expansion * dims.head_size
        memory = size * dims.values if self.memory == "linear" else hidden * (size + dims.values)
        near = self.chunk if self.form == "mac" else self.window
        held = dims.heads * (2 * memory + min(near, dims.length) * (size + dims.values))
        return held + convolution_state(self.convolution, dims)


def _each_head(x: Float[jax.Array, "B T N K"], matrix: Float[jax.Array, "N K H"]) -> Float[jax.Array, "B T N H"]:
    return jnp.einsum("BTNK,NKH->BTNH", x.astype(jnp.float32), matrix.astype(jnp.float32))
