"""Influence of even attention: against untrained models that look at no content, and where it is known at all."""

import jax
import numpy as np
import pytest

from positionbias.config.build import build
from positionbias.evaluation.by_position import Evaluator, theory_of
from positionbias.evaluation.even import even_influence
from positionbias.replicas import Layout, replica_keys
from positionbias.training.auto import Auto
from positionbias.training.program import Program

BARE = {
    "task": "associative_recall(pairs=4, keys=64, values=64, delays=1, shift=0)",
    "model.operator": "attention_free",
    "model.position": "none",
    "model.residual": "none",
    "model.mlp": False,
    "model.layers": 3,
    "model.width": 64,
    "model.heads": 4,
    "train.steps": 0,
    "train.replicas": 8,
    "evaluation.influence_items": 64,
}
EVEN_SCORES = {"model.operator": "softmax", "model.init.query": "constant(value=0.0)"}


def measured(experiment):
    program = Program(experiment, Auto(Layout("loop"), 8, 1))
    weights = jax.jit(jax.vmap(program.fresh))(program.replicas())
    return Evaluator(experiment, Layout("loop"), replica_keys(0, 8)).rows(weights)["influence"][:, 0]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"model.norm": "none"},
        {"model.mask": "[causal, sliding_window(3) & causal, causal]"},
        {"model.operator": "[attention_free, neighborhood(width=4, causal=True), attention_free]"},
        {**EVEN_SCORES, "model.position": "decay(gamma=0.7)"},
        {**EVEN_SCORES, "model.position": "alibi", "model.layers": 2},
    ],
    ids=["causal", "no norm", "window", "what an operator sees", "decay", "alibi, whose heads differ"],
)
def test_it_is_that_of_untrained_models_that_look_at_no_content(tiny, more):
    experiment = build(tiny({**BARE, **more}))
    expected, found = even_influence(experiment), measured(experiment)
    np.testing.assert_allclose(found.mean(axis=0), expected, atol=0.04, rtol=0.15)
    assert np.abs(expected - 1 / len(expected)).max() > 0.05


@pytest.mark.parametrize(
    "more",
    [
        {"model.residual": "add"},
        {"task": "inverse_permutation(n=4, alphabet=4)"},  # several rows answer
        {"model.position": "t5_bias", "model.operator": "softmax"},
        {"model.mask": "switch(causal, bidirectional)"},
        {"model.architecture": "encoder_decoder", "model.mask": "causal"},
    ],
    ids=["residual", "answers", "learned", "switch", "architecture"],
)
def test_elsewhere_it_is_not_known(tiny, more):
    assert even_influence(build(tiny({**BARE, "model.layers": 2, **more}))) is None


def test_it_is_told_beside_what_theory_says_of_the_task(tiny):
    experiment = build(tiny(BARE))
    assert theory_of(experiment) == {"influence": even_influence(experiment).tolist()}
    assert "influence" not in theory_of(build(tiny()))
