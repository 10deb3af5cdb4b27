"""PINE: a model trained causally reads segments so that their order tells it nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from positionbias.arrays import Bool, Float, Int
from positionbias.assignments.drawn import Offset
from positionbias.assignments.groups import Shared
from positionbias.assignments.order import Padded, Sequential
from positionbias.config.build import Experiment
from positionbias.evaluation.interventions import Intervention, segments_of
from positionbias.evaluation.segment_models import (
    Across,
    Rereading,
    check_leaks,
    check_operators,
    check_segments,
    read_by,
)
from positionbias.masks.base import Mask
from positionbias.masks.order import Causal
from positionbias.operators.base import Operator, ScoreOperator
from positionbias.operators.softmax import masked_softmax
from positionbias.positions.base import Placed
from positionbias.spec import ConfigError, canonical, member
from positionbias.tasks.base import Condition, Task
from positionbias.tokens import Tokens

Ranking = Literal["importance", "none", "reverse"]
AT_ONCE = 2**22  # numbers that rotated keys may take at once: queries are worked out in groups of so many
ORDERED = (Sequential, Padded, Offset)  # the assignments that tell positions in order, without gaps


@member("interventions", "pine")
@dataclasses.dataclass(frozen=True)
class Pine(Intervention):
    """Segments see each other whole, and every query has the segments laid out by how much they matter to it.

    PINE (Wang et al. 2024, arXiv 2407.01100), in every layer and head. A query's own segment lies last, right before
    the suffix; of the others, the more important, the nearer to it. Importance is the softmax of the query and the
    keys, both without position, over the tokens of the other segments, divided by the length of the segment, summed
    over the queries of a segment; tokens behind the segments have an order each. Equal ones keep their order. Outputs
    then do not depend on the order of the segments, unless what they hold tells it (the marks of `set_disjointness`).
    `ranking="reverse"` lays the important far away; with "none", of the paper's ablation, segments see each other where
    they are told to stand, and their order still counts.

    Any scheme that acts on scores will do, and so will one that acts on embeddings where segments share their positions
    (`model.assignment = "shared"`). What lies before the segments, and behind them, keeps its positions. Ours are: the
    softmax of importance whatever the operator, and padding, which takes no place. Memory: B N T S positions and as
    many scores, and 2^22 numbers for the keys of a group of queries; time grows with the number of heads on
    top.
    """

    ranking: Literal["importance", "none", "reverse"] = "importance"

    def check(self, task: Task, condition: Condition) -> None:
        segments_of(self, task, condition)

    def model(self, experiment: Experiment, condition: Condition) -> Experiment:
        count, blueprint = check_segments(self, experiment, condition), experiment.blueprint
        for layer, mask in enumerate(blueprint.masks):
            if not isinstance(mask, Causal):
                raise ConfigError(f"{canonical(self)}: layer {layer} has the mask {canonical(mask)}; allowed: causal.")
        check_operators(self, experiment, _by_scores, "softmax and others that weigh values by scores alone")
        self._check_positions(experiment)
        operators = tuple(Arranging(one, count, self.ranking) for one in blueprint.operators)  # type: ignore[arg-type]
        masks: tuple[Mask, ...] = tuple(mask | Across() for mask in blueprint.masks)
        changed = read_by(experiment, operators=operators, masks=masks)
        check_leaks(self, changed, condition)
        return changed

    def _check_positions(self, experiment: Experiment) -> None:
        model, assignment = experiment.config.model, experiment.assignment
        schemes = experiment.blueprint.positions
        acts = any(one.rotates or one.biases or one.multiplies for one in schemes)
        if any(one.embeds for one in schemes) and not isinstance(assignment, Shared):
            raise ConfigError(
                f"{canonical(self)}: model.position = {model.position} acts on embeddings, which no query can have laid"
                " out anew; allowed: schemes that act on scores, or model.assignment = shared."
            )
        if acts and not isinstance(assignment, ORDERED):
            raise ConfigError(
                f"{canonical(self)}: model.assignment = {model.assignment} does not tell positions in order without"
                " gaps, which segments are laid out in; allowed: sequential, padded, offset."
            )


def _by_scores(operator: Operator) -> bool:
    """Whether an operator weighs values by scores, whatever the order in which keys are stored."""
    own = ("__call__", "told_weights")  # what may read more than scores
    if not isinstance(operator, ScoreOperator) or any(name in vars(base) for base in _own(operator) for name in own):
        return False
    scores = jnp.sin(jnp.arange(5.0)).reshape(1, 1, 1, 5)
    weights = [operator.weights(one, jnp.ones((1, 1, 1, 5), bool)) for one in (scores, scores[..., ::-1])]
    return bool(jnp.allclose(weights[0], weights[1][..., ::-1], atol=1e-6))


def _own(operator: Operator) -> tuple[type, ...]:
    """The classes of an operator that are more special than `ScoreOperator`."""
    order = type(operator).__mro__
    return order[: order.index(ScoreOperator)]


@dataclasses.dataclass(frozen=True)
class Arranging(Rereading):
    """`inner` with `count` segments laid out anew for every query, head and layer."""

    ranking: Ranking

    def placed(self, q: jax.Array, k: jax.Array, tokens: Tokens, position: Placed) -> Placed:
        told = arranged(q, k, tokens, self.count, self.ranking)
        return ByQuery(position.scheme, position.params, told=told)


@dataclasses.dataclass(frozen=True, eq=False)
class ByQuery(Placed):
    """A scheme in its place where every query and head has positions `told` of its own, its row's own among them."""

    told: Int[jax.Array, "B N T S"] = dataclasses.field(kw_only=True)

    @property
    def multiplies(self) -> bool:
        return True

    def products(
        self, q: Float[jax.Array, "B T N H"], k: Float[jax.Array, "B S N H"], tokens_q: Tokens, tokens_k: Tokens
    ) -> Float[jax.Array, "B N T S"] | None:
        if not (self.scheme.rotates or self.scheme.multiplies):
            return None
        placed = Placed(self.scheme, self.params)

        def one(query: Tokens, keys: Tokens, q: jax.Array, k: jax.Array) -> jax.Array:
            q, k = q[None, None], k[None]
            found = placed.products(q, k, query, keys)
            if found is None:
                q, k = placed.rotate(q, query, "query"), placed.rotate(k, keys, "key")
                found = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32)
            return found[0, :, 0]

        return self._each(one, tokens_k, q, k)

    def bias(self, q: Tokens, k: Tokens, heads: int) -> Float[jax.Array, "B N T S"] | None:
        if not self.scheme.biases:
            return None
        placed, size = Placed(self.scheme, self.params), self.told.shape

        def one(query: Tokens, keys: Tokens, q: jax.Array, k: jax.Array) -> jax.Array:
            found = placed.bias(query.rows(), keys.columns(), heads)
            assert found is not None
            return jnp.broadcast_to(found[:, 0], (heads, size[-1]))

        nothing = jnp.zeros((size[0], size[-1], 0))
        return self._each(one, Tokens(*(x[..., 0, :] for x in k)), nothing, nothing)

    def _each(
        self, one: Callable[..., jax.Array], tokens: Tokens, q: jax.Array, k: jax.Array
    ) -> Float[jax.Array, "B N T S"]:
        """What `one(query, keys, q[t], k)`, f32[N, S], finds for every query, each head with its own positions.

        All heads are worked out under the positions of each, as schemes may have parameters a head.
        """
        batch, heads, rows, columns = self.told.shape
        own = Tokens(*(jnp.broadcast_to(x, (batch, columns)) for x in tokens))

        def head(
            number: jax.Array, told: jax.Array, row: jax.Array, tokens: Tokens, q: jax.Array, k: jax.Array
        ) -> jax.Array:
            keys = tokens._replace(position=told)
            query = Tokens(*(jax.lax.dynamic_slice_in_dim(x, row, 1) for x in keys))
            return one(query, keys, q, k)[number]

        by_head = jax.vmap(head, in_axes=(0, 0, None, None, None, None))
        by_item = jax.vmap(by_head, in_axes=(None, 0, None, 0, 0, 0))

        def at(row: tuple[jax.Array, jax.Array, jax.Array]) -> Float[jax.Array, "B N S"]:
            number, told, q = row
            return by_item(jnp.arange(heads), told, number, own, q, k)

        each = max(AT_ONCE // max(batch * heads * columns * max(k[0, 0].size, heads), 1), 1)
        xs = (jnp.arange(rows), jnp.moveaxis(self.told, 2, 0), jnp.moveaxis(q, 1, 0))
        return jnp.moveaxis(jax.lax.map(at, xs, batch_size=min(each, rows)), 0, 2)


def arranged(
    q: Float[jax.Array, "B T N H"], k: Float[jax.Array, "B T N H"], tokens: Tokens, count: int, ranking: Ranking
) -> Int[jax.Array, "B N T T"]:
    """The position of every key (last) for every query and head; that of the query stands at its own place."""
    batch, rows, heads = q.shape[:3]
    segment, position, valid = (
        jnp.broadcast_to(jnp.asarray(x), (batch, rows)) for x in (tokens.segment, tokens.position, tokens.valid)
    )
    shape = (batch, heads, rows, rows)
    if ranking == "none":
        return jnp.broadcast_to(position[:, None, None], shape)
    inside = (segment > 0) & valid
    member = (segment[..., None] == jnp.arange(1, count + 1)) & inside[..., None]  # [B, S, K]
    size = jnp.sum(member, axis=1, dtype=jnp.int32)  # [B, K]
    matters = importance(q, k, segment, member)
    merit = jnp.where(member[:, None], jnp.inf, matters if ranking == "importance" else -matters)
    order = jnp.argsort(-merit, axis=-1, stable=True)  # segments, nearest first
    sizes = jnp.take_along_axis(jnp.broadcast_to(size[:, None, None], order.shape), order, axis=-1)
    nearer = jnp.cumsum(sizes, axis=-1) - sizes
    shift = jnp.take_along_axis(nearer, jnp.argsort(order, axis=-1), axis=-1)  # lengths of all that lie nearer
    base = jnp.min(jnp.where(inside, position, jnp.iinfo(jnp.int32).max), axis=-1)
    start = (base + jnp.sum(size, axis=-1))[:, None, None, None] - shift - size[:, None, None]  # [B, N, T, K]
    own = jnp.broadcast_to(jnp.maximum(segment - 1, 0)[:, None, None], shape)
    within = jnp.sum((jnp.cumsum(member, axis=1, dtype=jnp.int32) - 1) * member, axis=-1)  # place in its segment
    laid = jnp.take_along_axis(start, own, axis=-1) + within[:, None, None]
    return jnp.where(inside[:, None, None], laid, position[:, None, None]).astype(jnp.int32)


def importance(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B T N H"],
    segment: Int[jax.Array, "B T"],
    member: Bool[jax.Array, "B T K"],
) -> Float[jax.Array, "B N T K"]:
    """How much each segment matters to each query: the same for all queries of a segment."""
    held = member.astype(jnp.float32)
    raw = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    inside = jnp.any(member, axis=-1)
    other = inside[:, None, :] & (segment[:, :, None] != segment[:, None, :])
    each = jnp.einsum("BNTS,BSK->BNTK", masked_softmax(raw, other[:, None]), held)
    whole = jnp.einsum("BTJ,BNJK->BNTK", held, jnp.einsum("BTJ,BNTK->BNJK", held, each))
    found = jnp.where(inside[:, None, :, None], whole, each)
    return found / jnp.maximum(jnp.sum(held, axis=1), 1)[:, None, None]
