from __future__ import annotations

import errno
import io
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import files
from positionbias.files import WriteError
from positionbias.spec import ConfigError
from positionbias.training import writers
from positionbias.training.writers import Evaluating, MetricsWriter, Progress, read_metrics


def test_lines_come_back_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)
    losses = [rng.normal(size=4).astype(np.float32), jnp.asarray([1e-45, 3.4e38, -0.0, 0.1], jnp.float32)]
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    for step, loss in enumerate(losses):
        writer.write({"step": step, "seconds": 0.1 + 0.2, "loss": loss})
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1]
    assert lines[0]["seconds"] == 0.1 + 0.2
    for line, loss in zip(lines, losses, strict=True):
        assert np.asarray(line["loss"], np.float32).tobytes() == np.asarray(loss).tobytes()


def test_a_line_is_on_the_disk_as_soon_as_it_is_written(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.write({"step": 20, "loss": [0.5]})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 20, "loss": [0.5]}\n'


@pytest.mark.parametrize("bad", [np.array([0.5, np.nan], np.float32), [float("inf")], np.float64("-inf")], ids=str)
def test_numbers_that_are_not_finite_are_refused(tmp_path, bad):
    writer = MetricsWriter(tmp_path / "m")
    with pytest.raises(ValueError, match="not JSON compliant"):
        writer.write({"step": 1, "loss": bad})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torn", ["", '{"step": 40, "lo', '{"step": 30, "loss": 3.0}', "\0\0\0\0\n", "[1]\n"])
def test_cut_back_drops_later_lines_and_the_torn_one(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    for step in (10, 20, 30, 40):
        writer.write({"step": step, "loss": [step / 7]})
    kept = path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept) + torn)
    assert [line["step"] for line in read_metrics(path)] == [10, 20, 30, 40]
    writer.cut_back(30)
    assert path.read_text() == "".join(kept[:3])
    writer.write({"step": 40, "loss": [40 / 7]})
    assert path.read_text() == "".join(kept)
    writer.cut_back(0)
    assert path.read_text() == ""


def test_cut_back_refuses_a_damaged_line_that_is_not_the_last(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    for step in (10, 20, 30, 40):
        writer.write({"step": step, "loss": [step / 7]})
    path.write_text(path.read_text().replace('"step": 20', '"step: 20'))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"^workdir: line 2 of '.*/metrics\.jsonl' is not a line of metrics; allowed"):
        writer.cut_back(40)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: text.replace("0.5", "0.4"),
        lambda text: text[: text.index("20") - 5],
        lambda text: text[: text.index("20")] + "\0" * 40,
    ],
    ids=["a digit", "a line", "zeros"],
)
def test_cut_back_refuses_lines_that_are_not_those_of_the_digest(tmp_path, harm):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    for step in (10, 20):
        writer.write({"step": step, "loss": [0.5]})
    digest, text = writer.digest, path.read_text()
    writer.write({"step": 30, "loss": [0.5]})
    path.write_text(harm(text))
    with pytest.raises(ConfigError, match=r"^workdir: .*metrics.jsonl' does not hold what was written up to step 20; "):
        MetricsWriter(path).cut_back(20, digest)
    assert path.read_text() == harm(text)
    path.unlink()
    (again := MetricsWriter(path)).cut_back(20, digest)
    again.write({"step": 30, "loss": [0.5]})
    MetricsWriter(path).cut_back(20, digest)  # killed before a checkpoint could know of it
    assert path.read_text() == ""
    path.write_text(text + '{"step": 30, "lo')
    (again := MetricsWriter(path)).cut_back(20, digest)
    again.write({"step": 30, "loss": [0.5]})
    assert (path.read_text(), again.digest) == (text + text[: len(text) // 2].replace("10", "30"), writer.digest)


def test_cut_back_without_a_file_makes_none(tmp_path):
    MetricsWriter(tmp_path / "metrics.jsonl").cut_back(0)
    assert list(tmp_path.iterdir()) == []
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_cut_back_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    writer.write({"step": 1})
    writer.write({"step": 2})
    before = path.read_bytes()
    monkeypatch.setattr(files.os, "replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        writer.cut_back(1)
    assert path.read_bytes() == before


def test_a_full_disk_is_told_and_leaves_no_line_to_come(tmp_path, monkeypatch):
    class Full:
        def __init__(self, path):
            self.file, self.room = open(path, "ab", buffering=0), 5  # noqa: SIM115

        def write(self, content):
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.room = 0
            return self.file.write(content[:5])

        def close(self):
            self.file.close()

    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    monkeypatch.setattr(writers, "open", lambda path, *a, **k: Full(path), raising=False)
    with pytest.raises(WriteError, match=r"^cannot write '.*/metrics\.jsonl': No space left on device\.$"):
        writer.write({"step": 10})
    writer.close()
    monkeypatch.undo()
    assert path.read_text() == '{"ste'
    writer.cut_back(0)
    writer.write({"step": 10})
    assert path.read_text() == '{"step": 10}\n'


def test_a_damaged_earlier_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n{torn\n" + json.dumps({"step": 3}) + "\n")
    with pytest.raises(ConfigError, match=r"^workdir: line 2 of '.*/metrics\.jsonl' is not a line of metrics; allowed"):
        read_metrics(path)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ({"step": "x"}, "step"),
        ({"step": 10**30}, "step"),
        ({"loss": [1.0, 2.0]}, "step"),
        ({"step": 2, "loss": 3.0}, "loss"),
        ({"step": 2, "loss": [1.0, "a"]}, r"loss\[1\]"),
        ({"step": 2, "loss": [1.0]}, "loss"),
        ({"step": 2}, "loss"),
        ({"step": 2, "loss": [1.0, 2.0], "accuracy": [1.0]}, "accuracy"),
    ],
)
def test_a_line_of_wrong_types_is_named(tmp_path, line, place):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": [1.0, None]}) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(ConfigError, match=f"^workdir: line 2 of .* is not a line of metrics at '{place}'; allowed: "):
        read_metrics(path)


# ---------------------------------------------------------------------------------------------------------- progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def fileno(self):
        return 1

    def screen(self):
        """What a person sees: rows, each as its last writing left it."""
        rows = []
        for row in self.getvalue().split("\n"):
            shown = ""
            for part in row.split("\r"):
                shown = part + shown[len(part) :]
            rows.append(shown.rstrip())
        return rows


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(writers.os, "get_terminal_size", lambda descriptor: os.terminal_size((100, 24)))
    return Terminal()


def test_the_line_on_a_terminal(terminal):
    clock = Clock()
    progress = Progress(terminal, 2000, clock)
    clock.now += 50  # compiling
    progress.update(20, [1.0, 2.0], np.array([0.25, 0.75]))
    assert terminal.screen() == ["step 20/2000  1%  loss 1.5000  accuracy 0.5000"]
    clock.now += 4
    progress.update(60, [0.5], [0.5])
    assert terminal.screen() == ["step 60/2000  3%  loss 0.5000  accuracy 0.5000  10 steps/s  ETA 3:14"]
    progress.close()
    progress.close()
    assert terminal.screen() == ["step 60/2000  3%  loss 0.5000  accuracy 0.5000  10 steps/s  ETA 3:14", ""]


def test_pauses_do_not_count_and_leave_room_for_others(terminal):
    clock = Clock()
    progress = Progress(terminal, 100, clock)
    progress.resume()
    progress.pause()
    progress.resume()
    assert terminal.getvalue() == ""
    progress.update(10, 1.0, 0.5)
    clock.now += 10
    progress.pause()
    progress.pause()
    terminal.write("saved\n")
    clock.now += 500
    progress.resume()
    progress.resume()
    assert terminal.screen() == ["saved", "step 10/100  10%  loss 1.0000  accuracy 0.5000"]
    clock.now += 10
    progress.update(50, 1.0, 0.5)
    assert terminal.screen()[-1].endswith("2 steps/s  ETA 0:25")
    progress.pause()
    progress.close()
    assert terminal.screen()[-2].endswith("2 steps/s  ETA 0:25")


def test_a_shorter_line_covers_a_longer_one(terminal):
    progress = Progress(terminal, 100, Clock())
    progress.update(10, 123456.0, 0.5)
    progress.update(10, 1.0, 0.5)
    assert terminal.screen() == ["step 10/100  10%  loss 1.0000  accuracy 0.5000"]


def test_a_narrow_terminal_cuts_the_line(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(writers.os, "get_terminal_size", lambda descriptor: os.terminal_size((20, 24)))
    Progress(stream, 100, Clock()).update(10, 1.0, 0.5)
    assert stream.getvalue() == "\rstep 10/100  10%  l"


def test_a_terminal_that_does_not_tell_its_width():
    class Bare(Terminal):
        def fileno(self):
            raise io.UnsupportedOperation("fileno")

    stream = Bare()
    Progress(stream, 10**60, Clock()).update(1, 1.0, 0.5)
    assert len(stream.getvalue().removeprefix("\r")) == 79


def test_plain_lines_come_at_once_then_every_minute_and_at_the_end():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, 1000, clock)
    for second in range(1, 151):
        progress.update(2 * second, 1.0, 0.5)
        clock.now += 1
    progress.pause()
    progress.resume()
    progress.update(1000, 1.0, 0.5)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "step 2/1000",
        "step 122/1000",
        "step 242/1000",
        "step 1000/1000",
    ]
    assert lines[1].endswith("2 steps/s  ETA 7:19")
    assert "\r" not in stream.getvalue()


def test_an_evaluation_has_the_terminals_line_while_training_is_paused(terminal):
    clock = Clock()
    progress = Progress(terminal, 100, clock)
    progress.update(10, 1.0, 0.5)
    progress.pause()
    with progress.evaluating() as line:
        clock.now += 50  # compiling
        line.update(256, 2304)
        assert terminal.screen() == ["item 256/2304  11%"]
        clock.now += 4
        line.update(768, 2304)
        assert terminal.screen() == ["item 768/2304  33%  128 items/s  ETA 0:12"]
    assert terminal.screen() == [""]
    progress.resume()
    assert terminal.screen() == ["step 10/100  10%  loss 1.0000  accuracy 0.5000"]


def test_a_broken_evaluation_leaves_the_terminal_free(terminal):
    def broken():
        with Evaluating(terminal, Clock()) as line:
            line.update(1, 2)
            raise MemoryError

    with pytest.raises(MemoryError):
        broken()
    terminal.write("error\n")
    assert terminal.screen() == ["error", ""]


def test_of_an_evaluation_plain_lines_come_every_minute_alone():
    stream, clock = io.StringIO(), Clock()
    with Evaluating(stream, clock) as line:
        for second in range(1, 151):
            clock.now += 1
            line.update(2 * second, 300)
    assert stream.getvalue() == ("item 120/300  40%  2 items/s  ETA 1:30\nitem 240/300  80%  2 items/s  ETA 0:30\n")


def test_long_runs_show_hours():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, 100_000, clock)
    progress.update(0, 1.0, 0.5)
    clock.now += 60
    progress.update(600, 1.0, 0.5)
    assert stream.getvalue().splitlines()[-1].endswith("10 steps/s  ETA 2:45:40")
