"""The table of an evaluation: what it shows beside the accuracy, and what it remarks on."""

from __future__ import annotations

import numpy as np
import pytest
from test_summary import fabricate, strict, with_losses

from positionbias.evaluation.summary import summarise
from positionbias.evaluation.table import axes_told, table


def test_a_ceiling_of_chance_is_told():
    rows = fabricate(conditions=("near", "far"))
    assert "the ceiling is chance" not in table(summarise(rows))
    rows["ceiling"] = np.where(rows["condition"] == 1, 0.26, rows["ceiling"])
    told = table(summarise(rows))
    assert "the ceiling is chance in condition far: the model cannot see what the answers need" in told.splitlines()
    rows["ceiling"] = np.full(rows["ceiling"].shape, np.nan)
    assert "the ceiling is chance" not in table(summarise(rows))


@pytest.mark.parametrize(
    ("steps", "of", "line"),
    [
        (30, 600, "evaluated at step 30 of 600"),
        (30, None, "evaluated at step 30"),
        (0, 600, "evaluated before training"),
        (None, None, "accuracy by slot read"),
    ],
)
def test_the_table_says_first_when_it_was_measured(steps, of, line):
    assert table(strict(summarise(fabricate(), steps=steps, of=of))).splitlines()[0] == line


def test_table_shows_both_curves_the_theory_and_every_replica():
    theory = {"query": [0.25, 0.5, 0.75, 1.0], "mean": 0.625}
    lines = table(summarise(fabricate(), theory=theory)).splitlines()
    assert lines[0] == "accuracy by slot read"
    assert lines[1].split() == ["at", "mean", "interval", "ceiling", "baseline", "theory"]
    assert lines[2].split() == ["0", "0.333", "[-0.081,", "0.747]", "0.250", "0.125", "0.250"]
    assert lines[6].split() == ["all", "0.583", "[0.169,", "0.997]", "0.625", "0.125", "0.625"]
    assert lines[8] == "accuracy by slot told"
    assert "theory" not in lines[9]
    assert "replicas  0.417  0.583  0.750" in lines
    assert lines[-2:] == [
        "1 of 3 solved the task: came within 0.02 of the ceiling",
        "intervals: 95 % Student t over replicas",
    ]
    assert max(map(len, lines)) <= 100


def test_every_combination_of_hyperparameters_has_a_line_and_a_curve():
    vary = {"learning_rate": [0.001, 0.002], "seed": [7, 8]}
    lines = table(summarise(with_losses(replicas=4), steps=3, of=3, varied=vary)).splitlines()
    assert lines[:2] == ["evaluated at step 3 of 3", "accuracy of each combination"]
    head = ["learning_rate", "replicas", "mean", "interval", "ceiling", "order-free", "solved", "loss"]
    assert lines[2].split() == head
    assert " ".join(lines[3].split()) == "0.001 0, 1 0.500 [-0.559, 1.559] 0.625 0.125 0 of 2 4.000"
    assert lines[4].split()[:4] == ["0.002", "2,", "3", "0.812"]
    assert lines[6] == "accuracy by slot read"
    assert lines[7].split() == ["at", "learning_rate=0.001", "learning_rate=0.002"]
    assert lines[8].split() == ["replicas", "0,", "1", "replicas", "2,", "3"]
    assert lines[9].split() == ["0", "0.250", "0.583"]
    assert lines[-1].startswith("Replicas differ in learning_rate")
    assert not [line for line in lines if line.startswith("replicas ")]  # a row of all of them
    many = {"learning_rate": [0.1 * (i + 1) for i in range(7)]}
    told = table(summarise(fabricate(replicas=7), varied=many))
    assert "accuracy by slot read" not in told
    assert "0.7000000000000001" in told


def test_table_shows_losses_under_the_accuracy():
    lines = table(summarise(with_losses())).splitlines()
    at = lines.index("loss by slot read (simple rules: chance 9.000)")
    assert lines[at - 1] == ""
    assert lines[at + 1].split() == ["at", "mean", "interval", "floor"]
    assert lines[at + 2].split() == ["0", "4.000", "[-3.452,", "11.452]", "1.000"]
    assert lines[at + 6].split() == ["all", "5.500", "[-1.952,", "12.952]", "2.500"]
    assert any(line.startswith("loss by slot told") for line in lines[at + 7 :])
    assert not any(line.startswith("loss by") for line in table(summarise(fabricate())).splitlines())


def test_table_thins_a_long_curve_but_keeps_its_ends():
    lines = table(summarise(fabricate(slots=100, items=1))).splitlines()
    assert lines[0] == "accuracy by slot read, one in 4 shown"
    slots = [line.split()[0] for line in lines[2 : lines.index("") - 1]]
    assert (slots[0], slots[1], slots[-1], len(slots)) == ("0", "4", "99", 26)


def test_a_curve_of_one_position_is_told_only_beside_no_longer_one():
    assert axes_told(summarise(fabricate())) == ["query", "evidence"]
    rows = fabricate()
    flat = summarise({**rows, "evidence_slot": np.zeros_like(rows["evidence_slot"])})
    assert axes_told(flat) == ["query"]
    assert "accuracy by slot read" in table(flat)
    assert table(flat).count("accuracy by slot") == 1
    assert axes_told(summarise(fabricate(slots=1))) == ["query", "evidence"]


def test_a_ceiling_known_of_some_answers_is_told_with_their_share():
    rows = fabricate(conditions=("near", "far"))
    rows["ceiling"] = np.where((rows["condition"] == 0) & (rows["query_slot"] == 3), np.nan, rows["ceiling"])
    lines = table(strict(summarise(rows))).splitlines()
    assert lines[1].split() == ["at", "mean", "interval", "ceiling", "known", "baseline"]
    assert lines[4].split()[4:] == ["0.750", "1.000", "0.125"]
    assert lines[5].split()[4:] == ["-", "0.000", "0.125"]
    assert lines[6].split()[4:] == ["0.500", "0.750", "0.125"]
    at = next(place for place, line in enumerate(lines) if line.startswith("condition"))
    assert lines[at].split()[:5] == ["condition", "accuracy", "interval", "ceiling", "known"]
    assert lines[at + 1].split()[4:6] == ["0.500", "0.750"]
    assert lines[at + 2].split()[5] == "1.000"
    told = "is known for 54 of 72 answers and is their mean; accuracy on these is 0.500"
    assert f"the ceiling in condition near {told}" in lines
    assert not any("condition far" in line for line in lines)
    rows["ceiling"] = np.full(rows["ceiling"].shape, np.nan)
    assert "known" not in table(strict(summarise(rows)))


def test_predictions_of_theory_stand_beside_what_was_measured():
    def says(name, of, value, condition="near", exact=True):
        return {"name": name, "of": of, "value": value, "condition": condition, "exact": exact}

    guessing = says("guessing", "accuracy", 0.25), says("guessing", "loss", 1.5)
    others = says("one_head", "loss", 0.375, exact=False), says("combined", "margin", 0.0, "far")
    rows = fabricate(conditions=("near", "far"))
    lines = table(strict(summarise(rows, theory={"predictions": [*guessing, *others]}))).splitlines()
    told = [line for line in lines if line.startswith("theory of")]
    assert told == [
        "theory of the accuracy in condition near: guessing 0.250; measured 0.583 [0.169, 0.997]",
        "theory of the loss in condition near: guessing 1.500, one_head ~0.375; measured 0.500 [0.500, 0.500]",
        "theory of the margin in condition far: combined 0.000",
    ]
    lines = table(strict(summarise(with_losses(), theory={"predictions": [says("zero", "loss", 9.0, "first")]})))
    assert "\ntheory of the loss: zero 9.000; measured 5.500 [-1.952, 12.952]\n\nreplicas" in lines
    assert "theory of" not in table(strict(summarise(fabricate())))


def test_every_condition_has_a_line_with_its_ceiling_and_what_simple_rules_reach():
    rows = fabricate(conditions=("train", "held_out_ignore"))
    second = rows["condition"] == 1
    for name, value in {"majority": 0.3, "nearest": 0.4, "prior": 0.5, "any_chain_end": 0.6}.items():
        rows[f"baseline/{name}"] = np.where(second, value, 0.0)
    rows["ceiling"] = np.where(second, 0.9, rows["ceiling"])
    lines = table(strict(summarise(rows))).splitlines()
    assert lines[0] == "accuracy by slot read in condition train"
    at = lines.index("condition        accuracy        interval  ceiling  chance  majority  nearest  order-free")
    assert lines[at + 1 : at + 7] == [
        "train               0.583  [0.169, 0.997]    0.625   0.250     0.000    0.000       0.125",
        "held_out_ignore     0.583  [0.169, 0.997]    0.900   0.250     0.300    0.400       0.125",
        "",
        "simple rules     any-chain-end  prior",
        "train                    0.000  0.000",
        "held_out_ignore          0.600  0.500",
    ]
    assert "simple rules" not in table(strict(summarise(fabricate())))


def test_the_line_of_a_condition_tells_its_loss():
    lines = table(strict(summarise(with_losses()))).splitlines()
    at = lines.index("condition  accuracy        interval  ceiling  chance  order-free   loss")
    assert lines[at + 1] == "first         0.583  [0.169, 0.997]    0.625   0.250       0.125  5.500"


def test_every_condition_that_has_an_order_gap_has_a_line():
    rows = fabricate(conditions=("train", "conflict", "same"), order=2)
    conflict, first = rows["condition"] == 1, rows["order"] == 0
    rows["order"] = np.where(conflict, rows["order"], 0)
    rows["correct"] = np.where(conflict & first & (rows["replica"] > 0), 1, 0)
    rows["baseline/chance"] = np.where(first, 0.5, 0.25)
    lines = table(strict(summarise(rows))).splitlines()
    at = lines.index("order gap     orders    mean          interval  above chance          interval")
    assert lines[at + 1] == "conflict   0 minus 1  +0.667  [-0.768, +2.101]        +0.417  [-1.018, +1.851]"
    assert lines[at + 2] == ""
    assert "order gap" not in table(strict(summarise(fabricate())))


def test_conditions_on_the_same_items_are_told_apart():
    rows = fabricate(replicas=2, conditions=("kept", "reversed", "shuffled"))
    rows["correct"] = np.where(rows["condition"] == 0, 1, (rows["condition"] == 1) & (rows["replica"] == 0))
    lines = table(strict(summarise({**rows, "items": ["ordered"] * 3}))).splitlines()
    at = lines.index("right in kept and reversed and shuffled alike: 0.000 [0.000, 0.000]")
    assert lines[at + 1 : at + 4] == [
        "kept minus reversed: +0.500 [-5.853, +6.853]",
        "kept minus shuffled: +1.000 [+1.000, +1.000]",
        "reversed minus shuffled: +0.500 [-5.853, +6.853]",
    ]


def test_of_a_run_without_training_the_influence_is_told():
    rows = fabricate()
    rows["influence"] = np.array([[[0.5, 0.25, 0.25]], [[0.4, 0.3, 0.3]], [[0.6, 0.2, 0.2]]])
    lines = table(strict(summarise(rows, rows, steps=0, of=0))).splitlines()
    assert lines[:3] == [
        "evaluated before training",
        "share of influence by input position; even would be 0.333",
        "at   mean        interval",
    ]
    assert lines[3].split() == ["0", "0.500", "[0.252,", "0.748]"]
    assert lines[6] == ""
    assert lines[8].split() == ["primacy", "+0.750", "[-0.368,", "+1.868]"], "three times 0.25 [-0.123, 0.623]"
    assert lines[-1] == "intervals: 95 % Student t over 3 replicas"
    assert not any("accuracy" in line for line in lines)


def test_beside_the_influence_stands_that_of_even_attention():
    rows = fabricate()
    rows["influence"] = np.array([[[0.5, 0.25, 0.25]], [[0.4, 0.3, 0.3]], [[0.6, 0.2, 0.2]]])
    theory = {"influence": [0.7, 0.1, 0.2]}
    lines = table(strict(summarise(rows, rows, steps=0, of=0, theory=theory))).splitlines()
    assert lines[3].split() == ["0", "0.500", "[0.252,", "0.748]", "0.700"]
    assert lines[8].split()[-1] == "+1.800", "primacy in even shares, three times 0.6"
    assert lines[-2].startswith("even attention: what masks and biases alone make")
