"""The numbers that the shipped studies promise, at full length: minutes each, so run with `-m slow`."""

import json

import numpy as np
import pytest

from positionbias.config.cli import load_config
from positionbias.config.resolve import resolve
from positionbias.config.sweeps import cells
from positionbias.training.loop import train

CEILING = 0.58984375  # of the causal reader: (n+1)/2n + (n-1)/2n * 1/16 with n = 8


def summary(config, folder):
    assert train(config, folder, ["test"], lambda line: None).status == "finished"
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
def test_the_quickstart_lies_on_its_ceiling(root, tmp_path):
    config = resolve(load_config(str(root / "configs" / "quickstart.py")))
    found = summary(config, tmp_path / "run")
    assert config.evaluation.items >= 16384
    assert len(found["accuracy"]["replicas"]) == 4
    np.testing.assert_allclose(found["accuracy"]["replicas"], CEILING, rtol=0, atol=0.01)
    rows = found["by_query_position"]
    assert [row["position"] for row in rows] == list(range(8))
    expected = [(k + 1) / 8 + (1 - (k + 1) / 8) / 16 for k in range(8)]
    np.testing.assert_allclose([row["mean"] for row in rows], expected, rtol=0, atol=0.01)


@pytest.mark.slow
def test_only_the_causal_reader_cannot_invert_permutations(root, tmp_path):
    study = cells(str(root / "configs" / "inverse_permutation" / "architectures.py"))
    means = {cell.name: summary(cell.config, tmp_path / cell.name)["accuracy"]["mean"] for cell in study}
    np.testing.assert_allclose(means.pop("causal"), CEILING, rtol=0, atol=0.01)
    assert sorted(means) == ["bidirectional", "causal_scratch", "encoder_decoder_scratch"]
    assert min(means.values()) >= 0.99, means


@pytest.mark.slow
def test_recall_is_learned(root, tmp_path):
    config = resolve(load_config(str(root / "configs" / "associative_recall" / "quick.py")))
    found = summary(config, tmp_path / "run")
    assert len(found["accuracy"]["replicas"]) == 4
    assert min(found["accuracy"]["replicas"]) >= 0.95
