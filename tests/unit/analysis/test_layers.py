"""The layers that analyses read: refused where these hold something of another shape than is put together."""

import types

import jax.numpy as jnp
import pytest

from positionbias import spec
from positionbias.analysis.base import Subject
from positionbias.errors import ConfigError

ONE_WIDTH = (  # what stacks the stream behind layers, or puts that of one layer into another
    "binding_mechanisms", "boundless_das", "commitment", "das", "feature_circuit", "gradient_influence",
    "last_token", "linear_probe",
    "logit_lens", "method_benchmark", "position_probe", "shared_structure", "sparse_features", "state_reweaving",
    "steering", "token_norms",
)  # fmt: skip


class Shaped:
    """A model of two layers that has nothing but shapes, in sequences of six rows."""

    items, condition = 4, None

    def __init__(self, **sites):
        model = types.SimpleNamespace(layers=2, heads=1, residual="concatenate", architecture="a", operator="o")
        task = types.SimpleNamespace(length=lambda _: 6)
        self.run = types.SimpleNamespace(config=types.SimpleNamespace(model=model), task=task)
        self.shapes = sites

    def batch(self, key, items):
        return None

    def apply(self, batch, record):
        return None, {name: jnp.zeros(shape) for name, shape in self.shapes.items()}


def shaped(first, second, stream="layers.{}.stream"):
    pattern = {f"layers.{i}.attention.pattern": (1, 1, 6, 6) for i in range(2)}
    told = {stream.format(i): x for i, x in enumerate((first, second))}
    return Shaped(**{"embedding": (1, 6, 8), **pattern, **told})


@pytest.mark.parametrize("name", ONE_WIDTH)
def test_what_puts_streams_together_is_refused_where_layers_widen_them(name):
    analysis = spec.build("analyses", name, "analyses")
    assert analysis.layers(shaped((1, 6, 8), (1, 6, 8))) == [0, 1]
    with pytest.raises(ConfigError, match=f"--analyses: {name} reads .* of one width, not so with model"):
        analysis.layers(shaped((1, 6, 8), (1, 6, 16)))


def test_norms_before_and_behind_the_first_layer_are_of_one_width():
    analysis = spec.build("analyses", "token_norms", "analyses")
    with pytest.raises(ConfigError, match=r"reads layers\.\*\.stream and embedding of one width"):
        analysis.layers(shaped((1, 6, 16), (1, 6, 16)))


def test_patterns_of_every_layer_are_of_the_rows_of_inputs():
    analysis = spec.build("analyses", "rollout", "analyses")
    assert analysis.layers(shaped((1, 1, 6, 6), (1, 1, 6, 6), "layers.{}.attention.pattern")) == [0, 1]
    with pytest.raises(ConfigError, match=r"rollout reads .* of all 6 rows of inputs, not so"):
        analysis.layers(shaped((1, 1, 6, 6), (1, 1, 6, 9), "layers.{}.attention.pattern"))


def test_a_model_that_widens_its_stream_has_no_lens(drawn_run):
    run = drawn_run(
        {
            "name": "wide",
            "task": "associative_recall(pairs=2, keys=4, values=4, delays=2)",
            "model": {"layers": 2, "width": 8, "heads": 1, "residual": "concatenate"},
            "train": {"replicas": 1},
        }
    )
    analysis = spec.build("analyses", "logit_lens", "analyses")
    with pytest.raises(ConfigError, match=r"reads layers\.\*\.stream of one width"):
        analysis.layers(Subject(run, run.task.conditions()[0], 4))
