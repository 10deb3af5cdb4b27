"""The shipped configs: every one builds, with all its sweeps, and base.py is the list of defaults."""

import pathlib

import pytest

from positionbias.config.build import build
from positionbias.config.cli import load_config
from positionbias.config.files import read
from positionbias.config.resolve import leaves, resolve
from positionbias.config.schema import Config
from positionbias.config.sweeps import cells, sweep_names

CONFIGS = sorted((pathlib.Path(__file__).parents[3] / "configs").rglob("*.py"))


def test_base_spells_out_every_default(root):
    raw = load_config(str(root / "configs" / "base.py"))
    assert resolve(raw) == resolve({"name": "base", "task": "inverse_permutation"})

    def fields(group):
        return {k: fields(v) if isinstance(v, dict) and v else None for k, v in group.items()}

    from positionbias.config.schema import to_dict

    assert fields(raw) == fields(to_dict(Config(name="base", task="inverse_permutation")))


def test_base_says_of_every_field_what_help_says(root):
    text = (root / "configs" / "base.py").read_text()
    said = " ".join(line.partition("# ")[2] for line in text.splitlines())
    assert [path for path, leaf in leaves().items() if leaf.field.metadata["doc"] not in said] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_builds_with_all_its_cells(path):
    build(resolve(load_config(str(path))))
    for name in sweep_names(read(str(path))):
        for cell in cells(str(path), name):
            build(cell.config)
