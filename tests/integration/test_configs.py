"""Every config that ships trains and evaluates when shrunk; but for influences, which contracts measure."""

import functools
import pathlib
import re

import jax
import pytest

from positionbias import spec
from positionbias.config.build import build
from positionbias.config.cli import load_config
from positionbias.config.resolve import resolve
from positionbias.config.sweeps import cells
from positionbias.evaluation.by_position import Evaluator
from positionbias.training import loop, reuse

CONFIGS_FOLDER = pathlib.Path(__file__).parents[2] / "configs"
CONFIGS = sorted(CONFIGS_FOLDER.rglob("*.py"))
SHRUNK = {
    "train.steps": 4,
    "train.log_every": 2,
    "train.batch_size": 4,
    "train.replicas": 1,
    "train.vary": {},
    "optimizer.warmup_steps": 0,
    "evaluation.every": None,
    "evaluation.items": 8,
    "evaluation.batch_size": 8,
    "evaluation.influence_items": 4,
    "checkpoint.every": None,
    "checkpoint.keep_every": None,
}


def name(path):
    return "-".join(path.relative_to(CONFIGS_FOLDER).parts).removesuffix(".py")


class Brief(Evaluator):
    """Rows of the trained condition; the others, whose compilation would take most of the time, are traced alone."""

    def __init__(self, experiment, layout, keys, own):
        trained, *self.others = experiment.task.conditions()
        super().__init__(experiment, layout, keys, conditions=[trained], own=own)

    def rows(self, weights, tell):
        while self.others:
            answers = functools.partial(self._answers, self.others.pop())
            jax.eval_shape(self.layout.over(answers), (weights, self.keys, self.worlds, self.own), self.corpus, 0)
        return super().rows(weights, tell)


@pytest.mark.usefixtures("no_influence")
@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_config_trains(path, tmp_path, monkeypatch):
    monkeypatch.setattr(reuse, "Evaluator", Brief)
    config = resolve(load_config(str(path), list(SHRUNK.items())))
    assert loop.train(config, tmp_path / "run", [], lambda line: None).status == "finished"
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_the_docstring_gives_command_hardware_time_and_number(path):
    text = path.read_text(encoding="utf-8")
    assert "python -m positionbias." in text
    assert f"--config configs/{path.relative_to(CONFIGS_FOLDER)}" in text
    assert re.search(r"Hardware and time: [^\n]*\d", text)
    assert re.search(r"[Nn]umbers?\s+to\s+reach[^\n]*\n?[^\n]*\d|No number to reach: ", text)


def test_every_task_has_a_config():
    named = {resolve(load_config(str(path), [])).task.partition("(")[0] for path in CONFIGS}
    assert named == set(spec.names("tasks"))


def test_the_readme_names_every_study():
    text = (CONFIGS_FOLDER.parent / "README.md").read_text(encoding="utf-8")
    studies = {path.parent.name for path in CONFIGS if path.parent != CONFIGS_FOLDER}
    assert {study for study in studies if f"`{study}/" not in text and f"configs/{study}/" not in text} == set()


def test_the_signatures_are_of_every_operator_and_can_be_built():
    path = str(CONFIGS_FOLDER / "signature" / "operators.py")
    named = set()
    for sweep in ("default", "null", "depth"):
        for cell in cells(path, sweep):
            assert build(cell.config).config.train.steps == 0
            named.add(cell.config.model.operator.partition("(")[0])
    assert named == set(spec.names("operators"))
