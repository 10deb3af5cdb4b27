"""Every model depends on exactly the inputs its reach names: gradients are zero outside, non-zero inside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.config.build import build
from positionbias.models.sites import Sites

VARIANTS = {
    "causal": {"model.mask": "causal"},
    "window at depth": {"model.mask": "causal & sliding_window(width=2)", "model.layers": 2},
    "prefix": {"model.mask": "prefix(length=2)"},
    "two-sided window": {"model.mask": "sliding_window(width=2)", "model.position": "rope"},
    "no residual": {"model.mask": "causal & ~sliding_window(width=1)", "model.residual": "none"},
    "no residual at depth": {
        "model.mask": "causal & ~sliding_window(width=2)",
        "model.residual": "none",
        "model.layers": 2,
        "model.norm": "none",
    },
    "concatenated": {"model.mask": "causal", "model.residual": "concatenate", "model.position": "alibi"},
    "pattern": {"model.mask": "[causal, causal & sliding_window(width=2)]", "model.layers": 2},
    "linear scores": {"model.operator": "linear_scores", "model.position": "decay(gamma=0.9)"},
    "encoder-decoder": {"model.architecture": "encoder_decoder", "task.scratch": True, "model.layers": 2},
    "encoder-decoder, masks": {
        "model.architecture": "encoder_decoder(encoder_mask=causal, cross_mask=causal & sliding_window(width=4))",
        "task.scratch": True,
    },
    "encoder-decoder, no residual": {
        "model.architecture": "encoder_decoder(cross_mask=sliding_window(width=6), encoder_mask=causal)",
        "model.mask": "causal",
        "task.scratch": True,
        "model.residual": "none",
    },
}


def influence(experiment, condition):
    """max |d output[i] / d embedding[j]| over features and items, [T, T]."""
    shape = (3, experiment.task.length(condition), experiment.config.model.width)

    @jax.jit
    def slopes(model_key, batch_key):
        model, batch = experiment.initialise(model_key), experiment.task.batch(batch_key, condition, 3)

        def outputs(shift):
            site = Sites(edit={"embedding": ("add", shift)})
            return model(batch.inputs, batch.tokens, experiment.task.context_length(condition), site)

        return jax.jacrev(lambda shift: outputs(shift).sum(axis=-1))(jnp.zeros(shape))

    return np.abs(np.asarray(slopes(jax.random.key(1), jax.random.key(2)))).max(axis=(0, 2, 4))


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())
def test_gradients_are_zero_outside_reach_and_not_inside(tiny, overrides):
    experiment = build(tiny(overrides))
    condition = experiment.task.conditions()[0]
    found, reach = influence(experiment, condition), experiment.reach(condition)
    rows = experiment.task.query_rows(condition)
    assert (found[~reach] == 0).all()
    inside = reach[rows]
    assert (found[rows][inside] > 0).all()
    assert inside.any()


def test_reach_of_two_windowed_layers_is_literal(tiny):
    experiment = build(tiny({"model.mask": "causal & sliding_window(width=2)", "model.layers": 2}))
    expected = [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1, 1, 1],
    ]
    assert experiment.reach(experiment.task.conditions()[0]).astype(int).tolist() == expected


def test_reach_of_an_encoder_decoder_is_literal(tiny):
    experiment = build(
        tiny({"task": "inverse_permutation(n=2, scratch=True)", "model.architecture": "encoder_decoder"})
    )
    expected = [[1, 1, 1, 1, 0, 0]] * 4 + [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    assert experiment.reach(experiment.task.conditions()[0]).astype(int).tolist() == expected
