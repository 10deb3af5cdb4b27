"""What share of a train step goes into making its batch.

    python benchmarks/samplers.py [--config FILE ...] [--dispatches 12]

Both are timed in one process and in turn, K steps in one call as in training: the whole step of one replica, and its
sampler alone, which makes the same batches from the same stream and keeps what the step reads. The share is the ratio
of a pair of calls; told are medians over pairs. Measured are the shipped configs, and the tasks at their default sizes,
which are the papers' or nearer to them, on the model of the config that trains a smaller one: a paper's model is larger
and its share smaller.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import prepare
import record

from positionbias.replicas import replica_key, replica_seeds, stream
from positionbias.tasks.base import world_of

GOAL = 0.05  # of a step
WARM_UP = 2  # pairs that are not counted
# Tasks at their default sizes, and one whose paper has a larger one.
DEFAULTS = [
    "associative_recall",
    "common_words",
    "context_or_prior",
    "entity_binding",
    "modular_addition",
    "multi_hop",
    "needle",
    "rebinding",
    "set_disjointness",
    "text",
    "tree_paths",
    "variable_tracking",
]
LARGER = {name: [("task", name)] for name in DEFAULTS} | {
    "inverse_permutation_matrix": [("task", "inverse_permutation_matrix(d=10)"), ("model.width", "30")]
}
# But for that of all fields, and the study that trains nothing.
CONFIGS = sorted(
    str(path)
    for path in pathlib.Path("configs").rglob("*.py")
    if path.name != "base.py" and path.parent.name != "signature"
)


def measure(config_file: str, pairs: int, *overrides: tuple[str, str]) -> dict[str, Any]:
    """Milliseconds a step of "step" and "sampler", their ratio "share", the task and the steps in a call."""
    compiled = prepare.compiled(config_file, ("train.replicas", "1"), *overrides)
    experiment, size = compiled.program.experiment, compiled.program.auto.steps_per_dispatch
    config, task = experiment.config, experiment.task
    key = replica_key(jax.tree.map(lambda x: x[0], replica_seeds(config.seed, 1, None)))
    data, world = stream(key, "data"), world_of(task, key)

    @jax.jit
    def sample(start: jax.Array, world: Any) -> jax.Array:
        def step(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
            fold = jax.random.fold_in(data, index)
            batch = task.batch(fold, task.conditions()[0], config.train.batch_size, world)
            read = (batch.inputs, batch.targets, batch.weights)
            return total + sum(jnp.sum(x, dtype=jnp.float32) for x in read), None

        return jax.lax.scan(step, jnp.zeros(()), start + jnp.arange(size))[0]

    def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
        started = time.perf_counter()
        result = jax.block_until_ready(call())
        return time.perf_counter() - started, result

    state, step, sampler = compiled.fresh(), [], []
    for start in range(0, (WARM_UP + pairs) * size, size):
        whole, (state, _) = seconds(lambda state=state, start=start: compiled.advance(state, start))
        alone, _ = seconds(lambda start=start: sample(start, world))
        step.append(whole)
        sampler.append(alone)
    step, sampler = step[WARM_UP:], sampler[WARM_UP:]
    return {
        "task": config.task,
        "step": 1e3 * statistics.median(step) / size,
        "sampler": 1e3 * statistics.median(sampler) / size,
        "share": statistics.median(part / whole for part, whole in zip(sampler, step, strict=True)),
        "steps_per_dispatch": size,
    }


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description="Sampler time as a share of the train step.")
    parser.add_argument("--config", nargs="+", default=CONFIGS)
    parser.add_argument("--dispatches", type=int, default=12, help="pairs of calls that are counted")
    given = parser.parse_args()
    found = {config: measure(config, given.dispatches) for config in given.config}
    for name, larger in LARGER.items() if given.config == CONFIGS else ():
        few = ("train.steps_per_dispatch", "2")  # some of these steps take seconds
        found[name] = measure(f"configs/{name}/quick.py", given.dispatches, *larger, few)
    print(f"{'step, ms':>10}{'sampler, ms':>13}{'share':>9}   config   (goal: at most {GOAL:.0%})")
    for config, one in found.items():
        print(f"{one['step']:10.3f}{one['sampler']:13.4f}{one['share']:9.2%}   {config}")
    results = {"configs": found, "goal": GOAL, "dispatches": given.dispatches}
    print(f"written: {record.write('samplers', results).relative_to(record.ROOT)}")


if __name__ == "__main__":
    main()
