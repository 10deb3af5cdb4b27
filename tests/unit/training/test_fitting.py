"""Replicas that a device cannot hold side by side are trained in groups."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from positionbias.config.build import build
from positionbias.replicas import Layout
from positionbias.training import auto, checkpoint, fitting
from positionbias.training.fitting import fitted
from positionbias.training.loop import train
from positionbias.training.program import Program
from positionbias.training.reuse import Programs

SIDE_BY_SIDE = {"train.replica_layout": "vmap", "train.mesh.replica": 1, "train.mesh.data": 1, "train.replicas": 4}


def program(config):
    return Program(build(config), auto.resolve(build(config), "cpu", 1))


def trained(compiled):
    """Parameters after one dispatch."""
    state, _ = compiled.advance(compiled.fresh(), 0)
    return jax.tree.leaves(compiled.unpack(state)["params"])


@pytest.fixture
def fits(monkeypatch):
    """Says how many bytes a device has."""
    return lambda size: monkeypatch.setattr(auto, "room", lambda layout: size)


def test_as_many_at_once_as_fit_and_all_are_trained(tiny, fits):
    asked, said = program(tiny(SIDE_BY_SIDE)), list[str]()
    all_at_once = fitted(asked, said.append)
    assert all_at_once.program is asked
    fits(all_at_once.bytes - 1)
    halves = fitted(asked, said.append)
    assert halves.program.auto.layout.at_once == 2
    assert halves.bytes < all_at_once.bytes
    for found, known in zip(trained(halves), trained(all_at_once), strict=True):
        np.testing.assert_allclose(found, known, rtol=1e-4, atol=1e-6)
    fits(halves.bytes_kept + halves.bytes_made - 1)
    assert fitted(asked, said.append).program.auto.layout.at_once == 1
    assert [line.split("; ")[1] for line in said] == [f"compiling for {n} at once" for n in (2, 2, 1)]
    assert said[0].startswith("a step of 4 replicas side by side takes 0.")


@pytest.mark.parametrize("form", ["loop", "vmap"])
def test_one_at_a_time_that_does_not_fit_is_refused_on_a_cpu(form, tiny, fits):
    fits(1)
    with pytest.raises(MemoryError, match=r"^a step of one replica takes 0\.\d+ GiB of 9\.31e-10, a smaller model or"):
        fitted(program(tiny({**SIDE_BY_SIDE, "train.replica_layout": form})), str)


def test_groups_are_of_the_replicas_that_a_device_has(tiny):
    asked = program(tiny({**SIDE_BY_SIDE, "train.replicas": 12}))
    two = dataclasses.replace(asked.auto, layout=Layout("vmap", replica=2))  # 6 replicas each
    for kept, made, fewer in ((10, 60, 3), (10, 200, 1), (100, 60, 1)):
        compiled = SimpleNamespace(program=dataclasses.replace(asked, auto=two), bytes_kept=kept, bytes_made=made)
        assert fitting._fewer(compiled, 50) == fewer
    one = SimpleNamespace(program=dataclasses.replace(asked, auto=dataclasses.replace(two, together=12)))
    assert fitting._fewer(one, 50) is None, "replicas of several runs are not parted"


def test_another_device_may_try_what_does_not_seem_to_fit(tiny, fits, monkeypatch):
    fits(1)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert fitted(program(tiny(SIDE_BY_SIDE)), str).program.auto.layout.at_once == 1


def test_what_is_not_known_is_not_asked_for(tiny, fits):
    fits(None)
    assert fitted(program(tiny(SIDE_BY_SIDE)), str).program.auto.layout.at_once is None


def test_a_run_in_groups_resumes_to_the_bit_and_hands_on_its_program(tiny, fits, tmp_path, monkeypatch):
    config = tiny({**SIDE_BY_SIDE, "train.steps": 8, "train.log_every": 4})
    fits(fitted(program(config), str).bytes - 1)
    programs = Programs()
    train(config, tmp_path / "whole", [], str, programs=programs)
    manifest = json.loads((tmp_path / "whole/manifest.json").read_text())
    assert manifest["auto"]["replicas_at_once"] == 2
    monkeypatch.delattr(Program, "compile")
    said = list[str]()
    train(config, tmp_path / "parts", [], said.append, 4, programs)
    train(config, tmp_path / "parts", [], said.append, programs=programs)
    assert said.count("2 replicas at once, as compiled before") == 2
    states = [
        checkpoint.restore(tmp_path / name / "checkpoints", 8, program(config).shape())[0]
        for name in ("whole", "parts")
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
