"""Files of run folders that were damaged: refused with their name and the place, whatever stands there instead."""

import json
import math

import pytest
from test_summary import fabricate, with_losses

from positionbias.evaluation.stored import misfit, read, read_again, read_analyses, read_summary
from positionbias.evaluation.summary import summarise
from positionbias.spec import ConfigError


@pytest.fixture
def stored(tmp_path):
    """Writes a summary after `change`; returns its path."""

    def write(change=lambda summary: None, **options):
        predicted = {"name": "guess", "of": "loss", "value": 0.5, "exact": True, "condition": "far"}
        rows = fabricate(order=2, conditions=("near", "far"), **options)
        rows["items"] = ["same", "same"]
        summary = summarise(rows, rows, steps=6, of=6, theory={"query": [0.5, 1.0], "predictions": [predicted]})
        change(summary)
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        return tmp_path / "summary.json"

    return write


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_summary_comes_back_as_it_was_written(stored, replicas):
    path = stored(replicas=replicas)
    assert read_summary(path) == json.loads(path.read_text())
    assert read_summary(path.with_name("none.json")) == {}


def test_a_summary_with_losses_comes_back_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "summary.json"
    summary = summarise(with_losses())
    path.write_text(json.dumps(summary))
    assert read_summary(path) == json.loads(path.read_text())
    for place, told in [("loss.floor", "loss"), ("by_distance.0.loss.mean", "by_distance[0]")]:
        damaged = json.loads(json.dumps(summary))
        put(place, "low")(damaged)
        path.write_text(json.dumps(damaged))
        with pytest.raises(ConfigError, match=f"is damaged at '{told}'".replace("[", r"\[")):
            read_summary(path)


def put(place, value):
    """A change that sets what stands at the dotted `place`."""
    *groups, last = [int(key) if key.isdecimal() else key for key in place.split(".")]

    def change(summary):
        for key in groups:
            summary = summary[key]
        summary[last] = value

    return change


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("accuracy", [], "accuracy"),
        ("accuracy.mean", "0.5", "accuracy"),
        ("accuracy.low", None, "accuracy"),  # an interval has both of its bounds or none
        ("accuracy.replicas", [], "accuracy"),
        ("accuracy.replicas", [1.0, 1.0], "ceiling.replicas"),
        ("ceiling.replicas", [1.0, None, True], "ceiling.replicas[2]"),
        ("baselines.order_free", {}, "baselines.order_free"),
        ("by_distance", [], "by_distance"),
        ("by_query_position.1.position", 1.5, "by_query_position[1]"),
        ("by_query_position.1.ceiling", math.nan, "by_query_position[1]"),
        ("by_condition.far.collinear", 0, "by_condition.far.collinear"),
        ("at_init.influence.0", None, "at_init.influence[0]"),
        ("order_gap", {"first": 1}, "order_gap"),
        ("indices.influence", None, "indices.influence"),
        ("paired.same.differences.0.second", 3, "paired.same"),
        ("steps", 10**30, "steps"),
        ("theory.query", [None], "theory.query[0]"),
        ("theory.predictions.0.value", None, "theory.predictions[0].value"),
        ("note", 3, "note"),
    ],
)
def test_what_is_damaged_is_named(stored, place, value, told):
    path = stored(put(place, value))
    with pytest.raises(ConfigError) as caught:
        read_summary(path)
    assert str(caught.value) == (
        f"workdir: '{path}' is damaged at '{told}'; allowed: the file as it was written, or none."
    )


def test_a_group_that_is_missing_is_named(stored):
    path = stored(lambda summary: summary["by_condition"]["far"].pop("answers"))
    with pytest.raises(ConfigError, match=r"is damaged at 'by_condition\.far\.answers';"):
        read_summary(path)


@pytest.mark.parametrize("text", ["", "{}x", "[]", "0", "null", "[" * 100_000, "\x00"])
def test_what_is_no_object_is_told(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=r"^workdir: '.*/a\.json' cannot be read as a JSON object; allowed: "):
        read(tmp_path / "a.json", dict)


def test_an_empty_summary_is_damaged(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="is damaged at 'by_query_position'"):
        read_summary(tmp_path / "summary.json")


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (1, float),
        (-1.5, float),
        (None, None),
        ([], [int]),
        ([1, 2], [int, ...]),
        ({}, {"a?": int}),
        ({"b": 1}, {"a?": int}),
        ({"a": 1, "b": "x"}, {"a": int, str: str}),
        ({}, {str: ()}),
        ("x", (int, str)),
    ],
)
def test_what_fits_a_shape(value, shape):
    assert misfit(value, shape) is None


@pytest.mark.parametrize(
    ("value", "shape", "place"),
    [
        (True, int, ""),
        (True, float, ""),
        (math.inf, float, ""),
        (math.nan, float, ""),
        (10**400, float, ""),
        (1.0, int, ""),
        ([], [int, ...], ""),
        ((1,), [int], ""),
        ({}, {"a": int}, "a"),
        ({"a": {"b": [1, "x"]}}, {"a": {"b": [int]}}, "a.b[1]"),
        ({"a": 1, "b": 2}, {"a": int, str: str}, "b"),
        ({"a": 1}, {str: ()}, "a"),
        (3, (str, None), ""),
    ],
)
def test_what_does_not_fit_a_shape(value, shape, place):
    assert misfit(value, shape) == place


def test_a_file_that_is_deleted_while_it_is_read_is_none(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    path.write_text("{}")
    monkeypatch.setattr("positionbias.evaluation.stored.read_json", lambda path: path.unlink())
    assert read(path, {"steps": int}) == {}


def test_an_analysis_that_is_deleted_meanwhile_is_none_and_what_it_is_about_is_text(tmp_path):
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "gone.json").symlink_to(tmp_path / "nowhere")  # listed, but not there to be read
    told = {"analysis": "look_back", "step": 4, "condition": "train", "items": 8, "shown": "distance", "replicas": 1}
    told |= {"labels": {"layer": ["0"]}, "arrays": {}}
    path = tmp_path / "analysis" / "look_back.json"
    path.write_text(json.dumps(told))
    assert list(read_analyses(tmp_path)) == ["look_back"], "of before it was told what numbers are"
    path.write_text(json.dumps({**told, "about": None}))
    with pytest.raises(ConfigError, match=r"look_back.json' is damaged at 'about'; allowed: the file as it was"):
        read_analyses(tmp_path)


def test_evaluations_that_are_gone_meanwhile_are_left_out(tmp_path):
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "gone.json").symlink_to(tmp_path / "nowhere")
    assert read_again(tmp_path) == {}
