"""Shared by all tests: two virtual devices, a compile cache, and small runs."""

from __future__ import annotations

import pathlib

import pytest

from positionbias import runtime

runtime.configure(cpu_devices=2)

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="module")
def in_haste():
    """The package's own programs are compiled in haste too: for modules where no bit depends on how."""
    import jax
    from haste import hasty_jit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", hasty_jit)
        yield


@pytest.fixture
def tiny():
    """A config that trains in about a second; dotted overrides change it: `tiny(**{"train.steps": 20})`."""
    from positionbias.config.cli import apply_overrides
    from positionbias.config.resolve import resolve

    def make(overrides=None, **more):
        raw = {
            "name": "tiny",
            "task": "inverse_permutation(n=4, alphabet=4)",
            "model": {"layers": 1, "width": 16, "heads": 2},
            "optimizer": {"learning_rate": 1e-2},
            "train": {"steps": 12, "batch_size": 8, "replicas": 2, "log_every": 4},
            "evaluation": {"items": 32, "batch_size": 16, "influence_items": 8},
        }
        return resolve(apply_overrides(raw, {**(overrides or {}), **more}))

    return make


@pytest.fixture
def no_influence(monkeypatch):
    """Leaves out half of the programs of an evaluation, where only rows are read."""
    import jax.numpy as jnp

    from positionbias.evaluation.by_position import Evaluator

    def nothing(evaluator, condition, *_):
        return jnp.zeros(evaluator.experiment.task.length(condition))

    monkeypatch.setattr(Evaluator, "_influence", nothing)
