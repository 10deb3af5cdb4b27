"""BUILD.md tells the truth about the tree, and its examples of new members work."""

import dataclasses
import importlib
import pathlib
import re
import sys

import jax
import numpy as np
import pytest

import positionbias
from positionbias import spec
from positionbias.masks.order import Causal
from positionbias.models.sites import Sites
from positionbias.operators.asked import Asked
from positionbias.positions.base import Dims, Placed
from positionbias.tasks import show
from positionbias.tasks.base import Condition
from positionbias.tokens import Tokens, sequential

PACKAGE = pathlib.Path(positionbias.__file__).parent
PAGE = (PACKAGE.parent / "BUILD.md").read_text(encoding="utf-8")
# Folders of members: a new file there changes no page.
OF_MEMBERS = {"assignments", "tasks", "masks", "positions", "operators", "objectives", "theory", "analysis"}


def tree(page):
    """The paths that a page's tree names, folders with their slash."""
    (block,) = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    paths, parents = [], {0: ""}
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        path = parents[depth] + line.split()[0]
        parents[depth + 1] = path
        paths.append(path)
    return paths


TREE = tree(PAGE)


def modules(folder):
    """What a folder of the package holds, in the tree's words."""
    files = {p.name for p in folder.glob("*.py") if p.name != "__init__.py" or folder == PACKAGE}
    folders = {f"{p.name}/" for p in folder.iterdir() if p.is_dir() and any(p.rglob("*.py"))}
    return files | folders


def named(folder):
    """What the tree names directly in a folder of the package."""
    prefix = f"positionbias/{folder}"
    inside = {path.removeprefix(prefix) for path in TREE if path.startswith(prefix) and path != prefix}
    return {path for path in inside if "/" not in path.removesuffix("/")}


@pytest.mark.parametrize("path", TREE)
def test_what_the_tree_names_exists(path):
    assert (PACKAGE.parent / path).is_dir() if path.endswith("/") else (PACKAGE.parent / path).is_file()


def test_every_module_and_folder_of_the_package_is_in_the_tree():
    assert named("") == modules(PACKAGE)


@pytest.mark.parametrize("folder", sorted(p.removesuffix("/") for p in modules(PACKAGE) if p.endswith("/")))
def test_every_module_that_is_no_member_is_in_the_tree(folder):
    wanted = modules(PACKAGE / folder)
    if folder in OF_MEMBERS:
        wanted = {name for name in wanted if "@member(" not in (PACKAGE / folder / name).read_text(encoding="utf-8")}
    assert named(f"{folder}/") >= wanted
    assert named(f"{folder}/") <= modules(PACKAGE / folder)


def test_every_environment_variable_of_the_runtime_is_in_the_table():
    source = (PACKAGE / "runtime.py").read_text(encoding="utf-8")
    for name in re.findall(r'"([A-Z][A-Z_]{3,})"', source):
        assert f"| `{name}` |" in PAGE


@pytest.fixture
def example(monkeypatch, tmp_path):
    """`example(title)` imports the code block of that section, whose members leave the registry again."""
    monkeypatch.syspath_prepend(tmp_path)

    def load(title):
        section = PAGE.split(f"### {title}\n")[1].split("\n### ")[0]
        (source,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        name = f"example_{title.split()[1]}"
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    yield load
    for key, member in list(spec._MEMBERS.items()):
        if member.__module__.startswith("example_"):  # others may be of modules that are not imported a second time
            del spec._MEMBERS[key]


def test_the_example_mask(example):
    tokens = sequential(4)
    found = example("A mask").Strided(2).dense(tokens, tokens)
    np.testing.assert_array_equal(found, [[1, 0, 1, 0], [0, 1, 0, 1]] * 2)
    assert '(4, ["1010", "0101", "1010", "0101"])' in PAGE


def test_the_example_operator(example):
    operator, allowed = example("An operator").Strongest(keys=2), np.tri(3, dtype=bool)
    found = operator.weights(jax.numpy.array([[[[2.0, 1.0, -1.0]] * 3]]), allowed)[0, 0, -1]
    np.testing.assert_allclose(
        found, [np.exp(2) / (np.exp(2) + np.exp(1)), np.exp(1) / (np.exp(2) + np.exp(1)), 0], 1e-5
    )


def test_the_example_recurrence(example):
    operator = example("A recurrence").Fading(pace=0.5)
    tokens, one = sequential(3), np.ones((1, 3, 1, 1), np.float32)
    values = np.array([1.0, 10.0, 100.0], np.float32).reshape(1, 3, 1, 1)
    none = Placed(spec.build("positions", "none", "x"))
    found = operator(one, one, values, tokens, tokens, Causal(), none, {}, Sites())
    assert found[0, -1, 0, 0] == pytest.approx(0.25 * 1 + 0.5 * 10 + 100)
    assert operator.state_size(Dims(width=64, heads=4, head_size=16, length=9)) == 4 * 16 * 16
    state, whole = None, Tokens(*(field[None] for field in tokens))
    for row in range(3):  # one after another, as sequences are generated
        asked = Asked.of(np.array([[row]]), whole, Causal())
        now = one[:, :1], one[:, :1], values[:, row : row + 1]
        mixed, state = operator.advance(*now, asked, none, {}, Sites(), state)
        assert mixed[0, 0, 0, 0] == pytest.approx(found[0, row, 0, 0])
    with pytest.raises(spec.ConfigError, match=r"pace = 0\.0 is not allowed"):
        dataclasses.replace(operator, pace=0.0)


def test_the_example_task(example):
    task = example("A task").Pick(n=4, alphabet=3)
    batch = jax.jit(lambda key: task.batch(key, Condition("train"), 32))(jax.random.key(0))
    slot = np.asarray(batch.evidence_slot)
    np.testing.assert_array_equal(batch.inputs[:, 4:] - 3, slot)
    np.testing.assert_array_equal(batch.targets[:, 4:], np.take_along_axis(np.asarray(batch.inputs), slot, axis=1))
    assert len(np.unique(slot)) == 4
    task = example("A task").Pick(n=4, alphabet=4)
    drawn = show.drawn(task, show.sampled(task, task.conditions()[0]))
    assert "".join(f"        {line}\n" for line in drawn) in PAGE
