"""Formulas of claims, against numbers worked out by hand, and what is refused of them before anything runs."""

import json
import math
import pathlib

import fabricate
import numpy as np
import pytest

from positionbias.evaluation.rows import write_rows
from positionbias.evaluation.summary import summarise
from positionbias.spec import ConfigError
from positionbias.studying.formula import NESTING, parse
from positionbias.studying.recorded import NotMeasured, Recorded

RIGHT = np.array(  # replica, condition, place of the evidence
    [
        [[1, 0, 0, 1], [1, 1, 1, 1]],
        [[0, 0, 1, 1], [0, 0, 0, 1]],
    ]
)
LOG2 = math.log(2)


def rows(right, **more):
    replica, condition, slot = (i.ravel() for i in np.indices(right.shape))
    right = right.ravel()
    return {
        "replica": replica,
        "condition": condition,
        "query": slot + 4,
        "evidence": slot,
        "query_slot": slot // 2,
        "evidence_slot": slot,
        "distance": slot - 2,
        "order": slot % 2,
        "correct": right,
        "log_probability": np.where(right == 1, -LOG2, -2 * LOG2),
        "ceiling": np.full(slot.shape, 0.75),
        "baseline/chance": np.full(slot.shape, 0.25),
        "baseline/order_free": np.full(slot.shape, 0.5),
        "conditions": ["near", "far"],
        "influence": np.array(
            [[[4, 1, 1, 2, math.nan], [5, 0, 0, 0, 1]], [[1, 1, 1, 1, math.nan], [0, 0, 0, 0, 1]]], np.float32
        ),
        **more,
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`arms/one` of 10 steps; `three` of three replicas; `arms/lost`, whose last rows are gone."""
    home = tmp_path_factory.mktemp("runs")
    for name in ("arms/one", "arms/lost"):
        write_rows(home / name / "evals" / "000000.npz", rows(0 * RIGHT))
        write_rows(home / name / "evals" / "000005.npz", rows(1 - RIGHT))
        (home / name / "manifest.json").write_text(json.dumps({"status": "finished", "step": 10}))
    one = home / "arms" / "one"
    write_rows(one / "evals" / "000010.npz", rows(RIGHT))
    write_rows(one / "evals" / "again.npz", rows(0 * RIGHT + 1, loss=np.tile([1.0, 3.0], 8)))
    write_rows(one / "evals" / "again_shift.npz", rows(RIGHT, answers_changed=1 - RIGHT.ravel()))
    summary = summarise(rows(RIGHT), theory={"influence": [0.5, 0.25, 0.125, 0.125]})
    (one / "summary.json").write_text(json.dumps(summary))
    (one / "analysis").mkdir()
    told = np.arange(12.0).reshape(2, 2, 3)
    np.savez(one / "analysis" / "probe.npz", told=told, late=told[:, 0], **{"at_init/told": 0 * told})
    write_rows(home / "three" / "evals" / "000010.npz", rows(RIGHT[[0, 1, 1]], influence=np.zeros((0, 0, 0))))
    (home / "three" / "manifest.json").write_text(json.dumps({"status": "finished", "step": 10}))
    return home


def values(text, runs, initial=False):
    return parse(text, "f").values(lambda run: Recorded(runs / run, initial))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accuracy('arms/one')", [0.5, 0.5]),
        ("accuracy('arms/one', condition='far')", [1, 0.25]),
        ("accuracy('arms/one', evidence=0)", [1, 0]),
        ("accuracy('arms/one', query=1)", [0.5, 1]),
        ("accuracy('arms/one', distance=-2)", [1, 0]),
        ("accuracy('arms/one', order=1, condition='far')", [1, 0.5]),
        ("accuracy('arms/one', evidence=3, step=5)", [0, 0]),
        ("accuracy('arms/one', evals='again')", [1, 1]),
        ("log_probability('arms/one')", [-1.5 * LOG2, -1.5 * LOG2]),
        ("loss('arms/one', evals='again')", [2, 2]),
        ("ceiling('arms/one')", [0.75, 0.75]),
        ("baseline('arms/one', 'chance', evidence=2)", [0.25, 0.25]),
        ("changed('arms/one', evals='again_shift', condition='far')", [0, 0.75]),
        ("index('arms/one', 'primacy')", [1, 0]),
        ("index('arms/one', 'recency', axis='distance')", [1, 1]),
        ("index('arms/one', 'tilt', 'evidence', condition='near')", [0, -1]),
        ("index('arms/one', 'tilt', 'query')", [math.nan, math.nan]),  # of two places
        ("influence('arms/one', 'primacy')", [3, 0]),  # of four inputs, the fifth is padding
        ("influence('arms/one', 'recency', condition='far', step=0)", [1, 1]),  # of five
        ("even_influence('arms/one', 'primacy')", [0.25]),
        ("influence('arms/one', 'primacy') - even_influence('arms/one', 'primacy')", [2.75, -0.25]),
        ("analysis('arms/one', 'probe', 'told')", [2.5, 8.5]),
        ("analysis('arms/one', 'probe', 'told', 1)", [4, 10]),
        ("analysis('arms/one', 'probe', 'told', None, -1)", [3.5, 9.5]),
        ("analysis('arms/one', 'probe', 'told', 0, 2)", [2, 8]),
        ("1 - 2 * accuracy('arms/one', condition='far') / 4", [0.5, 0.875]),
        ("-accuracy('arms/one', condition='far') + 1", [0, 0.75]),
        ("accuracy('arms/one', condition='far') > 0.25", [1, 0]),
        ("accuracy('arms/one', condition='far') >= 0.25", [1, 1]),
        ("accuracy('arms/one', condition='far') < 1", [0, 1]),
        ("accuracy('arms/one', condition='far') <= 1", [1, 1]),
        ("min(accuracy('arms/one', condition='far'), 0.5, ceiling('arms/one'))", [0.5, 0.25]),
        ("max(accuracy('arms/one', condition='far'), 0.5)", [1, 0.5]),
        ("abs(0.5 - accuracy('arms/one', condition='far'))", [0.5, 0.25]),
        ("log(accuracy('arms/one', condition='far'))", [0, -2 * LOG2]),
        ("log(accuracy('arms/one', evidence=0))", [0, -math.inf]),
        ("(accuracy('arms/one') / 0 - accuracy('arms/one') / 0) > 0", [math.nan, math.nan]),  # and not 0
    ],
)
def test_a_formula_is_what_it_says_of_every_replica(text, expected, runs):
    np.testing.assert_allclose(values(text, runs), expected, rtol=1e-6)


def test_of_an_initial_run_all_is_read_as_it_was_drawn(runs):
    np.testing.assert_array_equal(values("accuracy('arms/one')", runs, initial=True), [0, 0])
    np.testing.assert_array_equal(values("accuracy('arms/one', step=5)", runs, initial=True), [0, 0])
    np.testing.assert_array_equal(values("analysis('arms/one', 'probe', 'told')", runs, initial=True), [0, 0])
    for text in ("accuracy('arms/one', evals='again')", "analysis('arms/one', 'probe', 'late')"):
        with pytest.raises(NotMeasured):
            values(text, runs, initial=True)


@pytest.mark.parametrize("axis", ["query", "evidence", "distance"])
@pytest.mark.parametrize("name", ["primacy", "recency", "tilt", "middle_dip"])
def test_indices_are_those_of_the_summary(axis, name, tmp_path):
    made = fabricate.rows(skill=0.7, items=32)
    lacking = made["evidence_slot"] % 3 > 0  # some places have no answer
    made |= {key: made[key][lacking] for key in made if np.shape(made[key]) == lacking.shape}
    write_rows(tmp_path / "evals" / "000009.npz", made)
    (tmp_path / "manifest.json").write_text('{"step": 9}')
    summary = summarise(made)["indices"]
    told = {"query": "query_position", "evidence": "evidence_position", "distance": "distance"}[axis]
    found = parse(f"index('r', '{name}', '{axis}')", "f").values(lambda _: Recorded(tmp_path))
    assert found.mean() == pytest.approx(summary[told][name]["mean"])
    found = parse(f"influence('r', '{name}')", "f").values(lambda _: Recorded(tmp_path))
    assert found.mean() == pytest.approx(summary["influence"][name]["mean"], rel=1e-5)


def test_a_formula_tells_its_readings_and_runs():
    found = parse(
        "accuracy('a/b', query=1) / min(1, influence('c', 'tilt')) > analysis('a/b', 'f', 'x', None, -1)", "f"
    )
    assert found.runs == ["a/b", "c"]
    told = {(one.measure, one.run, one.positional, tuple(one.keywords.items())) for one in found.readings}
    assert told == {
        ("accuracy", "a/b", (), (("query", 1),)),
        ("influence", "c", ("tilt",), ()),
        ("analysis", "a/b", ("f", "x", None, -1), ()),
    }


ALLOWED = "numbers, + - * /, < and > and measures of runs."
MEASURES = "accuracy, log_probability, loss, ceiling, baseline, changed, index, influence, even_influence, analysis"


@pytest.mark.parametrize(
    ("text", "told", "allowed"),
    [
        (3, "3 is not allowed;", "the text of a formula."),
        (" ", "' ' is not allowed;", "the text of a formula."),
        ("1 + 1", "'1 + 1' reads no run;", f"a formula with one of {MEASURES}."),
        (
            "accuracy('a'",
            "cannot read \"accuracy('a'\", where '(' has no other half; write name or name(argument=value, ...).",
            "",
        ),
        ("acuracy('a')", "acuracy: unknown measure 'acuracy', did you mean 'accuracy'?", ""),
        ("accuracy()", "'accuracy()' is not allowed;", "accuracy('PART/CELL', ...) with numbers, texts and None."),
        ("accuracy(1)", "'accuracy(1)' is not allowed;", "a run as the first argument, as 'PART/CELL'."),
        (
            "accuracy('a', 'b')",
            "\"accuracy('a', 'b')\" is not allowed, too many positional arguments;",
            "the arguments of accuracy.",
        ),
        (
            "accuracy('a', qury=1)",
            "accuracy: unknown argument 'qury', did you mean 'query'?",
            "condition, distance, evals, evidence, order, query, step.",
        ),
        ("accuracy('a', query='1')", "accuracy, query: '1' is not allowed;", "a whole number or None."),
        ("accuracy('a', query=True)", "accuracy, query: True is not allowed;", "a whole number or None."),
        ("accuracy('a', condition=['x'])", "accuracy, condition: ['x'] is not allowed;", "text or None."),
        (
            "accuracy('a', step=1, evals='b')",
            "\"accuracy('a', step=1, evals='b')\" is not allowed;",
            "step= or evals=, which is of one step already.",
        ),
        (
            "index('a', 'primcy')",
            "index, name: 'primcy' is not allowed, did you mean 'primacy';",
            "'primacy' or 'recency' or 'tilt' or 'middle_dip'.",
        ),
        (
            "index('a', 'tilt', axis='key')",
            "index, axis: 'key' is not allowed, did you mean 'query';",
            "'query' or 'evidence' or 'distance'.",
        ),
        ("influence('a', 'tilt', evals='b')", "influence: unknown argument 'evals';", "condition, name, step."),
        (
            "baseline('a')",
            "\"baseline('a')\" is not allowed, missing a required argument: 'name';",
            "the arguments of baseline.",
        ),
        ("analysis('a', 'f', 'x', 0.5)", "analysis, at: 0.5 is not allowed;", "a whole number or None."),
        ("analysis('a', 'f', 'x', ...)", "analysis, at: Ellipsis is not allowed;", "a whole number or None."),
        ("abs(accuracy('a'), 1)", "\"abs(accuracy('a'), 1)\" is not allowed;", "abs of one value."),
        ("max(accuracy('a'))", "\"max(accuracy('a'))\" is not allowed;", "max of two values or more."),
        ("accuracy('a') ** 2", "\"accuracy('a') ** 2\" is not allowed;", ALLOWED),
        ("accuracy('a') == 1", "\"accuracy('a') == 1\" is not allowed;", ALLOWED),
        ("0 < accuracy('a') < 1", "\"0 < accuracy('a') < 1\" is not allowed;", ALLOWED),
        ("accuracy('a') + True", "'True' is not allowed;", ALLOWED),
        ("accuracy('a') + 1e999", "inf is not allowed;", "numbers up to 1e+09."),
        ("accuracy('a') + 10000000000", "10000000000 is not allowed;", "numbers up to 1e+09."),
    ],
)
def test_what_no_run_could_answer_is_refused(text, told, allowed):
    with pytest.raises(ConfigError) as error:
        parse(text, "f")
    assert str(error.value) == f"f: {told}" + (allowed and f" allowed: {allowed}")


@pytest.mark.parametrize(
    "text", ["analysis('a', 'f', array='x')", "analysis('a', file='f', array='x')", "analysis('a')"]
)
def test_file_and_array_of_an_analysis_are_told_by_their_place(text):
    with pytest.raises(ConfigError, match=r"^f: .* is not allowed, .*; allowed: the arguments of analysis\.$"):
        parse(text, "f")


@pytest.mark.parametrize("digits", [400, 10_000])
def test_a_number_beyond_all_floats_is_refused(digits):
    with pytest.raises(ConfigError, match=r"^f: "):
        parse("accuracy('a') + 1" + digits * "0", "f")


TOUCH = "__import__('pathlib').Path('touched').touch()"


@pytest.mark.parametrize(
    "text",
    [
        TOUCH,
        f"accuracy('a') + {TOUCH}",
        f"accuracy({TOUCH})",
        f"accuracy('a', query={TOUCH})",
        f"accuracy('a', **{{'query': {TOUCH}}})",
        f"accuracy(*[{TOUCH}])",
        f"max(accuracy('a'), *[{TOUCH}])",
        f"min(accuracy('a'), {TOUCH})",
        f"(lambda: {TOUCH})() + accuracy('a')",
        f"[{TOUCH} for _ in 'a'][0] + accuracy('a')",
        f"accuracy('a') if {TOUCH} else 1",
        f"accuracy('a') and {TOUCH}",
        f"(x := {TOUCH}) + accuracy('a')",
        f"accuracy(f'{{{TOUCH}}}')",
        "accuracy.__globals__['np']",
        "accuracy('a').__class__.__mro__",
        "accuracy('a')[0]",
        "accuracy",
        "exec('1')",
        "accuracy('a') @ accuracy('a')",
        "not accuracy('a')",
        "~accuracy('a')",
        "accuracy('a'); 1",
        "import os",
        "'a' + accuracy('a')",
        "1j * accuracy('a')",
    ],
)
def test_a_hostile_formula_is_refused_and_evaluates_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^f: ") as error:
        parse(text, "f")
    assert "\n" not in str(error.value)
    assert not pathlib.Path("touched").exists()


@pytest.mark.parametrize("text", ["(" * 10**5, "-" * 10**5 + "accuracy('a')", "accuracy('a')" + "+1" * 10**5])
def test_a_formula_nested_without_end_is_refused_in_short(text):
    with pytest.raises(ConfigError, match=f" is nested too deeply; allowed: {NESTING} signs and brackets.$") as error:
        parse(text, "f")
    assert len(str(error.value)) < 200


def test_the_deepest_formula_is_evaluated(runs):
    deepest = "-" * (NESTING - 1) + "accuracy('three')"
    np.testing.assert_array_equal(values(deepest, runs), [-0.5, -0.5, -0.5])


@pytest.mark.parametrize(
    ("text", "told", "allowed"),
    [
        (
            "accuracy('arms/one', condition='fr')",
            "condition: unknown condition 'fr', did you mean 'far'?",
            "far, near.",
        ),
        (
            "accuracy('arms/one', query=9, order=0)",
            "formula: no answer has query_slot = 9, order = 0;",
            "what the task's items have.",
        ),
        ("accuracy('arms/one', step=6)", "step = 6 was not evaluated in '{}/arms/one';", "0, 5, 10."),
        (
            "accuracy('arms/one', evals='agin')",
            "evals: unknown evaluation 'agin', did you mean 'again'?",
            "000000, 000005, 000010, again, again_shift.",
        ),
        (
            "baseline('arms/one', 'chanse')",
            "formula: unknown column 'baseline/chanse', did you mean 'baseline/chance'?",
            "baseline/chance, baseline/order_free, ceiling, correct, log_probability.",
        ),
        ("changed('arms/one')", "changed: needs rows of an intervention;", "together with evals='LABEL_VARIANT'."),
        ("analysis('arms/one', 'prob', 'told')", "analysis: unknown result 'prob', did you mean 'probe'?", "probe."),
        ("analysis('arms/one', 'probe', 'tol')", "analysis: unknown array 'tol', did you mean 'told'?", "late, told."),
        (
            "analysis('arms/one', 'probe', 'told', 2)",
            "analysis: at = (2,) is not allowed;",
            "an index within each of (2, 3), or None.",
        ),
        (
            "analysis('arms/one', 'probe', 'told', 0, 0, 0)",
            "analysis: at = (0, 0, 0) is not allowed;",
            "an index within each of (2, 3), or None.",
        ),
        (
            "accuracy('arms/one') - accuracy('three')",
            "formula: runs of 2 and 3 replicas cannot be paired in \"accuracy('arms/one') - accuracy('three')\";",
            "the same number.",
        ),
        (
            "influence('three', 'tilt')",
            "influence: was not measured in these rows;",
            "rows of an evaluation while training.",
        ),
        ("accuracy('arms/lost')", "step = 10 was not evaluated in '{}/arms/lost';", "0, 5."),
    ],
)
def test_what_a_run_does_not_hold_is_refused(text, told, allowed, runs):
    with pytest.raises(ConfigError) as error:
        values(text, runs)
    assert str(error.value) == told.format(runs) + (allowed and f" allowed: {allowed}")


@pytest.mark.parametrize("damage", [b"", b"PK", None])
@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("evals/000010.npz", "accuracy('hurt')"),
        ("analysis/probe.npz", "analysis('hurt', 'probe', 'told')"),
        ("manifest.json", "accuracy('hurt')"),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(path, text, damage, runs, tmp_path):
    for name in ("evals/000010.npz", "analysis/probe.npz", "manifest.json"):
        (tmp_path / "hurt" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hurt" / name).write_bytes((runs / "arms" / "one" / name).read_bytes())
    values(text, tmp_path)
    whole = (tmp_path / "hurt" / path).read_bytes()
    at = whole.index(b"NUMPY") + 150 if b"NUMPY" in whole else len(whole) // 2  # in the array, or in the rows
    flipped = whole[:at] + bytes(byte ^ 255 for byte in whole[at : at + 20]) + whole[at + 20 :]
    (tmp_path / "hurt").rename(tmp_path / "hurt2")  # the rows of one path are read once
    (tmp_path / "hurt2" / path).write_bytes(flipped if damage is None else damage)
    with pytest.raises(ConfigError, match=pathlib.Path(path).name):
        values(text.replace("hurt", "hurt2"), tmp_path)
