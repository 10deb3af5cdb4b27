"""The Python of the README, run as it stands there."""

import re

import pytest

from positionbias.config.cli import load_config
from positionbias.config.resolve import resolve
from positionbias.config.sweeps import cells
from positionbias.training.loop import train

TINY = {
    "train.steps": 2,
    "train.log_every": 2,
    "train.batch_size": 4,
    "train.replicas": 1,
    "optimizer.warmup_steps": 0,
    "evaluation.items": 4,
    "evaluation.influence_items": 4,
}


@pytest.fixture
def blocks(root):
    """The config of one's own, the look into a run, and attention by itself."""
    text = (root / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_readmes_config_trains_and_its_lines_look_into_the_run(blocks, tmp_path, monkeypatch, capsys):
    config, look, _ = blocks
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recall.py").write_text(config)
    assert len(cells("recall.py")) == 9
    assert train(resolve(load_config("recall.py", TINY)), tmp_path / "run", [], lambda line: None).status == "finished"
    assert '"runs/recall/HASH"' in look
    capsys.readouterr()
    exec(compile(look.replace("runs/recall/HASH", "run"), "README.md", "exec"), {})
    right = [float(line) for line in capsys.readouterr().out.split()]
    assert len(right) == 2
    assert all(0 <= share <= 1 for share in right)


def test_attention_by_itself_is_called_as_told(blocks, capsys):
    exec(compile(blocks[2], "README.md", "exec"), {})
    slopes = [float(number) for number in capsys.readouterr().out.strip("[] \n").split()]
    assert len(slopes) == 4
    assert all(slope != 0 for slope in slopes)
