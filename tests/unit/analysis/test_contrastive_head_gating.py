"""Gates that keep one condition and lose another, in a network whose heads are each for one of them, or for both."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.contrastive_head_gating import ContrastiveHeadGating
from positionbias.analysis.heads import HEADS
from positionbias.errors import ConfigError
from positionbias.models.sites import Sites
from positionbias.tasks.context_or_prior import IGNORE, USE

OBJECTS = 8
NEEDED = {"use": 0, "ignore": 1}  # head 2 is needed in both conditions, head 3 in neither


@dataclasses.dataclass(frozen=True)
class Apart(Subject):
    """Head 0 says the document's object if it is to be used, 1 the fact's if not, as loud as head 2 is, which is 1."""

    def apply(self, batch, record=(), edit=None):
        sites, task = Sites(record, edit), self.run.task
        first = task.input.size - OBJECTS
        use, ignore = (jnp.any(batch.inputs == token, axis=1) for token in (USE, IGNORE))
        fact = jnp.asarray(task._objects)[batch.inputs[:, -1] - 2, 0]
        said = [jax.nn.one_hot(x, OBJECTS) for x in (batch.inputs[:, 2] - first, fact)]
        nothing = jnp.zeros_like(said[0])
        heads = [use[:, None] * said[0], ignore[:, None] * said[1], nothing + 1, nothing + 0.5]
        last = (jnp.arange(batch.inputs.shape[1]) == batch.inputs.shape[1] - 1)[:, None, None]
        found = sites(HEADS.replace("*", "0"), last * jnp.stack(heads, axis=1)[:, None])
        whose = [x[:, None, None] for x in (use, ignore)]
        scores = self.scores(found, [x[:, None] for x in said], *whose)
        return jnp.pad(scores, ((0, 0), (0, 0), (first, 0)), constant_values=-10), sites.recorded

    def scores(self, found, said, use, ignore):
        """Of every object, by heads [B, T, 4, 8]."""
        return 6 * found[:, :, 2] * (found[:, :, 0] + found[:, :, 1])


@pytest.fixture(scope="module")
def run(drawn_run):
    task = f"context_or_prior(subjects=8, relations=1, objects={OBJECTS}, folds=2, documents=1)"
    return drawn_run({"name": "apart", "task": task, "model": {"layers": 1, "width": 8, "heads": 4}})


def subject(run, condition):
    return Apart(run, next(one for one in run.task.conditions() if one.name == condition), 64)


@pytest.mark.parametrize(("retain", "forget"), [("use", "ignore"), ("ignore", "use")])
def test_heads_that_only_the_forgotten_condition_needs_are_closed(run, retain, forget):
    """A head that both need is kept, as what is retained would be lost too, and so is one that does nothing."""
    analysis = ContrastiveHeadGating(forget, updates=100, seeds=2, rate=1.0, batch=16)
    found = jax.jit(lambda: analysis.measure(subject(run, retain), [0], jax.random.key(0)))()
    closed = np.arange(4) == NEEDED[forget]
    np.testing.assert_allclose(found["gates"][0], ~closed, atol=0.1)
    assert float(found["removed"]) == 0.25
    accuracy, log = np.asarray(found["accuracy"]), np.asarray(found["log_probability"])
    np.testing.assert_array_equal(accuracy[:, 0], 1)
    assert accuracy[0, 1] == 1
    assert accuracy[1, 1] < 0.4, "a guess of one object"
    assert accuracy[0, 2] < 1, "a head at random is needed at times"
    loud, silent = -np.log1p((OBJECTS - 1) * np.exp(-6)), -np.log(OBJECTS)
    np.testing.assert_allclose(log[:, :2], [[loud, loud], [loud, silent]], atol=1e-3)
    shares = (log[:, 2] - loud) / (silent - loud)  # of draws that take one of the two heads that a condition needs
    np.testing.assert_allclose(16 * shares, np.round(16 * shares), atol=1e-2)
    assert (shares > 0).all()
    assert (shares < 1).all()


@dataclasses.dataclass(frozen=True)
class Deep(Apart):
    """The fact's object gets 30 nats less without head 1, and no head says the document's, which is always loud."""

    def scores(self, found, said, use, ignore):
        return 6 * use * said[0] + 30 * (found[:, :, 1] - ignore * said[1])


def test_what_is_lost_beyond_five_nats_is_no_gain(run):
    """So that the weight opens head 1 up to where log p_F - log p_R is -5, which is short of all the way.

    p_R is that of a logit of 6 among others of 0, p_F that of a logit of -30 (1 - gate).
    """
    deep = Deep(run, subject(run, "use").condition, 64)
    analysis = ContrastiveHeadGating("ignore", updates=400, seeds=1, rate=0.1, batch=4)
    found = jax.jit(lambda: analysis.measure(deep, [0], jax.random.key(0)))()
    log = -5 - np.log1p(7 * np.exp(-6))
    logit = log + np.log(7 / (1 - np.exp(log)))
    assert float(found["gates"][0, 1]) == pytest.approx(1 + logit / 30, abs=0.02)
    assert float(found["removed"]) == 0
    assert float(found["log_probability"][1, 0]) == pytest.approx(-np.log(OBJECTS), abs=1e-3)


def test_a_condition_is_not_held_against_itself_and_has_to_be_there(run):
    with pytest.raises(ConfigError, match="forget = 'use' is not allowed; allowed: another condition than use"):
        ContrastiveHeadGating("use").check(Subject(run, subject(run, "use").condition, 4))
    with pytest.raises(ConfigError, match="forget: unknown condition 'used', did you mean 'use'"):
        ContrastiveHeadGating("used").check(Subject(run, subject(run, "ignore").condition, 4))
    for wrong in ({"weight": 0.0}, {"rate": 0.0}, {"updates": 0}, {"seeds": 0}, {"batch": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ContrastiveHeadGating("use", **wrong)
