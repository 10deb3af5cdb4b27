from __future__ import annotations

import html.parser
import json
import os
import re
import shutil
import sys

import fabricate
import pytest

from positionbias import report
from positionbias.files import WriteError
from positionbias.reporting import arms, comparisons, figures
from positionbias.reporting import report as reporting
from positionbias.reporting.folder import read as read_folder
from positionbias.reporting.html import number
from positionbias.reporting.report import is_fresh, write_report
from positionbias.spec import ConfigError


class Reader(html.parser.HTMLParser):
    """Collects text and attributes, and checks that tags close in order and ids are unique."""

    VOID = ("meta", "path", "use", "rect", "wbr")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.words, self.tags = [], [], [], [], []
        self.feed(text)
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.links.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def read(folder):
    return Reader(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return fabricate.write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory):
    folder = fabricate.write_sweep(tmp_path_factory.mktemp("sweeps") / "sweep")
    write_report(folder)
    return folder


def test_a_run_is_told_in_one_sentence_with_all_its_figures(run_folder):
    page = read(run_folder)
    accuracy = json.loads((run_folder / "summary.json").read_text())["accuracy"]
    wanted = (
        f"Mean accuracy {accuracy['mean']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}] over 4 replicas,"
        " against a ceiling of 0.590 (simple rules: chance 0.062, order-free 0.258); 4 of 4 solved the task."
    )
    assert wanted in page.text
    assert page.tags.count("svg") == 5
    assert "Band: 95 % Student t over replicas, n = 4." in page.text
    for told in ("closed form", "before training", "Accuracy by slot of the query", "Training loss"):
        assert told in page.text


def test_every_figure_tells_what_it_shows_in_one_order(run_folder):
    page = write_report(run_folder).read_text(encoding="utf-8")
    shown = re.findall(r"<figure>(.*?)<figcaption>(.*?)</figcaption>", page, re.DOTALL)[:4]
    for svg, caption in shown:
        legend = [told for told in re.findall(r"<!-- (.*?) -->", svg) if told in ("at step 600", "before training")]
        assert legend == ["at step 600", "before training"]
        assert re.search(r"Blue: (accuracy )?at step 600; .*light blue: before training", caption)
    assert [("dashed: " in caption, "dotted: " in caption) for _, caption in shown] == [(True, True)] * 3 + [
        (False, False)
    ]


def test_indices_are_named_by_the_tasks_own_axes(run_folder):
    text = read(run_folder).text
    assert "slot of the query accuracy" in text
    assert "slot of the evidence shortfall" in text
    assert "distance accuracy" in text
    assert "input position influence" in text
    assert not re.search("(query|evidence) position", text)


def test_the_table_of_later_evaluations_tells_short_things_first(tmp_path):
    folder = fabricate.write_run(tmp_path / "run", items=16)
    summary = json.loads((folder / "summary.json").read_text())
    less = {"mean": -0.25, "low": -0.5, "high": 0.0}
    several = {
        "plain": {"task": "inverse_permutation(n=8, alphabet=16, scratch=False)"},
        "moved": {"task": "nothing(n=8)", "variant": "2x swap", "minus": {"variant": "2x", **less, "by_condition": {}}},
        "kept": {"task": fabricate.TASK, "stored": {"items": 200, "folder": "data/<mine>/1.0.0"}},
    }
    several["moved"]["order_sensitivity"] = {"mean": 0.125, "low": 0.0, "high": 0.25}
    (folder / "evals").mkdir()
    for i, (name, more) in enumerate(several.items()):
        path = folder / "evals" / f"{name}_{i}.json"
        path.write_text(json.dumps({**summary, **more}))
        os.utime(path, (i, i))
    text = read(folder).text.replace("−", "-")
    text = text[text.index("Evaluated again") : text.index("Training loss")]
    mean = f"{summary['accuracy']['mean']:.3f} \\[.*?\\]"
    for told in (
        "items accuracy minus unchanged order sensitivity ceiling task file in evals unchanged",
        rf" unchanged {mean} 0\.572 as trained plain_ 0",
        rf" 2x swap {mean} -0\.250 \[-0\.500, 0\.000\] 0\.125 \[0\.000, 0\.250\] 0\.572 nothing\( n=8\) moved_ 1",
        rf" unchanged {mean} 0\.572 as trained, 200 stored items of data/<mine>/1\.0\.0 kept_ 2",
    ):
        assert re.search(told, text), told


def test_a_run_tells_how_it_was_made(run_folder):
    text = read(run_folder).text
    for told in (
        "python -m positionbias.train --config configs/quickstart.py '--config.model.mask=~causal'",
        "0123456789abcdef",
        "versions.jax 0.10.2",
        "auto.replica_layout loop",
        "init.embedding normal(std=0.5)",
        "inverse_permutation(n=8, alphabet=16)",
    ):
        assert told in text


def test_the_page_needs_nothing_from_outside_and_runs_nothing(run_folder):
    page = read(run_folder)
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    text = (run_folder / "report.html").read_text()
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_equal_folders_make_equal_reports(run_folder):
    first = write_report(run_folder).read_bytes()
    assert write_report(run_folder).read_bytes() == first


def test_reporting_leaves_matplotlib_as_it_was(run_folder):
    import matplotlib

    matplotlib.rcParams["font.size"] = 17
    try:
        write_report(run_folder)
        assert matplotlib.rcParams["font.size"] == 17
    finally:
        matplotlib.rcdefaults()


def test_a_stopped_run_without_an_evaluation_says_so(tmp_path):
    page = read(fabricate.write_run(tmp_path / "run", status="stopped"))
    assert "This run was stopped (stopped by signal 15): what follows" in page.text
    assert "no evaluation yet" in page.text
    assert page.tags.count("svg") == 1


def test_a_run_that_left_only_its_config_is_reported(tmp_path):
    folder = fabricate.write_run(tmp_path / "run", status="stopped")
    (folder / "manifest.json").unlink()
    (folder / "metrics.jsonl").unlink()
    page = read(folder)
    assert "This run has not started" in page.text
    assert page.tags.count("svg") == 0


def test_a_line_of_metrics_half_written_is_left_out(tmp_path):
    folder = fabricate.write_run(tmp_path / "run", status="running")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 360, "lo')
    assert read(folder).tags.count("svg") == 1


def test_one_replica_has_no_band(tmp_path):
    text = read(fabricate.write_run(tmp_path / "run", replicas=1, items=16)).text
    assert "One replica: no interval." in text
    assert "A single replica has no interval" in text


def test_combinations_of_hyperparameters_stand_side_by_side(tmp_path):
    varied = {"learning_rate": [0.001, 0.002], "seed": [1, 2]}
    folder = fabricate.write_run(tmp_path / "run", items=16, varied=varied)
    page = read(folder)
    first, second = json.loads((folder / "summary.json").read_text())["combinations"]
    ranked = sorted((first, second), key=lambda one: -one["accuracy"]["mean"])
    named = [
        f"learning_rate={one['values']['learning_rate']} (replicas {', '.join(map(str, one['members']))})"
        f" {number(one['accuracy']['mean'])} ["
        for one in ranked
    ]
    assert re.search(rf"Mean accuracy, highest first: {re.escape(named[0])}[^;]*; {re.escape(named[1])}", page.text)
    assert "Replicas differ in learning_rate" in page.text
    assert "Band: 95 % Student t over replicas, n = 2." in page.text
    assert "n = 4" not in page.text
    assert "Each name leads to its own report" not in page.text


def test_in_a_sweep_every_combination_has_a_line(tmp_path):
    folder = fabricate.write_sweep(tmp_path / "sweep")
    shutil.rmtree(folder / "cells" / "causal")
    varied = {"learning_rate": [0.001, 0.002], "seed": [1, 2]}
    fabricate.write_run(folder / "cells" / "causal", name="causal", varied=varied)
    page = read(folder)
    assert page.text.count("causal: learning_rate=0.002 (replicas 2, 3)") >= 3, "accuracy, and indices on two axes"
    assert page.links.count("cells/causal/report.html") == 8
    assert "bidirectional" in page.text


def edit(folder, change):
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    change(summary)
    path.write_text(json.dumps(summary))
    return folder


def test_accuracy_above_the_ceiling_is_told(tmp_path):
    folder = fabricate.write_run(tmp_path / "run", items=16)
    assert "above the ceiling" not in read(folder).text

    def leak(summary):
        summary["by_condition"]["trained"]["accuracy"]["deviation"]["mean"] = 0.034

    assert "Accuracy is 0.034 above the ceiling: something leaks" in read(edit(folder, leak)).text


def test_a_ceiling_known_of_some_answers_is_told_with_their_share(tmp_path):
    def hide(summary):
        summary["by_condition"]["other"] = json.loads(json.dumps(summary["by_condition"]["trained"]))
        summary["ceiling"]["known"] = summary["by_condition"]["trained"]["ceiling"]["known"] = 0.75
        summary["by_query_position"][0]["ceiling_known"] = 0.99999

    folder = edit(fabricate.write_run(tmp_path / "run", items=16), hide)
    text = read(folder).text
    ceiling = json.loads((folder / "summary.json").read_text())["ceiling"]
    assert f"against a ceiling of {ceiling['mean']:.3f} where it is known (simple rules" in text
    assert "The ceiling in condition trained is known for 384 of 512 answers and is their mean; accuracy on" in text
    assert text.count(f"{ceiling['mean']:.3f} (75.0% known)") == 1
    assert text.count("(99.9% known)") == 1
    assert text.count("reaches, over the answers of which that is known;") == 1


def test_items_that_conditions_share_are_told_below_them(tmp_path):
    def share(summary):
        summary["by_condition"]["other"] = summary["by_condition"]["trained"]
        found = {"mean": 0.75, "low": 0.5, "high": 1.0, "replicas": [0.7, 0.8]}
        less = {"first": "trained", "second": "other", "mean": 0.25, "low": -0.125, "high": 0.625}
        summary["paired"] = {"same": {**found, "conditions": ["trained", "other"], "differences": [less]}}

    folder = edit(fabricate.write_run(tmp_path / "run", items=16), share)
    text = read(folder).text.replace("−", "-")
    assert "Items right in trained and other alike: 0.750 [0.500, 1.000]." in text
    assert "Accuracy on the same items: trained minus other +0.250 [-0.125, +0.625]." in text
    assert "condition accuracy ceiling chance order-free share solved answers" in text


def test_the_order_gap_of_every_condition_is_told(tmp_path):
    gap = {"first": 0, "second": 5, "mean": 0.25, "low": 0.125, "high": 0.375}
    gap["above_chance"] = {"mean": 0.5, "low": 0.25, "high": 0.75}
    gap["by_order"] = [{"order": 5, "mean": 0.625, "low": 0.5, "high": 0.75, "count": 77}]

    def split(summary):
        summary["by_condition"]["conflict"] = {**summary["by_condition"]["trained"], "order_gap": gap}

    folder = fabricate.write_run(tmp_path / "run", items=16)
    assert "Order of the evidence" not in read(folder).text
    text = read(edit(folder, split)).text
    assert "conflict 0 minus 5 +0.250 [+0.125, +0.375] +0.500 [+0.250, +0.750]" in text
    assert "conflict 5 0.625 [0.500, 0.750] 77" in text


def test_replicas_of_which_nothing_is_known_are_not_counted(tmp_path):
    def lose(summary):
        summary["ceiling"]["replicas"][0] = None
        summary["accuracy"]["solved"] = 2 / 3

    folder = edit(fabricate.write_run(tmp_path / "run", items=16), lose)
    assert "2 of 3 solved the task" in read(folder).text


def test_log_probabilities_have_intervals(tmp_path):
    folder = fabricate.write_run(tmp_path / "run", items=16)
    row = json.loads((folder / "summary.json").read_text())["by_query_position"][0]["log_probability"]
    text = read(folder).text.replace("−", "-")
    assert f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in text


def test_losses_stand_beside_their_floor(tmp_path):
    loss = {"mean": 0.243, "low": 0.241, "high": 0.245, "floor": 0.114}

    def lose(summary):
        summary["loss"] = {**loss, "replicas": [0.242, 0.243, 0.243, 0.244], "rules": {"chance": 1.1}}
        for measure in ("by_query_position", "by_evidence_position", "by_distance"):
            for row in summary[measure]:
                row["loss"] = {**loss, "mean": 0.244, "floor": None}

    folder = edit(fabricate.write_run(tmp_path / "run", items=16), lose)
    text = read(folder).text
    assert "; mean loss 0.243 [0.241, 0.245] (floor 0.114)" in text
    assert "log-probability loss answers" in text
    assert "0.244 [0.241, 0.245] 64" in text
    assert text.count("(floor 0.114)") == 1
    assert text.count("dotted: the mean of simple rules (chance 1.100)") == 2
    assert "Loss by" not in read(fabricate.write_run(tmp_path / "plain", items=16)).text
    assert "mean loss" not in read(fabricate.write_run(tmp_path / "other", items=16)).text


def test_predictions_of_theory_stand_beside_what_was_measured(tmp_path):
    def predict(summary):
        several = [("one_head", "accuracy", 0.375, False), ("combined", "margin", 0.5, True)]
        told = [dict(zip(("name", "of", "value", "exact"), one, strict=True), condition="trained") for one in several]
        summary["theory"]["predictions"] = told
        summary["by_condition"]["trained"]["accuracy"].update(mean=0.5, low=0.25, high=0.75)

    folder = fabricate.write_run(tmp_path / "run", items=16)
    assert "rule or model measure condition" not in read(folder).text
    text = read(edit(folder, predict)).text
    assert (
        "rule or model measure condition theory measured one head accuracy trained ~0.375 0.500 [0.250, 0.750]" in text
    )
    assert "combined margin trained 0.500 –" in text


def test_losses_stand_in_the_tables_of_conditions_and_of_cells(tmp_path):
    def lose(summary):
        summary["loss"] = {"mean": 0.25, "low": 0.2, "high": 0.3, "floor": 0.125, "replicas": [0.25] * 4, "rules": {}}
        trained = {**summary["by_condition"]["trained"], "loss": summary["loss"]}
        summary["by_condition"] = {"trained": trained, "other": trained}

    (tmp_path / "plan.json").write_text('{"cells": [{"name": "a"}, {"name": "b"}]}')
    judged = edit(fabricate.write_run(tmp_path / "cells" / "a", items=16), lose)
    fabricate.write_run(tmp_path / "cells" / "b", items=16)
    text = read(judged).text
    assert "condition accuracy ceiling chance order-free share solved loss answers" in text
    assert text.count("0.250 [0.200, 0.300] (floor 0.125) 512") == 2
    text = read(tmp_path).text
    assert "cell accuracy minus first ceiling order-free solved loss state size a " in text
    assert re.search(r"of 4 0\.250 \[0\.200, 0\.300\] \(floor 0\.125\) – b .* of 4 – – ", text)


def test_the_influence_profile_says_which_answer_it_reads(run_folder):
    text = read(run_folder).text
    assert "each item's last answer" in text
    assert "If it is the last, a peak at it alone is no recency bias, although recency and tilt count it." in text


def test_few_disagreeing_replicas_are_undecided(tmp_path):
    folder = fabricate.write_run(tmp_path / "run", items=16)
    text = read(edit(folder, lambda s: s["accuracy"].update(solved=0.5, verdict="undecided"))).text
    assert "2 of 4 solved the task: undecided with so few." in text
    assert "leave the verdict undecided" in text


def test_early_and_far_being_one_variable_is_said(tmp_path):
    folder = fabricate.write_run(tmp_path / "run", items=16)
    assert "cannot be told apart" not in read(folder).text
    assert "'early' and 'far' cannot be told apart" in read(edit(folder, lambda s: s.update(collinear=True))).text


def test_an_evaluation_before_training_is_not_drawn_twice(tmp_path):
    folder = fabricate.write_run(tmp_path / "run", items=16)
    text = read(edit(folder, lambda s: s.update(steps=0))).text
    assert "The only evaluation so far is the one before training." in text
    assert "light blue" not in text
    text = read(edit(folder, lambda s: s.update(of=0))).text
    assert "This run has no training: all of it is measured on models as they are drawn." in text


def test_missing_ceilings_and_curves_do_not_break_the_page(tmp_path):
    def strip(summary):
        summary["ceiling"]["mean"] = summary["accuracy"]["solved"] = summary["accuracy"]["verdict"] = None
        summary["theory"], summary["at_init"], summary["influence"] = {}, {}, []
        for rows in (summary["by_query_position"], summary["by_evidence_position"], summary["by_distance"]):
            for row in rows:
                row.update(ceiling=None, baseline=None, low=None, high=None)

    page = read(edit(fabricate.write_run(tmp_path / "run", items=16), strip))
    assert "against a ceiling" not in page.text
    assert "dashed" not in page.text
    assert page.tags.count("svg") == 4


def test_names_are_escaped_everywhere(tmp_path):
    folder = fabricate.write_run(tmp_path / "run", name="<script>alert(1)</script>", items=16)
    evil = {"query": 'a"><script>$\\no$', "evidence": "<b>"}
    page = read(edit(folder, lambda s: s.update(axes=evil, note="<i>note</i>")))
    assert not {"script", "b", "i"} & set(page.tags)
    assert "<script>alert(1)</script>" in page.text
    assert 'Accuracy by a"><script>$\\no$.' in page.text


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (None, True, "–"),
        (0.12349, False, "0.123"),
        (0.5, True, "+0.500"),
        (-0.5, False, "−0.500"),
        (-1e-9, True, "0.000"),
    ],
)
def test_numbers_have_three_decimals_and_no_negative_zero(value, signed, text):
    assert number(value, signed) == text


def test_a_sweep_lays_its_arms_side_by_side(sweep_folder):
    page = Reader((sweep_folder / "report.html").read_text())
    assert page.tags.count("svg") == 3
    assert "3 of 5 cells finished" in page.text
    assert re.search(
        r"Mean accuracy, highest first: bidirectional 0\.99\d .*; causal 0\.5\d\d .*; half<b> 0\.", page.text
    )
    assert "Minus first: accuracy minus that of causal, paired by replica." in page.text
    assert "bidirectional = " not in page.text
    assert "bidirectional model.mask = bidirectional half<b> model.mask = causal" in page.text
    assert "python -m positionbias.sweep" in page.text


def test_cells_of_a_curve_are_joined_over_the_size_of_their_state(tmp_path):
    cells = [
        {"name": f"{curve}-{size}", "hash": fabricate.HASH, "curve": curve}
        for curve in ("delta", "softmax")
        for size in (2048, 128)
    ]
    (tmp_path / "plan.json").write_text(json.dumps({"cells": cells}))
    for cell in cells:
        size = int(cell["name"].rpartition("-")[2])
        fabricate.write_run(tmp_path / "cells" / cell["name"], name=cell["name"], state_size=size)
    text = write_report(tmp_path).read_text()
    page = Reader(text)
    assert page.tags.count("svg") == 4
    assert {"200", "500", "1000", "2000"} <= set(re.findall(r"<!-- (\d+) -->", text)), "more ticks than the tens"
    assert "Mean accuracy over the state size, the numbers that all layers keep" in page.text
    assert re.search(r"delta-2048 0\.\d.* 2,048 delta-128 0\.\d.* 128 softmax-2048", page.text)


def test_the_influence_of_every_arm_has_a_panel_and_indices(sweep_folder):
    text = (sweep_folder / "report.html").read_text()
    svg = re.findall(r"<svg.*?</svg>", text, re.DOTALL)[2]
    for arm in ("causal", "bidirectional", "half&lt;b&gt;"):
        assert svg.count(f"<!-- {arm} -->") == 1
    page = Reader(text)
    assert "Blue: as measured; light blue: before training." in page.text
    influence = json.loads((sweep_folder / "cells" / "causal" / "summary.json").read_text())
    primacy = len(influence["influence"]) * influence["indices"]["influence"]["primacy"]["mean"]
    told = page.text.partition("Indices of the influence, in the same shares.")[2]
    assert f"causal {number(primacy, True)} [" in told


def test_of_a_sweep_that_trains_nothing_the_influence_is_told_alone(tmp_path):
    folder = fabricate.write_sweep(tmp_path / "sweep")
    for arm in ("causal", "bidirectional", "half<b>"):
        edit(folder / "cells" / arm, lambda s: s.update(steps=0, of=0, collinear=True))
    page = read(folder)
    assert page.tags.count("svg") == 1
    assert "Nothing here was trained: models are measured as they are drawn." in page.text
    assert "Blue: before training, as models are drawn." in page.text
    assert "The token that asks can have many times an even share, as the query is made of it, and a " in page.text
    assert "ccuracy" not in page.text
    edit(folder / "cells" / "causal", lambda s: s.update(steps=600, of=600))
    assert read(folder).tags.count("svg") == 3, "accuracy of some is worth a comparison"


def test_even_attention_is_drawn_where_theory_tells_its_influence(tmp_path):
    folder = fabricate.write_sweep(tmp_path / "sweep")
    told = "what masks and biases alone make, if attention is even"
    assert told not in read(folder / "cells" / "causal").text
    edit(folder / "cells" / "causal", lambda s: s["theory"].update(influence=[0.1] * len(s["influence"])))
    assert told in read(folder / "cells" / "causal").text
    assert told in read(folder).text


def test_what_has_no_influence_has_no_place_on_a_logarithmic_axis():
    rows = [{"position": i, "mean": mean, "low": low, "high": mean} for i, (mean, low) in enumerate([(0, 0), (1, -1)])]
    assert comparisons._even_shares(rows) == [
        {"position": 0, "mean": None, "low": None, "high": None},
        {"position": 1, "mean": 2, "low": None, "high": 2},
    ]
    assert "influence" in comparisons.influences("x", [figures.Arm("arm", rows)], {}, {"arm": [0.5, 0.5]})


def test_a_sweep_links_to_the_report_of_every_measured_cell(sweep_folder):
    page = Reader((sweep_folder / "report.html").read_text())
    links = {link for link in page.links if not link.startswith("#")}
    assert links == {
        "cells/causal/report.html",
        "cells/bidirectional/report.html",
        "cells/half%3Cb%3E/report.html",
    }
    for name in ("causal", "bidirectional", "half<b>", "scratch"):
        assert (sweep_folder / "cells" / name / "report.html").is_file()


def test_the_report_of_a_cell_is_titled_with_the_cells_name(tmp_path):
    (tmp_path / "plan.json").write_text('{"cells": [{"name": "wide"}]}')
    fabricate.write_run(tmp_path / "cells" / "wide", name="study", status="stopped")
    write_report(tmp_path)
    for page in (Reader((tmp_path / "cells" / "wide" / "report.html").read_text()), read(tmp_path / "cells" / "wide")):
        assert page.text.startswith("wide: position bias wide ")


def test_arms_with_different_tasks_name_every_axis(tmp_path):
    (tmp_path / "plan.json").write_text('{"cells": [{"name": "a"}, {"name": "b"}]}')
    fabricate.write_run(tmp_path / "cells" / "a", items=16)
    other = fabricate.write_run(tmp_path / "cells" / "b", items=16)
    edit(other, lambda s: s["axes"].update(query="delay"))
    text = read(tmp_path).text
    assert "Accuracy by slot of the query / delay." in text
    assert "Accuracy by slot of the evidence." in text


def test_a_sweep_lists_what_failed_with_its_reason_and_what_has_not_started(sweep_folder):
    text = Reader((sweep_folder / "report.html").read_text()).text
    assert "1 of 5 cells failed: scratch." in text
    assert "cell status exit code message scratch failed 3 loss is not finite at steps 320 to 340" in text
    assert "1 of 5 cells not run yet: later." in text
    assert "later not started" not in text


def test_cells_that_were_not_run_are_one_line_and_folded_in_the_plan(tmp_path):
    folder = fabricate.write_sweep(tmp_path / "sweep")
    plan = json.loads((folder / "plan.json").read_text())
    for i in range(30):
        plan["cells"].append({"name": f"more{i}", "overrides": {"model.mask": f"prefix({i})"}})
    (folder / "plan.json").write_text(json.dumps(plan))
    page = Reader(write_report(folder).read_text())
    assert "31 of 35 cells not run yet: later, more0, more1, more2, more3, more4 and 25 more." in page.text
    assert "more5" not in page.text.partition("Cells not run yet: 31")[0]
    assert "more29 model.mask = prefix(29)" in page.text.partition("Cells not run yet: 31")[2]
    assert "scratch model.mask = causal" in page.text.partition("Cells not run yet: 31")[0]


def test_a_cell_that_was_only_locked_gets_no_report(tmp_path):
    folder = fabricate.write_sweep(tmp_path / "sweep")
    (folder / "cells" / "later").mkdir()
    (folder / "cells" / "later" / ".lock").touch()
    write_report(folder)
    assert [p.name for p in (folder / "cells" / "later").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("own", "status"), [("finished", "finished"), ("running", "failed"), ("stopped", "failed"), (None, "failed")]
)
def test_a_manifest_that_says_finished_outranks_a_failure_of_the_ledger(tmp_path, own, status):
    folder = fabricate.write_sweep(tmp_path / "sweep")
    if own is not None:
        fabricate.write_run(folder / "cells" / "later", name="later", status=own)
    with open(folder / "ledger.jsonl", "a") as ledger:
        ledger.write('{"cell": "later", "status": "failed", "code": 4}\n')
    assert read_folder(folder).status("later") == status


def test_a_finished_cell_whose_folder_was_deleted_has_not_finished_nor_the_code_of_its_earlier_try(tmp_path):
    folder = fabricate.write_sweep(tmp_path / "sweep")
    shutil.rmtree(folder / "cells" / "causal")
    text = read(folder).text
    assert "2 of 5 cells finished" in text
    assert "2 of 5 cells not run yet: causal, later." in text
    fabricate.write_run(folder / "cells" / "causal", name="causal", status="failed")
    with open(folder / "ledger.jsonl", "a") as ledger:
        ledger.write('{"cell": "causal", "status": "finished", "code": 0, "message": ""}\n')
    assert "causal failed – " in read(folder).text


def test_a_sweep_without_any_result_says_so(tmp_path):
    (tmp_path / "plan.json").write_text('{"cells": [{"name": "a"}]}')
    assert "No cell has been evaluated yet, so there is nothing to compare." in read(tmp_path).text
    edit(fabricate.write_run(tmp_path / "cells" / "a", items=16), lambda s: s.update(steps=0))
    text = read(tmp_path).text
    assert "No cell has been evaluated yet but at initialisation, so there is nothing to compare." in text
    assert "Numbers" not in text


def test_a_cell_that_was_only_measured_at_initialisation_is_not_compared(tmp_path):
    folder = fabricate.write_sweep(tmp_path / "sweep")
    cell = edit(folder / "cells" / "causal", lambda s: s.update(steps=0))
    manifest = json.loads((cell / "manifest.json").read_text())
    (cell / "manifest.json").write_text(json.dumps({**manifest, "status": "stopped", "message": "stopped at step 20"}))
    page = Reader(write_report(folder).read_text(encoding="utf-8"))
    assert [link for link in page.links if not link.startswith("#")].count("cells/causal/report.html") == 0
    assert re.search(r"highest first: bidirectional 0\.99\d [^;]*; half<b> 0\.\d+ [^;]*\. Cells", page.text)
    assert "minus that of bidirectional," in page.text
    assert "causal stopped – stopped at step 20; only the evaluation at initialisation is there" in page.text
    captions = re.findall(r"<svg.*?</svg>", (folder / "report.html").read_text(), re.DOTALL)
    assert len(captions) == 3
    assert not any("<!-- causal -->" in svg for svg in captions)


def test_a_cell_measured_before_its_training_ended_is_marked(tmp_path):
    folder = fabricate.write_sweep(tmp_path / "sweep")
    edit(folder / "cells" / "causal", lambda s: s.update(steps=340, of=600))
    edit(folder / "cells" / "bidirectional", lambda s: s.update(of=600))
    page = Reader(write_report(folder).read_text(encoding="utf-8"))
    assert re.search(r"first: bidirectional 0\.99.*; causal \(at step 340 of 600\) 0\.5", page.text)
    assert page.text.count("causal (at step 340 of 600) ") == 5, "in the verdict and in four tables"
    assert (folder / "report.html").read_text().count("<!-- causal (at step 340 of 600) -->") == 3
    assert "at step 600" not in page.text


def test_a_long_name_leaves_room_for_its_mark():
    arm = figures.Arm("a" * 80, [], " (at step 1 of 2)")
    assert len(arm.short) == figures.LONGEST_LABEL
    assert arm.short.endswith("a… (at step 1 of 2)")


def test_the_indices_of_a_sweep_are_named_by_the_tasks_axes(sweep_folder):
    text = Reader((sweep_folder / "report.html").read_text()).text
    assert "Indices of accuracy by slot of the query." in text
    assert "Indices of accuracy by slot of the evidence." in text


def test_arms_of_unequal_replicas_are_not_paired(tmp_path):
    (tmp_path / "plan.json").write_text('{"cells": [{"name": "a"}, {"name": "b"}]}')
    fabricate.write_run(tmp_path / "cells" / "a", items=16)
    fabricate.write_run(tmp_path / "cells" / "b", items=16, replicas=2)
    text = read(tmp_path).text
    assert "not paired" in text
    assert "Bands: 95 % Student t over 2 to 4 replicas." in text


def test_of_very_many_arms_the_influence_of_the_first_is_drawn_and_of_all_told(tmp_path, monkeypatch):
    (tmp_path / "plan.json").write_text('{"cells": [{"name": "a"}, {"name": "b"}]}')
    for name in "ab":
        fabricate.write_run(tmp_path / "cells" / name, items=16)
    assert "Of 2 the first" not in read(tmp_path).text
    monkeypatch.setattr(arms, "MOST_PANELS", 1)
    page = read(tmp_path)
    assert "Of 2 the first 1 are drawn." in page.text
    told = [sum(link.startswith(f"cells/{name}/") for link in page.links) for name in "ab"]
    assert told[0] == told[1] > 0, "every table has a row of each"


def test_the_entry_prints_where_the_report_lies(run_folder, capsys):
    assert report.main(["--workdir", str(run_folder)]) == 0
    assert capsys.readouterr().out == f"{run_folder / 'report.html'}\n"


@pytest.mark.parametrize("content", [None, {}, {"summary.json": "[1"}])
def test_a_wrong_folder_is_refused_and_left_alone(tmp_path, monkeypatch, capsys, content):
    folder = tmp_path / "folder"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    monkeypatch.setattr(sys, "argv", ["report", "--workdir", str(folder)])
    with pytest.raises(SystemExit) as stopped:
        report.run_entry(report.main)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --workdir: ")
    assert error.count("\n") == 1
    assert "allowed:" in error
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", {"config": 3}, "is damaged at 'config'"),
        ("config.json", {"command": 3}, "is damaged at 'command'"),
        ("manifest.json", {"step": [1]}, "is damaged at 'step'"),
        ("manifest.json", [1], "cannot be read as a JSON object"),
        ("summary.json", {}, "is damaged at 'by_query_position'"),
        ("metrics.jsonl", {"step": "x"}, "is not a line of metrics at 'step'"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, told):
    folder = fabricate.write_run(tmp_path / "run", items=16)
    (folder / name).write_text(json.dumps(content) + "\n")
    with pytest.raises(ConfigError, match=rf"^workdir: .*{name}' {told}; allowed: ") as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ({"cells": 3}, "is damaged at 'cells'"),
        ({"cells": [{}]}, r"is damaged at 'cells\[0\]\.name'"),
        ({"cells": [{"name": "a", "overrides": []}]}, r"is damaged at 'cells\[0\]\.overrides'"),
        ({"cells": [{"name": "../run"}]}, "has a cell '../run'"),
        ({"cells": [{"name": ".."}]}, r"has a cell '\.\.'"),
    ],
)
def test_a_damaged_plan_is_named(tmp_path, plan, told):
    fabricate.write_run(tmp_path / "run", items=16)
    (tmp_path / "sweep" / "cells").mkdir(parents=True)
    (tmp_path / "sweep" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match=rf"^workdir: .*plan\.json' {told}; allowed: "):
        write_report(tmp_path / "sweep")


def test_a_folder_that_cannot_be_written_in_is_told(run_folder, monkeypatch):
    def readonly(path, text):
        raise WriteError(f"cannot write '{path}': Read-only file system.")

    monkeypatch.setattr(reporting, "write_text", readonly)
    with pytest.raises(ConfigError, match=r"^workdir: cannot write '.*/report\.html': Read-only file system\.$"):
        write_report(run_folder)


def test_without_matplotlib_the_refusal_names_it(run_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="pip install matplotlib"):
        write_report(run_folder)


def test_a_loss_that_falls_far_is_labelled_in_plain_numbers(tmp_path):
    folder = fabricate.write_run(tmp_path / "run")
    lines = [
        json.dumps(
            {"step": step, "seconds": 1.0, "loss": [2.0**-step] * 4, "accuracy": [0.5] * 4, "gradient_norm": [1.0] * 4}
        )
        for step in range(1, 9)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = write_report(folder).read_text(encoding="utf-8")
    assert "mathdefault" not in page
    assert "0.01" in Reader(page).text or "<!-- 0.01 -->" in page


def test_a_single_logged_step_is_drawn():
    def points(*steps):
        svg = figures.loss("loss", [{"step": step, "loss": [2.0]} for step in steps])
        return len(re.findall("<use[^>]*fill: #0072b2", svg))

    assert (points(20), points(20, 40)) == (2, 0), "one on the axes and one in the legend"


def test_what_is_deleted_while_it_is_looked_at_leaves_a_report_fresh(tmp_path, monkeypatch):
    run = fabricate.write_run(tmp_path / "run", items=16)
    assert not is_fresh(run)
    write_report(run)
    monkeypatch.setattr("pathlib.Path.exists", lambda path: True)  # and a moment later it is gone
    (run / "summary.json").unlink()
    assert is_fresh(run)
    os.utime(run / "metrics.jsonl", ns=(0, (run / "report.html").stat().st_mtime_ns + 1))
    assert not is_fresh(run)


def test_of_a_run_the_state_size_is_told(tmp_path):
    fabricate.write_run(tmp_path / "kept", state_size=1600)
    fabricate.write_run(tmp_path / "none")
    assert "state size 1,600" in read(tmp_path / "kept").text
    assert "state size" not in read(tmp_path / "none").text
