from __future__ import annotations

import json

import numpy as np
import pytest

from positionbias.evaluation.rows import read_rows, write_rows
from positionbias.evaluation.summary import summarise
from positionbias.evaluation.table import solved_count, table
from positionbias.spec import ConfigError


def fabricate(replicas=3, slots=4, items=6, conditions=("first",), order=1):
    """Every replica answers `items` items at each query slot; replica r is right at slot k iff item < k + 1 + r."""
    shape = (replicas, len(conditions), slots, items)
    replica, condition, slot, item = (i.ravel() for i in np.indices(shape))
    rows = {
        "replica": replica,
        "condition": condition,
        "query": slot + 10,
        "evidence": slots - 1 - slot,
        "query_slot": slot,
        "evidence_slot": slots - 1 - slot,
        "distance": 10 + 2 * slot - slots + 1,
        "order": item % order,
        "correct": (item < slot + 1 + replica).astype(int),
        "log_probability": np.full(slot.shape, -0.5),
        "ceiling": (slot + 1) / slots,
        "baseline/chance": np.full(slot.shape, 0.25),
        "baseline/order_free": np.full(slot.shape, 0.125),
        "conditions": list(conditions),
        "axes": {"query": "slot read", "evidence": "slot told"},
        "influence": np.tile([[[0.5, 0.25, 0.25, np.nan]]], (replicas, len(conditions), 1)),
    }
    return rows


def with_losses(**options):
    """The same rows, which lose 1 + slot + 3 * replica, of which 1 + slot could not be helped."""
    rows = fabricate(**options)
    floor = 1.0 + rows["query_slot"]
    more = {"loss": floor + 3 * rows["replica"], "loss/floor": floor, "loss/chance": np.full(floor.shape, 9.0)}
    return {**rows, **more}


def strict(summary):
    return json.loads(json.dumps(summary, allow_nan=False))


def test_rows_come_back_as_written(tmp_path):
    rows = fabricate(conditions=("near", "far"))
    rows["distance"] = rows["distance"] - 300
    rows["ceiling"] = np.where(rows["condition"] == 0, 0.5, np.nan)
    path = tmp_path / "evals" / "600.npz"
    write_rows(path, rows)
    back = read_rows(path)
    for name in rows:
        if name not in ("conditions", "axes"):
            np.testing.assert_array_equal(back[name], np.asarray(rows[name], back[name].dtype), err_msg=name)
    assert back["conditions"] == ["near", "far"]
    assert back["axes"] == {"query": "slot read", "evidence": "slot told"}
    assert (back["replica"].dtype, back["distance"].dtype, back["ceiling"].dtype) == (np.uint8, np.int16, np.float32)
    assert [p.name for p in path.parent.iterdir()] == ["600.npz"]


def test_names_of_shared_items_come_back(tmp_path):
    rows = fabricate(conditions=("use", "ignore"))
    write_rows(tmp_path / "shared.npz", {**rows, "items": ["same", "same"]})
    assert read_rows(tmp_path / "shared.npz")["items"] == ["same", "same"]
    write_rows(tmp_path / "own.npz", {**rows, "items": ["use", "ignore"]})
    assert "items" not in read_rows(tmp_path / "own.npz")


def test_equal_rows_make_equal_files(tmp_path):
    for name in ("a", "b"):
        write_rows(tmp_path / name, fabricate())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_leaves_the_old_rows(tmp_path):
    write_rows(tmp_path / "0.npz", fabricate())
    rows = fabricate()
    del rows["baseline/chance"]
    with pytest.raises(ValueError, match="lack baseline/chance"):
        write_rows(tmp_path / "0.npz", rows)
    assert read_rows(tmp_path / "0.npz")["conditions"] == ["first"]


def test_columns_of_two_lengths_are_refused(tmp_path):
    rows = {**fabricate(), "correct": np.zeros(3)}
    with pytest.raises(ValueError, match="one length"):
        write_rows(tmp_path / "0.npz", rows)


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_damaged_rows_are_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "0.npz"
    if content is None:
        write_rows(path, fabricate())
        content = path.read_bytes()[:200]
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="does not hold the rows of an evaluation"):
        read_rows(path)


def test_accuracy_is_a_mean_over_replicas_with_their_list():
    summary = strict(summarise(fabricate(), steps=600))
    # replica 0: (1 + 2 + 3 + 4) / 24, replica 1: (2 + 3 + 4 + 5) / 24, replica 2: (3 + 4 + 5 + 6) / 24
    assert summary["accuracy"]["replicas"] == pytest.approx([10 / 24, 14 / 24, 18 / 24])
    assert summary["accuracy"]["mean"] == pytest.approx(14 / 24)
    assert summary["accuracy"]["high"] == pytest.approx(14 / 24 + 4.302652729749464 * (4 / 24) / 3**0.5)
    assert summary["ceiling"]["mean"] == 0.625
    assert summary["accuracy"]["solved"] == pytest.approx(1 / 3)  # only replica 2 reaches 0.625 - 0.02
    assert summary["accuracy"]["verdict"] == "undecided"
    assert summary["baselines"] == {"chance": 0.25, "order_free": 0.125}
    assert summary["log_probability"] == {"mean": -0.5, "low": -0.5, "high": -0.5}
    assert (summary["steps"], summary["answers"], summary["axes"]["query"]) == (600, 72, "slot read")


def test_curves_run_over_slots_and_signed_distances():
    rows = fabricate()
    rows["distance"] = rows["distance"] - 8
    summary = strict(summarise(rows))
    row = summary["by_query_position"][2]
    measures = {"mean", "low", "high", "ceiling", "ceiling_known", "baseline", "log_probability"}
    assert set(row) == {"position", "count", *measures}
    assert (row["position"], row["count"], row["ceiling"], row["baseline"]) == (2, 18, 0.75, 0.125)
    assert row["mean"] == pytest.approx((3 + 4 + 5) / 18)
    assert row["log_probability"] == {"mean": -0.5, "low": -0.5, "high": -0.5}
    assert [r["position"] for r in summary["by_evidence_position"]] == [0, 1, 2, 3]
    assert summary["by_evidence_position"][0]["mean"] == pytest.approx((4 + 5 + 6) / 18)
    assert [r["position"] for r in summary["by_distance"]] == [-1, 1, 3, 5]


def test_indices_are_of_accuracy_and_of_ceiling_minus_accuracy_and_name_their_axis():
    found = strict(summarise(fabricate()))["indices"]
    assert set(found) == {"query_position", "evidence_position", "distance", "influence"}
    # F, M, L at slots 0, 1, 3 rise by 1/6 a slot in every replica
    query = found["query_position"]
    assert query["axis"] == "query position"
    assert [query[k]["mean"] for k in ("primacy", "recency", "tilt", "middle_dip")] == pytest.approx(
        [-1 / 6, 2 / 6, -3 / 6, -1 / 6]
    )
    # the ceiling rises by 1/4 a slot
    below = query["ceiling_minus_accuracy"]
    assert below["tilt"]["mean"] == pytest.approx(-3 / 4 + 3 / 6)
    assert found["evidence_position"]["tilt"]["mean"] == pytest.approx(3 / 6)
    assert found["influence"]["axis"] == "input position"
    assert found["influence"]["tilt"]["mean"] == 0.25


def test_losses_are_means_over_replicas_beside_their_floor(tmp_path):
    write_rows(tmp_path / "0.npz", with_losses())
    summary = strict(summarise(read_rows(tmp_path / "0.npz")))
    student = 4.302652729749464 * 3 / 3**0.5
    loss = summary["loss"]
    assert (loss["mean"], loss["replicas"], loss["floor"]) == (5.5, [2.5, 5.5, 8.5], 2.5)
    assert (loss["low"], loss["high"]) == pytest.approx((5.5 - student, 5.5 + student))
    assert loss["rules"] == {"chance": 9}
    assert [(row["loss"]["mean"], row["loss"]["floor"]) for row in summary["by_query_position"]] == [
        (4, 1),
        (5, 2),
        (6, 3),
        (7, 4),
    ]
    assert [row["loss"]["floor"] for row in summary["by_evidence_position"]] == [4, 3, 2, 1]
    assert "loss" not in summarise(fabricate())
    assert "loss" not in summarise(fabricate())["by_distance"][0]


def test_a_floor_that_is_not_known_is_null():
    rows = with_losses()
    del rows["loss/floor"]
    summary = strict(summarise(rows))
    assert summary["loss"]["floor"] is None
    assert summary["by_query_position"][0]["loss"]["floor"] is None
    assert "floor" in table(summary)


def test_influence_drops_its_padding():
    found = strict(summarise(fabricate()))["influence"]
    assert [(r["position"], r["mean"]) for r in found] == [(0, 0.5), (1, 0.25), (2, 0.25)]


def test_the_top_level_is_the_first_condition_and_empty_ones_are_left_out():
    rows = fabricate(conditions=("near", "far", "empty"))
    keep = rows["condition"] < 2
    rows = {k: v[keep] if isinstance(v, np.ndarray) and v.shape == keep.shape else v for k, v in rows.items()}
    rows["correct"] = np.where(rows["condition"] == 1, 1, rows["correct"])
    summary = strict(summarise(rows))
    assert list(summary["by_condition"]) == ["near", "far"]
    assert summary["by_condition"]["far"]["accuracy"]["mean"] == 1.0
    assert summary["accuracy"] == summary["by_condition"]["near"]["accuracy"]
    assert set(summary["by_condition"]["far"]) < set(summary)


def test_items_that_conditions_share_are_right_where_all_of_them_are():
    rows = fabricate(replicas=2, conditions=("use", "ignore", "other"))
    assert summarise(rows)["paired"] == {}
    assert summarise({**rows, "items": ["use", "ignore", "other"]})["paired"] == {}
    item = np.indices((2, 3, 4, 6))[3].ravel()
    right = {0: item < 3, 1: item % 2 == 0, 2: item < 0}  # both of use and ignore at 0 and 2 of 6
    rows["correct"] = np.choose(rows["condition"], list(right.values())) * np.where(rows["replica"] == 1, item > 0, 1)
    summary = strict(summarise({**rows, "items": ["same", "same", "other"]}))
    (name, paired), *others = summary["paired"].items()
    assert (name, others) == ("same", [])
    assert paired["replicas"] == pytest.approx([1 / 3, 1 / 6])
    assert paired["mean"] == pytest.approx(1 / 4)
    assert paired["conditions"] == ["use", "ignore"]
    (difference,) = paired["differences"]  # replica 0: 3/6 and 3/6; replica 1 lacks item 0: 2/6 and 2/6
    assert difference == {"first": "use", "second": "ignore", "mean": 0, "low": 0, "high": 0}
    rows["correct"] = np.where(rows["condition"] == 0, rows["replica"] == 0, 0)  # replicas: 1 - 0 and 0 - 0
    found = strict(summarise({**rows, "items": ["same"] * 3}))["paired"]["same"]["differences"]
    assert [(one["first"], one["second"], one["mean"]) for one in found] == [
        ("use", "ignore", 0.5),
        ("use", "other", 0.5),
        ("ignore", "other", 0),
    ]
    assert found[0]["high"] == pytest.approx(0.5 + 12.706204736174698 * 0.5)
    assert "right in use and ignore alike: 0.250 [" in table(summary)


def test_order_gap_is_paired_and_empty_without_orders():
    assert summarise(fabricate())["order_gap"] == {}
    rows = fabricate(order=2)
    rows["correct"] = np.where(rows["order"] == 0, 1, rows["replica"] == 1)
    gap = strict(summarise(rows))["order_gap"]
    assert (gap["first"], gap["second"]) == (0, 1)
    assert gap["mean"] == pytest.approx(2 / 3)  # replicas: 1, 0, 1
    assert [(o["order"], o["count"]) for o in gap["by_order"]] == [(0, 36), (1, 36)]


def test_order_gap_above_chance_and_without_the_answers_that_do_not_count():
    rows = fabricate(order=2)
    rows["correct"] = (rows["order"] == 0).astype(float)
    rows["baseline/chance"] = np.where(rows["order"] == 0, 0.5, 0.25)
    gap = strict(summarise(rows))["order_gap"]
    assert gap["mean"] == 1
    assert gap["above_chance"]["mean"] == 0.75
    rows["order"] = np.where(rows["order"] == 1, -1, rows["order"])
    assert summarise(rows)["order_gap"] == {}
    rows["order"] = np.where(rows["order"] == 0, 1, np.where(rows["query_slot"] == 0, 0, -1))
    rows["correct"] = np.where(rows["order"] == -1, 1, rows["correct"])
    gap = strict(summarise(rows))["order_gap"]
    assert (gap["first"], gap["second"]) == (0, 1)
    assert gap["mean"] == -1
    assert sum(o["count"] for o in gap["by_order"]) < len(rows["order"])


def test_start_and_end_carry_the_same_measures():
    summary = strict(summarise(fabricate(), fabricate(replicas=2)))
    assert summary["at_init"]["accuracy"]["replicas"] == pytest.approx([10 / 24, 14 / 24])
    assert summary["at_init"]["influence"] == summary["influence"]
    assert set(summary["at_init"]) == set(summary["by_condition"]["first"])
    assert summarise(fabricate())["at_init"] == {}


def test_unknown_ceilings_are_null_and_nothing_is_called_solved():
    rows = fabricate()
    rows["ceiling"] = np.full(rows["ceiling"].shape, np.nan)
    rows["log_probability"] = np.full(rows["ceiling"].shape, -np.inf)
    summary = strict(summarise(rows))
    assert summary["ceiling"]["mean"] is summary["accuracy"]["solved"] is summary["accuracy"]["verdict"] is None
    assert summary["by_query_position"][0]["ceiling"] is None
    assert summary["log_probability"]["mean"] is None
    assert "ceiling" in table(summary)


def test_a_ceiling_known_of_some_answers_is_their_mean_and_accuracy_is_held_against_it_on_them():
    rows = fabricate()
    item = np.indices((3, 1, 4, 6))[3].ravel()
    rows["ceiling"] = np.where((rows["query_slot"] > 1) | (item < 3), 0.5, np.nan)  # 9 of 12 at slots 0 and 1
    rows["ceiling"] = np.where(rows["query_slot"] == 3, np.nan, rows["ceiling"])
    summary = strict(summarise(rows))
    # Replica r is right at slot k iff item < k + 1 + r, so of the 3 + 3 + 6 answers 1 + 2 + 3, 2 + 3 + 4, 3 + 3 + 5.
    ceiling, accuracy = summary["ceiling"], summary["accuracy"]
    assert (ceiling["mean"], ceiling["replicas"], ceiling["known"]) == (0.5, [0.5] * 3, 0.5)
    assert ceiling["accuracy"] == pytest.approx(26 / 36)
    assert accuracy["replicas"] == pytest.approx([10 / 24, 14 / 24, 18 / 24])
    assert accuracy["deviation"]["replicas"] == pytest.approx([0, 3 / 12, 5 / 12])
    assert accuracy["solved"] == 1
    told = [(row["ceiling"], row["ceiling_known"]) for row in summary["by_query_position"]]
    assert told == [(0.5, 0.5), (0.5, 0.5), (0.5, 1), (None, 0)]
    below = summary["indices"]["query_position"]["ceiling_minus_accuracy"]
    assert below["primacy"]["mean"] == pytest.approx(1 / 2 - 2 / 3 - (1 / 2 - 8 / 9))
    assert below["tilt"]["mean"] is None


def test_replicas_of_which_nothing_is_known_are_not_counted():
    rows = fabricate(replicas=4)
    rows["ceiling"] = np.where(rows["replica"] == 0, np.nan, rows["ceiling"])
    summary = strict(summarise(rows))
    assert summary["accuracy"]["solved"] == pytest.approx(2 / 3)  # of replicas 1, 2 and 3
    assert solved_count(summary) == "2 of 3"
    assert "2 of 3 solved the task" in table(summary)


def test_accuracy_above_the_ceiling_is_told():
    summary = strict(summarise(fabricate(replicas=1)))
    assert summary["accuracy"]["deviation"]["mean"] == pytest.approx(10 / 24 - 0.625)
    assert "above the ceiling" not in table(summary)
    rows = fabricate(conditions=("near", "far"))
    rows["ceiling"] = np.where(rows["condition"] == 1, 0.5, 0.6)
    summary = strict(summarise(rows))
    deviation = summary["by_condition"]["far"]["accuracy"]["deviation"]
    assert deviation["replicas"] == pytest.approx([10 / 24 - 0.5, 14 / 24 - 0.5, 18 / 24 - 0.5])
    told = [line for line in table(summary).splitlines() if "above the ceiling" in line]
    assert told == [
        "accuracy is 0.083 above the ceiling in condition far: something leaks or is mislabelled, or the answers are"
        " too few"
    ]


def test_one_replica_has_no_interval():
    accuracy = strict(summarise(fabricate(replicas=1)))["accuracy"]
    assert (accuracy["low"], accuracy["high"], len(accuracy["replicas"])) == (None, None, 1)


def test_compact_types_do_not_overflow(tmp_path):
    rows = {**fabricate(slots=300, items=1), "ceiling": np.full(900, 0.5)}
    write_rows(tmp_path / "0.npz", rows)
    assert summarise(read_rows(tmp_path / "0.npz")) == summarise(rows)


def test_distance_and_evidence_position_are_told_apart_or_not():
    assert summarise(fabricate())["collinear"] is True
    rows = fabricate(items=2)
    rows["distance"] = rows["distance"] + np.arange(len(rows["distance"])) % 2
    assert summarise(rows)["collinear"] is False


def test_seeds_are_no_combinations():
    plain, seeds = summarise(fabricate()), summarise(fabricate(), varied={"seed": [1, 2, 3]})
    assert seeds == {**plain, "varied": {"seed": [1, 2, 3]}}
    assert plain["combinations"] == []


GRID = {"learning_rate": [1e-3, 2e-3], "seed": [7, 8]}


def test_intervals_are_over_the_replicas_of_one_combination():
    rows, at_init = with_losses(replicas=4, conditions=("near", "far")), fabricate(replicas=4, conditions=("near",))
    rows["influence"] = np.tile(np.array([[0.5, 0.5], [0.25, 0.75], [0, 1], [1, 0]])[:, None], (1, 2, 1))
    summary = strict(summarise(rows, at_init, steps=3, of=3, varied=GRID, theory={"mean": 0.5}, state_size=9))
    first, second = summary["combinations"]
    assert (first["values"], first["members"]) == ({"learning_rate": 1e-3}, [0, 1])
    assert (second["values"], second["members"]) == ({"learning_rate": 2e-3}, [2, 3])
    assert second["accuracy"]["replicas"] == pytest.approx([18 / 24, 21 / 24])
    half = 12.7062 * (3 / 24) / 2  # Student's t at one degree of freedom
    bounds = [second["accuracy"][bound] for bound in ("mean", "low", "high")]
    assert bounds == pytest.approx([19.5 / 24, 19.5 / 24 - half, 19.5 / 24 + half], abs=1e-5)
    assert [row["mean"] for row in second["influence"]] == [0.5, 0.5]
    alone = {name: column for name, column in rows.items() if name not in ("conditions", "axes", "influence")}
    alone = {name: column[rows["replica"] < 2] for name, column in alone.items()}
    alone |= {name: rows[name] for name in ("conditions", "axes")} | {"influence": rows["influence"][:2]}
    before = summarise(fabricate(replicas=2, conditions=("near",)))
    same = strict(summarise(alone, fabricate(replicas=2), steps=3, of=3, theory={"mean": 0.5}, state_size=9))
    assert first == {**same, "values": {"learning_rate": 1e-3}, "members": [0, 1]}
    assert first["at_init"]["accuracy"] == before["accuracy"]


def test_replicas_of_several_combinations_have_a_mean_and_no_interval():
    rows = fabricate(replicas=4)
    summary, plain = strict(summarise(rows, varied=GRID)), strict(summarise(rows))
    assert summary["varied"] == GRID
    assert summary["note"] == "Replicas differ in learning_rate: intervals are over those of one combination."

    def compare(one, other):
        if isinstance(one, dict):
            for name in one:
                if name in ("low", "high", "verdict"):
                    assert one[name] is None
                elif name not in ("combinations", "varied", "note"):
                    compare(one[name], other[name])
        elif isinstance(one, list):
            for a, b in zip(one, other, strict=True):
                compare(a, b)
        else:
            assert one == other

    compare(summary, plain)
    assert plain["accuracy"]["low"] is not None
