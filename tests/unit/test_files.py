"""Files that are replaced whole or not at all, whatever goes wrong in between."""

import errno
import os

import pytest

from positionbias import files
from positionbias.files import WriteError, write_text


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing_beside_it(tmp_path, monkeypatch, broken):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.txt"
    write_text(path, "before")
    monkeypatch.setattr(files.os, broken, full)
    with pytest.raises(WriteError) as caught:
        write_text(path, "after")
    assert str(caught.value) == f"cannot write '{path}': No space left on device."
    assert (os.listdir(tmp_path), path.read_text()) == (["a.txt"], "before")


def test_an_error_of_the_block_itself_passes_and_leaves_nothing_beside(tmp_path):
    with pytest.raises(KeyError), files.replacing(tmp_path / "a.txt"):
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_a_file_in_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WriteError, match=r"^cannot write '.*/none/a\.txt': No such file or directory\.$"):
        write_text(tmp_path / "none" / "a.txt", "")


def test_a_line_nested_without_end_is_a_torn_one(tmp_path):
    (tmp_path / "lines").write_text("[" * 100_000 + "\n{}\n")
    assert [line for _, line in files.read_lines(tmp_path / "lines")] == [None, {}]
