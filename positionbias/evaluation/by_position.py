"""Measuring by position: accuracy and log-probability of every answer, and how much each input position matters."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from positionbias import hosts, spec
from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.config.build import Experiment
from positionbias.evaluation.even import even_influence
from positionbias.evaluation.interventions import Intervention
from positionbias.evaluation.rows import LOSS
from positionbias.models.base import Model
from positionbias.models.sites import Sites
from positionbias.replicas import BY_ITEM, Layout, stream
from positionbias.tasks.base import Batch, Condition, Task, batch_axes, item_keys, sampled_from, shared_corpus, worlds
from positionbias.theory.base import Curves
from positionbias.tokens import Tokens, of_both, own_and_shared

INFLUENCE_TOKENS = 4096  # whose gradient is taken at once
CALL_TOKENS = 2**17  # of a replica that one call measures: some seconds on a CPU, after which progress is told
JUDGED_TOKENS = 2**16  # whose ceilings are told at once: some take memory that is quadratic in the length
WHOLE = ("query", "query_slot", "evidence_slot", "distance", "order")


class Evaluator:
    """Evaluates every replica on its own fresh items, the same ones each time, so that steps can be compared.

    Items come from the random stream `name` of each replica's key, never seen in training; or they are `stored`, the
    same ones for every replica, a batch for each condition by name. Which they are does not depend on the batch size.
    With an `intervention` every item is measured as it changes it, by the model that it makes of this one, and rows say
    whether the answer is another than without, or than with that alone which it is `under`. Influence, measured without
    one only, is that on the first of the items.
    `own` has, by name, arguments of the task that replicas differ in, [R] each. Programs are compiled when first used.
    """

    def __init__(
        self,
        experiment: Experiment,
        layout: Layout,
        keys: Key[jax.Array, "R"],
        name: str = "evaluation",
        items: int | None = None,
        conditions: Sequence[Condition] | None = None,
        intervention: Intervention | None = None,
        stored: Mapping[str, Batch] | None = None,
        own: Mapping[str, Float[np.ndarray, "R"]] | None = None,
    ) -> None:
        self.experiment, self.layout, self.name = experiment, layout, name
        self.keys, self.worlds = layout.place(keys), layout.place(worlds(experiment.task, keys))
        self.own = layout.place(dict(own or {}))
        self.corpus = shared_corpus(experiment.task, layout)
        settings = experiment.config.evaluation
        self.conditions = tuple(conditions or experiment.task.conditions())
        self.intervention, self.stored = intervention, stored
        # Not where programs are traced: what cannot be read so is refused first.
        self.changed = {c.name: intervention.model(experiment, c) for c in self.conditions} if intervention else {}
        under = intervention and intervention.under
        self.base = under or Intervention()
        self.against = {c.name: under.model(experiment, c) for c in self.conditions} if under else {}
        self.items = items or settings.items
        if stored is not None:
            self.items = len(next(iter(stored.values())).inputs)
        self.batch_size = min(settings.batch_size, self.items)
        self.influence_items = min(settings.influence_items, self.items)

    def of(
        self, experiment: Experiment, keys: Key[jax.Array, "R"], own: Mapping[str, Float[np.ndarray, "R"]]
    ) -> Evaluator:
        """The same programs for the replicas of an experiment that differs from this one's in those alone."""
        other = copy.copy(self)
        other.experiment, other.own = experiment, self.layout.place(dict(own))
        other.keys, other.worlds = (self.layout.place(x) for x in (keys, worlds(experiment.task, keys)))
        return other

    # ------------------------------------------------------------------------------------------------------ programs

    @cached_property
    def _measure(self) -> dict[str, Any]:
        over = functools.partial(self.layout.over, made=BY_ITEM)
        return {c.name: jax.jit(over(functools.partial(self._answers, c))) for c in self.conditions}

    @cached_property
    def _influences(self) -> dict[str, Any]:
        return {c.name: jax.jit(self.layout.over(functools.partial(self._influence, c))) for c in self.conditions}

    def _model(self, weights: Tree, changed: Experiment | None = None) -> Model:
        experiment = changed or self.experiment
        return nnx.merge(nnx.graphdef(experiment.abstract), weights["params"], weights["frozen"])

    @property
    def _by_loss(self) -> bool:
        return self.experiment.objective.targets == "vectors" or self.experiment.task.by_loss

    def _drawn(
        self,
        task: Task,
        keys: Key[jax.Array, "B"],
        numbers: jax.Array,
        condition: Condition,
        world: Tree,
        stored: Batch | None,
    ) -> Batch:
        """The items of these numbers, and keys, of a replica's own task."""
        if stored is None:
            return task.batch_of(keys, condition, world)
        picked = jax.tree.map(lambda leaf: leaf[numbers % self.items], stored._replace(tokens=None))  # type: ignore[arg-type]
        own = jax.tree.map(lambda leaf: leaf if task.shared_tokens else leaf[numbers % self.items], stored.tokens)
        return picked._replace(tokens=own)

    def _asked(self, batch: Batch, condition: Condition) -> Batch:
        """The items as the objective asks them."""
        asked = self.experiment.objective.ask(batch, self.experiment.task, condition)
        return batch._replace(inputs=asked.inputs, tokens=asked.tokens)

    @staticmethod
    def _told(experiment: Experiment, keys: Key[jax.Array, "B"], tokens: Tokens, context: int) -> Tokens:
        """The tokens of these items with the positions that the experiment's model is told."""
        return experiment.assigned(tokens, context, jax.vmap(lambda key: stream(key, "assignment"))(keys))

    def _changed(
        self,
        change: Intervention,
        keys: Key[jax.Array, "B"],
        number: jax.Array,
        condition: Condition,
        batch: Batch,
        shared: bool,
    ) -> Batch:
        """The batch as it is read as `number`, every example with tokens of its own; they come `shared` or not."""
        task = self.experiment.task

        def changed(key: jax.Array, one: Batch) -> Batch:
            return change.reading(stream(key, "intervention"), number, one, task, condition)

        return jax.vmap(changed, in_axes=(0, batch_axes(0, shared)))(keys, batch)

    def _batches(self, condition: Condition) -> int:
        """How many batches one call measures: as many as the others, so that the last has few beyond the items."""
        most = max(CALL_TOKENS // (self.batch_size * self.experiment.task.length(condition)), 1)
        batches, shards = -(-self.items // self.batch_size), self.layout.shards
        alike = -(-batches // -(-batches // most))
        return -(-alike // shards) * shards

    def _answers(
        self,
        condition: Condition,
        replica: tuple[Tree, ...],
        corpus: Tree,
        first: Int[jax.Array, ""],
        stored: Batch | None = None,
    ) -> dict[str, jax.Array]:
        """Columns of the rows of some batches from the `first` on, each [their items and more, A], for one replica's
        weights, key, world and own arguments.
        """
        weights, key, world, told = replica
        task, objective = self.experiment.task, self.experiment.objective
        own_task = task.with_traced(told)  # samples and judges
        key, world = stream(key, f"{self.name}/{condition.stream}"), sampled_from(corpus, world)

        def judge(
            example: Batch, outputs: Float[jax.Array, "T V"], visible: Bool[jax.Array, "T T"]
        ) -> dict[str, jax.Array]:
            rows = objective.rows(example)
            if objective.own_tokens:  # what is hidden is not known, and another row than the one that asks may answer
                known = visible & (example.tokens.hidden == 0)
                visible = known.at[example.query].set(known[rows])
            lost = own_task.losses(example, visible) if self._by_loss else {}
            return {
                **{name: getattr(example, name) for name in WHOLE},
                "evidence": example.last_evidence,
                "given": outputs[rows],
                "target": example.targets[example.query],
                "ceiling": own_task.ceiling(example, visible),
                **{f"baseline/{name}": value for name, value in own_task.baselines(example, visible).items()},
                **{f"{LOSS}/{name}": value for name, value in lost.items()},
            }

        def read(keys: jax.Array, batch: Batch, change: Intervention, number: jax.Array) -> dict[str, jax.Array]:
            """Columns of one reading of the items, with what is given as answers."""
            changed = self.changed if change is self.intervention else self.against
            model = changed.get(condition.name, self.experiment)
            own = not task.shared_tokens or objective.own_tokens or change.moves
            if change.moves:
                batch = self._changed(change, keys, number, condition, batch, task.shared_tokens)
            asked = self._asked(batch, condition)
            inputs = change.inputs_read(asked.inputs, task, condition)
            tokens = change.tokens_read(asked.tokens, task, condition)
            rows = tokens.length - task.length(condition)
            context = task.context_length(condition) + rows
            tokens = self._told(model, keys, tokens, context)
            if change.only_told:  # it changes those that are assigned
                shared = self.experiment.shared_tokens
                told = asked._replace(tokens=tokens if shared else self.experiment.spread(tokens, len(keys)))
                tokens = self._changed(change, keys, number, condition, told, shared).tokens
            sites = Sites(change.records)
            outputs = self._model(weights, model)(inputs, tokens, context, sites)[:, rows:]
            batch = batch._replace(tokens=self.experiment.spread(asked.tokens, len(keys)) if own else asked.tokens)
            reach = jnp.asarray(change.reach(model, condition))

            def one(item: tuple[Batch, jax.Array]) -> dict[str, jax.Array]:
                example, said = item
                if not own:
                    return judge(example._replace(tokens=batch.tokens), said, reach)
                return judge(example, said, change.reach(model, condition, example.tokens))

            items = (batch if own else batch._replace(tokens=None), outputs)  # type: ignore[arg-type]
            most = max(JUDGED_TOKENS // tokens.length, 1)
            found = jax.vmap(one)(items) if self.batch_size <= most else jax.lax.map(one, items, batch_size=most)
            sites.check()
            merit = {"merit": change.merit(sites.recorded, tokens, objective.rows(batch))} if change.records else {}
            return {**found, **merit}

        def measured(keys: jax.Array, batch: Batch, change: Intervention) -> dict[str, jax.Array]:
            """Columns of the items under a change, with what is said."""
            if change.readings == 1:
                found = read(keys, batch, change, jnp.int32(0))
            else:
                shapes = jax.eval_shape(lambda: read(keys, batch, change, jnp.int32(0)))
                nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

                def joined(number: jax.Array, so_far: Tree) -> Tree:
                    return change.joined(so_far, read(keys, batch, change, number), number)

                found = jax.lax.fori_loop(0, change.readings, joined, nothing)
            given, target = found.pop("given"), found.pop("target")
            found.pop("merit", None)
            return {
                **found,
                "correct": objective.right(given, target),
                "said": objective.said(given),
                "log_probability": objective.log_probability(given, target),
                **({LOSS: objective.losses(given, target)} if self._by_loss else {}),
            }

        def chunk(index: jax.Array) -> dict[str, jax.Array]:
            numbers = (first + index) * self.batch_size + jnp.arange(self.batch_size)
            keys = item_keys(key, numbers)
            batch = self._drawn(own_task, keys, numbers, condition, world, stored)
            found = measured(keys, batch, self.base)
            before = found.pop("said")
            if self.intervention is None:
                return found
            found = measured(keys, batch, self.intervention)
            after = found.pop("said")
            differs = (before != after).reshape(*batch.query.shape, -1)
            return {**found, self.intervention.share: jnp.any(differs, axis=-1)}

        chunks = self.layout.each(chunk, self._batches(condition))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), chunks)

    def _influence(
        self, condition: Condition, replica: tuple[Tree, ...], corpus: Tree, stored: Batch | None = None
    ) -> Float[jax.Array, "T"]:
        """E ||d (w . h_query) / d x_j||^2 over inputs and random w, normalised over j.

        x is the embedding, h the stream before the readout at each item's last answer, w a Gaussian vector an item.
        """
        weights, key, world, told = replica
        task, model, world = self.experiment.task, self._model(weights), sampled_from(corpus, world)
        key_w = stream(key, f"influence/{self.name}/{condition.name}")
        numbers = jnp.arange(self.influence_items)
        keys = item_keys(stream(key, f"{self.name}/{condition.stream}"), numbers)
        drawn = self._drawn(task.with_traced(told), keys, numbers, condition, world, stored)
        batch = self._asked(drawn, condition)
        context, rows = task.context_length(condition), self.experiment.objective.rows(batch)
        own_tokens, shared = own_and_shared(self._told(self.experiment, keys, batch.tokens, context))

        def sizes(piece: Tree) -> Float[jax.Array, "C T"]:
            inputs, own, query, key = piece

            def projected(shift: Float[jax.Array, "C T D"]) -> Float[jax.Array, ""]:
                sites = Sites(record=["final"], edit={"embedding": ("add", shift)})
                model(inputs, of_both(own, shared), context, sites)
                final = sites.recorded["final"]
                row = query - (task.length(condition) - final.shape[1])
                hidden = jnp.take_along_axis(final, row[:, None, None], axis=1)[:, 0].astype(jnp.float32)
                return jnp.sum(hidden * jax.random.normal(key, hidden.shape))

            shape = (len(query), task.length(condition), self.experiment.config.model.width)
            return jnp.sum(jnp.square(jax.grad(projected)(jnp.zeros(shape))), axis=-1)

        # A few items at a time: a gradient takes far more memory than the answers of as many.
        most = max(INFLUENCE_TOKENS // task.length(condition), 1)
        chunk = max(size for size in range(1, most + 1) if self.influence_items % size == 0)
        count = self.influence_items // chunk
        pieces = jax.tree.map(lambda x: x.reshape(count, chunk, *x.shape[1:]), (batch.inputs, own_tokens, rows[:, -1]))
        found = jax.lax.map(sizes, (*pieces, jax.random.split(key_w, count)))
        size = jnp.mean(found, axis=(0, 1))
        return size / jnp.sum(size)

    # ---------------------------------------------------------------------------------------------------------- rows

    def rows(self, weights: Tree, tell: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
        """The raw rows (see `evaluation.rows`) of weights {"params", "frozen"} with a leading R.

        `tell` is called with how many items are measured and how many there are to be, those of the influence too.
        """
        task, conditions = self.experiment.task, self.conditions
        replicas = (weights, self.keys, self.worlds, self.own)
        parts: list[dict[str, np.ndarray]] = []
        influence = np.full(
            (len(self.keys), len(conditions), max(task.length(c) for c in conditions)), np.nan, np.float32
        )
        each = self.items + (self.influence_items if self.intervention is None else 0)
        for number, condition in enumerate(conditions):
            stored = () if self.stored is None else (self.stored[condition.name],)
            pieces, at_once = [], self._batches(condition)
            for first in range(0, -(-self.items // self.batch_size), at_once):
                at = self.layout.share(np.int32(first))
                pieces.append(hosts.on_host(self._measure[condition.name](replicas, self.corpus, at, *stored)))
                done = min((first + at_once) * self.batch_size, self.items)
                tell(number * each + done, len(conditions) * each)
            whole = {name: np.concatenate([piece[name] for piece in pieces], axis=1) for name in pieces[0]}
            found = {name: column[:, : self.items] for name, column in whole.items()}
            answers = found["correct"].shape
            replica = np.broadcast_to(np.arange(answers[0])[:, None, None], answers)
            found |= {"replica": replica, "condition": np.full(answers, number)}
            parts.append({name: np.asarray(column).reshape(-1) for name, column in found.items()})
            if self.intervention is None:
                profile = hosts.on_host(self._influences[condition.name](replicas, self.corpus, *stored))
                influence[:, number, : profile.shape[1]] = profile
                tell((number + 1) * each, len(conditions) * each)
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return {
            **columns,
            "conditions": [c.name for c in conditions],
            "items": [c.stream for c in conditions],
            "influence": influence,
            "axes": {"query": task.query_axis, "evidence": task.evidence_axis},
        }


def theory_of(experiment: Experiment) -> dict[str, Any]:
    """What theory says of the task: curves {"query": [P], "evidence": [P]} of the first condition, their "mean", and
    "predictions", each as a mapping with the condition it is of. What is not known is left out, and so is all of it
    where replicas differ in what it speaks of. And of the model "influence" [T], see `even_influence`.
    """
    even = even_influence(experiment)
    return _of_task(experiment) | ({} if even is None else {"influence": even.tolist()})


def _of_task(experiment: Experiment) -> dict[str, Any]:
    task: Task = experiment.task
    name, told = task.spec_name, {}  # type: ignore[attr-defined]
    if name not in spec.names("theory") or not task.shared_tokens:
        return {}
    cls = spec.load_member("theory", name, "task")
    if experiment.config.train.vary.keys() & spec.arguments(cls).keys():  # then it is not one thing that theory says
        return {}
    theory = cls(**{argument: getattr(task, argument) for argument in spec.arguments(cls)})
    first = task.conditions()[0]
    visible = experiment.reach(first)
    curves: Curves | None = theory.curves(visible)
    if curves is not None:
        told = {"query": curves.query.tolist(), "evidence": curves.evidence.tolist(), "mean": curves.mean}
    predictions = [
        {**dataclasses.asdict(p), "condition": p.condition or first.name} for p in theory.predictions(visible)
    ]
    return {**told, **({"predictions": predictions} if predictions else {})}
