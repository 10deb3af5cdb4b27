"""A study of three claims over fabricated runs, in a folder of its own."""

import pathlib

import fabricate
import pytest

from positionbias.evaluation.rows import write_rows
from positionbias.studying import definition, running

CONFIG = """
def get_config():
    return {
        "name": "arms",
        "task": "inverse_permutation(n=8, alphabet=16)",
        "model": {"layers": 1, "width": 16},
        "train": {"steps": 600, "replicas": 5},
    }


def sweep(add):
    for mask in ("causal", "bidirectional"):
        add({"model.mask": mask}, name=mask)
"""
STUDY = """
title = "Arms"
about = "Two masks & a run."

[papers]
ours2026 = "Ours 2026, Nowhere"

[parts.masks]
config = "configs/arms.py"
sweep = "default"
analyze.norms = "--analyses token_norms"
quick = { minutes = 2, settings = { "train.steps" = 600 } }
paper = { settings = { "train.steps" = 900 } }

[parts.alone]
config = "configs/arms.py"
evaluate.again = "--items 8 --interventions shift"
quick = { minutes = 1.5, settings = { "seed" = 7, "model.mask" = "causal | bidirectional" } }

[claims.apart]
says = "A reader of all tokens recalls more."
paper = "ours2026"
source = "figure 1"
theirs = "+0.4"
statistic = "accuracy('masks/bidirectional') - accuracy('masks/causal')"
holds = [0.2, inf]
null = "baseline('masks/causal', 'chance')"
solved = "accuracy('masks/bidirectional') > 0.9"
scales = ["quick", "paper"]
why = "It does not."

[claims.normed]
says = "Norms are small."
paper = "ours2026"
source = "table 2"
statistic = "analysis('masks/causal', 'token_norms', 'embedding')"
holds = [0, 1]
scales = ["quick"]

[claims.moved]
says = "Positions | matter."
paper = "ours2026"
source = "section 3"
statistic = "changed('alone', evals='again_shift_by_8')"
holds = [-inf, 0.5]
scales = ["quick"]
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """`written(old, new, ...)` reads the study above with `old` replaced by `new`, in the folder that tests run in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "arms").mkdir(parents=True)
    (tmp_path / "configs" / "arms.py").write_text(CONFIG)

    def read(*changes):
        text = STUDY
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / "configs" / "arms" / "study.toml").write_text(text)
        return definition.read(tmp_path, "arms")

    return read


@pytest.fixture
def trained():
    """`trained(folder, ...)` leaves a finished run with the rows of both ends; the options are those of `rows`.

    In a study's folder it has the hash of the config that the study has there.
    """

    def make(folder, **options):
        fabricate.write_run(folder, **{"replicas": 5, "digest": digest(folder), **options})
        write_rows(folder / "evals" / "000000.npz", fabricate.rows(**{"replicas": 5, **options, "skill": 0.0}))
        write_rows(folder / "evals" / "000600.npz", fabricate.rows(**{"replicas": 5, **options}))

    def digest(folder):
        if "runs" not in folder.parts:
            return fabricate.HASH
        scale, *run = folder.parts[folder.parts.index("runs") + 1 :]
        hashes = running.check(definition.read(pathlib.Path(), "arms"), scale)
        return hashes["/".join(part for part in run if part != "cells")]

    return make
