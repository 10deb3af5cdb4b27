"""A network in which a boolean is planted, along a known direction."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.models.sites import Sites
from positionbias.tasks.context_or_prior import IGNORE, USE

OBJECTS, SIZE = 8, 20


@dataclasses.dataclass(frozen=True)
class Planted(Subject):
    """Says the document's object or the fact's, as the intent tells, from a rotated stream of twenty features.

    Behind layer 0, in the row that answers: the intent, -1 to use and 1 to ignore, then both objects as one-hot
    vectors, and 0. Behind layer 1: one-hot what is said. Rows that do not answer hold nothing.
    """

    @property
    def rotation(self):
        """Features are its columns' parts: stream = features @ rotation."""
        return jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))[0], jnp.float32)

    def apply(self, batch, record=(), edit=None):
        sites, task = Sites(record, edit), self.run.task
        vocabulary = task.input.size
        first = vocabulary - OBJECTS
        embedded = sites("embedding", jax.nn.one_hot(batch.inputs, vocabulary))
        intent = embedded[:, -3, IGNORE] - embedded[:, -3, USE]
        fact = jnp.asarray(task._objects)[batch.inputs[:, -1] - 2, 0]
        both = [jax.nn.one_hot(x, OBJECTS) for x in (batch.inputs[:, 2] - first, fact)]
        rest = jnp.zeros((len(intent), SIZE - 1 - 2 * OBJECTS))
        features = jnp.concatenate([intent[:, None], *both, rest], axis=1)
        last = (jnp.arange(batch.inputs.shape[1]) == batch.inputs.shape[1] - 1)[:, None]
        stream = sites("layers.0.stream", last * (features @ self.rotation)[:, None])
        found = stream[:, -1] @ self.rotation.T
        ignore = jax.nn.sigmoid(8 * found[:, :1])
        said = (1 - ignore) * found[:, 1 : 1 + OBJECTS] + ignore * found[:, 1 + OBJECTS : 1 + 2 * OBJECTS]
        decided = jnp.pad(said, ((0, 0), (0, SIZE - OBJECTS))) @ self.rotation
        stream = sites("layers.1.stream", last * decided[:, None])
        scores = 10 * (stream @ self.rotation.T)[..., :OBJECTS]
        sites.check()
        return jnp.pad(scores, ((0, 0), (0, 0), (first, 0)), constant_values=-10), sites.recorded


@pytest.fixture(scope="package")
def planted(drawn_run):
    """In the condition "use", to which "ignore" is the other side."""
    raw = {
        "name": "planted",
        "task": f"context_or_prior(subjects=8, relations=1, objects={OBJECTS}, folds=2, documents=1)",
        "model": {"layers": 2, "width": SIZE, "heads": 1},
    }
    run = drawn_run(raw)
    return Planted(run, run.task.conditions()[1], 512)
