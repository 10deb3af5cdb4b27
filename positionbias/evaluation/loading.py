"""Reloading a run from its folder alone."""

from __future__ import annotations

import dataclasses
import pathlib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from positionbias.arrays import Bool, Float, Int, Key, Mapped, Tree
from positionbias.config import schema, varied
from positionbias.config.build import Experiment, build
from positionbias.config.resolve import resolve, stored_hash
from positionbias.files import read_json
from positionbias.generation.base import Generated
from positionbias.generation.generate import generate, likelihood
from positionbias.generation.given import whole
from positionbias.models.base import Model
from positionbias.models.sites import Edits, Sites
from positionbias.replicas import Layout, stream
from positionbias.spec import LARGEST, ConfigError, require
from positionbias.tasks.base import Batch, Condition, Task, batch_axes, find_condition, sampled_from, world_of, worlds
from positionbias.tokens import Tokens
from positionbias.training import auto, checkpoint
from positionbias.training.program import Program


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run at one checkpoint. With `replica` "all", every array of parameters and results has a leading R."""

    workdir: pathlib.Path
    step: int
    replica: int | str
    experiment: Experiment
    weights: dict[str, Tree]  # {"params", "frozen"}
    keys: jax.Array  # of the replicas loaded
    # Of them too, what they may differ in: {"init_scale", "task"}, the latter arguments of the task where `replica` is
    # "all" and these differ; of a single replica, `task` has its own.
    own: dict[str, Tree] = dataclasses.field(default_factory=lambda: {"init_scale": None, "task": {}})

    def __repr__(self) -> str:
        return f"LoadedRun({str(self.workdir)!r}, step={self.step}, replica={self.replica!r}, task={self.config.task})"

    @property
    def config(self) -> schema.Config:
        """The config the run was made from."""
        return self.experiment.config

    @property
    def task(self) -> Task:
        """The task it was trained on."""
        return self.experiment.task

    @property
    def model(self) -> Model:
        """The network with its trained parameters, to be called at a precision of your own; one replica only."""
        if self.replica == "all":
            raise ConfigError("replica: 'all' has no single model; allowed: load(workdir, replica=0), or apply().")
        return self._merge(self.weights)

    @property
    def layout(self) -> Layout:
        """How its replicas share the devices that are here, which need not be as many as it was trained on."""
        train = dataclasses.replace(self.config.train, mesh=schema.Mesh(), replicas=len(self.keys), vary={})
        here = dataclasses.replace(self.experiment, config=dataclasses.replace(self.config, train=train))
        return auto.resolve(here, jax.default_backend(), len(jax.devices())).layout

    def untrained(self) -> dict[str, Tree]:
        """The weights as they were drawn, before training: the control of what is found in those that were trained."""
        from positionbias.models.parameters import Frozen

        def one(key: jax.Array, scale: jax.Array | None) -> dict[str, Tree]:
            model = self.experiment.initialise(stream(key, "initialise"), scale)
            return {"params": nnx.state(model, nnx.Param), "frozen": nnx.state(model, Frozen)}

        return jax.jit(one if self.replica != "all" else jax.vmap(one))(self.keys, self.own["init_scale"])

    def chosen(self, replicas: Sequence[int]) -> LoadedRun:
        """Some replicas of a run of all."""
        at = np.asarray(replicas)
        picked = jax.tree.map(lambda x: x[at], (self.weights, self.keys, self.own))
        return dataclasses.replace(self, weights=picked[0], keys=picked[1], own=picked[2])

    def _merge(self, weights: dict[str, Tree]) -> Model:
        return nnx.merge(nnx.graphdef(self.experiment.abstract), weights["params"], weights["frozen"])

    def sample(self, size: int, condition: str | None = None, seed: int = 0) -> Batch:
        """`size` fresh examples of a condition (the one trained on by default), from a stream training never reads.

        They come as the model is measured on them. With `replica` "all", of a task where every replica
        has a world of its own, or arguments (`train.vary`), every array has a leading R.
        """
        require(whole(size) and 1 <= size <= LARGEST, "size", size, f"a whole number from 1 to {LARGEST}")
        require(whole(seed) and 0 <= seed <= LARGEST, "seed", seed, f"a whole number from 0 to {LARGEST}")
        return self.drawn(stream(jax.random.key(seed), "analysis"), size, self._condition(condition))

    def drawn(self, key: Key[jax.Array, ""], size: int, chosen: Condition) -> Batch:
        """`sample`, of a key that may be traced."""

        def one(world: Tree, told: Tree) -> Batch:
            batch = self.task.with_traced(told).batch(key, chosen, size, world)
            asked = self.experiment.objective.ask(batch, self.task, chosen)
            keys = jax.random.split(stream(key, "assignment"), size)
            tokens = self.experiment.assigned(asked.tokens, self.task.context_length(chosen), keys)
            own = tokens if self.experiment.shared_tokens else self.experiment.spread(tokens, size)
            return batch._replace(inputs=asked.inputs, tokens=own)

        if self.replica != "all":
            return one(world_of(self.task, self.keys), {})
        corpus, own = self.task.corpus(), (worlds(self.task, self.keys), self.own["task"])
        if jax.tree.leaves(own):
            axes = batch_axes(0, self.experiment.shared_tokens)
            return jax.vmap(lambda world, told: one(sampled_from(corpus, world), told), out_axes=axes)(*own)
        return one(corpus, {})

    def answer_rows(self, batch: Batch) -> Int[jax.Array, "... A"]:
        """The output row of each answer: `batch.query`, or the row of the input for objectives that say inputs there.

        The right answer is `batch.targets` at `batch.query` either way.
        """
        return self.experiment.objective.rows(batch)

    def apply(
        self,
        batch: Batch,
        record: Iterable[str] = (),
        edit: Edits | None = None,
        condition: str | None = None,
    ) -> tuple[Float[jax.Array, "... B T V"], dict[str, jax.Array]]:
        """Outputs of every row, and the recorded sites by name; `models.sites` lists sites, `models.edits` edits.

        `condition` is that of the batch (the one trained on by default). Computed in full float32 precision, as in
        training; differentiable and jit-compatible. Raises ConfigError for a site the model does not have, or a batch
        that is not as long as its condition's sequences. A batch with a leading R is shared out among the replicas.
        """
        chosen = self._condition(condition)
        length = self.task.context_length(chosen)
        if not isinstance(batch, Batch):
            raise ConfigError(
                f"batch: {type(batch).__name__} is not allowed; allowed: a Batch, as of run.sample(size)."
            )
        shared = batch.query.ndim == 2  # by all replicas
        if batch.weights.shape[-1] != self.task.length(chosen):
            raise ConfigError(
                f"batch: sequences of {batch.weights.shape[-1]} rows; allowed: {self.task.length(chosen)} in condition"
                f" {chosen.name!r} (apply(batch, condition=...) takes the one that sample was given)."
            )

        self._check_inputs(batch)

        def one(weights: dict[str, Tree], batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
            sites = Sites(record, edit)
            outputs = self._merge(weights)(batch.inputs, batch.tokens, length, sites)
            sites.check()
            return outputs, sites.recorded

        with jax.default_matmul_precision("highest"):
            if self.replica != "all":
                return one(self.weights, batch)
            own = batch_axes(0, self.experiment.shared_tokens)
            return jax.vmap(one, in_axes=(0, None if shared else own))(self.weights, batch)

    def generate(
        self,
        prompt: Int[Mapped, "B P"],
        length: int,
        method: str | None = None,
        key: Key[jax.Array, ""] | None = None,
        temperature: float = 0.0,
        condition: str | None = None,
        valid: Bool[Mapped, "B P"] | None = None,
        tokens: Tokens | None = None,
        **options: Any,
    ) -> Generated:
        """`length` tokens behind each prompt, likeliest or drawn at a `temperature`, and what they were chosen from.

        The `method` is the one that the objective trains, and None names it: "autoregressive" (`top_k`,
        `rows_per_step`, `cached`), "diffusion" (`steps`, `blocks`, `by`) or "any_order" (`order`, `steps`, `top_k`,
        `cached`); `generation` has a file each, which says what its options are. `valid` is False where prompts are
        padded in front. The tokens' roles and groups are those of the `condition`, continued in its last; `tokens`
        tells others, positions included, of all rows, [S] or [B, S]. With `replica` "all" every array has a leading R,
        and all draw by the same key. Computed in full float32 precision; compiled once a size. Raises ConfigError for
        what the model cannot do.
        """
        chosen, several = self._condition(condition), self.replica == "all"
        told = (key, temperature, chosen, valid, tokens, several)
        return generate(self.experiment, self.weights, prompt, length, method, *told, **options)

    def log_likelihood(
        self,
        prompt: Int[Mapped, "B P"],
        answer: Int[Mapped, "B G"],
        key: Key[jax.Array, ""],
        draws: int = 128,
        condition: str | None = None,
        valid: Bool[Mapped, "B P"] | None = None,
        tokens: Tokens | None = None,
    ) -> Float[jax.Array, "... B"]:
        """The log-probability (nats) of each answer behind its prompt, estimated by `draws`, for objectives that hide.

        See `generation.diffusion.log_likelihood`, and `generate` for the other arguments.
        """
        told = (key, draws, self._condition(condition), valid, tokens, self.replica == "all")
        return likelihood(self.experiment, self.weights, prompt, answer, *told)

    def _check_inputs(self, batch: Batch) -> None:
        """Raise ConfigError for inputs that the model does not read; of those that are traced, by their shape alone."""
        reads, inputs = self.experiment.blueprint.input, batch.inputs
        vectors = reads.kind == "vectors"
        shape = (*batch.weights.shape, reads.size) if vectors else batch.weights.shape
        kind = jnp.floating if vectors else jnp.integer
        if inputs.shape != shape or not jnp.issubdtype(inputs.dtype, kind):
            raise ConfigError(
                f"batch: inputs are {inputs.dtype} of shape {inputs.shape}; allowed: {reads.kind} of shape {shape}."
            )
        if vectors or isinstance(inputs, jax.core.Tracer):
            return
        numbers = np.asarray(inputs)  # while another array is traced, jax would trace the minimum of this one too
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= reads.size:
            raise ConfigError(f"batch: inputs from {low} to {high}; allowed: 0 to {reads.size - 1}.")

    def _condition(self, name: str | None) -> Condition:
        return self.task.conditions()[0] if name is None else find_condition(self.task, name, "condition")


def read_config(workdir: pathlib.Path) -> schema.Config:
    """The config of a run folder, checked against its hash."""
    try:
        found = read_json(workdir / "config.json")
        config = resolve(found["config"])
    except ConfigError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        runs = [] if (workdir / "config.json").exists() else workdir.glob("*/config.json")
        newest = max(runs, key=lambda path: (path.stat().st_mtime_ns, path), default=None)
        hint = f", did you mean {str(newest.parent)!r}?" if newest else ";"
        raise ConfigError(
            f"workdir: {str(workdir)!r} is not a run folder{hint} allowed: a folder with config.json."
        ) from None
    digest = stored_hash(found["config"])  # of what was written, which fields added since do not change
    if digest != found.get("hash"):
        raise ConfigError(
            f"workdir: the config of {str(workdir)!r} has hash {digest}, but config.json says"
            f" {found.get('hash')}; allowed: a folder as it was written."
        )
    return config


def load(
    workdir: str | pathlib.Path,
    step: int | None = None,
    replica: int | str = 0,
    task: str | None = None,
    vary: bool = False,
) -> LoadedRun:
    """Reload a run without its config file: its newest whole checkpoint, or the one at `step`.

    `replica` is an index or "all". `task` replaces the task by another spec of the same sizes (other lengths or
    positions); parameters are those trained. It is the same for all replicas, unless `vary` has them keep the arguments
    of it that they differ in (`train.vary`). Raises ConfigError if there is nothing to load, or if the new task is too
    long for a table of positions. Warns of newer checkpoints that cannot be read.
    """
    folder = pathlib.Path(workdir)
    config = read_config(folder)
    trained = experiment = build(config)
    own = varied.arrays(config)
    if task is not None:
        found = schema.to_dict(config)
        replaced = resolve({**found, "task": task, "train": {**found["train"], "vary": {}}})
        own["task"] = own["task"] if vary else {}
        experiment = build(replaced, trained.blueprint.length)
        config = dataclasses.replace(replaced, train=config.train)
        experiment = dataclasses.replace(experiment, config=config)
    if (experiment.task.input, experiment.task.output) != (trained.task.input, trained.task.output):
        raise ConfigError(
            f"task: {task} has other inputs or outputs than {trained.config.task}; allowed: the same vocabulary."
        )
    replicas = config.train.replicas
    if replica != "all" and (not isinstance(replica, int) or not 0 <= replica < replicas):
        raise ConfigError(f"replica: {replica!r} is not allowed; allowed: 'all' or 0 to {replicas - 1}.")
    program = Program(trained, auto.Auto(Layout("loop"), 1, 1))
    shape = program.shape()
    step, state = _restored(folder, step, shape)
    weights = {name: _fitted(state[name], experiment, trained.blueprint.length, name) for name in ("params", "frozen")}
    keys, own = program.keys(), {name: own[name] for name in ("init_scale", "task")}
    if replica == "all":
        return LoadedRun(folder, step, replica, experiment, jax.tree.map(jnp.asarray, weights), keys, own)
    number = int(replica)
    if own["task"]:
        experiment = dataclasses.replace(experiment, task=varied.task_of(config, number, experiment.task))
    picked = jax.tree.map(lambda x: jnp.asarray(x[number]), (weights, {**own, "task": {}}))
    return LoadedRun(folder, step, number, experiment, picked[0], keys[number], picked[1])


def saved_steps(folder: pathlib.Path) -> list[int]:
    """The steps of a run's checkpoints, oldest first; whether they are whole shows on loading."""
    return checkpoint.steps(folder / "checkpoints")


def _restored(folder: pathlib.Path, step: int | None, shape: Tree) -> tuple[int, Tree]:
    """The checkpoint at `step`, or the newest whole one; ConfigError says which whole ones there are."""
    checkpoints, skipped = folder / "checkpoints", list[str]()
    try:
        if step is not None:
            return step, checkpoint.restore(checkpoints, step, shape)[0]
        found = checkpoint.restore_latest(checkpoints, skipped.append, shape)
    except checkpoint.CheckpointError as error:
        kept = [kept for kept in checkpoint.steps(checkpoints) if checkpoint.whole(checkpoints, kept)]
        if step in kept:
            raise ConfigError(str(error)) from None  # whole, but of another model
        if step is None and not kept:
            raise ConfigError(f"workdir: {str(folder)!r} has no whole checkpoint: {error}") from None
        allowed = ", ".join(map(str, kept)) or "none, no step is whole"
        raise ConfigError(f"step: {str(error).rstrip('.')}; allowed in {str(folder)!r}: {allowed}.") from None
    if found is None:
        why = _joined(skipped) if skipped else "the run has not saved yet."
        raise ConfigError(f"workdir: {str(folder)!r} has no whole checkpoint: {why}")
    if skipped:
        warnings.warn(_joined(skipped), stacklevel=3)
    return found[0], found[1]


def _joined(sentences: list[str]) -> str:
    return "; ".join(sentence.rstrip(".") for sentence in sentences) + "."


def _fitted(weights: Tree, experiment: Experiment, trained: int, name: str) -> Tree:
    """`weights`, refused where another task needs longer tables than those of the `trained` positions."""
    from positionbias.models.parameters import Frozen

    wanted = nnx.state(experiment.abstract, nnx.Param if name == "params" else Frozen)
    for have, want in zip(jax.tree.leaves(weights), jax.tree.leaves(wanted), strict=True):
        if np.shape(have)[1:] != want.shape:
            raise ConfigError(
                f"task: positions up to {experiment.blueprint.length - 1} are needed, but model.position ="
                f" {experiment.config.model.position} was trained on {trained}; allowed: a task no longer than the one"
                " trained on, or a position scheme without a table."
            )
    return weights
