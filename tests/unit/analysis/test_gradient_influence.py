"""Gradient influence of streams that are fixed mixes of the embedding: the squares of the mixes' weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.analysis.base import Subject
from positionbias.analysis.gradient_influence import GradientInfluence
from positionbias.models.sites import Sites

WIDTH = 4
FIRST = np.array(
    [[1, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0], [0.5, 0, 0.5, 0, 0], [0.75, 0, 0, 0.25, 0], [0.75, 0, 0, 0, 0.25]]
)
BEFORE = np.array([[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]])


@dataclasses.dataclass(frozen=True)
class Mixing(Subject):
    """Rows mix the first with their own, and behind layer 1 are what the row before was."""

    rows: int = 5
    size: float = 1.0  # of what layers hand on

    def apply(self, batch, record=(), edit=None):
        sites = Sites(record, edit)
        x = sites("embedding", jax.nn.one_hot(batch.inputs, WIDTH))
        x = sites(
            "layers.0.stream", jnp.einsum("ts,bsd->btd", self.size * FIRST, x, precision="highest")[:, -self.rows :]
        )
        if self.rows == 5:
            x = jnp.einsum("ts,bsd->btd", BEFORE, x, precision="highest")
        sites("layers.1.stream", x)
        return jnp.zeros((*batch.inputs.shape, 9)), sites.recorded


def influence(drawn_run, **more):
    task = "associative_recall(pairs=2, keys=2, values=2, delays=1)"
    run = drawn_run({"name": "mixing", "task": task, "model": {"layers": 2, "width": WIDTH, "heads": 2}})
    subject = Mixing(run, run.task.conditions()[0], 16, **more)
    return jax.jit(lambda: GradientInfluence().measure(subject, [0, 1], jax.random.key(0)))()


def test_shares_are_squared_weights_of_the_row_that_answers(drawn_run):
    found = influence(drawn_run)
    np.testing.assert_allclose(found["influence"], [[0.9, 0, 0, 0, 0.1], [0.9, 0, 0, 0.1, 0]], atol=1e-6)
    np.testing.assert_allclose(found["distance"], [[0.1, 0, 0, 0, 0.9], [0, 0.1, 0, 0, 0.9]], atol=1e-6)


def test_a_stream_of_the_last_rows_alone_is_read_at_the_row_that_answers(drawn_run):
    found = influence(drawn_run, rows=2)
    np.testing.assert_allclose(found["influence"], [[0.9, 0, 0, 0, 0.1]] * 2, atol=1e-6)


def test_a_row_that_no_input_moves_has_no_shares(drawn_run):
    found = influence(drawn_run, size=0.0)
    assert not np.any(found["influence"])
    assert not np.any(found["distance"])
