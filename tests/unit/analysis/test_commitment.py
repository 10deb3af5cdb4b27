"""The layer where an answer is settled, against models in which only one layer moves it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.commitment import Commitment, _shares

LAYERS = 3


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "committed",
        "task": "associative_recall(pairs=2, keys=4, values=4, delays=2)",
        "model": {"layers": LAYERS, "width": 16, "heads": 1, "mlp": False, "norm": "none"},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], 64)


@pytest.fixture(scope="module")
def measure(subject):
    """The analysis of the model with the outputs of its layers multiplied by these, compiled once."""

    @jax.jit
    def ask(sizes):
        def scaled(path, x):
            names = [str(getattr(entry, "key", entry)) for entry in path]
            return x * sizes[int(names[names.index("blocks") + 1])] if "output" in names else x

        weights = jax.tree_util.tree_map_with_path(scaled, subject.run.weights)
        one = dataclasses.replace(subject, run=dataclasses.replace(subject.run, weights=weights))
        return Commitment().measure(one, list(range(LAYERS)), jax.random.key(0))

    return lambda sizes: {name: np.asarray(x) for name, x in ask(jnp.array(sizes, jnp.float32)).items()}


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_only_layer_that_moves_anything_settles_the_answer(measure, layer):
    """Nothing reaches the row that answers in any other one, and it says its own token's answer before."""
    found = measure([20.0 * (i == layer) for i in range(LAYERS)])
    one = np.eye(LAYERS)[layer]
    np.testing.assert_allclose(found["causal"], one, atol=1e-6)
    np.testing.assert_allclose(found["restored"], np.arange(LAYERS) <= layer, atol=1e-6)
    assert found["restored_others"][layer] < 0.7, "the stream of another item does not"
    assert found["restored_others"][layer + 1 :].max(initial=0) == 0
    own = found["lens"][0] if layer else 0.0  # of items that say what they would without it
    assert found["lens"][layer] == pytest.approx(1 - own)
    assert found["lens"][layer] > 0.5
    assert found["led"] == 1
    assert 0.05 < found["changed"] < 1


def test_shares_are_of_right_and_wrong_answers_apart():
    said = [[1, 2, 2], [2, 2, 2], [3, 1, 3], [0, 0, 1]]
    restored = [[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]
    found = {
        "said": jnp.array(said),
        "right": jnp.array([True, True, False, False]),
        "changed": jnp.array([True, False, True, True]),
        "restored": jnp.array(restored, bool),
        "restored_others": jnp.array([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]], bool),
    }
    told = {name: np.asarray(x).tolist() for name, x in _shares(found, 3).items()}
    third = pytest.approx(1 / 3)
    assert told["lens"] == [0.25, 0.25, 0.5]
    assert told["lens_right"] == [0.5, 0.5, 0]
    assert told["lens_wrong"] == [0, 0, 1]
    assert told["lens_others"] == [0.25, 0, 0.75], "2 2 of the second in front of 2 of the first alone"
    assert told["causal"] == [0, third, third], "the last is never restored"
    assert told["causal_right"] == [0, 1, 0]
    assert told["causal_wrong"] == [0, 0, 0.5]
    assert told["restored"] == [pytest.approx(2 / 3), pytest.approx(2 / 3), third]
    assert told["restored_others"] == [third, 0, 0]
    assert (told["led"], told["changed"], told["accuracy"]) == (1, 0.75, 0.5)
    nothing = {name: jnp.zeros_like(x) for name, x in found.items()}
    assert all(np.isfinite(x).all() for x in _shares(nothing, 3).values())
