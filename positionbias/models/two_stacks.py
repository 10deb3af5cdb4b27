"""A stack that reads what was told, and one that asks it for what stands at each position, in any order."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from positionbias.arrays import Float, Int, Mapped, Tree
from positionbias.masks.base import Mask, attended, reach
from positionbias.models.apart import read_apart
from positionbias.models.attention import Attention
from positionbias.models.base import Architecture, Model, own_inputs, visible
from positionbias.models.block import Mlp, Norm, Stack
from positionbias.models.ends import Embedding, Readout
from positionbias.models.kept import Kept, kept_with
from positionbias.models.parameters import Blueprint, Noise
from positionbias.models.sites import Scoped, Sites
from positionbias.operators.asked import Asked, taken
from positionbias.operators.base import Operator
from positionbias.positions.base import Matrix
from positionbias.spec import ConfigError, canonical, member
from positionbias.tokens import Tokens


class Asking(nnx.Module):
    """A layer of queries: attention to what was read, and an MLP."""

    def __init__(self, blueprint: Blueprint, layer: int, width_read: int, noise: Noise, own_keys: bool) -> None:
        width = blueprint.config.width
        self.carries = blueprint.config.residual == "add"
        self.norm_attention = Norm(blueprint, width)
        self.attention = Attention(blueprint, layer, width, width_read, noise, own_keys)
        self.norm_mlp = Norm(blueprint, width) if blueprint.config.mlp else None
        self.mlp = Mlp(blueprint, width, noise) if blueprint.config.mlp else None

    def __call__(
        self, x: jax.Array, read: jax.Array, tokens: Tokens, mask: Mask, site: Scoped, lender: Attention
    ) -> jax.Array:
        under = site.under("attention")
        reads = under("input", x)
        apart = read_apart(reads, self.norm_attention, self.attention.heads, under, ("query",))
        added = self.attention(self.norm_attention(reads), read, tokens, tokens, mask, under, lender, apart)
        return self._fed(x, added, site)

    def step(self, x: jax.Array, asked: Asked, kept: Kept, site: Scoped) -> jax.Array:
        """Some rows, given the keys and values of what was read."""
        normed, under = self.norm_attention(x), site.under("attention")
        return self._fed(x, self.attention.step(normed, asked.tokens_q, asked.tokens, asked.mask, kept, under), site)

    def _fed(self, x: jax.Array, added: jax.Array, site: Scoped) -> jax.Array:
        """The stream with what attention adds, and past the MLP."""
        x = x + added if self.carries else added
        if self.mlp is not None:
            assert self.norm_mlp is not None
            under = site.under("mlp")
            added = self.mlp(self.norm_mlp(under("input", x)), under)
            x = x + added if self.carries else added
        return site("stream", x)


class TwoStacksModel(Model):
    """Both stacks; the keys and values of all layers that ask are made by one pair of matrices."""

    def __init__(self, blueprint: Blueprint, noise: Noise) -> None:
        width, half = blueprint.config.width, blueprint.config.layers // 2
        self.masks, self.masks_asking = blueprint.masks[:half], blueprint.masks[half:]
        self.embedding = Embedding(blueprint, noise)
        self.stack = Stack(blueprint, half, width, noise)
        self.asking = nnx.List(Asking(blueprint, half + i, self.stack.width_out, noise, i == 0) for i in range(half))
        free = width - self.embedding.own_features
        self.query = blueprint.create(Matrix((free,), "embedding", free), noise)
        self.norm = Norm(blueprint, width)
        self.readout = Readout(blueprint, width, noise)

    def forward(self, inputs: jax.Array, tokens: Tokens, context_length: int, site: Sites) -> jax.Array:
        x = site("embedding", self.embedding(inputs, tokens))
        read = self.stack(x, tokens, self.masks, site.under("reading"))
        asked = self._start(x, tokens)
        for layer, (block, mask) in enumerate(zip(self.asking, self.masks_asking, strict=True)):
            asked = block(asked, read, tokens, mask, site.under(f"asking.{layer}"), self.asking[0].attention)
        return self.readout(site("final", self.norm(asked)), self.embedding)

    def _start(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        """What the second stack begins with, of the type of `x`."""
        start = self.query[...].astype(x.dtype)
        return self.embedding.placed(jnp.broadcast_to(start, (*x.shape[:2], len(start))), tokens)

    def tell(self, inputs: Int[jax.Array, "B T"], rows: Int[jax.Array, "B T"], tokens: Tokens, kept: Tree) -> Tree:
        """`kept`, None before any, with what the second stack asks of these rows of a sequence of `tokens` [B, S].

        No row may be told before one that it sees in the first stack.
        """
        own, shared = kept or (None, None)
        x = self.embedding(inputs, taken(tokens, rows))
        x, own = self.stack.step(x, rows, tokens, self.masks, own, Sites())
        asked = Asked.of(rows, tokens, self.masks_asking[0])
        return own, kept_with(shared, *self.asking[0].attention.keys_values(x), asked)

    def ask(self, rows: Int[jax.Array, "B T"], tokens: Tokens, kept: Tree) -> Float[jax.Array, "B T V"]:
        """What stands at these rows, once all was told that they see."""
        _, shared = kept
        x = self._start(jnp.zeros(rows.shape, self.embedding.dtype), taken(tokens, rows))
        for layer, (block, mask) in enumerate(zip(self.asking, self.masks_asking, strict=True)):
            x = block.step(x, Asked.of(rows, tokens, mask), shared, Sites().under(f"asking.{layer}"))
        return self.readout(self.norm(x), self.embedding)


@member("architectures", "two_stacks")
@dataclasses.dataclass(frozen=True)
class TwoStacks(Architecture):
    """Half of the layers read the inputs, the others ask them what stands at each position (ARPG, arXiv 2503.10568).

    The first stack is self-attention. In the second every row starts from one trained vector, is told its position and
    sees what the first made of the inputs, by keys and values that its layers share: row i says input i without having
    seen it. With the objective `random_order` and four layers, `model.mask` is
    `[by_rank] * 2 + [by_rank(strict=True)] * 2`.
    """

    def check(self, blueprint: Blueprint) -> None:
        config = blueprint.config
        if config.layers % 2:
            raise ConfigError(
                f"model.layers = {config.layers} cannot be shared out evenly by the two stacks of"
                f" {canonical(self)}; allowed: an even number."
            )
        if config.residual == "concatenate":
            raise ConfigError(
                f"model.residual: 'concatenate' widens the stream, and {canonical(self)} starts another; allowed: 'add'"
                " or 'none'."
            )
        for operator in blueprint.operators:
            if operator.reads != "qkv":
                raise ConfigError(
                    f"model.operator: {canonical(operator)} has no keys for the second stack of {canonical(self)} to"
                    " ask; allowed: operators of queries, keys and values."
                )

    def create(self, blueprint: Blueprint, noise: Noise) -> Model:
        return TwoStacksModel(blueprint, noise)

    def attentions(
        self, blueprint: Blueprint, tokens: Tokens, context_length: int
    ) -> list[tuple[str, Operator, Mask, Tokens, Tokens]]:
        half = blueprint.config.layers // 2
        names = [f"layer {i}" for i in range(half)] + [f"asking layer {i}" for i in range(half)]
        layers = zip(names, blueprint.operators, blueprint.masks, strict=True)
        return [(name, operator, mask, tokens, tokens) for name, operator, mask in layers]

    def reach(self, blueprint: Blueprint, tokens: Tokens, context_length: int, inputs: int | None = None) -> Mapped:
        seen = [visible(o, m, q, k) for _, o, m, q, k in self.attentions(blueprint, tokens, context_length)]
        half = len(seen) // 2
        carries = blueprint.config.residual == "add"
        begin = own_inputs(tokens, inputs)
        read = reach(seen[:half], carries, begin)
        asked: Mapped = np.zeros_like(begin)
        for one in seen[half:]:
            asked = attended(one, asked, read, carries)
        return asked
