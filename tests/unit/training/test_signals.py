"""Signals: remembered, acknowledged, and handed back."""

import os
import signal
import sys
import threading
import time

import pytest

from positionbias.training.signals import StopSignal

AGAIN = "stopping as soon as steps or an evaluation under way are done and saved; Ctrl-C again stops without saving\n"


@pytest.mark.parametrize(
    ("number", "name", "line"),
    [
        (signal.SIGINT, "SIGINT (Ctrl-C)", AGAIN),
        (signal.SIGTERM, "SIGTERM", AGAIN.replace("Ctrl-C again", "Ctrl-C")),
    ],
)
def test_the_first_is_remembered_and_acknowledged_once(capsys, number, name, line):
    with StopSignal() as stop:
        assert stop.name == ""
        signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capsys.readouterr() == ("", line)
    assert stop.name == name


def test_the_acknowledgement_does_not_wait_for_the_main_thread(monkeypatch):
    reads, writes = os.pipe()
    monkeypatch.setattr(sys, "stderr", open(writes, "w"))  # noqa: SIM115
    acknowledged, seen = threading.Event(), []

    def elsewhere():  # so that the main thread's wait is not interrupted, like a dispatch
        time.sleep(0.2)  # by when the main thread most likely waits; if it does not, the test is only less sharp
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        seen.append(os.read(reads, 200).decode())
        acknowledged.set()

    with StopSignal():
        threading.Thread(target=elsewhere, daemon=True).start()
        assert acknowledged.wait(60)
    sys.stderr.close()
    os.close(reads)
    assert seen == [AGAIN]


def test_the_line_starts_below_what_a_terminal_shows(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with StopSignal():
        signal.raise_signal(signal.SIGINT)
    assert capsys.readouterr().err == f"\n{AGAIN}"


def test_handlers_are_as_they_were():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    threads = threading.active_count()
    with StopSignal():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads
