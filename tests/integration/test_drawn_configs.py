"""Configs drawn over the whole registry: each is built and trains with finite losses, or is refused in one sentence."""

import json
import math

import jax
import pytest
from drawn import SMALL, configs
from hypothesis import HealthCheck, assume, event, given, settings

from positionbias import spec
from positionbias.config.build import Experiment, build
from positionbias.config.resolve import resolve
from positionbias.evaluation.stored import read_summary
from positionbias.spec import ConfigError
from positionbias.training import auto
from positionbias.training.interval import Interval
from positionbias.training.loop import NON_FINITE, train
from positionbias.training.program import Program, fetch
from positionbias.training.writers import read_metrics

ALIKE = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}


def chosen(experiment: Experiment) -> auto.Auto:
    return auto.resolve(experiment, jax.default_backend(), len(jax.devices()))


def built(config):
    """The experiment of a config, None if it is refused, which must be in one sentence."""
    try:
        experiment = build(resolve(config))
        chosen(experiment)
    except ConfigError as error:
        event("refused")
        told = str(error)
        assert "\n" not in told
        assert told.endswith((".", "?"))
        return None
    event("built")
    return experiment


def test_every_small_task_is_one():
    assert SMALL.keys() <= set(spec.names("tasks"))


@settings(max_examples=40, **ALIKE)
@given(config=configs())
def test_a_drawn_config_is_built_or_refused(config):
    built(config)


@pytest.mark.slow
@settings(max_examples=2500, **ALIKE)
@given(config=configs())
def test_many_drawn_configs_are_built_or_refused(config):
    built(config)


@pytest.mark.slow
@settings(max_examples=200, **ALIKE)
@given(config=configs(ordinary=True))
def test_what_is_built_takes_two_finite_steps(config):
    """Where numbers are of ordinary size, losses and gradients are finite."""
    experiment = built(config)
    assume(experiment is not None)
    compiled = Program(experiment, chosen(experiment)).compile()
    _, metrics = compiled.advance(compiled.fresh(), 0)
    interval = Interval()
    interval.add(fetch(metrics), 2)  # which raises where one is not
    assert all(math.isfinite(value) for (value,) in interval.close().values())
    jax.clear_caches()  # as `tests/conftest.py` does between tests: Linux gives a process 65,530 pieces of memory


@pytest.mark.slow
@settings(max_examples=30, **ALIKE)
@given(config=configs())
def test_what_is_built_makes_a_run(tmp_path_factory, config):
    """Evaluations and checkpoints too; where numbers may be of any size, what is not finite is told."""
    assume(built(config) is not None)
    folder = tmp_path_factory.mktemp("drawn") / "run"
    outcome = train(resolve(config), folder, [], str)
    jax.clear_caches()
    told = json.loads((folder / "manifest.json").read_text())
    if outcome.code == NON_FINITE:
        assert " of replica 0 is not finite at step " in told["message"]
        return
    assert (outcome.code, told["status"]) == (0, "finished")
    (line,) = read_metrics(folder / "metrics.jsonl")
    assert all(math.isfinite(x) for name in ("loss", "gradient_norm") for x in line[name])
    assert math.isfinite(read_summary(folder / "summary.json")["accuracy"]["mean"])
