"""Training by the kernel, in interpret mode: under every mask, the loss curve of the formula."""

import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from positionbias import spec
from positionbias.config.build import build
from positionbias.models.base import initialise
from positionbias.models.sites import Sites
from positionbias.operators.softmax import Softmax
from positionbias.replicas import Layout
from positionbias.training.auto import Auto
from positionbias.training.program import Program, fetch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "contract"))
from test_masks import EXAMPLES, made

ALL = [text for name in sorted(spec.names("masks")) for text in EXAMPLES.get(name, [name])[:1]]
SOME = {"causal", "segments", "random_graph(p=0.0)"}
STEPS, RATE = 6, 0.3
TOKENS = made(11, 1)


def curve(experiment, text, impl):
    """The loss at every step of gradient descent on one batch."""
    mask = spec.build("masks", text, "test")
    blueprint = experiment.blueprint
    layers = len(blueprint.operators)
    blueprint = dataclasses.replace(blueprint, masks=(mask,) * layers, operators=(Softmax(impl=impl),) * layers)
    graph, weights, rest = nnx.split(initialise(experiment.architecture, blueprint, jax.random.key(0)), nnx.Param, ...)
    inputs = jax.random.randint(jax.random.key(1), (2, TOKENS.length), 0, experiment.task.input.size)
    wanted = jax.random.normal(jax.random.key(2), (2, TOKENS.length, experiment.task.output.size))

    def loss(weights):
        outputs = nnx.merge(graph, weights, rest)(inputs, TOKENS, 0, Sites())
        return jnp.mean((outputs - wanted) ** 2)

    @jax.jit
    def step(weights):
        value, slopes = jax.value_and_grad(loss)(weights)
        return value, jax.tree.map(lambda w, s: w - RATE * s, weights, slopes)

    found = []
    for _ in range(STEPS):
        value, weights = step(weights)
        found.append(float(value))
    return found


@pytest.mark.parametrize("text", [text if text in SOME else pytest.param(text, marks=pytest.mark.slow) for text in ALL])
def test_the_kernel_trains_as_the_formula_does(text, tiny):
    experiment = build(tiny({"model.layers": 2, "model.position": "alibi"}))
    by_kernel, by_formula = (curve(experiment, text, impl) for impl in ("mosaic_tpu_interpret", "xla_dense"))
    assert by_formula[-1] < by_formula[0]
    np.testing.assert_allclose(by_kernel, by_formula, rtol=1e-5)


@pytest.mark.parametrize("layout", [Layout("vmap"), Layout("vmap", 2)], ids=str)
def test_replicas_side_by_side_and_over_devices_train_as_one_after_another(layout, tiny):
    losses = []
    for impl, form in (("mosaic_tpu_interpret", layout), ("xla_dense", Layout("loop"))):
        config = tiny({"model.operator": f"even_softmax(price=0.5, impl='{impl}')"})
        compiled = Program(build(config), Auto(form, 8, 4)).compile()
        _, metrics = compiled.advance(compiled.fresh(), 0)
        losses.append(np.asarray(fetch(metrics)["loss"]))
    assert losses[0].shape == (2, 4)
    np.testing.assert_allclose(*losses, rtol=1e-4)
