"""Measuring a run again: lengths, interventions, stored items, and what is refused before anything is measured."""

import dataclasses
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from test_summary import fabricate, with_losses

from positionbias import evaluate, spec
from positionbias.config.build import build
from positionbias.evaluation import again, stored
from positionbias.evaluation.rows import read_rows
from positionbias.evaluation.statistics import interval
from positionbias.evaluation.summary import summarise
from positionbias.positions.base import PositionScheme
from positionbias.positions.rotary import RoPE
from positionbias.reporting.report import write_report
from positionbias.spec import ConfigError
from positionbias.tasks import export, exported
from positionbias.tasks.associative_recall import AssociativeRecall
from positionbias.training import writers
from positionbias.training.loop import train

pytestmark = pytest.mark.usefixtures("no_influence")

TASK = "associative_recall(pairs=2, keys=4, values=4, delays=2, shift=0)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("again") / "run"


@pytest.fixture
def run(tiny, folder):
    """A run without a table of positions."""
    if not folder.exists():
        position = {"model.position": "rope", "train.steps": 4, "evaluation.items": 64}
        train(tiny({"task": TASK, **position}), folder, [], lambda line: None)
    return folder


def test_every_length_is_measured_unchanged_and_under_every_intervention():
    found = again.variants("1x,2x", "shift(4), swap(0, -1)")
    assert [one.name for one in found] == [
        "",
        "shift(by=4)",
        "swap",
        "2x",
        "2x shift(by=4)",
        "2x swap",
    ]
    assert [one.name for one in again.variants(None, None)] == [""]


def test_what_an_intervention_is_measured_under_is_measured_before_it():
    found = again.variants("1x,2x", "permute, permute(under=pine), pcw, swap(under=pcw), swap(under=pine)")
    names = ["", "permute", "pine", "permute(under=pine)", "pcw", "swap(under=pcw)", "swap(under=pine)"]
    assert [one.name for one in found] == [*names, *(f"2x {name}".strip() for name in names)]
    assert [one.base.name for one in found] == [
        *("", "", "", "pine", "", "pcw", "pine"),
        *("2x", "2x", "2x", "2x pine", "2x", "2x pcw", "2x pine"),
    ]


@pytest.mark.parametrize(
    ("lengths", "interventions", "told"),
    [
        ("1x,1x", None, "--lengths: '1x,1x' has a length twice; allowed: each once."),
        ("2", None, "--lengths: '2' is not allowed; allowed: 1x to 1024x, as in 1x,2x,4x."),
        ("0x", None, "--lengths: '0x' is not allowed"),
        ("", None, "--lengths: '' is not allowed"),
        (None, "shift, shift(8)", "--interventions: 'shift, shift(8)' has one twice; allowed: each once."),
        (None, "shft", "--interventions: unknown intervention 'shft', did you mean 'shift'?"),
        ("٢x", None, "--lengths: '٢x' is not allowed"),
        ("1025x", None, "--lengths: '1025x' is not allowed"),
        (None, "shift(", "--interventions: cannot read"),
        (None, "", "--interventions: '' is not a spec"),
        (None, "]+[swap", "--interventions: cannot read"),
    ],
)
def test_what_cannot_be_read_is_refused(lengths, interventions, told):
    with pytest.raises(ConfigError) as caught:
        again.variants(lengths, interventions)
    assert str(caught.value).startswith(told)


def test_results_of_every_variant(run, capsys):
    arguments = ["--workdir", str(run), "--lengths", "1x,2x", "--interventions", "shift(4), swap", "--items", "96"]
    assert evaluate.main(arguments) == 0
    evals = run / "evals"
    names = ["", "_shift_by_4", "_swap", "_2x", "_2x_shift_by_4", "_2x_swap"]
    told = {name: json.loads((evals / f"step000004{name}.json").read_text()) for name in names}
    rows = {name: read_rows(evals / f"step000004{name}.npz") for name in names}
    assert {name: len(found["correct"]) for name, found in rows.items()} == dict.fromkeys(names, 2 * 96)
    assert [one["variant"] for one in told.values()] == [
        "",
        "shift(by=4)",
        "swap",
        "2x",
        "2x shift(by=4)",
        "2x swap",
    ]
    assert told["_2x"]["task"] == spec.full(spec.build("tasks", TASK.replace("pairs=2", "pairs=4"), "task"))
    assert [row["position"] for row in told["_2x"]["by_evidence_position"]] == [0, 1, 2, 3]
    # Relative positions do not see a shift of all, and swapping two pairs moves what stands where.
    assert told["_shift_by_4"]["answers_changed"]["mean"] == 0
    assert "order_sensitivity" not in told["_shift_by_4"]
    assert "answers_changed" not in told["_swap"]
    assert told["_swap"]["order_sensitivity"]["mean"] == pytest.approx(rows["_swap"]["order_sensitivity"].mean())
    np.testing.assert_array_equal(rows["_swap"]["evidence_slot"], 1 - rows[""]["evidence_slot"])
    paired = [rows["_swap"]["correct"][rows["_swap"]["replica"] == r].mean() for r in range(2)]
    before = [rows[""]["correct"][rows[""]["replica"] == r].mean() for r in range(2)]
    assert told["_swap"]["minus"]["mean"] == pytest.approx(np.mean(np.subtract(paired, before)))
    assert "minus" not in told[""]
    assert told["_swap"]["minus"]["by_condition"]["train"]["mean"] == told["_swap"]["minus"]["mean"]
    out, error = capsys.readouterr()
    assert out.startswith(f"{TASK}\nevaluated at step 4 of 4\n")
    told_2x = told["_2x"]["accuracy"]["mean"], told["_2x"]["baselines"]["order_free"]
    assert re.search(r"^2x: accuracy {:.3f} \[.*\], ceiling 1\.000, order-free {:.3f}$".format(*told_2x), out, re.M)
    assert [line for line in error.splitlines() if line.startswith("evaluating")] == [
        "evaluating shift(by=4) (2 of 6)",
        "evaluating swap (3 of 6)",
        "evaluating 2x (4 of 6)",
        "evaluating 2x shift(by=4) (5 of 6)",
        "evaluating 2x swap (6 of 6)",
    ]
    assert "stored" not in told[""]
    assert "accuracy by delay after the context" in out
    assert "shift(by=4): accuracy " in out
    assert ", answers changed 0.000 [0.000, 0.000]" in out
    assert f", order sensitivity {told['_swap']['order_sensitivity']['mean']:.3f} [" in out
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<h2>Evaluated again</h2>" in page
    assert page.count("<td>2x swap</td>") == 1
    assert '<th class="number">order sensitivity or answers changed</th>' in page
    assert list(stored.read_again(run)) == [f"step000004{name}" for name in names]


def test_other_models_and_several_readings_are_told_as_other_changes_are(run, capsys):
    changes = ["pine", "pcw", "structured", "permutation_average(orders=2)", "best_order(orders=2)", "repeat"]
    arguments = ["--workdir", str(run), "--items", "16", "--label", "read", "--interventions", ", ".join(changes)]
    assert evaluate.main(arguments) == 0
    out = capsys.readouterr().out
    found = {one["variant"]: one for name, one in stored.read_again(run).items() if name.startswith("read")}
    assert set(found) == {"", *changes}
    for change in changes:
        share = "order_sensitivity" if "order" in change else "answers_changed"
        told = f"{change}: accuracy {found[change]['accuracy']['mean']:.3f} "
        assert [line for line in out.splitlines() if line.startswith(told)], change
        assert found[change][share]["mean"] >= 0
        assert found[change]["minus"]["variant"] == ""
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("<td>permutation_average(orders=2)</td>") == 1
    for path in (run / "evals").glob("read*"):
        path.unlink()


def test_an_order_is_held_against_the_one_that_is_read_the_same_way(run, capsys):
    changes = "swap(under=pcw), pcw, swap"
    assert evaluate.main(["--workdir", str(run), "--items", "64", "--label", "way", "--interventions", changes]) == 0
    out = capsys.readouterr().out
    found = {one["variant"]: one for name, one in stored.read_again(run).items() if name.startswith("way")}
    against = {variant: one.get("minus", {}).get("variant") for variant, one in found.items()}
    assert against == {"": None, "pcw": "", "swap": "", "swap(under=pcw)": "pcw"}
    # Parallel windows do not tell the order of two pairs.
    assert found["swap(under=pcw)"]["order_sensitivity"]["mean"] == 0
    assert found["swap(under=pcw)"]["minus"]["mean"] == 0
    assert found["pcw"]["minus"]["mean"] != 0
    assert " against pcw, order sensitivity 0.000 [0.000, 0.000]" in out
    assert out.count("against no intervention") == 2
    for path in (run / "evals").glob("way*"):
        path.unlink()


def test_the_line_of_a_variant_tells_the_loss():
    rows = with_losses()
    one = again.Measured(again.Variant(2), "task", rows, summarise(rows))
    (condition,) = one.summary["by_condition"]
    told = "2x: accuracy 0.583 [0.169, 0.997], ceiling 0.625{}, order-free 0.125, loss 5.500 [-1.952, 12.952]"
    assert again.lines(one, one) == [told.format("")]
    one.summary["by_condition"][condition]["ceiling"]["known"] = 0.5
    assert again.lines(one, one) == [told.format(" where it is known")]
    plain = again.Measured(again.Variant(), "task", rows, one.summary)
    assert again.lines(plain, plain)[0].startswith("1x: accuracy 0.583 ")


def test_every_condition_has_its_line():
    conditions = {"near": with_replicas(0.5, 1.0), "far": with_replicas(0.25, 0.5)}
    changed = {"near": with_replicas(0.25, 0.75), "far": with_replicas(0.25, 0.5)}
    variants = again.variants(None, "shift(2)")
    base, one = (
        again.Measured(variant, "task", {}, {**next(iter(found.values())), "by_condition": found})
        for variant, found in zip(variants, (conditions, changed), strict=True)
    )
    title, near, far = again.lines(one, base)
    assert title == "shift(by=2):"
    assert near.startswith("  near  accuracy 0.500 [")
    assert ", -0.250 [-0.250, -0.250] against no intervention" in near
    assert far.startswith("  far   accuracy 0.375 [")
    assert ", +0.000 [+0.000, +0.000] against no intervention" in far


def test_every_combination_of_hyperparameters_has_its_line(tmp_path):
    vary = {"learning_rate": [0.001, 0.002], "seed": [7, 8]}
    rows, other = fabricate(replicas=4), fabricate(replicas=4)
    other["correct"] = np.where(other["replica"] < 2, 0, other["correct"])
    base, one = (
        again.Measured(variant, "task", found, summarise(found, varied=vary))
        for variant, found in zip(again.variants(None, "shift(2)"), (rows, other), strict=True)
    )
    title, first, second = again.lines(one, base)
    assert title == "shift(by=2):"
    assert first.startswith(
        "  learning_rate=0.001 (replicas 0, 1)  accuracy 0.000 [0.000, 0.000], -0.500 [-1.559, +0.559] against no"
    )
    assert second.startswith("  learning_rate=0.002 (replicas 2, 3)  accuracy 0.812 [")
    again.write(tmp_path, "shifted", one, base)
    (told,) = stored.read_again(tmp_path).values()
    assert told["minus"] == told["minus"] | {"mean": -0.25, "low": None, "high": None}
    assert [round(part["minus"]["mean"], 3) for part in told["combinations"]] == [-0.5, 0.0]
    assert told["combinations"][0]["minus"]["low"] == pytest.approx(-0.5 - 12.7062 / 12, abs=1e-5)


def with_replicas(*accuracy):
    """A condition's measures, as far as lines tell them."""
    return {"accuracy": {**interval(accuracy).to_dict(), "replicas": list(accuracy)}}


def test_a_damaged_result_is_named(run):
    path = run / "evals" / "damaged.json"
    path.write_text('{"accuracy": 3}')
    with pytest.raises(ConfigError, match=r"damaged.json' is damaged at 'by_query_position'"):
        write_report(run)
    path.unlink()


def test_conditions_that_a_length_has_not_are_told(run, monkeypatch):
    whole = AssociativeRecall.conditions

    def conditions(task):
        (first,) = whole(task)
        return (first, dataclasses.replace(first, name="short")) if task.pairs == 2 else (first,)

    monkeypatch.setattr(AssociativeRecall, "conditions", conditions)
    with pytest.warns(match="^--lengths: 2x leaves out short, which the longer task does not have.$"):
        made = again.Measurer(run, again.variants("1x,2x", None))
    assert [[c.name for c in made._conditions(made.runs[times])] for times in (1, 2)] == [["train", "short"], ["train"]]


def test_one_condition_and_how_far_it_is(run, monkeypatch, capsys):
    monkeypatch.setattr(writers, "PLAIN_SECONDS", 0.0)
    assert evaluate.main(["--workdir", str(run), "--conditions", "train", "--items", "8", "--label", "one"]) == 0
    assert list(json.loads((run / "evals" / "one.json").read_text())["by_condition"]) == ["train"]
    out, error = capsys.readouterr()
    assert re.fullmatch(r"item 8/16  50%\nitem 16/16  100%  .* items/s  ETA 0:00\n", error)
    assert "item" not in out


def test_stored_items(run, tmp_path, capsys):
    export.main(["--task", TASK, "--data_dir", str(tmp_path), "--examples", "40"])
    data = tmp_path / "associative_recall" / exported.VERSION
    assert evaluate.main(["--workdir", str(run), "--data_dir", str(tmp_path)]) == 0
    rows = read_rows(run / "evals" / "associative_recall_step000004.npz")
    first, second = (rows["query"][rows["replica"] == replica] for replica in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, exported.read(data).batch.query[:, 0])
    out, error = capsys.readouterr()
    assert f"\n{TASK}\n40 stored items of {data}\nevaluated at step 4 of 4\n" in out
    assert "evaluating" not in error
    path = run / "evals" / "associative_recall_step000004.json"
    found = json.loads(path.read_text())
    assert found["stored"] == {"items": 40, "folder": str(data)}
    page = (run / "report.html").read_text(encoding="utf-8").replace("<wbr>", "")
    assert page.count(f'<td class="wrap">as trained, 40 stored items of {data}</td>') == 1
    for key, wrong in (("items", "40"), ("folder", None)):
        path.write_text(json.dumps({**found, "stored": {**found["stored"], key: wrong}}))
        with pytest.raises(ConfigError, match=f"damaged at 'stored.{key}'"):
            stored.read_again(run)
    path.unlink()


WORLD = "modular_addition(modulus=5)"


@pytest.mark.parametrize(
    ("seed", "more", "ours"),
    [
        (3, {}, "seed = 3, train.replicas = 2"),
        (7, {"train.replicas": 1}, "seed = 7, train.replicas = 1"),
        (7, {"train.vary.seed": [4, 5]}, "seed = 7, train.replicas = 2, train.vary.seed = [4, 5]"),
    ],
)
def test_items_of_another_world_are_refused_with_both(tiny, seed, more, ours):
    config = tiny({"task": WORLD, "train.replicas": 2, **more})
    experiment = build(dataclasses.replace(config, seed=seed))
    given = SimpleNamespace(task=experiment.task, seed=7, replica=1)
    with pytest.raises(ConfigError) as caught:
        again.in_world(SimpleNamespace(config=experiment.config, task=experiment.task), given)
    theirs = "--data_dir: these items are of the world of seed 7, replica 1, but the run has"
    assert str(caught.value) == f"{theirs} {ours}; allowed: a run that has this seed and replica."


def test_items_of_a_world_are_for_its_replica_alone(tiny, tmp_path):
    config = tiny({"task": WORLD, "seed": 7, "train.replicas": 2, "train.steps": 0, "evaluation.items": 40})
    train(config, tmp_path / "run", [], lambda line: None)
    export.main(["--task", WORLD, "--data_dir", str(tmp_path), "--examples", "40", "--seed", "7", "--replica", "1"])
    for more in (["--conditions", "train", "--label", "fresh"], ["--data_dir", str(tmp_path), "--label", "stored"]):
        assert evaluate.main(["--workdir", str(tmp_path / "run"), *more]) == 0
    fresh, found = (read_rows(tmp_path / "run" / "evals" / f"{name}.npz") for name in ("fresh", "stored"))
    assert set(found["replica"]) == {0}
    theirs = fresh["replica"] == 1
    for name in ("correct", "query_slot", "evidence"):
        np.testing.assert_array_equal(found[name], fresh[name][theirs])
    np.testing.assert_allclose(found["log_probability"], fresh["log_probability"][theirs], atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--lengths", "1x,4x"], "--lengths: 4x: keys = 4 is not allowed"),
        (["--interventions", "swap(0, 5)"], "--interventions: swap(second=5): second = 5 is not allowed"),
        (["--conditions", "trian"], "--conditions: unknown condition 'trian', did you mean 'train'?"),
        (["--conditions", "train,train"], "--conditions: 'train,train' has one twice; allowed: each once."),
        (["--items", "1048577"], "--items: 1048577 is not allowed; allowed: a whole number from 1 to 1048576."),
        (["--data_dir", "x", "--items", "3"], "--data_dir: cannot be given with --items"),
        (["--data_dir="], "--data_dir: '' is not allowed; allowed: the path of a folder."),
        (["--data_dir", "/nowhere"], "--data_dir: '/nowhere' is not an exported evaluation set"),
    ],
)
def test_what_does_not_fit_the_run_is_refused_before_anything_is_measured(run, arguments, told):
    before = sorted((run / "evals").iterdir())
    with pytest.raises(ConfigError) as caught:
        evaluate.main(["--workdir", str(run), *arguments])
    assert str(caught.value).startswith(told)
    assert sorted((run / "evals").iterdir()) == before


@pytest.mark.parametrize("change", ["shift(by=2)", "move_query(by=2)"])
def test_positions_that_no_model_is_told_are_not_moved(run, monkeypatch, change):
    monkeypatch.setattr(PositionScheme, "rotates", False)  # of rope, which does nothing else
    with pytest.raises(ConfigError) as caught:
        evaluate.main(["--workdir", str(run), "--interventions", change])
    assert str(caught.value) == (
        f"--interventions: {change} changes the positions that a model is told, but with model.position ="
        f" {spec.full(RoPE())} it is told none and nothing would change; allowed: interventions that move contents."
    )
    again.Measurer(run, again.variants(None, "swap"))


def test_a_table_of_positions_bounds_what_may_be_asked(tiny, tmp_path):
    train(tiny({"task": TASK, "train.steps": 0, "evaluation.items": 8}), tmp_path / "run", [], lambda line: None)
    for arguments in (
        ["--interventions", "shift(1)"],
        ["--interventions", "pad(1)"],
        ["--interventions", "move_query(1)"],
    ):
        with pytest.raises(ConfigError, match="positions up to 6 are needed, but learned was trained on 6"):
            evaluate.main(["--workdir", str(tmp_path / "run"), *arguments])
    with pytest.raises(ConfigError, match="positions up to 11 are needed, but learned was trained on 6"):
        evaluate.main(["--workdir", str(tmp_path / "run"), "--interventions", "repeat"])
    with pytest.raises(ConfigError, match=r"^--interventions: pine: model.position = learned.* acts on embeddings"):
        evaluate.main(["--workdir", str(tmp_path / "run"), "--interventions", "pine"])
    assert evaluate.main(["--workdir", str(tmp_path / "run"), "--interventions", "permute"]) == 0


@pytest.mark.parametrize(("change", "rows"), [("pad(by=1)", 7), ("repeat", 12)])
def test_a_mask_of_so_many_rows_bounds_what_may_be_asked(tiny, tmp_path, change, rows):
    mask = {"model.mask": "causal & from_file(None, matrix='6x6:ffffffffe0')", "model.position": "rope"}
    train(tiny({"task": TASK, "train.steps": 0, "evaluation.items": 8, **mask}), tmp_path, [], lambda line: None)
    with pytest.raises(ConfigError) as caught:
        again.Measurer(tmp_path, again.variants(None, change))
    assert str(caught.value) == (
        f"--interventions: {change}: model.mask: in layer 0, from_file has a matrix of 6 x 6, but {rows} queries"
        f" look at {rows} keys; allowed: a matrix of at least as many rows and columns."
    )


def test_features_of_positions_bound_what_may_be_asked(tiny):
    experiment = build(tiny({"task": TASK, "model.position": "one_hot"}))
    again.check_room(experiment, 6)
    with pytest.raises(ConfigError, match="positions up to 6 are needed, but one_hot was trained on 6"):
        again.check_room(experiment, 7)
    again.check_room(build(tiny({"task": TASK, "model.position": "one_hot(slots=8)"})), 8)


def test_a_longer_table_leaves_room(tiny, tmp_path):
    config = tiny({"task": TASK, "model.position": "learned(length=8)", "train.steps": 0, "evaluation.items": 8})
    train(config, tmp_path / "run", [], lambda line: None)
    assert evaluate.main(["--workdir", str(tmp_path / "run"), "--interventions", "shift(2)"]) == 0
    with pytest.raises(ConfigError, match=r"--interventions: learned.length = 8 is shorter"):
        evaluate.main(["--workdir", str(tmp_path / "run"), "--interventions", "shift(3)"])
