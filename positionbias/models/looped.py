"""A stack of layers that is applied several times with the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from positionbias.arrays import Mapped
from positionbias.masks.base import Mask, attended
from positionbias.models.base import Architecture, Model, own_inputs, visible
from positionbias.models.block import Stack
from positionbias.models.ends import Embedding, Readout
from positionbias.models.parameters import Blueprint, Noise
from positionbias.models.sites import Sites
from positionbias.operators.base import Operator
from positionbias.spec import ConfigError, canonical, member, require
from positionbias.tokens import Tokens, joined

MOST_LOOPS = 1000


@dataclasses.dataclass(frozen=True)
class OverPasses(Mask):
    """The mask `inner` of one pass, on queries of a pass and keys of several: it counts the places of one."""

    inner: Mask

    @property
    def second_share(self) -> float | None:
        return self.inner.second_share

    def bind(self, q: Tokens, k: Tokens) -> Mask:
        return self.inner.bind(q, k.cut(0, q.length))

    def combined(self, show: Callable[[Any], str]) -> str:
        """The mask's text, in messages."""
        return show(self.inner)


class LoopedModel(Model):
    """Embedding, the stack `loops` times, the last norm and readout once."""

    def __init__(self, blueprint: Blueprint, loops: int, memory: bool, inject: bool, noise: Noise) -> None:
        self.loops, self.memory, self.inject = loops, memory, inject
        self.masks = blueprint.masks
        self.embedding = Embedding(blueprint, noise)
        self.stack = Stack(blueprint, blueprint.config.layers, blueprint.config.width, noise)
        self.readout = Readout(blueprint, self.stack.width_out, noise)

    def forward(self, inputs: jax.Array, tokens: Tokens, context_length: int, site: Sites) -> jax.Array:
        x = embedded = site("embedding", self.embedding(inputs, tokens))
        passes = [_of_pass(tokens, number) for number in range(self.loops)]
        normed: list[list[jax.Array]] = [[] for _ in self.masks]  # of each layer, its inputs in all passes so far
        for number, told in enumerate(passes):
            x = x + embedded if self.inject and number else x
            under, remembered = site.under(f"passes.{number}"), joined(passes[: number + 1])
            if not self.memory:
                x = self.stack.layers(x, told, self.masks, under)
                continue
            for layer, (block, mask) in enumerate(zip(self.stack.blocks, self.masks, strict=True)):
                normed[layer].append(block.norm_attention(x))
                memory = jnp.concatenate(normed[layer], axis=1), remembered
                x = block(x, told, OverPasses(mask), under.under(f"layers.{layer}"), memory=memory)
        return self.readout(site("final", self.stack.norm(x)), self.embedding)


@member("architectures", "looped")
@dataclasses.dataclass(frozen=True)
class Looped(Architecture):
    """The stack of `model.layers` is applied `loops` times with the same weights; norm and readout once, at the end.

    `inject` adds the embeddings to the stream before every later pass (Yang et al. 2023, arXiv 2311.12424). With
    `memory` a query of pass p sees the keys and values of its layer in the passes 0..p, as far as the mask lets it: the
    duo-causal attention of Think-at-Hard (Fu et al. 2025, arXiv 2511.08577), where every token takes every pass. Tokens
    tell their pass as `depth`; `causal` reads none of it, and a token's index is the same in all passes.
    """

    loops: int
    memory: bool = False
    inject: bool = False

    def __post_init__(self) -> None:
        require(1 <= self.loops <= MOST_LOOPS, "loops", self.loops, f"a whole number from 1 to {MOST_LOOPS}")

    def check(self, blueprint: Blueprint) -> None:
        if blueprint.config.residual == "concatenate":
            raise ConfigError(
                "model.residual: 'concatenate' widens the stream, which the first layer could not read again in a"
                " looped model; allowed: 'add', 'none'."
            )
        for layer, operator in enumerate(blueprint.operators):
            if self.memory and operator.reads == "stream":
                raise ConfigError(
                    f"model.architecture: memory = True needs keys and values, of which the operator"
                    f" {canonical(operator)} of layer {layer} has none; allowed: memory = False, or another operator."
                )

    def create(self, blueprint: Blueprint, noise: Noise) -> Model:
        return LoopedModel(blueprint, self.loops, self.memory, self.inject, noise)

    def attentions(
        self, blueprint: Blueprint, tokens: Tokens, context_length: int
    ) -> list[tuple[str, Operator, Mask, Tokens, Tokens]]:
        passes = [_of_pass(tokens, number) for number in range(self.loops)]
        found = []
        for number, q in enumerate(passes):
            k = joined(passes[: number + 1]) if self.memory else q
            for layer, (operator, mask) in enumerate(zip(blueprint.operators, blueprint.masks, strict=True)):
                read = OverPasses(mask) if self.memory else mask
                found.append((f"layer {layer} of pass {number}", operator, read, q, k))
        return found

    def reach(self, blueprint: Blueprint, tokens: Tokens, context_length: int, inputs: int | None = None) -> Mapped:
        carries = blueprint.config.residual != "none"
        begin = own_inputs(tokens, inputs)
        rows: Mapped = begin
        read: list[list[Mapped]] = [[] for _ in blueprint.masks]
        for at, (_, operator, mask, q, k) in enumerate(self.attentions(blueprint, tokens, context_length)):
            number, layer = divmod(at, blueprint.config.layers)
            if self.inject and number and not layer:
                rows = rows | begin
            seen = visible(operator, mask, q, k)
            read[layer] = [*read[layer], rows] if self.memory else [rows]
            rows = attended(seen, rows, seen.__array_namespace__().concat(read[layer], axis=0), carries)
        return rows


def _of_pass(tokens: Tokens, number: int) -> Tokens:
    return tokens._replace(depth=tokens.index * 0 + number)
