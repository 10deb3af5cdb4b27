"""Retrieval heads of a network with one: it says what the first head of its second layer brings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.heads import HEADS
from positionbias.analysis.retrieval_heads import RetrievalHeads
from positionbias.errors import ConfigError
from positionbias.models.sites import Sites


@dataclasses.dataclass(frozen=True)
class Retrieving(Subject):
    """Two layers of two heads that look at one row: of layer 0 the first, and the row itself; of layer 1 the evidence.

    The second head of layer 1 looks at the row beside the evidence. What is said is `wrong` tokens further.
    """

    wrong: int = 0

    def apply(self, batch, record=(), edit=None):
        sites, size = Sites(record, edit), self.run.task.input.size
        length = batch.inputs.shape[1]
        told = jax.nn.one_hot(batch.inputs, size)
        row, evidence = jnp.arange(length), jnp.broadcast_to(batch.last_evidence[:, -1:], batch.inputs.shape)
        looked = [[0 * evidence, row + 0 * evidence], [evidence, evidence - 1]]
        for layer, columns in enumerate(looked):
            pattern = 0.9 * jax.nn.one_hot(jnp.stack(columns, axis=1), length) + 0.1 / length  # [B, N, T, T]
            sites(f"layers.{layer}.attention.pattern", pattern)
            heads = jnp.einsum("bnts,bsd->btnd", pattern, told)
            found = sites(HEADS.replace("*", str(layer)), heads)
        return jnp.roll(found[:, :, 0], self.wrong, axis=-1), sites.recorded


@pytest.fixture(scope="module")
def run(drawn_run):
    task = "associative_recall(pairs=3, keys=4, values=4, delays=2)"
    return drawn_run({"name": "retrieving", "task": task, "model": {"layers": 2, "width": 8, "heads": 2}})


def measured(run, wrong=0, **arguments):
    subject = Retrieving(run, run.task.conditions()[0], 64, wrong=wrong)
    return jax.jit(lambda: RetrievalHeads(**arguments).measure(subject, [0, 1], jax.random.key(0)))()


def test_the_head_that_looks_at_what_is_said_is_the_one_the_answer_comes_from(run):
    found = measured(run)
    np.testing.assert_allclose(found["score"], [[0, 0], [1, 0]])
    assert float(found["intact"]) == float(found["without_others"]) == 1
    assert float(found["without"]) <= 0.1  # argmax of zeros is a token that is a key


def test_a_head_that_looks_at_evidence_the_model_does_not_say_has_no_score(run):
    np.testing.assert_allclose(measured(run, wrong=1)["score"], 0)


def test_more_than_half_of_the_heads_are_not_compared_with_the_rest(run):
    subject = Retrieving(run, run.task.conditions()[0], 4)
    with pytest.raises(ConfigError, match=r"share = 0\.75 takes 3 of 4 heads"):
        RetrievalHeads(share=0.75).layers(subject)
