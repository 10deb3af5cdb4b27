from __future__ import annotations

import errno
import json
import logging
import os
import pathlib
import random
import shutil
import subprocess
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from positionbias.files import FileError, WriteError
from positionbias.training import checkpoint
from positionbias.training.checkpoint import (
    CheckpointError,
    from_plain,
    prune,
    restore,
    restore_latest,
    save,
    steps,
    to_plain,
)


def latest(folder, log):
    found = restore_latest(folder, log)
    return found and found[0]


def make_state():
    rng = np.random.default_rng(0)
    return {
        "params": {
            "kernel": rng.normal(size=(64, 48)).astype(np.float32),
            "half": np.asarray(jnp.asarray(rng.normal(size=(3, 5)), jnp.bfloat16)),
            "no_rows": np.zeros((0, 4), np.float32),
            "empty": {},
        },
        "frozen": {},
        "optimizer": {"0": {"count": np.array(7, np.int32)}, "key": np.array([1, 2**32 - 1], np.uint32)},
        "odd": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
    }


def flat(state, prefix=""):
    out = {}
    for key, value in state.items():
        out |= flat(value, prefix + key + "/") if isinstance(value, dict) and value else {prefix + key: value}
    return out


def assert_same(found, wanted):
    found, wanted = flat(found), flat(wanted)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, dict):
            assert found[name] == {}
            continue
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name
        assert found[name].tobytes() == value.tobytes(), name


def no_log(text):
    raise AssertionError(text)


def test_round_trip_to_the_bit(tmp_path):
    meta = {"seconds": 0.1 + 0.2, "interval": {"loss": [[0.1, 2.5e-8]]}, "note": "é"}
    save(tmp_path / "checkpoints", 600, make_state(), meta)
    found, told = restore(tmp_path / "checkpoints", 600)
    assert_same(found, make_state())
    assert told == meta
    assert checkpoint.path_of(tmp_path / "checkpoints", 600) == tmp_path / "checkpoints" / "000600"
    assert sorted(p.name for p in (tmp_path / "checkpoints" / "000600").iterdir()) == ["mark.json", "state"]


def test_relative_folder_and_jax_leaves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(pathlib.Path("c"), 1, {"a": jnp.arange(3), "b": jnp.float32(2.5)}, {})
    assert_same(restore(pathlib.Path("c"), 1)[0], {"a": np.arange(3, dtype=np.int32), "b": np.array(2.5, np.float32)})


def training_state():
    model = nnx.List([nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(1))])
    params = nnx.state(model, nnx.Param)
    return {"params": params, "frozen": nnx.State({}), "optimizer": optax.adamw(1e-3).init(params), "own": {3: [1.5]}}


def test_any_pytree_round_trips_through_plain_names():
    state = training_state()
    plain = to_plain(state)
    assert sorted(flat(plain)) == sorted(
        [f"{where}/{layer}/{leaf}" for where in ("params", "optimizer/0/mu", "optimizer/0/nu")
         for layer in "01" for leaf in ("bias", "kernel")] + ["optimizer/0/count", "own/3/0"]
    )  # fmt: skip
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), state)
    found = from_plain(plain, like)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True))


def test_restore_in_the_structure_of_a_state(tmp_path):
    state = training_state()
    save(tmp_path, 5, to_plain(state), {})
    found, _ = restore(tmp_path, 5, like=state)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True))


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": np.zeros(3, np.float32), "c": np.zeros(2)}, r"leaf 'b', int32\[\], has no place in this model"),
        ({"a": np.zeros(4, np.float32), "b": np.int32(0)}, r"leaf 'a' is float32\[3\], the model wants float32\[4\]"),
        ({"a": np.zeros(3, np.float16), "b": np.int32(0)}, r"leaf 'a' is float32\[3\], the model wants float16\[3\]"),
        ({"0": np.zeros(1), "a": np.zeros(4), "b": np.int32(0)}, r"leaf '0', float64\[1\], is missing"),
    ],
)
def test_a_state_that_does_not_fit_names_the_first_leaf(tmp_path, like, message):
    save(tmp_path, 20, {"a": np.zeros(3, np.float32), "b": np.int32(1)}, {})
    with pytest.raises(CheckpointError, match=f"^checkpoint 20 does not fit: {message}.$"):
        restore(tmp_path, 20, like=like)


class Twins:
    def __init__(self, *leaves):
        self.leaves = leaves


keys = jax.tree_util.SequenceKey(1), jax.tree_util.DictKey("1")
jax.tree_util.register_pytree_with_keys(
    Twins, lambda twins: (list(zip(keys, twins.leaves, strict=True)), None), lambda _, leaves: Twins(*leaves)
)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"x": Twins(1.0, 2.0)}, "two leaves have the name 'x/1'"),
        ({"a.b": 1.0}, "the key 'a.b' of the state is not a name"),
        ({"a/b": 1.0}, "the key 'a/b' of the state is not a name"),
        (1.0, "the key '' of the state is not a name"),
    ],
)
def test_names_that_could_be_mistaken_are_refused(tree, message):
    with pytest.raises(CheckpointError, match=message):
        to_plain(tree)


def test_what_is_not_numbers_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="checkpoint 1: leaf 'a/b' is not an array of numbers"):
        save(tmp_path / "c", 1, {"a": {"b": object()}}, {})
    assert not (tmp_path / "c").exists()


# ------------------------------------------------------------------------------------------------------------ damage


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # reading threads end untidily
def test_a_flipped_bit_in_any_file_is_found_or_harmless(tmp_path):
    """Every file, at 14 places each: the load raises, or what it returns is right to the bit."""
    save(tmp_path, 600, make_state(), {"seconds": 1.5})
    found, said = set(), []
    for path in sorted(p for p in (tmp_path / "000600").rglob("*") if p.is_file() and p.stat().st_size):
        content = path.read_bytes()
        for place in np.unique(np.linspace(0, len(content) - 1, 14).astype(int)):
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(place) % 8
            path.write_bytes(damaged)
            try:
                state, meta = restore(tmp_path, 600)
            except CheckpointError as error:
                found.add(path)
                said.append(str(error))
            else:
                assert_same(state, make_state())
                assert meta == {"seconds": 1.5}
        path.write_bytes(content)
    restore(tmp_path, 600)
    assert tmp_path / "000600" / "mark.json" in found
    assert len(found) >= 4
    assert all(text.startswith("checkpoint 600") and "\n" not in text for text in said)
    assert any(
        "does not hold the bits" in text for text in said
    )  # Orbax returned wrong bits without a word, and the digest told


def test_every_bit_flipped_in_the_mark_is_found(tmp_path):
    save(tmp_path, 3, {"a": np.zeros(2, np.float32)}, {"seconds": 1.5})
    mark = tmp_path / "000003" / "mark.json"
    content = mark.read_bytes()
    whole = json.loads(content)
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        mark.write_bytes(damaged)
        try:
            restore(tmp_path, 3)
        except CheckpointError:
            continue
        assert json.loads(damaged) == whole  # white space


@pytest.mark.parametrize("depth", [100_000, 900])
def test_a_mark_nested_without_end_cannot_be_read(tmp_path, depth):
    save(tmp_path, 3, {"a": np.zeros(2, np.float32)}, {})
    (tmp_path / "000003" / "mark.json").write_text(f'{{"sha256": "", "meta": {"[" * depth}{"]" * depth}}}')
    with pytest.raises(CheckpointError, match=r"^checkpoint 3: its mark cannot be read\.$"):
        restore(tmp_path, 3)


def rewrite(tmp_path, step, change):
    """Replace a step's arrays by what `change` makes of them, behind the mark's back."""
    import orbax.checkpoint.experimental.v1 as ocp

    state, _ = restore(tmp_path, step)
    change(state)
    home = checkpoint.path_of(tmp_path, step)
    shutil.rmtree(home / "state")
    ocp.save(home / "state", state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["a"].update(more=np.zeros(1)), "leaf 'a/more' was not saved with it"),
        (lambda s: s["a"].pop("x"), "leaf 'a/x' is missing"),
        (lambda s: s["a"].update(x=s["a"]["x"].reshape(3, 2)), r"leaf 'a/x' has shape \[3, 2\], \[2, 3\] was saved"),
        (lambda s: s["a"].update(x=s["a"]["x"].view(np.int32)), "leaf 'a/x' has dtype int32, float32 was saved"),
        (lambda s: s["a"].update(x=-s["a"]["x"]), "leaf 'a/x' does not hold the bits that were saved"),
    ],
)
def test_damage_names_step_and_leaf(tmp_path, change, message):
    save(tmp_path, 40, {"a": {"x": np.zeros((2, 3), np.float32), "y": np.ones(2, np.float32)}}, {})
    rewrite(tmp_path, 40, change)
    with pytest.raises(CheckpointError, match=f"^checkpoint 40: {message}.$"):
        restore(tmp_path, 40)


def test_latest_skips_to_the_last_whole_step_and_says_why(tmp_path):
    for step in (10, 20, 30, 40):
        save(tmp_path, step, {"x": np.full(4, step, np.float32)}, {})
    rewrite(tmp_path, 20, lambda s: s.update(x=s["x"] + 1))
    (tmp_path / "000030" / "state" / "state" / "manifest.ocdbt").write_bytes(b"")
    (tmp_path / "000040" / "mark.json").unlink()
    (tmp_path / "notes").mkdir()
    said = []
    assert latest(tmp_path, said.append) == 10
    assert said[0] == "skipped checkpoint 40 has no mark: its save was cut short."
    assert said[1].startswith("skipped checkpoint 30: ")
    assert "cannot be read" in said[1]
    assert said[2] == "skipped checkpoint 20: leaf 'x' does not hold the bits that were saved."
    assert len(said) == 3
    assert steps(tmp_path) == [10, 20, 30]


def test_another_format_is_refused_and_not_skipped(tmp_path):
    for step in (10, 20):
        save(tmp_path, step, {"x": np.zeros(4)}, {})
    mark = json.loads((tmp_path / "000020" / "mark.json").read_text())
    (tmp_path / "000020" / "mark.json").write_text(json.dumps({**mark, "format": 2}))
    with pytest.raises(CheckpointError, match=r"^checkpoint 20 has format 2, allowed: 1\.$"):
        latest(tmp_path, no_log)


def test_marks_of_which_none_is_whole_are_refused(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, {"x": np.zeros(4)}, {})
    (tmp_path / "000030" / "mark.json").unlink()
    (tmp_path / "000020" / "mark.json").write_text("{")
    rewrite(tmp_path, 10, lambda s: s.update(x=s["x"] + 1))
    said = []
    why = r"checkpoint 20: its mark cannot be read"
    with pytest.raises(CheckpointError, match=rf"^no checkpoint can be restored, of 10, 20 \({why}\)\.$"):
        latest(tmp_path, said.append)
    assert [line.split(":")[0].split(" has")[0] for line in said] == [f"skipped checkpoint {s}" for s in (30, 20, 10)]
    for step in (10, 20):  # only leftovers of killed saves: nothing to lose
        (tmp_path / f"{step:06d}" / "mark.json").unlink()
    assert latest(tmp_path, said.append) is None


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (OSError(errno.EMFILE, "whatever"), FileError, r"cannot read '.*/000002': Too many open files\."),
        (OSError(errno.EIO, "whatever"), FileError, r"cannot read '.*/000002': Input/output error\."),
        (ValueError("x\ny [os_error_code='12']"), FileError, r"cannot read '.*/000002': Cannot allocate memory\."),
        (MemoryError(), MemoryError, r"memory ran out while reading '.*/000002'\."),
        (ImportError("no module"), ImportError, "no module"),
    ],
    ids=str,
)
def test_what_the_machine_lacks_is_no_damage(tmp_path, monkeypatch, error, kind, told):
    import orbax.checkpoint.experimental.v1 as ocp

    for step in (1, 2):
        save(tmp_path, step, {"x": np.zeros(3)}, {})

    def lacking(*arguments):
        raise error

    monkeypatch.setattr(ocp, "load", lacking)
    for use in (lambda: latest(tmp_path, no_log), lambda: checkpoint.whole(tmp_path, 2)):
        with pytest.raises(kind, match=f"^{told}$"):
            use()


def test_a_mark_that_the_machine_cannot_open_is_no_damage(tmp_path, monkeypatch):
    save(tmp_path, 1, {"x": np.zeros(3)}, {})
    for number, kind in ((errno.EMFILE, FileError), (errno.EISDIR, CheckpointError)):
        error = OSError(number, "whatever")
        monkeypatch.setattr(pathlib.Path, "read_text", lambda *a, error=error, **k: (_ for _ in ()).throw(error))
        with pytest.raises(kind):
            restore(tmp_path, 1)


def test_the_newest_whole_step_is_read_once_and_must_fit(tmp_path, monkeypatch):
    for step in (10, 20):
        save(tmp_path, step, {"x": np.full(4, step, np.float32)}, {"at": step})
    read, steps_read = checkpoint._read_state, []
    monkeypatch.setattr(
        checkpoint, "_read_state", lambda home, step, told: steps_read.append(step) or read(home, step, told)
    )
    like = {"x": jax.ShapeDtypeStruct((4,), np.float32)}
    step, state, meta = restore_latest(tmp_path, no_log, like)
    assert (step, meta, steps_read) == (20, {"at": 20}, [20])
    assert_same(state, {"x": np.full(4, 20, np.float32)})
    with pytest.raises(CheckpointError, match="checkpoint 20 does not fit: leaf 'x'"):
        restore_latest(tmp_path, no_log, {"x": jax.ShapeDtypeStruct((5,), np.float32)})
    assert restore_latest(tmp_path / "none", no_log) is None


def test_no_checkpoint_at_all(tmp_path):
    assert latest(tmp_path / "checkpoints", no_log) is None
    assert steps(tmp_path / "checkpoints") == []
    with pytest.raises(CheckpointError, match="checkpoint 7 is not there"):
        restore(tmp_path / "checkpoints", 7)


def test_the_readers_of_damaged_files_are_quiet_only_while_they_read(tmp_path):
    logger, records = logging.getLogger("absl"), []
    handler = logging.Handler()
    handler.emit = records.append
    before = logger.level
    save(tmp_path, 1, {"x": np.zeros(1)}, {})
    (tmp_path / "000001" / "state" / "_CHECKPOINT_METADATA").write_text("{")
    logger.addHandler(handler)
    try:
        latest(tmp_path, lambda text: None)
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == []
    assert logger.level == before


# ------------------------------------------------------------------------------------------------- saving and keeping


def test_a_whole_step_is_never_overwritten(tmp_path):
    save(tmp_path, 5, {"x": np.zeros(3)}, {"first": True})
    save(tmp_path, 5, {"x": np.zeros(3)}, {"first": False})
    assert restore(tmp_path, 5)[1] == {"first": True}
    with pytest.raises(CheckpointError, match="checkpoint 5 is there and whole, and holds another state"):
        save(tmp_path, 5, {"x": np.ones(3)}, {})
    assert_same(restore(tmp_path, 5)[0], {"x": np.zeros(3)})


def test_a_save_replaces_what_is_not_whole_and_sweeps_leftovers_away(tmp_path):
    for step in (5, 6, 7):
        save(tmp_path, step, {"x": np.zeros(3)}, {})
    rewrite(tmp_path, 5, lambda s: s.update(x=s["x"] + 1))
    (tmp_path / "000006" / "mark.json").unlink()
    (tmp_path / "000006" / "state.orbax-checkpoint-tmp").mkdir()
    save(tmp_path, 5, {"x": np.ones(3)}, {})
    assert_same(restore(tmp_path, 5)[0], {"x": np.ones(3)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000005", "000007"]


def full(*arguments, **more):
    raise ValueError("RESOURCE_EXHAUSTED: Error writing\nFailed to write 4 bytes to file 9 [os_error_code='28']")


def test_a_save_without_room_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    import orbax.checkpoint.experimental.v1 as ocp

    save(tmp_path, 1, {"x": np.zeros(3)}, {})
    for broken in ((ocp, "save", full), (checkpoint, "sync", lambda path: os.open(path / "none", os.O_RDONLY))):
        monkeypatch.setattr(*broken)
        with pytest.raises(WriteError, match=r"^cannot write '.*/000002': (No space left on device|No such file.*)\.$"):
            save(tmp_path, 2, {"x": np.zeros(3)}, {})
        monkeypatch.undo()
        assert [p.name for p in tmp_path.iterdir()] == ["000001"]
    save(tmp_path, 2, {"x": np.zeros(3)}, {})
    assert steps(tmp_path) == [1, 2]


def test_what_late_threads_of_a_failed_save_write_is_removed_too(tmp_path, monkeypatch):
    def late(path):
        time.sleep(0.3)
        path.mkdir(parents=True)
        (path / "part").touch()

    def failing(path, tree):
        threading.Thread(target=late, args=(path,)).start()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.by_orbax, "save", failing)
    with pytest.raises(WriteError, match="No space left"):
        save(tmp_path, 2, {"x": np.zeros(3)}, {})
    time.sleep(0.6)
    assert list(tmp_path.iterdir()) == []


def test_a_thread_that_a_failed_save_is_starting_is_waited_for(tmp_path, monkeypatch):
    enumerate_, begun = threading.enumerate, []
    late = threading.Thread(target=lambda: (tmp_path / "000002" / "part").touch())

    def listed():
        if len(begun) == 2:
            late.start()
        if begun:
            begun.append(late)
        return list({*enumerate_(), *([] if late.ident or not begun else [late])})

    def failing(path, tree):
        begun.append(late)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.threading, "enumerate", listed)
    monkeypatch.setattr(checkpoint.by_orbax, "save", failing)
    with pytest.raises(WriteError, match="No space left"):
        save(tmp_path, 2, {"x": np.zeros(3)}, {})
    assert late.ident
    assert list(tmp_path.iterdir()) == []


def test_late_threads_of_a_failed_file_are_silent_and_others_are_not(monkeypatch, caplog):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(str(unraisable.exc_value)))
    checkpoint._ignore_late_threads.__wrapped__()
    for text in ("Event loop is closed", "something else"):
        sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(text)))
    assert told == ["something else"]
    asyncio = logging.getLogger("asyncio")
    with caplog.at_level(logging.ERROR):
        asyncio.error("Task exception was never retrieved\nfuture: ... in OCDBT database ...")
        asyncio.error("Task exception was never retrieved\nfuture: ... of others")
    asyncio.removeFilter(asyncio.filters[-1])
    assert [record.getMessage().rpartition(" ")[2] for record in caplog.records] == ["others"]


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "left"),
    [
        (1, None, [70]),
        (2, None, [60, 70]),
        (2, 30, [30, 60, 70]),
        (1, 20, [20, 40, 60, 70]),
        (9, None, [10, 20, 30, 40, 50, 60, 70]),
    ],
)
def test_policies(tmp_path, keep_last, keep_every, left):
    kept = tmp_path / "kept"
    for step in range(10, 80, 10):
        save(kept, step, {"x": np.zeros(1)}, {})
        prune(kept, keep_last, keep_every)
    assert steps(kept) == left
    assert sorted(p.name for p in kept.iterdir()) == [f"{step:06d}" for step in left]


def test_a_damaged_step_never_displaces_the_last_whole_one(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, {"x": np.zeros(2)}, {})
    rewrite(tmp_path, 30, lambda s: s.update(x=s["x"] + 1))
    prune(tmp_path, 1, None)
    assert latest(tmp_path, lambda text: None) == 20
    assert steps(tmp_path) == [20, 30]


def test_pruning_does_not_read_what_is_known_to_be_whole(tmp_path, monkeypatch):
    for step in (10, 20, 30):
        save(tmp_path, step, {"x": np.zeros(2)}, {})
    read, steps_read = checkpoint._read_state, []
    monkeypatch.setattr(
        checkpoint, "_read_state", lambda home, step, told: steps_read.append(step) or read(home, step, told)
    )
    prune(tmp_path, 2, None, known={30})
    assert steps_read == [20]
    assert steps(tmp_path) == [20, 30]


def test_a_removal_cut_short_leaves_nothing_that_counts(tmp_path, monkeypatch):
    save(tmp_path, 1, {"x": np.zeros(1)}, {})
    save(tmp_path, 2, {"x": np.zeros(1)}, {})
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *a, **k: None)
    prune(tmp_path, 1, None)
    assert steps(tmp_path) == [2]


KILLED = """
import os, pathlib, random, signal, sys, time
import numpy as np
import orbax.checkpoint.experimental.v1  # before any fork; it starts no thread
from positionbias.training import checkpoint

folder, wanted = pathlib.Path(sys.argv[1]), int(sys.argv[2])
delays = random.Random(0)
cut_short = trial = 0
while cut_short < wanted and trial < 40 * wanted:
    home = folder / str(trial)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        for step in range(1, 10_000):
            state = {"x": np.full((40, 40), step, np.float32), "deep": {"count": np.array(step, np.int32)}}
            checkpoint.save(home, step, state, {"step": step})
            checkpoint.prune(home, 2, None)
            os.write(write, b"%d\\n" % step)
    os.close(write)
    told = os.read(read, 100)  # the first save is over: every delay from here on falls somewhere in a later one
    time.sleep(delays.uniform(0, 0.15))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(read, 1000):
        told += more
    os.close(read)
    (folder / f"{trial}.told").write_bytes(told)
    # Where a kill falls is the machine's affair, so it is repeated until enough of them fell inside a save.
    cut_short += not (max(home.iterdir()) / checkpoint.MARK).exists()
    trial += 1
"""


def test_kill_9_in_the_middle_of_saves_leaves_the_last_whole_step(tmp_path):
    wanted = 3
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(wanted)]
    subprocess.run(command, check=True, timeout=240, cwd=pathlib.Path(__file__).parents[3])
    cut_short = 0
    for told in sorted(tmp_path.glob("*.told")):
        home = tmp_path / told.stem
        last = int(told.read_text().split()[-1])
        said = []
        found = latest(home, said.append)
        assert found in (last, last + 1)  # killed before it could say so
        state, meta = restore(home, found)
        assert meta == {"step": found}
        assert_same(state, {"x": np.full((40, 40), found, np.float32), "deep": {"count": np.array(found, np.int32)}})
        assert all("cut short" in text for text in said)
        cut_short += bool(said)
        save(home, found + 1, state, meta)
        assert steps(home)[-1] == found + 1
        assert len(list(home.iterdir())) == len(steps(home))
    assert cut_short == wanted


def test_random_trees(tmp_path):
    draw = random.Random(1)
    rng = np.random.default_rng(1)

    def tree(depth):
        made = {}
        for index in range(draw.randint(1, 3)):
            shape = tuple(draw.choice((0, 1, 2, 5)) for _ in range(draw.randint(0, 3)))
            dtype = draw.choice((np.float32, np.int32, np.uint32, np.bool_, jnp.bfloat16, np.float16, np.int8))
            made[f"k{index}"] = (rng.normal(size=shape) * 100).astype(np.float32).astype(np.int32).astype(dtype)
        return made | ({"inner": tree(depth - 1), "none": {}} if depth else {})

    for step in range(6):
        state = tree(step % 3)
        save(tmp_path, step, state, {})
        assert_same(restore(tmp_path, step)[0], state)
