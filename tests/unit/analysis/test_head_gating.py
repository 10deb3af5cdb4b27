"""Gates of three heads of which the answer needs the first, is harmed by the third, and does without the second."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.head_gating import HeadGating
from positionbias.analysis.heads import HEADS
from positionbias.errors import ConfigError
from positionbias.models.sites import Sites

VOCABULARY = 9  # filler, four keys, four values


@dataclasses.dataclass(frozen=True)
class Three(Subject):
    """The right answer's logit is 6 of the first head minus 3 of the third, which are 1; all others are 0."""

    def apply(self, batch, record=(), edit=None):
        sites = Sites(record, edit)
        found = sites(HEADS.replace("*", "0"), jnp.ones((*batch.inputs.shape, 3, 1)))
        loud = 6 * found[:, :, 0] - 3 * found[:, :, 2]
        return loud * jax.nn.one_hot(batch.targets, VOCABULARY), sites.recorded


def said_right(logit):
    """log p of the answer where all other logits are 0."""
    return logit - math.log(math.exp(logit) + VOCABULARY - 1)


def test_heads_are_needed_or_harm_or_are_neither(drawn_run):
    task = "associative_recall(pairs=2, keys=4, values=4, delays=1)"
    run = drawn_run({"name": "three", "task": task, "model": {"layers": 1, "width": 6, "heads": 3}})
    subject = Three(run, run.task.conditions()[0], 8)
    analysis = HeadGating(weight=0.01, updates=150, seeds=2, batch=4)
    found = jax.jit(lambda: analysis.measure(subject, [0], jax.random.key(0)))()
    for name, known in (("facilitating", [1, 0, 0]), ("irrelevant", [0, 1, 0]), ("interfering", [0, 0, 1])):
        np.testing.assert_allclose(found[name][0], known, atol=0.06, err_msg=name)
    known = {"facilitating": said_right(-3), "irrelevant": said_right(3), "interfering": said_right(6)}
    changes = {name: value - said_right(3) for name, value in known.items()}
    for name, value in changes.items():
        assert float(found[f"without_{name}"]) == pytest.approx(value, abs=1e-5)

    # One random head is any of the three: two seeds of eight draws, of which each is drawn some times.
    draws = 2 * 8
    times = [n for n in itertools.product(range(1, draws), repeat=3) if sum(n) == draws]
    means = np.array(times) @ list(changes.values()) / draws
    for name in changes:
        assert np.min(np.abs(means - float(found[f"random_{name}"]))) < 1e-5, name


def test_numbers_that_gates_cannot_be_learned_by_are_refused():
    for wrong in ({"weight": 0.0}, {"rate": 0.0}, {"updates": 0}, {"seeds": 0}, {"batch": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            HeadGating(**wrong)
