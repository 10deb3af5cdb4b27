"""Whatever the files of a folder hold as text, or are called: a report shows it and runs nothing of it."""

import copy
import json

import fabricate
import pytest
from test_report import Reader

from positionbias.reporting import figures
from positionbias.reporting.report import write_report
from positionbias.spec import ConfigError

MARK = "alert(1)"
HARM = f"""</style></pre></td>"'><script>{MARK}</script><img src=x onerror={MARK}>"""
AS_NAME = f"""x"'><img src=x onerror={MARK}>"""  # without a slash, which names of files cannot hold
OURS = {"class", "id", "href", "xlink:href", "style", "d", "x", "y", "lang", "charset", "name", "content", "role"}


class Strict(Reader):
    """Checks that no tag and no attribute is there that could run or fetch anything."""

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        assert tag not in ("script", "img", "iframe", "object", "link", "base", "form", "foreignobject", "animate"), tag
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "srcdoc", "action", "formaction"), (tag, name)
            if "href" in name:
                assert value.startswith(("#", "cells/")), value
            assert MARK not in (value or "") or name in ("aria-label", "href", "id"), (tag, name, value)


def leaves(value, path=()):
    """Where text stands in JSON, keys of tables too; of a list in its first entry."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key), True
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:1]):
            yield from leaves(inner, (*path, index))
    elif isinstance(value, str):
        yield path, False


def harmed(value, path, key):
    """A copy with the text at a place, or the key there, replaced."""
    value = inner = copy.deepcopy(value)
    for step in path[:-1]:
        inner = inner[step]
    if key:
        inner[HARM] = inner.pop(path[-1])
    else:
        inner[path[-1]] = HARM
    return value


def analysis(name):
    numbers = [{"mean": 0.1, "low": 0.0, "high": 0.2}, {"mean": 0.2, "low": 0.1, "high": 0.3}]
    array = {"axes": ["step"], "sizes": [2], "numbers": numbers, "at_init": numbers}
    told = {"analysis": name, "step": 600, "condition": "train", "items": 8, "shown": "size", "replicas": 4}
    return {**told, "labels": {"layer": ["0"], "step": ["0", "600"]}, "arrays": {"size": array}}


@pytest.fixture
def run(tmp_path):
    """A run with everything that a report tells of."""
    folder = fabricate.write_run(tmp_path / "run", items=16)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "evals").mkdir()
    again = {**summary, "task": "inverse_permutation(n=3)", "variant": "shift(2)"}
    (folder / "evals" / "later.json").write_text(json.dumps(again))
    (folder / "analysis").mkdir()
    (folder / "analysis" / "norms.json").write_text(json.dumps(analysis("norms")))
    return folder


@pytest.fixture
def no_figures(monkeypatch):
    """Without what takes seconds: all that is told around figures stays, and what they are called."""
    told = "<svg></svg>"
    monkeypatch.setattr(
        figures, "draw", lambda name, label, *_, **__: figures._inline(f'{told} viewBox="0"', name, label)
    )


FILES = ("config.json", "manifest.json", "summary.json", "evals/later.json", "analysis/norms.json")


def survives(folder, path, whole, change, key):
    """Whether a report tells the change in a file, which it may also refuse."""
    path.write_text(json.dumps(harmed(whole, change, key)))
    try:
        page = write_report(folder).read_text(encoding="utf-8")
    except ConfigError:
        return False
    Strict(page)
    return MARK in page


@pytest.mark.parametrize("name", FILES)
def test_any_text_of_a_run_is_shown_and_never_run(run, no_figures, name):
    whole = json.loads((run / name).read_text())
    shown = [survives(run, run / name, whole, *place) for place in leaves(whole)]
    assert any(shown), "at least one of them is told"


@pytest.mark.parametrize("name", ["plan.json", "ledger.jsonl"])
def test_any_text_of_a_sweep_is_shown_and_never_run(tmp_path, no_figures, name):
    folder = fabricate.write_sweep(tmp_path / "sweep")
    if name == "plan.json":
        whole = json.loads((folder / name).read_text())
        shown = [survives(folder, folder / name, whole, *place) for place in leaves(whole)]
        assert any(shown)
        return
    line = json.loads((folder / name).read_text().splitlines()[-1])
    (folder / "plan.json").write_text(json.dumps({"cells": [{"name": HARM.replace("/", "")}, {"name": "scratch"}]}))
    shown = []
    for path, key in leaves(line):
        (folder / name).write_text(json.dumps(harmed(line, path, key)) + "\n")
        page = write_report(folder).read_text(encoding="utf-8")
        Strict(page)
        shown.append(MARK in page)
    assert all(shown)


def test_names_of_files_are_shown_and_never_run(run):
    """With figures: these are called like the files that they are of."""
    (run / "evals" / "later.json").rename(run / "evals" / f"{AS_NAME}.json")
    (run / "analysis" / "norms.json").rename(run / "analysis" / f"{AS_NAME}.json")
    (run / "analysis" / "\\1.json").write_text(json.dumps(analysis(HARM)))
    page = write_report(run).read_text(encoding="utf-8")
    found = Strict(page)
    assert AS_NAME.replace(" ", "") in found.text.replace(" ", "")  # a line may break behind a bracket
    assert found.tags.count("svg") == 7
