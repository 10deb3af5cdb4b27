"""Imports run one way: every module imports from lower layers, or from its own package, only."""

import ast
import pathlib
import subprocess
import sys

import pytest

import positionbias

ROOT = pathlib.Path(positionbias.__file__).parent

# Layers, lowest first. A name stands for a module or a package; the longest one that fits a module counts. Names of one
# layer do not import each other. `evaluation.loading` rebuilds a run and so stands above the training it rebuilds.
LAYERS = [
    ["arrays", "errors", "aliases"],
    ["spec", "runtime", "files", "hosts"],
    ["tokens", "config.schema", "replicas"],
    ["tasks", "masks", "positions"],
    ["kernels"],
    ["operators", "theory", "assignments"],
    ["models", "objectives"],
    ["config"],
    [
        "evaluation",
        "generation",
        "tasks.export",
        "tasks.show",
        "masks.show",
        "kernels.explain",
        "kernels.compile_targets",
    ],
    ["training"],
    ["evaluation.loading"],
    ["evaluation.again"],
    ["analysis", "reporting"],
    ["launch"],
    ["sweeping"],
    ["studying"],
    [""],  # the package itself (`load`) and the entries directly in it
]
LAYER_OF = {name: i for i, names in enumerate(LAYERS) for name in names}
THEORY_MAY_IMPORT = {"arrays", "errors", "spec", "tokens", "masks", "positions", "theory"}
# What training needs is jax, flax, optax, orbax, ml_collections, numpy and scipy; the rest is loaded where it is used.
ONLY_INSIDE_FUNCTIONS = {"matplotlib", "tensorflow_datasets", "grain", "ray"}
NEVER = {"tensorflow", "torch", "pickle", "cloudpickle", "dill"}


def group(module):
    """The name in LAYERS that `module` (without the package's own name) belongs to."""
    parts = module.split(".")
    for size in range(len(parts), 0, -1):
        if ".".join(parts[:size]) in LAYER_OF:
            return ".".join(parts[:size])
    return "" if len(parts) == 1 else None


def sources():
    """Module name, whether it is a package, and parsed source, of every module."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = parts[-1] == "__init__"
        yield ".".join(parts[:-1] if package else parts), package, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree, names):
    """Full names a source imports, wherever in it; `from a import b` counts as a.b where that is a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("positionbias.") in names else str(node.module)


def wrong_imports(module, tree, names):
    """The imports of `module` that run against the layers."""
    own = group(module)
    assert own is not None, f"add {module!r} to LAYERS in {__file__}"
    for name in imported(tree, names):
        if name.split(".")[0] != "positionbias":
            continue
        other = group(name.removeprefix("positionbias").removeprefix("."))
        assert other is not None, f"add {name!r} to LAYERS in {__file__}"
        upward = other != own and LAYER_OF[other] >= LAYER_OF[own] and name != "positionbias"
        if upward or (own == "theory" and other not in THEORY_MAY_IMPORT):
            yield name


NAMES = {module for module, _, _ in sources()}


@pytest.mark.parametrize(
    ("module", "tree"), [(m, t) for m, _, t in sources()], ids=lambda x: x if type(x) is str else ""
)
def test_imports_run_one_way(module, tree):
    assert list(wrong_imports(module, tree, NAMES)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("masks.order", "from positionbias.operators.base import Operator"),
        ("masks.order", "from positionbias.positions import base"),
        ("training.loop", "def draw():\n    from positionbias.reporting import html"),
        ("models.block", "import positionbias.config.build"),
        ("theory.rollout", "from positionbias.tasks.base import Task"),
        ("theory.rollout", "from positionbias.operators.base import Operator"),
        ("tokens", "from positionbias import tasks"),
        ("evaluation.rows", "from positionbias.train import main"),
        ("config.schema", "from positionbias.config import build"),
        ("generation.layout", "from positionbias.evaluation.rows import rows"),
    ],
)
def test_an_import_against_the_layers_is_caught(module, source):
    names = NAMES | {"reporting.html", "positions.base", "tasks", "config.build"}
    assert list(wrong_imports(module, ast.parse(source), names)) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("operators.softmax", "from positionbias.masks.base import Mask\nfrom positionbias import spec"),
        ("theory.rollout", "import numpy as np\nfrom positionbias.masks.base import reach"),
        ("config.build", "from positionbias.config import schema"),
        ("train", "from positionbias.training.loop import run"),
        ("evaluation.loading", "from positionbias.generation.generate import generate"),
    ],
)
def test_an_import_with_the_layers_passes(module, source):
    assert list(wrong_imports(module, ast.parse(source), NAMES)) == []


def at_import_time(node):
    """Top-level package names loaded when a source is imported: what stands outside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name.split(".")[0] for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield str(child.module).split(".")[0]
        yield from at_import_time(child)


@pytest.mark.parametrize(
    ("module", "tree"), [(m, t) for m, _, t in sources()], ids=lambda x: x if type(x) is str else ""
)
def test_heavy_packages_are_imported_where_used_and_some_never(module, tree):
    assert set(at_import_time(tree)) & ONLY_INSIDE_FUNCTIONS == set()
    assert {name.split(".")[0] for name in imported(tree, NAMES)} & NEVER == set()


def test_theory_computes_with_numpy_only():
    for module, _, tree in sources():
        if group(module) == "theory":
            assert {name.split(".")[0] for name in imported(tree, NAMES)} <= {
                "__future__",
                "collections",
                "dataclasses",
                "math",
                "numpy",
                "typing",
                "positionbias",
            }


def test_lazy_imports_are_told_from_others():
    source = "import a.b\ndef f():\n    import c\nif True:\n    from d import e\nclass K:\n    import g"
    assert set(at_import_time(ast.parse(source))) == {"a", "d", "g"}


@pytest.mark.parametrize(
    "statement", ["import positionbias", "import positionbias.spec", "import positionbias.config.schema"]
)
def test_light_modules_do_not_load_jax(statement):
    heavy = "{'jax', 'numpy', 'flax', 'matplotlib', 'ml_collections'}"
    code = f"{statement}; import sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "[]"


def test_listing_names_imports_no_member():
    code = (
        "import sys; from positionbias import spec; all(spec.names(a) for a in spec.axes());"
        "print('masks' in spec.axes(), sorted(m for m in sys.modules if m.startswith(('positionbias.', 'jax.'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert (
        done.stdout.strip()
        == "True ['positionbias.aliases', 'positionbias.errors', 'positionbias.runtime', 'positionbias.spec']"
    )
