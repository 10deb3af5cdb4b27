"""The compiled part of training: fresh state, and K steps of every replica in one call."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding

from positionbias import hosts, runtime, spec
from positionbias.arrays import Float, Int, Key, Tree
from positionbias.config import schema, varied
from positionbias.config.build import Experiment
from positionbias.models.parameters import Frozen
from positionbias.models.sites import PENALTIES, Sites
from positionbias.operators.asked import some_rows
from positionbias.replicas import IN_PARTS, PER_REPLICA, keys_of, replica_key, replica_seeds, stream
from positionbias.tasks.base import sampled_from, shared_corpus, worlds
from positionbias.tokens import of_both, own_and_shared
from positionbias.training.auto import Auto
from positionbias.training.optimizer import Rule, Schedule, rate_share, transformation
from positionbias.training.packing import Packed, Packing
from positionbias.training.parting import GATHERED, Parting
from positionbias.training.writers import METRICS

State = dict[str, Any]  # {"params", "frozen", "optimizer"}, a leading R on every leaf


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """An experiment with its `auto` choices, as functions of one replica's state.

    Its replicas are those of its config, or one after another those of several `configs`, which are of one program
    (`config/sharing.py`).
    """

    experiment: Experiment
    auto: Auto
    configs: tuple[schema.Config, ...] = ()

    # ------------------------------------------------------------------------------------------------ fixed inputs

    def replicas(self) -> dict[str, Any]:
        """What differs between replicas, numpy with a leading R: seeds, and what changes no shape."""
        own = self._joined(varied.arrays)
        return {**own, "seeds": self._seeds(), "world": jax.device_get(worlds(self.experiment.task, self.keys()))}

    def keys(self) -> Key[jax.Array, "R"]:
        """The key of every replica."""
        return keys_of(self._seeds())

    def _seeds(self) -> dict[str, Int[np.ndarray, "R"]]:
        return self._joined(lambda one: replica_seeds(one.seed, one.train.replicas, varied.seeds(one)))

    def _joined(self, of: Callable[[schema.Config], Tree]) -> Any:
        """Arrays [R, ...] of every config, put together."""
        return jax.tree.map(lambda *parts: np.concatenate(parts), *map(of, self._configs))

    @property
    def _configs(self) -> tuple[schema.Config, ...]:
        return self.configs or (self.experiment.config,)

    def _rule(self) -> Rule:
        return spec.build("optimizers", self.experiment.config.optimizer.name, "optimizer.name")

    def _transformation(self, weight_decay: jax.Array | float) -> optax.GradientTransformation:
        # Not `self.parting.norm`: what is parted is known only when this has been asked for the state it begins with.
        return transformation(
            self.experiment.config.optimizer, self._rule(), weight_decay, lambda x: self.parting.norm(x)
        )

    @functools.cached_property
    def parting(self) -> Parting:
        """How a replica's state is shared out over devices that keep a part of it each."""
        return Parting(self.shape_of_one, self.auto.layout)

    # ---------------------------------------------------------------------------------------------------- functions

    def fresh(self, replica: dict[str, Any]) -> State:
        """Fresh state of one replica."""
        model = self.experiment.initialise(stream(replica_key(replica["seeds"]), "initialise"), replica["init_scale"])
        params, frozen = nnx.state(model, nnx.Param), nnx.state(model, Frozen)
        return {"params": params, "frozen": frozen, "optimizer": self._transformation(0.0).init(params)}

    def advance(self, state: State, own: dict[str, Any], corpus: Tree, start: Int[jax.Array, ""]) -> tuple[State, Tree]:
        """K steps of one replica, its state in parts, from step `start`; metrics by name are [K]."""
        config = self.experiment.config
        tx = self._transformation(own["weight_decay"])
        schedule: Schedule = spec.build("schedules", config.optimizer.schedule, "optimizer.schedule")
        data, world = stream(replica_key(own["seeds"]), "data"), sampled_from(corpus, own["world"])

        def step(state: State, index: jax.Array) -> tuple[State, Tree]:
            grads, metrics = self._gradient(state, jax.random.fold_in(data, index), world, own["task"])
            metrics["gradient_norm"] = self.parting.norm(grads)
            direction, optimizer = tx.update(grads, state["optimizer"], state["params"])
            share = rate_share(schedule, own["warmup_steps"], config.train.steps, index)
            rate = own["learning_rate"] * share
            params = jax.tree.map(lambda p, d: p - rate * d, state["params"], direction)
            return {"params": params, "frozen": state["frozen"], "optimizer": optimizer}, metrics

        return jax.lax.scan(step, state, start + jnp.arange(self.auto.steps_per_dispatch))

    def _gradient(self, state: State, key: Key[jax.Array, ""], world: Tree, own: Tree = None) -> tuple[Tree, Tree]:
        """The gradient and metrics of one step's batch, a micro-batch at a time: the same sums in smaller pieces.

        The batch is drawn of a `world`, by the task with the replica's `own` arguments.
        """
        experiment, size = self.experiment, self.experiment.config.train.batch_size
        task, objective = experiment.task, experiment.objective
        condition = task.conditions()[0]
        batch = experiment.trained(key, task.with_traced(own or {}).batch(key, condition, size, world))
        graph = nnx.graphdef(experiment.abstract)
        total, asked = (jnp.maximum(x, 1e-9) for x in (objective.total(batch), jnp.sum(batch.weights)))

        def loss(params: Tree, piece: Tree) -> tuple[Float[jax.Array, ""], Tree]:
            inputs, targets, weights, own = piece
            whole = (self.parting.whole(tree, name) for name, tree in (("params", params), ("frozen", state["frozen"])))
            model = nnx.merge(graph, *whole)
            sites = Sites(record=[PENALTIES])
            outputs = model(inputs, of_both(own, shared), task.context_length(condition), sites, rows)
            value = jnp.sum(objective.losses(outputs, targets) * weights) / total
            for penalty in sites.recorded.values():
                value += jnp.sum(penalty) / size
            right = jnp.sum(objective.right(outputs, targets) * weights) / asked
            return value, {"loss": value, "accuracy": right}

        layout = self.auto.layout
        own_tokens, shared = own_and_shared(batch.tokens)
        rows = objective.trained_rows(task, condition)
        targets, weights = (some_rows(x, rows) for x in (batch.targets, batch.weights))
        pieces = layout.own((batch.inputs, targets, weights, own_tokens))
        count = size // layout.shards // self.auto.microbatch
        if layout.fsdp > 1:
            loss = jax.checkpoint(loss, policy=jax.checkpoint_policies.save_anything_except_these_names(GATHERED))
        slope = jax.grad(loss, has_aux=True)

        def of_own(params: Tree) -> tuple[Tree, Tree]:
            if count == 1:
                return slope(params, pieces)

            def piecewise(carry: Tree, piece: Tree) -> tuple[Tree, None]:
                return jax.tree.map(jnp.add, carry, slope(params, piece)), None

            cut = jax.tree.map(lambda x: x.reshape(count, self.auto.microbatch, *x.shape[1:]), pieces)
            zero = jax.tree.map(jnp.zeros_like, params), {"loss": jnp.zeros(()), "accuracy": jnp.zeros(())}
            return jax.lax.scan(piecewise, zero, cut)[0]

        def gradient(params: Tree) -> tuple[Tree, Tree]:
            return self.parting.summed(*of_own(params))

        return gradient(objective.tuned(stream(key, "tuned"), state["params"], lambda params: gradient(params)[0]))

    # --------------------------------------------------------------------------------------------------- compilation

    def shape(self) -> State:
        """Shapes and types of the state of every replica, a leading R on every leaf."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.count, *x.shape), x.dtype), self.shape_of_one)

    @property
    def count(self) -> int:
        """R, of all its configs."""
        return sum(config.train.replicas for config in self._configs)

    @functools.cached_property
    def shape_of_one(self) -> State:
        """Shapes and types of the state of one replica."""
        return jax.eval_shape(self.fresh, jax.tree.map(lambda x: x[0], self.replicas()))

    def compile(self) -> Compiled:
        """Compile both functions ahead of time, side by side: a compiled call cannot compile again.

        Where nothing is trained there is no step to compile.
        """
        layout, own = self.auto.layout, self.replicas()
        replicas, corpus = layout.place(own), shared_corpus(self.experiment.task, layout)
        packing = Packing(self.parting.parts)
        unpack = jax.jit(layout.over(lambda packed: self.parting.whole(packing.unpack(packed)), given=IN_PARTS))

        def fresh(replica: dict[str, Any]) -> Packed:
            return packing.pack(self.parting.part(self.fresh(replica)))

        def advance(replica: tuple[Packed, dict[str, Any]], start: jax.Array, corpus: Tree) -> tuple[Packed, jax.Array]:
            state, metrics = self.advance(packing.unpack(replica[0]), replica[1], corpus, start)
            return packing.pack(state), jnp.stack([metrics[name] for name in METRICS])

        def both(state: Packed, replicas: dict[str, Any], start: jax.Array, corpus: Tree) -> tuple[Packed, jax.Array]:
            given, made = (IN_PARTS, PER_REPLICA), (IN_PARTS, PER_REPLICA)
            return layout.over(advance, given, made)((state, replicas), start, corpus)

        with concurrent.futures.ThreadPoolExecutor(1) as aside:
            lowered = jax.jit(layout.over(fresh, made=IN_PARTS)).lower(replicas)
            first = aside.submit(lowered.compile)
            if self.experiment.config.train.steps == 0:
                return Compiled(self, replicas, corpus, packing, unpack, first.result(), None)
            sharding = NamedSharding(layout.mesh(), IN_PARTS)
            state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), lowered.out_info)
            start = jax.ShapeDtypeStruct((), np.int32)
            lowered = jax.jit(both, donate_argnums=0).lower(state, replicas, start, corpus)
            second = lowered.compile(runtime.step_options(layout.mesh().devices.flat[0].platform))
            return Compiled(self, replicas, corpus, packing, unpack, first.result(), second)


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
    """The compiled functions, with the inputs that stay the same throughout a run."""

    program: Program
    replicas: dict[str, Any]
    corpus: Tree
    packing: Packing
    unpack: Callable[[Packed], State]  # from a packed state to the state it is; compiled when first used
    _fresh: Any
    _advance: Any

    def of(self, program: Program) -> Compiled:
        """The same functions for the replicas of a program that differs from this one's in those alone."""
        return dataclasses.replace(self, program=program, replicas=program.auto.layout.place(program.replicas()))

    @property
    def bytes(self) -> int:
        """Of memory that a step takes of a device, as XLA tells it; 0 where nothing is trained."""
        return self.bytes_kept + self.bytes_made

    @property
    def bytes_kept(self) -> int:
        """Of these, what is there before and after a step."""
        return 0 if self._memory is None else self._memory.argument_size_in_bytes

    @property
    def bytes_made(self) -> int:
        """And what is there while it runs."""
        return 0 if self._memory is None else self._memory.temp_size_in_bytes

    @property
    def _memory(self) -> Any:
        return None if self._advance is None else self._advance.memory_analysis()

    def fresh(self) -> Packed:
        """Fresh state of every replica, packed."""
        return self._fresh(self.replicas)

    def advance(self, state: Packed, start: int) -> tuple[Packed, Float[jax.Array, "R M K"]]:
        """K steps from step `start` of a packed state, which is given up; for the metrics see `fetch`."""
        return self._advance(state, self.replicas, np.int32(start), self.corpus)

    def pack(self, state: State) -> Packed:
        """From a state, of numpy arrays say, to the packed state on its devices."""
        parting = self.program.parting
        pack = parting.layout.over(lambda state: self.packing.pack(parting.part(state)), made=IN_PARTS)
        return jax.jit(pack)(parting.layout.place(state))


def fetch(metrics: Float[jax.Array, "R M K"]) -> dict[str, Float[np.ndarray, "R K"]]:
    """The metrics of `Compiled.advance` on the host, by name; waits for the device."""
    if hosts.several():
        values = hosts.on_host(metrics)
        return {name: values[:, i] for i, name in enumerate(METRICS)}
    # A shard at a time: having JAX put the shards together costs the host as much as the whole dispatch.
    shards = {shard.index[0].start or 0: shard for shard in metrics.addressable_shards}
    values = np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])
    return {name: values[:, i] for i, name in enumerate(METRICS)}
