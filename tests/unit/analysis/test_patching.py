"""Patching of a network whose second layer brings the evidence to the row that answers, by two heads of three."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.heads import HEADS
from positionbias.analysis.patching import Patching
from positionbias.errors import ConfigError
from positionbias.models.sites import Sites

SHARES = (0.75, 0.25, 0.0)  # of the evidence, that heads bring


@dataclasses.dataclass(frozen=True)
class Bringing(Subject):
    """Says the evidence's token; heads of layer 0 bring the row itself, which nobody reads."""

    def apply(self, batch, record=(), edit=None):
        sites, size = Sites(record, edit), self.run.task.input.size
        stream = jnp.pad(jax.nn.one_hot(batch.inputs, size), ((0, 0), (0, 0), (0, size)))  # a part to read, one to say
        for layer in (0, 1):
            own = stream[..., :size]
            brought = own[jnp.arange(len(own)), batch.last_evidence[:, -1]][:, None] if layer else own
            heads = jnp.stack([share * brought + 0 * own for share in SHARES], axis=2)
            heads = sites(HEADS.replace("*", str(layer)), heads)
            into = [jnp.zeros_like(own), jnp.sum(heads, axis=2)]
            attention = jnp.concatenate(into if layer else into[::-1], axis=-1) * (1.0 if layer else 0.0)
            attention = sites(f"layers.{layer}.attention.output", attention)
            stream = sites(f"layers.{layer}.stream", stream + attention)
        sites.check()
        return 10 * stream[..., size:], sites.recorded


@pytest.fixture(scope="module")
def subject(drawn_run):
    task = "associative_recall(pairs=3, keys=4, values=4, delays=2)"
    run = drawn_run({"name": "bringing", "task": task, "model": {"layers": 2, "width": 9, "heads": 3}})
    return Bringing(run, run.task.conditions()[0], 64)


def test_the_right_answer_is_restored_where_it_has_got_to(subject):
    found = jax.jit(lambda: Patching().measure(subject, [0, 1], jax.random.key(0)))()
    at_evidence, at_answer, nowhere = np.eye(3)[0], np.eye(3)[1], np.zeros(3)
    np.testing.assert_allclose(found["stream"], [at_evidence, at_answer], atol=1e-6)
    np.testing.assert_allclose(found["attention"], [nowhere, at_answer], atol=1e-6)
    np.testing.assert_allclose(found["heads"], [nowhere, SHARES], atol=1e-6)


def test_margins_are_of_what_both_prompts_say(subject):
    """10 or -10 where they differ, and 0 where both have one token at the evidence."""
    found = jax.jit(lambda: Patching().measure(subject, [0, 1], jax.random.key(0)))()
    batch = subject.batch(jax.random.key(0))
    token = np.asarray(batch.inputs)[np.arange(64), np.asarray(batch.last_evidence)[:, -1]]
    differ = np.mean(token != np.roll(token, -1))
    assert 0.5 < differ < 1
    assert float(found["clean"]) == pytest.approx(10 * differ, abs=1e-5)
    assert float(found["corrupted"]) == pytest.approx(-10 * differ, abs=1e-5)


def test_a_single_item_has_no_other_to_be_patched_from(subject):
    with pytest.raises(ConfigError, match="items = 1"):
        Patching().check(dataclasses.replace(subject, items=1))
