"""Cells of one program in a row: built once, planned, and handed what was compiled."""

import json

import pytest

from positionbias.config.sweeps import Cell
from positionbias.spec import ConfigError
from positionbias.sweeping import by_ray
from positionbias.sweeping.executors import LocalExecutor, refuse_bad
from positionbias.sweeping.run import run
from positionbias.training import loop
from positionbias.training.run_folder import locked

BURSTS = "in_context_classification(items=4, dimension=8, classes=8, labels=4, burstiness=2, p_bursty=1, p_novel=0)"


@pytest.fixture
def cells(tiny):
    """Two programs, in turn."""
    fields = [
        {"seed": seed, "train.steps": 4, "model.mask": mask} for seed in (1, 2) for mask in ("causal", "bidirectional")
    ]
    return [Cell(name, tiny(one), {}) for name, one in zip("abcd", fields, strict=True)]


def test_a_sweep_tells_its_plan_and_runs_cells_of_a_program_in_a_row(cells, tmp_path, monkeypatch, capsys):
    handed = []

    def train(config, workdir, command, say, programs):
        handed.append((workdir.name, programs))
        with locked(workdir):
            pass
        return loop.Outcome("finished", 4, 0)

    monkeypatch.setattr(loop, "train", train)
    assert run(cells, tmp_path, LocalExecutor(), "study") == 0
    assert [name for name, _ in handed] == ["a", "c", "b", "d"]
    assert len({id(programs) for _, programs in handed}) == 1
    assert capsys.readouterr().out.splitlines()[:4] == [
        "4 cells, 2 programs",
        "  2 cells differ in seed, compiled once, one after another: a, c",
        "  2 cells differ in seed, compiled once, one after another: b, d",
        "cell 1 of 4: a",
    ]
    assert by_ray.RayExecutor(None, None).how(cells[0].config) == "each in a process of its own"


def test_what_is_finished_is_not_in_the_plan(cells, tmp_path, monkeypatch, capsys):
    def train(config, workdir, command, say, programs):
        return loop.Outcome("failed", 0, 3, "too large")

    (tmp_path / "plan.json").write_text('{"cells": []}')
    for cell in cells[:3]:
        home = tmp_path / "cells" / cell.name
        home.mkdir(parents=True)
        (home / "manifest.json").write_text(json.dumps({"status": "finished", "hash": cell.hash}))
    monkeypatch.setattr(loop, "train", train)
    assert run(cells, tmp_path, LocalExecutor(), "study") == 3
    told = capsys.readouterr().out.splitlines()
    assert told[:4] == [
        "3 of 4 cells are finished already",
        "1 cell, 1 program",
        "  1 cell with a program of its own: d",
        "cell 1 of 1: d",
    ]


def test_of_cells_that_share_a_program_one_is_built(cells, tiny):
    built = []
    refuse_bad(cells, lambda cell: built.append(cell.name))
    assert built == ["a", "b"]
    fields = {"model.inputs": "vector", "task": BURSTS}
    grids = [
        Cell(f"{values}", tiny({**fields, "train.vary": {"p_novel": values}}), {}) for values in ([0, 0.5], [0, 1])
    ]

    def build(cell):  # arguments of a task are checked when it is built
        if cell is grids[1]:
            raise ConfigError("train.vary.p_novel: no.")

    with pytest.raises(ConfigError, match=r"^cell \[0, 1\]: train\.vary\.p_novel: no\.$"):
        refuse_bad(grids, build)
