"""From a checked config to the objects of a run, with every cross-check before anything else happens."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias import spec
from positionbias.arrays import Bool, Float, Key, Mapped
from positionbias.assignments.base import Assignment
from positionbias.config import attentions, schema, sizes
from positionbias.config.attentions import Place
from positionbias.config.drivers import Call, of_attentions, of_recurrence
from positionbias.config.fields import Looks, check_told, idle
from positionbias.masks.base import Mask, one_share
from positionbias.models.base import Architecture, Model, initialise, shapes, visible
from positionbias.models.parameters import Blueprint
from positionbias.models.state import state_size
from positionbias.objectives.base import Objective
from positionbias.operators.base import Operator
from positionbias.positions.base import PositionScheme
from positionbias.replicas import stream
from positionbias.spec import ConfigError
from positionbias.tasks.base import Batch, Condition, Task, layout
from positionbias.tokens import Tokens, joined

ATTENTION = "softmax_attention"  # the kernel that windows of recurrences are computed by


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """A config and the members it names, checked against each other."""

    config: schema.Config
    task: Task
    objective: Objective
    architecture: Architecture
    assignment: Assignment
    blueprint: Blueprint

    def initialise(self, key: Key[jax.Array, ""], scale: Float[jax.Array, ""] | None = None) -> Model:
        """A fresh model, of matrices that are `scale` times what `model.init` says, None: as the config says."""
        blueprint = self.blueprint if scale is None else dataclasses.replace(self.blueprint, scale=scale)
        return initialise(self.architecture, blueprint, key, self._shapes[1])

    def reach(
        self, condition: Condition, tokens: Tokens | None = None, inputs: int | None = None
    ) -> Bool[Mapped, "U J"]:
        """Which inputs j row i can depend on under `tokens` of one example, by default the condition's layout.

        There may be more rows in front than the condition's, which count as context. J is U, or `inputs`: of the last.
        """
        tokens = self.task.tokens(condition) if tokens is None else tokens
        context = self.context_of(condition, tokens)
        some = () if inputs is None else (inputs,)
        return self.architecture.reach(self.blueprint, tokens.told_context(context), context, *some)

    def context_of(self, condition: Condition, tokens: Tokens) -> int:
        """How many of the tokens stand before what stands behind the condition's context."""
        return tokens.length - (self.task.length(condition) - self.task.context_length(condition))

    @property
    def shared_tokens(self) -> bool:
        """Whether all examples of a condition are read with the same tokens."""
        return self.task.shared_tokens and not (self.assignment.drawn or self.objective.own_tokens)

    def assigned(self, tokens: Tokens, context_length: int, keys: Key[jax.Array, "B"] | None) -> Tokens:
        """`tokens` of B examples, [B, T] or shared [T], with the positions the model is told, drawn from `keys`.

        They are assigned over all rows that layers read, among them one that the architecture adds. What all examples
        share stays [T]: where the assignment draws, positions alone have a leading B.
        """
        place, rows = self._all_rows(tokens, context_length)
        if not self.assignment.drawn:
            position = self.assignment.positions(rows)
        else:
            assert keys is not None
            axes = Tokens(*(0 if field.ndim > 1 else None for field in rows))
            position = jax.vmap(self.assignment.draw, in_axes=(0, axes))(keys, rows)
        return tokens._replace(position=position) if place is None else tokens.sparing(place, position)

    def check_masks(self, tokens: Tokens, context: int) -> None:
        """Raise ConfigError where a mask cannot serve these tokens, numpy, of which so many are the context."""
        for name, _, mask, q, k in self.architecture.attentions(self.blueprint, tokens.told_context(context), context):
            try:
                mask.bind(q, k)
            except ConfigError as error:
                raise ConfigError(
                    f"{self.architecture.mask_field(name) or 'model.architecture'}: in {name}, {error}"
                ) from None

    def positions_needed(self, condition: Condition, tokens: Tokens) -> int:
        """One more than the largest position told where `tokens`, numpy [U], end as the condition's do."""
        try:
            return self.assignment.reach(self._all_rows(tokens, self.context_of(condition, tokens))[1])
        except ConfigError as error:
            raise ConfigError(f"model.assignment: {error}") from None

    def _all_rows(self, tokens: Tokens, context_length: int) -> tuple[int | None, Tokens]:
        """The place of the row that the architecture adds, and the tokens of all rows that its layers read."""
        place = self.architecture.place(context_length)
        return place, tokens if place is None else joined(tokens.parted(place))

    @cached_property
    def second_share(self) -> float | None:
        """The share of training batches that are read in the second mode of a mask that switches."""
        try:
            return one_share(mask for _, _, _, mask, _, _ in _attentions(self))
        except ConfigError as error:
            raise ConfigError(f"model.mask: {error}") from None

    @staticmethod
    def spread(tokens: Tokens, size: int) -> Tokens:
        """`tokens`, some of them shared, with a leading `size` on every field."""
        return jax.tree.map(lambda field: jnp.broadcast_to(field, (size, tokens.length)), tokens)

    def trained(self, key: Key[jax.Array, ""], batch: Batch) -> Batch:
        """A batch of the task's first condition as the model is trained on it."""
        if self.second_share is not None:
            second = jax.random.bernoulli(stream(key, "mode"), self.second_share).astype(jnp.int32)
            mode = jnp.broadcast_to(second, batch.tokens.index.shape)
            batch = batch._replace(tokens=batch.tokens._replace(mode=mode))
        condition = self.task.conditions()[0]
        batch = self.objective.prepare(stream(key, "objective"), batch, self.task, condition)
        context = self.task.context_length(condition)
        keys = jax.random.split(stream(key, "assignment"), len(batch.weights))
        return batch._replace(tokens=self.assigned(batch.tokens, context, keys))

    @cached_property
    def narrowed(self) -> list[str]:
        """One line for every attention whose operator mixes less than its mask allows."""
        lines: dict[str, str] = {}
        for condition, name, operator, mask, q, k in _attentions(self):
            allowed, seen = np.asarray(mask.dense(q, k)), np.asarray(visible(operator, mask, q, k))
            if name not in lines and (allowed & ~seen).any():
                lines[name] = (
                    f"{name}: {spec.canonical(operator)} mixes {seen.sum()} of the {allowed.sum()} pairs that the mask"
                    f" {spec.canonical(mask)} allows in condition {condition.name!r}"
                )
        return list(lines.values())

    @cached_property
    def idle(self) -> list[str]:
        """One line for every member that reads what the task tells of all tokens alike."""
        return list(idle(self.task, self.looks, self.blueprint.positions, self.blueprint.operators, self.assignment))

    @property
    def looks(self) -> list[Looks]:
        """Every mask in its place: the field that it is told in, and the tokens of the queries and keys it is on."""
        field = self.architecture.mask_field
        return [(field(name) or "model.architecture", mask, q, k) for _, name, _, mask, q, k in _attentions(self)]

    def drivers(self, batch: int, platform: str) -> list[str]:
        """Which drivers compute the attentions of `batch` sequences, none twice; ConfigError if one named cannot."""
        windows = {driver for kernel, driver in self._carried(batch, platform) if kernel == ATTENTION}
        return sorted(windows | of_attentions(self._calls(batch), self.blueprint.dims, platform))

    def recurrences(self, batch: int, platform: str) -> list[str]:
        """Which drivers compute the recurrences of `batch` sequences, none twice."""
        return sorted({driver for kernel, driver in self._carried(batch, platform) if kernel != ATTENTION})

    def _carried(self, batch: int, platform: str) -> set[tuple[str, str]]:
        """Kernels and drivers of the operators that carry a state."""
        found: set[tuple[str, str]] = set()
        for _, operator, mask, scheme, q, k, queries, rows in self._calls(batch):
            if rows is None:
                found |= of_recurrence(operator, mask, scheme, q, k, self.blueprint.dims, queries, platform)
        return found

    def _calls(self, batch: int) -> Iterator[Call]:
        """Every attention with each scheme that its operator is under; the last ones as they are trained, too."""
        config, called, trained = self.blueprint, list(_attentions(self)), self.task.conditions()[0]
        rows = self.objective.trained_rows(self.task, trained)
        last = {name for _, name, *_ in called[len(called) - self.architecture.spares :]}
        for condition, name, operator, mask, q, k in called:
            shape = (batch, q.length, config.config.heads, config.dims.head_size)
            for scheme in {s for o, s in zip(config.operators, config.positions, strict=True) if o == operator}:
                call = Call(name, operator, mask, scheme, q, k, jax.ShapeDtypeStruct(shape, config.dtype))
                yield call
                if rows is not None and name in last and condition == trained and operator.row_by_row:
                    yield call._replace(rows=tuple(np.flatnonzero(np.isin(q.index, rows)).tolist()))

    @cached_property
    def state_size(self) -> int | None:
        """Numbers kept, at most, to go on with a sequence of the first condition; see `models.state`."""
        condition = self.task.conditions()[0]
        length = self.task.context_length(condition)
        tokens = next(iter(self.objective.layouts(self.task.tokens(condition)))).told_context(length)
        return state_size(self.architecture, self.blueprint, tokens, length)

    @property
    def data(self) -> dict[str, str]:
        """How long each part of the task's corpus is, and its checksum: what bits depend on beside the config."""
        parts = self.task.corpus().items()
        return {name: f"{part.nbytes} bytes, crc32 {zlib.crc32(part.data):08x}" for name, part in parts}

    @cached_property
    def _shapes(self) -> tuple[Model, int]:
        return shapes(self.architecture, self.blueprint)

    @property
    def abstract(self) -> Model:
        """The shapes of a model's parameters, without making them."""
        return self._shapes[0]


def build(config: schema.Config, length: int | None = None) -> Experiment:
    """Build every member and refuse combinations that cannot work, in one sentence.

    Position tables hold at least `length` positions, those that a run was trained with.
    """
    experiment = checked(config, length)
    if not jax.tree.leaves(_trained(experiment)):
        raise ConfigError("model.frozen: no parameter is left to train; allowed: fewer kinds.")
    experiment.task.corpus()  # last, as it may have to be fetched
    return experiment


def checked(config: schema.Config, length: int | None = None) -> Experiment:
    """`build`, but for what is told by making a model's parameters: nothing that its masks could change."""
    model = config.model
    task: Task = spec.build("tasks", config.task, "task")
    objective: Objective = spec.build("objectives", config.objective, "objective")
    architecture: Architecture = spec.build("architectures", model.architecture, "model.architecture")
    assignment: Assignment = spec.build("assignments", model.assignment, "model.assignment")
    members: dict[str, tuple[Any, ...]] = {}
    for axis, text in (("masks", model.mask), ("positions", model.position), ("operators", model.operator)):
        field = f"model.{axis.removesuffix('s')}"
        nodes = spec.parse_layers(text, model.layers, field)
        members[axis] = tuple(spec.build(axis, node, field) for node in nodes)
    initializers = {
        f.name: spec.build("initializers", getattr(model.init, f.name), f"model.init.{f.name}")
        for f in dataclasses.fields(model.init)
    }
    objective.check(task)
    objective.check_model(model)
    blueprint = Blueprint(
        config=model,
        masks=members["masks"],
        positions=members["positions"],
        operators=members["operators"],
        initializers=initializers,
        input=objective.input(task.input),
        output=task.output,
        length=0,
        dtype=config.train.dtype,
        scale=model.init_scale,
    )
    experiment = Experiment(config, task, objective, architecture, assignment, blueprint)
    told = [experiment.positions_needed(condition, task.tokens(condition)) for condition in task.conditions()]
    blueprint = dataclasses.replace(blueprint, length=max(length or 0, *told))
    experiment = dataclasses.replace(experiment, blueprint=blueprint)
    _check_positions(blueprint)
    longest = max(length or 0, *(task.length(condition) for condition in task.conditions()))
    sizes.check(blueprint.operators, dataclasses.replace(blueprint.dims, length=longest), longest)
    architecture.check(blueprint)
    _check_queries(experiment)
    attentions.check(
        Place(name, architecture.mask_field(name), operator, mask, q, k)
        for _, name, operator, mask, q, k in _attentions(experiment, _layouts)
    )
    _check_modes(experiment)
    check_told(objective, experiment.looks)
    _check_rows(experiment)
    _check_varied(experiment)
    return experiment


def _check_varied(experiment: Experiment) -> None:
    """Replicas that differ in arguments of the task have one layout of sequences and conditions: that of the task."""
    task = experiment.task
    for name in (name for name in experiment.config.train.vary if name in task.traced):
        for value in experiment.config.train.vary[name]:
            if layout(dataclasses.replace(task, **{name: value})) != layout(task):  # type: ignore[type-var]
                raise ConfigError(
                    f"train.vary.{name}: {value} gives the task other conditions or tokens than {getattr(task, name)},"
                    f" which task has; allowed: values that change only what is drawn, in task too."
                )


def _trained(experiment: Experiment) -> Any:
    from flax import nnx

    return nnx.state(experiment.abstract, nnx.Param)


def unused(scheme: PositionScheme, operator: Operator) -> str | None:
    """What the scheme does that the operator does not use; None if it uses all."""
    acts = (
        (scheme.rotates, operator.uses_rotation, "rotates queries and keys"),
        (scheme.biases, operator.uses_bias, "adds to scores"),
        (scheme.multiplies, operator.uses_products, "multiplies queries and keys in its own way"),
    )
    return next((what for does, honours, what in acts if does and not honours), None)


def _check_positions(blueprint: Blueprint) -> None:
    schemes: tuple[PositionScheme, ...] = blueprint.positions
    for layer, scheme in enumerate(schemes):
        try:
            scheme.check(blueprint.dims)
        except ConfigError as error:
            raise ConfigError(f"model.position: {error}") from None
        if scheme.embeds and scheme != schemes[0]:
            raise ConfigError(
                f"model.position: {spec.canonical(scheme)} of layer {layer} acts on the embeddings, which only layer 0"
                f" reads; allowed there: a scheme that rotates, biases or does nothing."
            )
    pairs = list(zip(schemes, blueprint.operators, strict=True))
    for layer, (scheme, operator) in enumerate(pairs):
        if what := unused(scheme, operator):
            apart = ["none" if unused(*pair) else spec.canonical(pair[0]) for pair in pairs]
            told = set(apart) != {"none"} and not any(one.embeds for one in schemes)
            one_each = f", or one scheme a layer: '[{', '.join(apart)}]'" if told else ""
            raise ConfigError(
                f"model.position: {spec.canonical(scheme)} {what}, which the operator {spec.canonical(operator)} of"
                f" layer {layer} does not use; allowed: another scheme or operator{one_each}."
            )


def _check_modes(experiment: Experiment) -> None:
    share = experiment.second_share
    if experiment.objective.two_modes and share is None:
        raise ConfigError(
            f"model.mask: {experiment.config.model.mask} has one mode, but the objective"
            f" {spec.canonical(experiment.objective)} reads batches in two; allowed: a mask that switches, such as"
            " 'switch(causal, bidirectional & ~masked_keys)'."
        )


def _attentions(
    experiment: Experiment, layouts: Callable[[Experiment, Condition], Iterable[Tokens]] | None = None
) -> Iterator[tuple[Condition, str, Operator, Mask, Tokens, Tokens]]:
    """Every attention under every layout of tokens of every condition, if not told: those of the objective."""
    task = experiment.task
    every = layouts or (lambda experiment, condition: experiment.objective.layouts(task.tokens(condition)))
    for condition in task.conditions():
        length = task.context_length(condition)
        for told in every(experiment, condition):
            experiment.check_masks(told, length)
            tokens = told.told_context(length)
            for attention in experiment.architecture.attentions(experiment.blueprint, tokens, length):
                yield condition, *attention


def _layouts(experiment: Experiment, condition: Condition) -> Iterator[Tokens]:
    """Every layout that is trained under: those of the objective, in the modes that it does not see to."""
    for tokens in experiment.objective.layouts(experiment.task.tokens(condition)):
        yield tokens
        if experiment.second_share is not None and not experiment.objective.two_modes:
            yield tokens._replace(mode=np.ones_like(tokens.mode))


def _check_queries(experiment: Experiment) -> None:
    """Answers are asked, and losses taken, where the architecture gives outputs."""
    task = experiment.task
    for condition in task.conditions():
        rows = task.query_rows(condition)
        first = experiment.architecture.first_row(task.context_length(condition))
        if rows.min() < first:
            raise ConfigError(
                f"model.architecture: {experiment.config.model.architecture} answers at rows {first} and later, but the"
                f" task asks at row {rows.min()}; allowed: decoder_only."
            )
        if first > 0 and experiment.objective.trains_context:
            raise ConfigError(
                f"objective: {spec.canonical(experiment.objective)} trains rows of the context, for which"
                f" model.architecture = {experiment.config.model.architecture} gives no outputs; allowed: decoder_only."
            )


def _check_rows(experiment: Experiment) -> None:
    """No loss row can see its own target."""
    task = experiment.task
    for condition in task.conditions():
        forbidden = experiment.objective.forbidden(task, condition)
        for tokens in _layouts(experiment, condition):
            leak = np.argwhere(experiment.reach(condition, tokens) & forbidden)
            if not len(leak):
                continue
            i, j = leak[0]
            raise ConfigError(
                f"model.mask: {experiment.config.model.mask} lets row {i} depend on input {j}, which can hold the"
                f" target of that row; allowed: {experiment.objective.remedy}."
            )
