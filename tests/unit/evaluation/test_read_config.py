"""The config of a run folder: taken as it was written, also by later versions of the schema."""

import dataclasses
import json
import os

import pytest

from positionbias.config import schema
from positionbias.config.resolve import config_hash, stored_hash
from positionbias.evaluation.loading import read_config
from positionbias.spec import ConfigError


@pytest.fixture
def stored(tiny, tmp_path):
    """Writes the tiny config as a run folder does, after `change`; returns the folder."""

    def write(change=lambda config: None, digest=None):
        config = schema.to_dict(tiny())
        change(config)
        found = {"config": config, "hash": digest or stored_hash(config), "command": ["test"]}
        (tmp_path / "config.json").write_text(json.dumps(found))
        return tmp_path

    return write


def test_a_folder_is_read_back(stored, tiny):
    assert read_config(stored()) == tiny()


def test_a_folder_from_before_a_field_was_added_is_read(stored, tiny):
    assert read_config(stored(lambda config: config["model"].pop("bias"))) == tiny()


def test_a_folder_from_before_specs_were_written_out_is_read(stored, tiny):
    assert read_config(stored(lambda config: config["optimizer"].update(name="adamw"))) == tiny()


def test_a_changed_config_is_refused(stored, tiny):
    folder = stored(lambda config: config.update(seed=1), digest=config_hash(tiny()))
    other = config_hash(dataclasses.replace(tiny(), seed=1))
    with pytest.raises(ConfigError, match=f"has hash {other}, but config.json says {config_hash(tiny())};"):
        read_config(folder)


def test_a_folder_of_run_folders_names_the_newest(tmp_path):
    sentence = f"workdir: '{tmp_path}' is not a run folder; allowed: a folder with config.json."
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path)
    assert str(caught.value) == sentence
    for name, age in (("a", 1), ("b", 0), ("c", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        os.utime(tmp_path / name / "config.json", (9 - age, 9 - age))
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path)
    assert str(caught.value) == sentence.replace("folder;", f"folder, did you mean '{tmp_path / 'b'}'?", 1)
    with pytest.raises(ConfigError, match=r"a' is not a run folder; allowed: a folder with config.json\.$"):
        read_config(tmp_path / "a")
