"""Titans: a memory that learns while it reads, beside, before or within attention to what is near."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from positionbias import kernels
from positionbias.arrays import Bool, Float
from positionbias.operators.asked import Asked
from positionbias.operators.base import SiteFunction
from positionbias.operators.neural_memory import Carried, Memory, Weight, begins, learned, network_memory
from positionbias.operators.recurrent import (
    Recurrent,
    State,
    all_convolved,
    convolution_matrices,
    held,
    in_chunks,
    near,
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

Held = tuple[jax.Array, jax.Array] | tuple[Memory, Memory]  # a memory and its momentum
RATES = ("rate", "momentum", "forget")
WINDOW = 16  # tokens, unless told


@member("operators", "titans")
@dataclasses.dataclass(frozen=True)
class Titans(Recurrent):
    """A memory M trained on |M(k_t) - v_t|^2 with momentum and forgetting while it reads (Behrouz et al. 2024).

    arXiv 2501.00663, sections 3 and 4; equations 12 to 16 and 18. S_t = eta_t S_(t-1) - theta_t grad, M_t = (1 -
    alpha_t) M_(t-1) + S_t, the gradient at the memory that a chunk of `chunk` tokens begins with; theta, eta and alpha
    are sigmoids of linear maps of the token, a head. Queries, keys and values of the memory pass a causal convolution
    of `convolution` tokens and then a SiLU (4.4 tells both, and their order by whom it follows), queries and keys are
    of length 1 then. `memory` is a matrix (`linear`) or a network with one hidden layer of `expansion` times the head
    size (`mlp`); both start from trained weights. `form`:

    mag: the product of softmax attention to the last `window` tokens, 16 unless told, and `persistent` trained ones,
        and of the sigmoid of the memory, each over its root mean square and times trained weights.
    mal: attention, to the same, of what the memory gives. (In the paper the memories of both read the trained tokens
        before all others too; here attention alone reads them.)
    mac: segments of `chunk` tokens attend to `persistent` trained tokens, to what the memory of the segments before
        holds for each of their own up to the query's (the paper lets queries see all of these, which would read
        later tokens), and to themselves; the memory then learns from what comes out, and its answer to that, through a
        sigmoid, multiplies it.

    At the start eta is 0.5, alpha 0.02 and theta 0.12, for a network 0.02, so that the steps of a chunk, all by the
    same memory, do not overshoot (ours).
    """

    known_as = ("lmm",)

    form: Literal["mag", "mal", "mac"] = "mag"
    memory: Literal["linear", "mlp"] = "linear"
    chunk: int = 16
    window: int | None = None
    persistent: int = 4
    convolution: int = 4
    expansion: int = 2

    endless = "its chunks are counted from the first token stored"

    def __post_init__(self) -> None:
        sizes = {"chunk": self.chunk, "window": self._window}
        sizes |= {"convolution": self.convolution, "expansion": self.expansion}
        for name, size in sizes.items():
            require(1 <= size <= 65536, name, size, "a whole number from 1 to 65536")
        require(self.window is None or self.form != "mac", "window", self.window, "None with form = 'mac'")
        require(0 <= self.persistent <= 65536, "persistent", self.persistent, "a whole number from 0 to 65536")

    @property
    def _window(self) -> int:
        return WINDOW if self.window is None else self.window

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

    def advance(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        asked: Asked,
        position: Placed,
        params: Parameters,
        site: SiteFunction,
        state: State | None,
    ) -> tuple[jax.Array, State]:
        tokens, after = asked.tokens_q, State()
        rates = tuple(site(name, params[f"made_{name}"]) for name in RATES)
        made, after["convolved"] = all_convolved(q, k, v, asked, params, held(state, "convolved"))
        searched, key, value = (jax.nn.silu(x).astype(jnp.float32) for x in made)
        searched, key = unit(searched), unit(key)
        near_q, near_k = rotated(position, q, k, tokens, tokens)
        before = held(state, "memory")
        if self.form == "mac":
            arrays = searched, near_q, near_k, v
            if state is None:
                mixed, after["memory"] = self._segments(arrays, rates, asked, params)
            else:
                mixed, after["memory"] = self._segments_by_row(arrays, rates, asked, params, before)
            return only_valid(mixed.astype(v.dtype), tokens), after
        far, after["memory"] = self._recalled(searched, key, value, rates, asked, params, before)
        if self.form == "mag":
            close, after["near"] = self._near(near_q, near_k, v, asked, params, held(state, "near"))
            opened = jax.nn.sigmoid(normed(far) * params["scale_far"].astype(jnp.float32))
            mixed = normed(close.astype(jnp.float32)) * params["scale_near"].astype(jnp.float32) * opened
        else:
            q, k, v = (_each_head(far, params[f"again_{name}"]).astype(v.dtype) for name in "qkv")
            q, k = rotated(position, q, k, tokens, tokens)
            mixed, after["near"] = self._near(q, k, v, asked, params, held(state, "near"))
        return only_valid(mixed.astype(v.dtype), tokens), after

    def _recalled(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        rates: tuple[jax.Array, ...],
        asked: Asked,
        params: Parameters,
        before: Carried[Any] | None,
    ) -> tuple[Float[jax.Array, "B T N K"], Carried[Any]]:
        """What the memory answers, having learned each token first, and what it carries on."""
        valid = there(asked.tokens_q, len(q))
        if before is None:
            return self._read_on(q, k, v, rates, valid, self._start(len(q), params))
        assert asked.rows is not None

        def one(carried: Carried[Any], row: tuple[jax.Array, ...]) -> tuple[Carried[Any], jax.Array]:
            place, valid, q, k, v, *rates = row
            carried = learned(begins(carried, place, self.chunk), k, v, tuple(rates), valid)
            return carried, carried.memory.read(q)

        rows = tuple(jnp.moveaxis(x, 1, 0) for x in (asked.rows, valid, q, k, v, *rates))
        carried, found = jax.lax.scan(one, before, rows)
        return jnp.moveaxis(found, 0, 1), carried

    def _read_on(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        rates: tuple[jax.Array, ...],
        valid: Bool[jax.Array, "B T"],
        start: Held,
    ) -> tuple[Float[jax.Array, "B T N K"], Carried[Any]]:
        """All rows of a sequence at once, and what is carried on: what no row more asks for is not made."""
        found, memories = self._read(q, k, v, rates, valid, start)
        whole = q.shape[1] // self.chunk * self.chunk
        begun = start
        if whole:
            q, k, v, valid, *rest = (x[:, :whole] for x in (q, k, v, valid, *rates))
            _, begun = self._read(q, k, v, tuple(rest), valid, start)
        return found, self._carried(*memories, begun[0])

    def _carried(self, *memories: Any) -> Carried[Any]:
        """The memory, its momentum and that which the chunk began with, as they learn a row."""
        return Carried(*(Weight(x) if self.memory == "linear" else x for x in memories))

    def _start(self, batch: int, params: Parameters) -> Held:
        """The memory and the momentum before the first token."""
        names = ("start",) if self.memory == "linear" else ("start_first", "start_second")
        begun = [jnp.broadcast_to(params[x].astype(jnp.float32), (batch, *params[x].shape)) for x in names]
        still = [jnp.zeros_like(x) for x in begun]
        return (begun[0], still[0]) if self.memory == "linear" else (Memory(*begun), Memory(*still))

    def _read(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        rates: tuple[jax.Array, ...],
        valid: Bool[jax.Array, "B T"],
        state: Held,
    ) -> tuple[Float[jax.Array, "B T N K"], Held]:
        """What the memory answers, having learned each token first."""
        if self.memory == "linear":
            return kernels.linear_memory(q, k, v, *rates, valid=valid, initial_state=state, chunk=self.chunk)  # type: ignore[arg-type]
        rate, momentum, forget = rates
        return network_memory(q, k, v, rate, momentum, forget, valid, state, self.chunk)  # type: ignore[arg-type]

    def _asked(self, q: jax.Array, state: tuple[Any, ...]) -> Float[jax.Array, "B T N K"]:
        """What a memory answers without learning."""
        if self.memory == "linear":
            return jnp.einsum("BTNH,BNHK->BTNK", q, state[0])
        return Memory(*(x[:, None] for x in state[0])).read(q)

    def _near(
        self, q: jax.Array, k: jax.Array, v: jax.Array, asked: Asked, params: Parameters, before: State | None
    ) -> tuple[Float[jax.Array, "B T N K"], State]:
        """Softmax attention to the window and the persistent tokens, and the keys and values carried on."""
        mixed, sums, after = near(q, k, v, self._window, asked, before)
        if not self.persistent:
            return mixed, after
        names = ("persistent_key", "persistent_value")
        always = [jnp.broadcast_to(params[x].astype(q.dtype), (len(q), *params[x].shape)) for x in names]
        more, more_stats = kernels.attention(q, *always, stats=("lse",))
        return kernels.merge((mixed, sums), (more, more_stats.lse))[0], after

    def _segments(
        self,
        arrays: tuple[jax.Array, ...],
        rates: tuple[jax.Array, ...],
        asked: Asked,
        params: Parameters,
    ) -> tuple[Float[jax.Array, "B T N K"], State]:
        """Segment after segment, of what is searched for, queries, keys and values; and what is carried on."""
        length = arrays[0].shape[1]
        causal = jnp.tril(jnp.ones((min(self.chunk, length),) * 2, bool))

        def one(state: Held, part: tuple[jax.Array, ...]) -> tuple[Held, jax.Array]:
            searched, q, k, v, valid, *rates = part
            found = self._asked(searched, state)
            mixed = self._attended(q, *self._keys_values(found, params), k, v, causal & (valid > 0)[:, None], params)
            q, k, v = (_each_head(mixed, params[f"again_{name}"]) for name in "qkv")
            answer, state = self._read(unit(q), unit(k), v, tuple(rates), valid > 0, state)
            return state, mixed * jax.nn.sigmoid(answer)

        valid = there(asked.tokens_q, len(arrays[0]))
        parts = tuple(in_chunks(x, self.chunk) for x in (*arrays, valid, *rates))
        (memory, speed), found = jax.lax.scan(one, start := self._start(len(valid), params), parts)
        whole = valid.shape[1] // self.chunk
        begun, _ = jax.lax.scan(one, start, tuple(x[:whole] for x in parts))  # what no row more asks for is not made
        return rejoined(found, valid.shape[1]), self._in_segment(
            arrays, valid, asked, params, (memory, speed, begun[0])
        )

    def _in_segment(
        self,
        arrays: tuple[jax.Array, ...],
        valid: Bool[jax.Array, "B T"],
        asked: Asked,
        params: Parameters,
        memories: tuple[Any, ...],
    ) -> State:
        """What is carried on by a segment that may not be whole."""
        size, whole = min(self.chunk, asked.length), valid.shape[1] // self.chunk * self.chunk
        searched, _, k, v = (x[:, whole:].astype(jnp.float32) for x in arrays)
        held_k, held_v = self._keys_values(self._asked(searched, memories[2:]), params)
        parts = {"k": k, "v": v, "held_k": held_k, "held_v": held_v, "valid": valid[:, whole:]}
        rows = {
            name: jnp.pad(x, [(0, 0), (0, size - x.shape[1])] + [(0, 0)] * (x.ndim - 2)) for name, x in parts.items()
        }
        return {"carried": self._carried(*memories), "rows": rows}

    def _segments_by_row(
        self,
        arrays: tuple[jax.Array, ...],
        rates: tuple[jax.Array, ...],
        asked: Asked,
        params: Parameters,
        before: State,
    ) -> tuple[Float[jax.Array, "B T N K"], State]:
        """The same, a row after another."""
        assert asked.rows is not None

        def one(state: State, row: tuple[jax.Array, ...]) -> tuple[State, jax.Array]:
            place, valid, searched, q, k, v, *rates = row
            slot = place % self.chunk
            carried = begins(state["carried"], place, self.chunk)
            held_k, held_v = self._keys_values(carried.begun.read(searched)[:, None], params)
            new = {"k": k, "v": v, "held_k": held_k[:, 0], "held_v": held_v[:, 0], "valid": valid}
            rows = {name: x.at[jnp.arange(len(x)), slot].set(new[name]) for name, x in state["rows"].items()}
            rows["valid"] = rows["valid"] & (jnp.arange(rows["valid"].shape[1]) <= slot[:, None])
            parts = rows["held_k"], rows["held_v"], rows["k"], rows["v"]
            mixed = self._attended(q[:, None], *parts, rows["valid"][:, None], params)
            q, k, v = (_each_head(mixed, params[f"again_{name}"])[:, 0] for name in "qkv")
            carried = learned(carried, unit(k), v, tuple(rates), valid)
            answer = carried.memory.read(unit(q))
            return {"carried": carried, "rows": rows}, mixed[:, 0] * jax.nn.sigmoid(answer)

        parts = (asked.rows, there(asked.tokens_q, len(arrays[0])), *(x.astype(jnp.float32) for x in arrays), *rates)
        after, found = jax.lax.scan(one, before, tuple(jnp.moveaxis(x, 1, 0) for x in parts))
        return jnp.moveaxis(found, 0, 1), after

    def _keys_values(self, found: Float[jax.Array, "B T N K"], params: Parameters) -> tuple[jax.Array, jax.Array]:
        """Of what the memory gave."""
        return _each_head(found, params["again_k"]), _each_head(found, params["again_v"])

    def _attended(
        self,
        q: Float[jax.Array, "B T N H"],
        held_k: Float[jax.Array, "B S N H"],
        held_v: Float[jax.Array, "B S N K"],
        k: Float[jax.Array, "B S N H"],
        v: Float[jax.Array, "B S N K"],
        seen: Bool[jax.Array, "B T S"],
        params: Parameters,
    ) -> Float[jax.Array, "B T N K"]:
        """Softmax attention to the persistent tokens, to what the memory gave and to the tokens themselves."""
        always_k, always_v = jnp.zeros((0, *q.shape[2:])), jnp.zeros((0, *v.shape[2:]))
        if self.persistent:
            always_k, always_v = (params[f"persistent_{x}"].astype(jnp.float32) for x in ("key", "value"))
        scores = [jnp.einsum("BTNH,PNH->BNTP", q, always_k)]
        scores += [jnp.einsum("BTNH,BSNH->BNTS", q, x) for x in (held_k, k)]
        free = jnp.ones(scores[0].shape, bool)
        allowed = [free, *(jnp.broadcast_to(seen[:, None], x.shape) for x in scores[1:])]
        weights = masked_softmax(
            jnp.concatenate(scores, axis=-1) * q.shape[-1] ** -0.5, jnp.concatenate(allowed, axis=-1)
        )
        ends = np.cumsum([x.shape[-1] for x in scores])[:-1]
        by_always, by_held, by_own = jnp.split(weights, ends, axis=-1)
        mixed = jnp.einsum("BNTP,PNK->BTNK", by_always, always_v)
        return mixed + jnp.einsum("BNTS,BSNK->BTNK", by_held, held_v) + jnp.einsum("BNTS,BSNK->BTNK", by_own, v)


def _each_head(x: Float[jax.Array, "B T N K"], matrix: Float[jax.Array, "N K H"]) -> Float[jax.Array, "B T N H"]:
    return jnp.einsum("BTNK,NKH->BTNH", x.astype(jnp.float32), matrix.astype(jnp.float32))
