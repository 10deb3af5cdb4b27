"""What tests of tasks share: samples by one program, judges compiled once, and ceilings by enumeration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.tasks.base import batch_axes


@functools.cache
def drawn(task, count, *names):
    """Samples of the conditions with these names, all if none, made by one program."""
    conditions = [c for c in task.conditions() if c.name in names or not names]
    made = jax.jit(lambda key: {c.name: task.batch(key, c, count) for c in conditions})
    return jax.tree.map(np.asarray, made(jax.random.key(0)))


def judging(judge):
    """A function of a batch with shared tokens and of what every row sees, bool [T, T]: `judge` over the batch."""
    judge_all = jax.jit(jax.vmap(judge, in_axes=(batch_axes(0, True), None)))
    return lambda batch, visible: jax.tree.map(np.asarray, judge_all(batch, jnp.asarray(visible, bool)))


def judging_alike(judge, batch):
    """A function of what every row sees alike, bool [T]: `judge` over the batch."""

    def judge_one(one, row):
        return judge(one, jnp.broadcast_to(row, 2 * row.shape))

    judge_all = jax.jit(jax.vmap(judge_one, in_axes=(0, None)))
    return lambda row: jax.tree.map(np.asarray, judge_all(batch, jnp.asarray(row, bool)))


def enumerated_ceiling(inputs, answers, row):
    """Per example: the posterior's peak, given the inputs the row sees."""
    weights = np.random.default_rng(0).integers(2**62, size=inputs.shape[1])
    hashed = (inputs * np.where(row, weights, 0)).sum(axis=1)  # modulo 2^64; two views share a number never, or nearly
    view = np.unique(hashed, return_inverse=True)[1]
    count = np.zeros((view.max() + 1, answers.max() + 1))
    np.add.at(count, (view, answers), 1)
    return (count.max(axis=1) / count.sum(axis=1))[view]
