"""Habits that a reader of the source can rely on, checked on the source."""

import pathlib
import re

import pytest

import positionbias

ROOT = pathlib.Path(positionbias.__file__).parent
SOURCES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}

# What must not occur, why, and an offender that shows the pattern finds it.
FORBIDDEN = {
    "nnx transforms": (
        re.compile(r"\bnnx\.(jit|grad|value_and_grad|vmap|scan|StateAxes|DiffState)\b"),
        "models are split once, then plain jax transforms",
        "step = nnx.value_and_grad(loss)(model)",
    ),
    "get on a config": (
        re.compile(r"\b(config|cfg)(\.(?!vary\b)\w+)*\.get\("),
        "a wrong name must be an error, not a default",
        "width = config.model.get('width', 64)",
    ),
    "pickle": (
        re.compile(r"\b(import|from) (pickle|cloudpickle|dill)\b|allow_pickle\s*=\s*True"),
        "a file from someone else can at worst be refused",
        "rows = np.load(path, allow_pickle=True)",
    ),
    "tensorflow": (re.compile(r"\b(import|from) tensorflow\b"), "no TensorFlow", "import tensorflow as tf"),
    "eval": (re.compile(r"(?<![\w.])eval\("), "specs are parsed, never evaluated", "mask = eval(text)"),
}
# `train.vary` is a table and no group of fields; a run folder's JSON may lack whole files, which reports read as empty.
READS_FOLDERS = ("reporting/",)
ENVIRONMENT = re.compile(r"\bos\.(environ|getenv|putenv)\b|\bfrom os import\b.*\b(environ|getenv)\b")
FLAGS = re.compile(r"\bfrom absl import .*\bflags\b|\babsl\.flags\b")
LONGEST = {"training/loop.py": 300, "train.py": 80}


def entry(name):
    """Whether a module stands directly in the package: an entry, or the runtime."""
    return "/" not in name


def test_tests_that_are_called_long_exist(root):
    lines = [line for line in (root / "tests" / "long.txt").read_text().splitlines() if line[0] != "#"]
    assert lines == sorted(set(lines))
    for line in lines:
        path, _, name = line.partition("::")
        assert f"def {name.partition('[')[0]}(" in (root / path).read_text(), line


@pytest.mark.parametrize("habit", FORBIDDEN)
def test_forbidden_text_does_not_occur(habit):
    pattern, why, _ = FORBIDDEN[habit]
    read = {n: s for n, s in SOURCES.items() if not (habit == "get on a config" and n.startswith(READS_FOLDERS))}
    lines = [
        f"{name}:{i}: {line.strip()}"
        for name, source in read.items()
        for i, line in enumerate(source.splitlines(), 1)
        if pattern.search(line)
    ]
    assert lines == [], why


@pytest.mark.parametrize("habit", FORBIDDEN)
def test_the_patterns_find_offenders(habit):
    pattern, _, offender = FORBIDDEN[habit]
    assert pattern.search(offender)


def test_only_entries_and_the_runtime_read_the_environment_or_flags():
    inner = {name: source for name, source in SOURCES.items() if not entry(name)}
    assert [name for name, source in inner.items() if ENVIRONMENT.search(source) or FLAGS.search(source)] == []


def test_reading_the_environment_is_found():
    assert ENVIRONMENT.search("home = os.environ['HOME']")
    assert ENVIRONMENT.search("from os import path, getenv")
    assert FLAGS.search("from absl import app, flags")


def test_files_stay_short():
    lengths = {name: len(source.splitlines()) for name, source in SOURCES.items()}
    assert {name: n for name, n in lengths.items() if n > LONGEST.get(name, 400)} == {}
