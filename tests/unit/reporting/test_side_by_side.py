"""What a reader compares by eye in a report: combinations of hyperparameters, cells of a sweep, figures of analyses."""

import json
import re

import fabricate
import pytest

from positionbias.config import varied
from positionbias.reporting import comparisons, figures
from positionbias.reporting.report import write_report

FIRST, SECOND = "learning_rate=0.001 (replicas 0, 1)", "learning_rate=0.002 (replicas 2, 3)"


def told(page):
    """What a page says outside of its figures."""
    return re.sub(r"<(?:svg|style).*?</(?:svg|style)>|<[^>]*>", "", page, flags=re.DOTALL)


def interval(*means):
    return [{"mean": mean, "low": mean - 0.01, "high": mean + 0.01} for mean in means]


def analysis(folder, of, numbers, at_init, axis, **more):
    """A file as `positionbias.analyze` leaves it: an array of one layer by heads or positions."""
    (folder / "analysis").mkdir(exist_ok=True)
    array = {"axes": ["layer", axis], "sizes": [1, len(numbers)]}
    found = {
        "analysis": f"of_{axis}s",
        "about": "",
        "condition": "train",
        "step": 600,
        "items": 8,
        "of_replicas": of,
        "replicas": len(of),
        "shown": "part",
        "labels": {"layer": ["0"]},
        "arrays": {"part": {**array, "numbers": interval(*numbers), "at_init": interval(*at_init)}},
        **more,
    }
    name = f"{axis}{found['step']}_{'_'.join(map(str, of))}.json"
    (folder / "analysis" / name).write_text(json.dumps(found))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a run of two combinations, each of which was analysed."""
    vary = {"learning_rate": [0.001, 0.002], "seed": [1, 2]}
    folder = fabricate.write_run(tmp_path_factory.mktemp("runs") / "run", items=16, varied=vary)
    for axis in ("head", "position"):
        analysis(folder, [0, 1], [0.2, 0.2], [0.0, 0.0], axis)
        analysis(folder, [2, 3], [0.8, 0.8], [0.2, 0.2], axis)
        analysis(folder, [2], [0.8, 0.8], [0.2, 0.2], axis, condition="other")
    for of, first, last in (([0, 1], 0.1, 0.2), ([2, 3], 0.1, 3.1)):
        for step, mean in ((300, first), (600, last)):
            analysis(folder, of, [mean], [0.0], "row", step=step, analysis="of_rows")
    return write_report(folder).read_text(encoding="utf-8")


def captioned(page, words):
    """The figures whose captions begin so, and the captions."""
    found = re.findall(r"<figure>(.*?)<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    return [(svg, caption) for svg, caption in found if caption.startswith(words)]


def test_tables_captions_and_legends_say_which_replicas_a_combination_has(page):
    text = told(page)
    for one in (FIRST, SECOND):
        assert text.count(one) == 1 + 4 + 4 + (one == FIRST), "verdict, tables, analyses, what others are held to"
        assert page.count(f"<!-- {one} -->") == 3, "accuracy by two axes, training loss"
        label, replicas = one.split(" (")
        lines = f"<!-- {label} -->", f"<!-- ({replicas} -->"
        assert [page.count(line) for line in lines] == [1, 1], "influence, where there is no room for one line"
    assert "of learning_rate=0.002 (replica 2)" in text
    assert "condition train, step 600, of learning_rate=0.001 (replicas 0, 1)." in text


def test_replicas_in_a_row_and_very_many_are_told_shortly():
    assert varied.replicas_told([2]) == "replica 2"
    assert varied.replicas_told([0, 1]) == "replicas 0, 1"
    assert varied.replicas_told([4, 5, 6]) == "replicas 4 to 6"
    assert varied.replicas_told(range(0, 6, 2)) == "replicas 0, 2, 4"
    assert varied.replicas_told(range(0, 20, 2)) == "replicas 0, 2, 4, 6, 8, 10, 12, 14 and 2 more"


def test_training_losses_have_the_colour_of_their_combination(page):
    [(svg, caption)] = captioned(page, "Training loss")
    lines = re.findall(r"style=\"fill: none; stroke: (#\w+);[^\"]*stroke-width: 1\.2", svg)
    assert [lines.count(color.lower()) for color in figures.ARMS[:4]] == [3, 3, 0, 0], "two lines and the legend's"
    assert caption == "Training loss, one line a replica, in the colour of its combination."


def test_maps_of_combinations_have_one_scale(page):
    pictures = [re.findall(r"base64,([^\"]*)", svg) for svg, _ in captioned(page, "of_heads")]
    (low, none), (high, before), other = pictures
    assert len({low, none, high}) == 3
    assert low == before, "0.2 in both"
    assert other == [high, before]
    assert all("On one scale with this figure of other replicas" in told for _, told in captioned(page, "of_heads"))


@pytest.mark.parametrize(("words", "count"), [("of_positions: part, of", 3), ("of_rows: part over training", 2)])
def test_curves_of_combinations_have_one_axis(page, words, count):
    ticks = [re.findall(r"<!-- (\d\.\d) -->", svg) for svg, _ in captioned(page, words)]
    assert len(ticks) == count
    assert all(one == ticks[0] for one in ticks)


def arm(label, *means, mark=""):
    return figures.Arm(label, [{"position": i, "mean": mean, "ceiling": None} for i, mean in enumerate(means)], mark)


def test_curves_on_one_line_are_found():
    near, far = 1 - comparisons.CLOSE / 2, 1 - 2 * comparisons.CLOSE
    curves = [[1.0, 0.5], [0.0, 0.5], [near, 0.5], [far, 0.5], [1.0, None], [1.0, None], [1.0, 0.5, 0.5]]
    assert comparisons.coinciding([arm("", *one).rows for one in curves]) == [[0, 2], [1], [3], [4, 5], [6]]


def test_curves_on_one_line_take_turns_and_the_caption_names_them(tmp_path):
    names = ("one", "two", "three", "other")
    (tmp_path / "plan.json").write_text(json.dumps({"cells": [{"name": name} for name in names]}))
    for name in names:
        fabricate.write_run(tmp_path / "cells" / name, name=name, items=16, skill=1.0 if name != "other" else 0.3)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    found = captioned(page, "Accuracy by")
    assert len(found) == 2
    for svg, caption in found:
        assert "On one line, in dashes that take turns: one and two and three. Band" in caption
        dashed = re.findall(r"stroke-dasharray: ([\d.]+),([\d.]+); stroke-dashoffset: ([\d.]+); stroke: (#\w+)", svg)
        turns = {color: (float(on), float(off), float(at)) for on, off, at, color in dashed if float(on) > 10}
        dash = 1.8 * figures.DASH
        wanted = {color.lower(): (dash, 2 * dash, i * dash) for i, color in enumerate(figures.ARMS[:3])}
        assert turns == {color: pytest.approx(one, abs=1e-2) for color, one in wanted.items()}
    assert "minus that of one, paired" in told(page)
    assert '<th class="number">minus first</th>' in page


def test_what_a_page_calls_things_is_explained(page, tmp_path):
    sweep = write_report(fabricate.write_sweep(tmp_path / "sweep")).read_text(encoding="utf-8")
    for text, column in ((page, "combination"), (sweep, "cell")):
        assert re.findall(r"\barms?\b|numbers kept", told(text), re.IGNORECASE) == []
        assert f"<th>{column}</th>" in text
        assert "State size: the numbers that all layers keep to go on with a sequence" in told(text)
        assert "Primacy: first quarter minus middle" in told(text)


def test_where_there_are_no_indices_the_reason_is_told(tmp_path):
    """Of two slots; distances are from -1 to 1."""
    why = "fewer than three positions are known, and indices compare the first, the middle and the last."
    run = fabricate.write_run(tmp_path / "sweep" / "cells" / "two", items=16, n=2)
    page = write_report(run).read_text(encoding="utf-8")
    assert f"Mean and 95 % interval over replicas. –: {why}" in told(page)
    (tmp_path / "sweep" / "plan.json").write_text('{"cells": [{"name": "two"}]}')
    page = told(write_report(tmp_path / "sweep").read_text(encoding="utf-8"))
    for axis in ("query", "evidence"):
        assert f"Indices of accuracy by slot of the {axis}. None: {why}" in page
    assert page.count("middle dip") == 2, "of the influence alone: what it is, and a column"
