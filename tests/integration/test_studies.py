"""The numbers that the shipped studies promise, at full length: minutes each, so run with `-m slow`."""

import json

import numpy as np
import pytest

from positionbias import evaluate
from positionbias.config.cli import load_config
from positionbias.config.resolve import resolve
from positionbias.config.sweeps import cells
from positionbias.training.loop import train

pytestmark = pytest.mark.usefixtures("as_users")

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


# What the docstrings of the other configs promise of every replica: the condition, and the bounds of its accuracy.
PROMISED = [
    ("associative_recall/quick.py", "train", 0.95, 1),
    ("common_words/quick.py", "shuffled", 0.99, 1),
    ("entity_binding/quick.py", "before", 0.98, 1),
    ("entity_binding/quick.py", "after", 0.98, 1),
    ("factual_recall/quick.py", "held_out", 0.99, 1),
    ("factual_recall/fixed_attention.py", "held_out", 0.99, 1),
    ("in_context_classification/position_bias.py", "train", 0.6, 1),
    ("in_context_classification/quick.py", "train", 0.98, 1),
    ("inverse_permutation_matrix/quick.py", "train", 0.99, 1),
    ("modular_addition/quick.py", "train", 0.98, 1),
    ("modular_addition/quick.py", "held_out", 0.95, 1),
    ("multi_hop/quick.py", "train", 0.73, 1),
    ("needle/quick.py", "train", 0.98, 1),
    ("rebinding/quick.py", "train", 0.93, 1),
    ("reversal/in_context.py", "forward", 0.98, 1),
    ("reversal/in_context.py", "backward", 0.98, 1),
    ("reversal/quick.py", "forward", 0.99, 1),
    ("reversal/quick.py", "backward", 0.99, 1),
    ("reversal/quick.py", "held_out", 0, 1 / 32),
    ("set_disjointness/quick.py", "train", 0.99, 1),
    ("tree_paths/quick.py", "train", 0.93, 1),
    ("variable_tracking/quick.py", "kept", 0.7, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize("study", sorted({row[0] for row in PROMISED}))
def test_every_replica_keeps_the_promise(study, root, tmp_path):
    found = summary(resolve(load_config(str(root / "configs" / study))), tmp_path / "run")["by_condition"]
    for _, condition, low, high in (row for row in PROMISED if row[0] == study):
        replicas = found[condition]["accuracy"]["replicas"]
        assert len(replicas) >= 4
        assert low <= min(replicas), condition
        assert max(replicas) <= high, condition


# The same of the cells of sweeps.
SWEPT = [
    ("associative_recall/architectures.py", "hybrid", "train", 0.95, 1),
    ("associative_recall/architectures.py", "encoder_decoder", "train", 0.95, 1),
    ("associative_recall/architectures.py", "looped", "train", 0.95, 1),
    ("grid_recall/concentric.py", "raster", "train", 0.95, 1),
    ("grid_recall/concentric.py", "reversed", "train", 0.95, 1),
    ("grid_recall/concentric.py", "concentric", "train", 0.95, 1),
    ("grid_recall/concentric.py", "block_causal", "train", 0.95, 1),
    ("hybrid/layers.py", "attention", "train", 0.95, 1),
    ("hybrid/layers.py", "recurrence", "train", 0.95, 1),
    ("hybrid/layers.py", "recurrence_then_attention", "train", 0.95, 1),
    ("reversal/objectives.py", "next_token", "held_out", 0, 1 / 32),
    ("reversal/objectives.py", "bidirectional_causal", "held_out", 0.5, 1),
    ("reversal/objectives.py", "masked_diffusion", "held_out", 0.5, 1),
    ("reversal/objectives.py", "random_order", "held_out", 0.5, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("study", "name", "condition", "low", "high"), SWEPT)
def test_every_replica_of_a_cell_keeps_the_promise(study, name, condition, low, high, root, tmp_path):
    (cell,) = [cell for cell in cells(str(root / "configs" / study)) if cell.name == name]
    replicas = summary(cell.config, tmp_path / "run")["by_condition"][condition]["accuracy"]["replicas"]
    assert len(replicas) >= 4
    assert low <= min(replicas)
    assert max(replicas) <= high


@pytest.mark.slow
def test_the_order_of_statements_is_nothing_to_a_model_that_is_read_by_pine(root, tmp_path):
    plain = summary(resolve(load_config(str(root / "configs" / "variable_tracking" / "quick.py"))), tmp_path / "run")
    arguments = ["--workdir", str(tmp_path / "run"), "--interventions", "pine", "--items", "1024"]
    assert evaluate.main(arguments) == 0
    read = json.loads((tmp_path / "run" / "evals" / "step001500_pine.json").read_text())
    for first, second in (("kept", "reversed"), ("kept", "shuffled")):
        apart = [
            np.subtract(*(found["by_condition"][name]["accuracy"]["replicas"] for name in (first, second)))
            for found in (plain, read)
        ]
        assert len(apart[0]) == 4
        assert apart[0].mean() > 0.2, "order counts"
        assert np.abs(apart[1]).max() < 0.002, "but for answers as likely as each other"


@pytest.mark.slow
def test_the_promises_that_are_no_accuracy_of_every_replica(root, tmp_path):
    def run(study):
        return summary(resolve(load_config(str(root / "configs" / study))), tmp_path / study.replace("/", "-"))

    pairs = run("context_or_prior/quick.py")["paired"]
    assert min(pairs["trained"]["replicas"]) >= 0.98
    eight_heads = run("in_context_regression/quick.py")["loss"]
    assert 0.23 <= eight_heads["mean"] <= 0.27, "a step of gradient descent has 0.243"
    assert run("text/quick.py")["by_condition"]["test"]["loss"]["mean"] <= 1.7


@pytest.mark.slow
def test_a_price_on_uneven_attention_removes_the_bias_of_the_mask(root, tmp_path):
    study = cells(str(root / "configs" / "in_context_classification" / "even_attention.py"))
    found = {cell.name: summary(cell.config, tmp_path / cell.name) for cell in study}
    gaps = {name: one["by_condition"]["conflict"]["order_gap"] for name, one in found.items()}
    assert gaps["price_0"]["low"] > 0.05
    assert gaps["price_3"]["low"] < 0 < gaps["price_3"]["high"]
    assert gaps["price_3"]["high"] < gaps["price_0"]["low"]
    assert min(found["price_3"]["accuracy"]["replicas"]) >= 0.57


@pytest.mark.slow
def test_the_mask_favours_the_front_of_deep_models_and_decay_the_end_of_shallow_ones(root, tmp_path):
    study = str(root / "configs" / "signature" / "operators.py")
    wanted = {"attention_free", "softmax", "gated_linear_attention", "softmax_causal", "softmax_bidirectional"}
    chosen = [cell for sweep in ("default", "depth") for cell in cells(study, sweep) if cell.name in wanted]
    assert {cell.name for cell in chosen} == wanted
    primacy = {}
    for cell in chosen:
        found = summary(cell.config, tmp_path / cell.name)
        primacy[cell.name] = len(found["influence"]) * found["indices"]["influence"]["primacy"]["mean"]
    for name in ("attention_free", "softmax", "softmax_bidirectional"):
        assert abs(primacy[name]) < 0.05, primacy
    assert primacy["gated_linear_attention"] < -0.1
    assert primacy["softmax_causal"] > 3
