"""What a model cannot tell without positions: the orders that leave its outputs as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.config.build import build
from positionbias.models.sites import Sites
from positionbias.tokens import sequential

T = 10


def moved(tiny, order, tokens=None, **overrides):
    """How much the last row of a fresh model changes, at most, when its inputs are put in this order."""
    experiment = build(tiny({"task": "associative_recall(pairs=4, keys=6, values=6, delays=2)", **overrides}))
    assert experiment.task.length(experiment.task.conditions()[0]) == T
    model = jax.jit(experiment.initialise)(jax.random.key(0))
    inputs = jax.random.permutation(jax.random.key(1), 12)[:T][None]
    call = jax.jit(lambda x: model(x, tokens or sequential(T), 8, Sites())[0, -1])
    return float(jnp.abs(call(inputs) - call(inputs[:, order])).max())


@pytest.mark.parametrize(
    ("mask", "layers", "tells"),
    [
        ("bidirectional", 1, False),
        ("bidirectional", 2, False),
        ("bidirectional", 3, False),
        ("causal", 1, False),
        ("causal", 2, True),
        ("causal", 3, True),
    ],
)
def test_without_positions_order_is_told_by_a_causal_mask_at_depth_two(tiny, mask, layers, tells):
    order = np.append(np.random.default_rng(0).permutation(T - 1), T - 1)
    init = {f"model.init.{name}": "normal(std=1.0)" for name in ("embedding", "value", "query")}
    found = moved(
        tiny,
        order,
        **{"model.mask": mask, "model.layers": layers, "model.position": "none", "model.mlp": False, **init},
    )
    assert found > 1e-2 if tells else found < 1e-4


@pytest.mark.parametrize("position", ["rope", "alibi", "t5_bias", "sinusoidal"])
def test_any_position_scheme_tells_order_to_one_layer(tiny, position):
    order = np.append(np.random.default_rng(0).permutation(T - 1), T - 1)
    init = {"model.init.embedding": "normal(std=1.0)", "model.init.position": "normal(std=1.0)"}
    assert moved(tiny, order, **{"model.position": position, "model.layers": 1, **init}) > 1e-3


@pytest.mark.parametrize(("cross", "tells"), [("bidirectional", False), ("causal_cross", True)])
def test_cross_attention_tells_frames_apart_by_the_causal_mask_of_videos_alone(tiny, cross, tells):
    """Eight context tokens in four frames of two; the order of the frames matters under the mask, and only there."""
    frames = np.array([1, 1, 2, 2, 3, 3, 4, 4, 0, 0])
    order = np.array([4, 5, 0, 1, 6, 7, 2, 3, 8, 9])
    found = moved(
        tiny,
        order,
        sequential(T, frame=frames),
        **{
            "model.architecture": f"encoder_decoder(encoder_mask=sliding_window(1), cross_mask={cross})",
            "model.position": "none",
            "model.layers": 2,  # the last query sees all frames, and by the second layer what an earlier one saw
            "model.init.embedding": "normal(std=1.0)",
        },
    )
    assert found > 1e-3 if tells else found < 1e-5


def test_the_last_query_sees_all_frames_so_that_only_earlier_ones_tell():
    tokens = sequential(8, frame=np.repeat([1, 2, 3, 4], 2))
    found = spec.build("masks", "causal_cross", "mask").dense(sequential(2), tokens)
    assert found.sum(axis=-1).tolist() == [4, 8]
