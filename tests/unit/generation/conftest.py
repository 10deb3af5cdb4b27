"""Models with fresh weights, to generate with."""

import jax
import pytest
from flax import nnx

from positionbias.config.build import build
from positionbias.generation.generate import generate
from positionbias.models.parameters import Frozen


@pytest.fixture
def fresh(tiny):
    """`fresh(overrides)`: an experiment of two layers, and weights large enough that every row matters."""

    def make(overrides=None, **more):
        wide = {"model.init.query": "fan_in(scale=3.0)", "model.init.readout": "fan_in(scale=3.0)"}
        experiment = build(tiny({"model.layers": 2, **wide, **(overrides or {}), **more}))
        model = jax.jit(experiment.initialise)(jax.random.key(0))
        _, params, frozen = nnx.split(model, nnx.Param, Frozen)
        return experiment, {"params": params, "frozen": frozen}

    return make


@pytest.fixture
def both(fresh):
    """`both(overrides, prompt, length, **how)`: what is generated with keys and values kept, and without."""

    def make(overrides, prompt, length, **how):
        experiment, weights = fresh(overrides)
        return [generate(experiment, weights, prompt, length, cached=cached, **how) for cached in (True, False)]

    return make
