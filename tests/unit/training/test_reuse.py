"""Runs that are handed the program of the run before leave what each leaves alone, to the bit, and compile nothing."""

import json

import jax
import numpy as np
import pytest

from positionbias.config.build import build
from positionbias.config.resolve import VARIED
from positionbias.evaluation.rows import columns, read_rows
from positionbias.replicas import Layout
from positionbias.training import checkpoint, reuse
from positionbias.training.auto import Auto
from positionbias.training.loop import train
from positionbias.training.program import Compiled, Program
from positionbias.training.reuse import Programs

OTHER = {  # another value of all that replicas may differ in, whatever the task
    "seed": 5,
    "optimizer.learning_rate": 0.03,
    "optimizer.name": "adamw(weight_decay=0.1)",
    "optimizer.warmup_steps": 3,
    "model.init_scale": 0.7,
}


@pytest.fixture
def compilations():
    """What XLA compiles or finds in the compile cache, one entry a program."""
    found = []

    def note(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield found
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.fixture
def compiled(monkeypatch):
    """The configs whose steps are compiled."""
    found, compile_ = [], Program.compile

    def note(self):
        found.append(self.experiment.config)
        return compile_(self)

    monkeypatch.setattr(Program, "compile", note)
    return found


def left(folder):
    """All that a run leaves but for the time it took."""
    state = checkpoint.restore(folder / "checkpoints", 12)[0]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [read_rows(folder / "evals" / name) for name in ("000000.npz", "000012.npz")]
    return {
        "state": jax.tree.leaves(state),
        "metrics": [{**line, "seconds": 0} for line in lines],
        "rows": [{**columns(one), "influence": one["influence"], "conditions": one["conditions"]} for one in rows],
        "summary": json.loads((folder / "summary.json").read_text()),
        "config": json.loads((folder / "config.json").read_text()),
    }


def test_the_next_run_of_a_program_is_what_it_is_alone_and_compiles_nothing(tiny, tmp_path, compiled, compilations):
    assert len(OTHER) == len(VARIED)
    first, second, programs = tiny(), tiny(OTHER), Programs()
    said = []
    train(first, tmp_path / "first", [], said.append, programs=programs)
    evaluations = ["evaluating the models before training", "evaluating the models at step 12 of 12"]
    assert said[1:] == ["compiling", *evaluations]
    del compilations[:], said[:]
    train(second, tmp_path / "second", [], said.append, programs=programs)
    assert said[1:] == evaluations
    assert (compiled, compilations) == ([first], [])
    train(second, tmp_path / "alone", [], str)
    assert compiled == [first, second]
    ours, theirs = left(tmp_path / "second"), left(tmp_path / "alone")
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert ours["summary"] != left(tmp_path / "first")["summary"]


def test_a_run_of_another_program_has_its_own(tiny, monkeypatch):
    compiled = []

    def fitted(program, say):  # as far as it takes no time
        compiled.append(program.experiment.config)
        return Compiled(program, program.auto.layout.place(program.replicas()), (), None, None, None, len(compiled))

    monkeypatch.setattr(reuse, "fitted", fitted)
    programs, layouts = Programs(), [Auto(Layout("loop"), 8, 4), Auto(Layout("vmap"), 8, 4)]
    configs = [tiny(), tiny({"optimizer.clip_norm": 2.0}), tiny({"optimizer.clip_norm": 2.0, "seed": 3}), tiny()]
    steps, said = [], []
    for config, layout in [*((config, layouts[0]) for config in configs), (configs[3], layouts[1])]:
        program = Program(build(config), layout)
        found = programs.compiled(program, said.append)
        assert found.program is program
        assert set(found.replicas["seeds"]["seed"].tolist()) == {config.seed}
        assert (programs.evaluator(program).keys == program.keys()).all()
        steps.append(found._advance)
    assert steps == [1, 2, 2, 3, 4]
    assert compiled == [configs[0], configs[1], configs[3], configs[3]]
    assert said == ["compiling"] * len(compiled)
