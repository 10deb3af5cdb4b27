"""Files that are replaced whole or not at all, whatever goes wrong in between."""

import concurrent.futures
import contextlib
import errno
import fcntl
import os
import threading
import time

import pytest

from positionbias import files
from positionbias.files import WriteError, one_at_a_time, one_waits, write_text


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


def test_what_a_killed_process_left_is_taken(tmp_path):
    (tmp_path / ".a.txt.tmp").write_text("more than is written next")
    write_text(tmp_path / "a.txt", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "new"}


@pytest.mark.parametrize("failed", [False, True])
def test_who_replaces_a_file_waits_for_who_does(failed, tmp_path):
    path, before = tmp_path / "a.txt", []
    with contextlib.suppress(KeyError), files.replacing(path) as stream:
        stream.write(b"first")
        thread = threading.Thread(target=write_text, args=(path, "second"))
        thread.start()
        thread.join(0.3)
        before.append(path.exists())
        if failed:
            raise KeyError
    thread.join()
    assert before == [False]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "second"}


def test_a_file_is_replaced_where_there_are_no_locks(tmp_path, monkeypatch):
    def none(stream, kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    write_text(tmp_path / "a.txt", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "new"}


def test_who_is_cut_short_after_the_replacement_takes_nothing_of_the_next(tmp_path, monkeypatch):
    original = os.replace

    def interrupted(aside, path):
        original(aside, path)
        aside.write_text("the next one's")
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a.txt", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.txt": "new",
        ".a.txt.tmp": "the next one's",
    }


def test_many_who_replace_a_file_leave_one_that_is_whole(tmp_path):
    texts = [str(i) * 10_000 for i in range(8)]
    with concurrent.futures.ThreadPoolExecutor(len(texts)) as pool:
        list(pool.map(lambda text: [write_text(tmp_path / "a.txt", text) for _ in range(20)], texts))
    assert os.listdir(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() in texts


def test_one_waits_for_the_other(tmp_path):
    told, inside = [], threading.Event()

    def other():
        inside.wait()
        with files.one_at_a_time(tmp_path / "a.txt"):
            told.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    with files.one_at_a_time(tmp_path / "a.txt"):
        inside.set()
        thread.join(0.3)
        told.append("first")
    thread.join()
    assert told == ["first", "other"]
    assert os.listdir(tmp_path) == [".a.txt.lock"]
    with (
        pytest.raises(WriteError, match=r"^cannot write '.*/none/a\.txt': "),
        files.one_at_a_time(tmp_path / "none" / "a.txt"),
    ):
        pass


def test_one_waits_and_those_that_come_meanwhile_do_not(tmp_path):
    path, entered, order = tmp_path / "report.html", threading.Event(), []

    def second():
        with one_waits(path) as mine:
            order.append(("second", mine))
        entered.set()

    with one_at_a_time(path):
        waits = threading.Thread(target=second)
        waits.start()
        turn = tmp_path / ".report.html.next.lock"
        while not (turn.exists() and _held(turn)):
            time.sleep(0.01)
        with one_waits(path) as mine:
            order.append(("third", mine))
        assert not entered.is_set()
    waits.join()
    with one_waits(path) as mine:
        order.append(("fourth", mine))
    assert order == [("third", False), ("second", True), ("fourth", True)]


def _held(path):
    with open(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
