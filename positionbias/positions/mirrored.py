"""A rotation that tells keys on either side alike."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from positionbias.positions.base import Dims, Parameters, PositionScheme
from positionbias.positions.rotary import RoPE
from positionbias.spec import member
from positionbias.tokens import Tokens


@member("positions", "mirrored_rope")
@dataclasses.dataclass(frozen=True)
class MirroredRoPE(PositionScheme):
    """RoPE whose sign is turned for keys that come later, as BICO has it (Lv et al. 2023, arXiv 2311.07468).

    A key d positions to the right meets the query at the angle of one d to the left, so that a model trained causally
    sees no angle it does not know. Under a causal mask it is `rope`.
    """

    base: float = 10000.0

    def __post_init__(self) -> None:
        RoPE(self.base)

    def check(self, dims: Dims) -> None:
        RoPE(self.base).check(dims)

    def products(self, q: jax.Array, k: jax.Array, tokens_q: Tokens, tokens_k: Tokens, params: Parameters) -> jax.Array:
        def turned(sign: int) -> jax.Array:
            at = [tokens._replace(position=sign * jnp.asarray(tokens.position)) for tokens in (tokens_q, tokens_k)]
            rope = RoPE(self.base)
            sides = rope.rotate(q, at[0], params, "query"), rope.rotate(k, at[1], params, "key")
            return jnp.einsum("...TNH,...SNH->...NTS", *sides, preferred_element_type=jnp.float32)

        rows, columns = tokens_q.rows().position, tokens_k.columns().position
        later = jnp.asarray(columns > rows)[..., None, :, :]
        return jnp.where(later, turned(-1), turned(1))
