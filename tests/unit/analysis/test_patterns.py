"""What analyses tell of a pattern that is known: one head looks at the row before, one mostly at the first."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.attention_received import AttentionReceived
from positionbias.analysis.base import Subject
from positionbias.analysis.induction import Induction
from positionbias.analysis.look_back import LookBack
from positionbias.analysis.sink_mass import SinkMass
from positionbias.models.sites import Sites

BEFORE = [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
FIRST = [
    [1, 0, 0, 0, 0],
    [0.75, 0.25, 0, 0, 0],
    [0.75, 0, 0.25, 0, 0],
    [0.75, 0, 0, 0.25, 0],
    [0.75, 0, 0, 0, 0.25],
]


@dataclasses.dataclass(frozen=True)
class Known(Subject):
    """A layer of two heads with these patterns, that says nothing."""

    def apply(self, batch, record=(), edit=None):
        sites = Sites(record, edit)
        sites("layers.0.attention.pattern", jnp.broadcast_to(jnp.array([BEFORE, FIRST]), (len(batch.inputs), 2, 5, 5)))
        return jnp.zeros((*batch.inputs.shape, 9)), sites.recorded


@pytest.fixture(scope="module")
def asked(drawn_run):
    """`asked(analysis)`: what it tells of layer 0, and the items."""
    task = "associative_recall(pairs=2, keys=4, values=4, delays=1)"
    run = drawn_run({"name": "known", "task": task, "model": {"layers": 1, "width": 4, "heads": 2}})
    subject, key = Known(run, run.task.conditions()[0], 64), jax.random.key(0)

    def ask(analysis):
        found = jax.jit(lambda: analysis.measure(subject, [0], key))()
        return {name: np.asarray(x[0]) for name, x in found.items()}, subject.batch(key)

    return ask


def same(found, **known):
    """The arrays, to a rounding."""
    assert found.keys() == known.keys()
    for name, values in known.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)


def test_attention_received_is_a_sum_over_rows(asked):
    found, _ = asked(AttentionReceived())
    same(found, received=[3, 0.625, 0.625, 0.625, 0.125], even=[2.5, 0.75, 0.75, 0.75, 0.25])


def test_look_back_is_a_mean_of_distances(asked):
    found, _ = asked(LookBack())
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    same(found, distance=[0.8, 1.5], even=[0.8, 1.0], entropy=[0, 0.8 * entropy])


def test_sink_mass_is_that_of_later_rows(asked):
    found, _ = asked(SinkMass())
    same(found, mass=[0.25, 0.75], even=[0.25, 0.5], heads=0.5)
    found, _ = asked(SinkMass(column=1, after=0, threshold=0.05))
    same(found, mass=[0.25, 0.0625], even=[0.25, 0.125], heads=1)


def test_induction_is_of_rows_before_and_of_evidence(asked):
    found, batch = asked(Induction())
    last = np.mean(np.asarray(batch.last_evidence) == 3)
    assert 0.2 < last < 0.8
    same(found, previous=[1, 0.1875], previous_even=[1, 0.125], evidence=[last, 0], evidence_even=[last, 0])
