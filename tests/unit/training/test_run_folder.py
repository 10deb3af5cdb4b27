from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from positionbias import files, runtime
from positionbias.config.resolve import stored_hash
from positionbias.files import WriteError, read_json, write_json
from positionbias.spec import ConfigError
from positionbias.training import run_folder
from positionbias.training.run_folder import FolderInUse, RunFolder, locked

ROOT = pathlib.Path(__file__).parents[3]
CONFIG = {"name": "one", "model": {"layers": 2, "mask": "causal", "init": {}}, "train": {"vary": {}, "steps": 10}}
HASH = stored_hash(CONFIG)
COMMAND = ["python", "-m", "positionbias.train", "--config", "c.py"]


def claim(path, config=CONFIG):
    return RunFolder.claim(path, config, stored_hash(config), COMMAND)


def content(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_fresh_folder_holds_config_and_manifest(tmp_path):
    with claim(tmp_path / "runs" / "one") as folder:
        assert folder.path == tmp_path / "runs" / "one"
        assert folder.previous == {}
        assert read_json(folder.path / "config.json") == {"config": CONFIG, "hash": HASH, "command": COMMAND}
        manifest = read_json(folder.path / "manifest.json")
        assert manifest == folder.manifest
        assert manifest["status"] == "running"
        assert (manifest["step"], manifest["hash"], manifest["seconds"]) == (0, HASH, 0.0)
        assert manifest["bits_guaranteed"] is True
        assert manifest["versions"]["jax"] == jax.__version__
        assert manifest["versions"]["numpy"] == np.__version__
        assert manifest["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
        assert set(manifest["versions"]) == {"python", *run_folder.PACKAGES}
        assert manifest["devices"] == [f"{d.platform}: {d.device_kind}" for d in jax.devices()]
        assert manifest["threads"] == runtime.cores()
        assert socket.gethostname() not in json.dumps(manifest)
        assert sorted(os.listdir(folder.path)) == [".lock", "config.json", "manifest.json"]


def test_updates_are_written_and_misspelled_ones_refused(tmp_path):
    with claim(tmp_path / "run") as folder:
        folder.update(step=np.int32(7), seconds=0.1 + 0.2, auto={"microbatch": 8})
        manifest = read_json(folder.path / "manifest.json")
        assert (manifest["step"], manifest["seconds"], manifest["auto"]) == (7, 0.1 + 0.2, {"microbatch": 8})
        with pytest.raises(KeyError, match="no field 'steps'"):
            folder.update(steps=8)
        with pytest.raises(ValueError, match="status 'done'; allowed: running, finished, stopped, failed"):
            folder.update(status="done")
        assert read_json(folder.path / "manifest.json") == manifest


def git(*arguments):
    return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the package is not in a git checkout")
def test_the_commit_is_in_the_last_manifest(tmp_path):
    with claim(tmp_path / "run") as folder:
        folder.update(status="finished")
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert manifest["commit"] == git("rev-parse", "HEAD")
    assert manifest["dirty"] is bool(git("status", "--porcelain", "--", "positionbias"))


@pytest.mark.parametrize(("changed", "dirty"), [("README.md", False), ("positionbias/tasks/new.py", True)])
def test_dirty_is_a_package_that_differs_from_its_commit(tmp_path, monkeypatch, changed, dirty):
    home = tmp_path / "checkout"
    (home / "positionbias" / "tasks").mkdir(parents=True)
    (home / "positionbias" / "one.py").write_text("")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run(
            ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(home), *command], check=True, text=True
        )
    (home / changed).write_text("changed")
    monkeypatch.setattr(run_folder, "PACKAGE", home / "positionbias")
    with claim(tmp_path / "run") as folder:
        folder.update(status="finished")
    assert read_json(tmp_path / "run" / "manifest.json")["dirty"] is dirty


def test_without_a_checkout_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "PACKAGE", tmp_path / "installed" / "positionbias")
    with claim(tmp_path / "run") as folder:
        folder.update(status="finished")
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert (manifest["commit"], manifest["dirty"]) == (None, None)


# ------------------------------------------------------------------------------------------------------ coming again


def test_a_second_claim_resumes_and_keeps_the_config_file(tmp_path):
    with claim(tmp_path) as folder:
        folder.update(status="stopped", step=30, seconds=1.5, message="stopped by signal 2", bits_guaranteed=False)
    before = (tmp_path / "config.json").read_bytes()
    with RunFolder.claim(tmp_path, CONFIG, HASH, ["another", "command"]) as folder:
        assert (folder.previous["status"], folder.previous["step"]) == ("stopped", 30)
        manifest = read_json(tmp_path / "manifest.json")
    assert [manifest[k] for k in ("status", "step", "seconds", "message")] == ["running", 30, 1.5, ""]
    assert manifest["bits_guaranteed"] is False
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_finished_run_is_left_as_it_is(tmp_path):
    with claim(tmp_path) as folder:
        folder.update(status="finished", step=10)
    before = content(tmp_path)
    with claim(tmp_path) as folder:
        assert folder.previous["status"] == "finished"
    after = content(tmp_path)
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name] and name != ".lock"] == []


def test_an_error_that_escapes_is_written_down_and_frees_the_folder(tmp_path):
    with pytest.raises(RuntimeError), claim(tmp_path):
        raise RuntimeError("out of luck\nsecond line")
    manifest = read_json(tmp_path / "manifest.json")
    assert (manifest["status"], manifest["message"]) == ("failed", "RuntimeError: out of luck")
    claim(tmp_path).release()


def test_a_second_ctrl_c_leaves_a_stopped_run(tmp_path):
    with pytest.raises(KeyboardInterrupt), claim(tmp_path):
        raise KeyboardInterrupt
    manifest = read_json(tmp_path / "manifest.json")
    assert (manifest["status"], manifest["message"]) == (
        "stopped",
        "interrupted, without a checkpoint of the last steps",
    )


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the package is not in a git checkout")
def test_the_circumstances_of_a_run_are_known_when_asked_for(tmp_path):
    with claim(tmp_path / "run") as folder:
        folder.update(auto={"microbatch": 8})
        found = folder.circumstances()
    assert list(found) == ["commit", "dirty", "versions", "devices", "threads", "auto", "data"]
    assert (found["commit"], found["auto"]) == (git("rev-parse", "HEAD"), {"microbatch": 8})


def test_what_the_run_said_of_its_end_stands(tmp_path):
    folder = claim(tmp_path)
    folder.update(status="stopped", message="stopped by signal 15")
    with pytest.raises(RuntimeError), folder:
        raise RuntimeError
    assert read_json(tmp_path / "manifest.json")["message"] == "stopped by signal 15"


# --------------------------------------------------------------------------------------------------------- no room


def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_found_no_room_is_told_and_written_down(tmp_path):
    with pytest.raises(WriteError), claim(tmp_path):
        raise WriteError("cannot write 'x': No space left on device.")
    manifest = read_json(tmp_path / "manifest.json")
    assert (manifest["status"], manifest["message"]) == ("failed", "cannot write 'x': No space left on device.")


def test_a_manifest_that_cannot_be_written_hides_no_error(tmp_path, monkeypatch):
    folder = claim(tmp_path)
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RuntimeError, match="out of luck"), folder:
        raise RuntimeError("out of luck")
    monkeypatch.undo()
    claim(tmp_path).release()
    with claim(tmp_path) as folder:
        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(WriteError, match=r"^cannot write '.*/manifest\.json': No space left on device\.$"):
            folder.update(status="finished")
        monkeypatch.undo()
        assert folder.manifest["status"] == read_json(tmp_path / "manifest.json")["status"] == "running"
    assert sorted(os.listdir(tmp_path)) == [".lock", "config.json", "manifest.json"]


def test_a_lock_holds_where_there_is_no_room_for_its_owners_name(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.os, "write", full)
    with locked(tmp_path), pytest.raises(FolderInUse, match="in use by another process"), locked(tmp_path):
        raise AssertionError


# ---------------------------------------------------------------------------------------------------------- refusals


def refused(tmp_path, path, *arguments):
    before = content(tmp_path)
    with pytest.raises(ConfigError) as caught:
        claim(path, *arguments)
    assert content(tmp_path) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_of_another_config_is_refused(tmp_path):
    claim(tmp_path / "run").release()
    other = {**CONFIG, "model": {"layers": 4, "mask": "causal", "init": {}, "heads": 8}, "seed": 1}
    said = refused(tmp_path, tmp_path / "run", other)
    assert said == (
        f"workdir: '{tmp_path}/run' belongs to another config, {HASH}, this one is {stored_hash(other)}"
        " (model.layers = 2 there, 4 here; model.heads = absent there, 8 here; seed = absent there, 1 here);"
        " allowed: a new folder or this config's run folder."
    )
    four = {**other, "train": {"vary": {}, "steps": 20}}
    said = refused(tmp_path, tmp_path / "run", four)
    assert "; and 1 more)" in said


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    said = refused(tmp_path, tmp_path / "thesis")
    assert said == (
        f"workdir: '{tmp_path}/thesis' holds 'chapter.tex' but no run;"
        " allowed: a new or empty folder, or this config's run folder."
    )
    (tmp_path / "thesis" / "config.json").write_text('["not", "ours"]')
    assert "but no run" in refused(tmp_path, tmp_path / "thesis")
    (tmp_path / "thesis" / "config.json").write_text("{torn")
    assert "but no run" in refused(tmp_path, tmp_path / "thesis")


@pytest.mark.parametrize("left", [None, "", "{torn", "[]"])
def test_a_run_whose_config_is_gone_or_damaged_is_told_so(left, tmp_path):
    claim(tmp_path / "run").release()
    (tmp_path / "run" / "checkpoints").mkdir(exist_ok=True)
    path = tmp_path / "run" / "config.json"
    path.unlink() if left is None else path.write_text(left)
    assert refused(tmp_path, tmp_path / "run") == (
        f"workdir: the config.json of '{tmp_path}/run', which holds a run, is gone or damaged;"
        " allowed: a folder as it was written."
    )


def test_a_manifest_of_another_config_is_refused(tmp_path):
    claim(tmp_path / "run").release()
    path = tmp_path / "run" / "manifest.json"
    path.write_text(json.dumps({**read_json(path), "status": "finished", "hash": "0123456789ab"}))
    assert refused(tmp_path, tmp_path / "run") == (
        f"workdir: the manifest.json of '{tmp_path}/run' is of another config, 0123456789ab, this one is {HASH};"
        " allowed: a folder as it was written."
    )


def test_a_config_changed_behind_its_hash_is_refused(tmp_path):
    claim(tmp_path / "run").release()
    changed = {**CONFIG, "name": "two"}
    write_json(tmp_path / "run" / "config.json", {"config": changed, "hash": HASH, "command": COMMAND})
    assert refused(tmp_path, tmp_path / "run") == (
        f"workdir: the config of '{tmp_path}/run' has hash {stored_hash(changed)}, but config.json says {HASH};"
        " allowed: a folder as it was written."
    )


def test_a_path_that_is_not_utf8_is_refused(tmp_path):
    path = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert refused(tmp_path, path) == f"workdir: '{tmp_path}/caf\\udce9' is not UTF-8; allowed: a path that is."


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "is a file; allowed:" in refused(tmp_path, tmp_path / "file")
    assert "cannot write in" in refused(tmp_path, tmp_path / "file" / "run")


def test_a_manifest_that_is_not_json_is_refused(tmp_path):
    claim(tmp_path / "run").release()
    (tmp_path / "run" / "manifest.json").write_text("{")
    lock = (tmp_path / "run" / ".lock").read_bytes()
    assert "manifest.json" in refused(tmp_path, tmp_path / "run")
    assert (tmp_path / "run" / ".lock").read_bytes() == lock


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", ".config.json.tmp"]])
def test_an_empty_folder_or_a_claim_killed_early_is_taken(tmp_path, left):
    for name in left:
        (tmp_path / name).write_text("{")
    with claim(tmp_path):
        assert read_json(tmp_path / "config.json")["hash"] == HASH


# -------------------------------------------------------------------------------------------------------------- lock


def test_one_process_cannot_claim_twice(tmp_path):
    (tmp_path / ".lock").write_text("process 4194304 on a host with a very long name that was here before\n")
    with claim(tmp_path) as folder:
        before = content(tmp_path)
        with pytest.raises(
            FolderInUse, match=re.escape(f"in use by process {os.getpid()} on {socket.gethostname()}.") + "$"
        ):
            claim(tmp_path)
        assert content(tmp_path) == before
        folder.release()
        folder.release()
        claim(tmp_path).release()


def test_a_folder_can_be_held_without_being_a_runs_own(tmp_path):
    with locked(tmp_path):
        for other in (lambda: claim(tmp_path), lambda: locked(tmp_path).__enter__()):
            with pytest.raises(FolderInUse, match=f"in use by process {os.getpid()}"):
                other()
    assert sorted(os.listdir(tmp_path)) == [".lock"]
    claim(tmp_path).release()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write in"), locked(tmp_path / "file"):
        raise AssertionError


def test_a_copy_of_the_lock_in_a_child_does_not_outlive_the_release(tmp_path):
    folder = claim(tmp_path)
    copy = os.dup(folder._lock)  # as a child has it between its fork and its exec
    folder.release()
    claim(tmp_path).release()
    os.close(copy)


HOLDER = """
import sys, time
from positionbias.config.resolve import stored_hash
from positionbias.training.run_folder import RunFolder
folder = RunFolder.claim(sys.argv[1], {"a": 1}, stored_hash({"a": 1}), [])
folder.update(step=5)
folder.circumstances()  # until the children are gone that look for the commit: one being started holds the lock too
print("held", flush=True)
time.sleep(60)
"""


def test_two_processes_and_a_killed_one(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            before = content(tmp_path)
            with pytest.raises(FolderInUse) as caught:
                claim(tmp_path / "run", {"a": 1})
            assert str(caught.value) == (
                f"workdir: '{tmp_path}/run' is in use by process {holder.pid} on {socket.gethostname()}."
            )
            assert content(tmp_path) == before
        finally:
            os.kill(holder.pid, signal.SIGKILL)
    with claim(tmp_path / "run", {"a": 1}) as folder:
        assert (folder.previous["status"], folder.previous["step"]) == ("running", 5)


def test_a_folder_that_becomes_anothers_while_claimed_is_refused(tmp_path, monkeypatch):
    """Another config's run begins, and ends, between our look and our lock."""
    take = run_folder._take_lock

    def beaten(path, part):
        write_json(path / "config.json", {"config": {}, "hash": stored_hash({}), "command": []})
        return take(path, part)

    monkeypatch.setattr(run_folder, "_take_lock", beaten)
    with pytest.raises(ConfigError, match=f"belongs to another config, {stored_hash({})}"):
        claim(tmp_path / "run")
    assert not (tmp_path / "run" / "manifest.json").exists()
    monkeypatch.undo()
    claim(tmp_path / "run", {}).release()  # the refused claim let go of it


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_an_interrupted_manifest_write_leaves_the_old_one(tmp_path, monkeypatch, broken):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with claim(tmp_path) as folder:
        before = (tmp_path / "manifest.json").read_bytes()
        monkeypatch.setattr(files.os, broken, interrupted)
        with pytest.raises(KeyboardInterrupt):
            folder.update(step=99)
        monkeypatch.undo()
        assert (tmp_path / "manifest.json").read_bytes() == before
        folder.update(step=100)
    assert read_json(tmp_path / "manifest.json")["step"] == 100
    assert sorted(os.listdir(tmp_path)) == [".lock", "config.json", "manifest.json"]


WRITER = """
import sys
from positionbias.config.resolve import stored_hash
from positionbias.training.run_folder import RunFolder
folder = RunFolder.claim(sys.argv[1], {}, stored_hash({}), [])
print("held", flush=True)
for step in range(10**9):
    folder.update(step=step, message="x" * 50_000)
"""


def test_kill_9_while_the_manifest_is_written(tmp_path):
    for delay in (0.0, 0.023):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
            writer.stdout.readline()
            time.sleep(delay)
            os.kill(writer.pid, signal.SIGKILL)
        assert read_json(tmp_path / "manifest.json")["status"] == "running"
        soon_free(tmp_path)
        claim(tmp_path, {}).release()


def soon_free(path):
    """Wait for what the killed process was starting, which holds a copy of the lock until it is its own program."""
    for _ in range(100):
        with contextlib.suppress(FolderInUse), locked(path):
            return
        time.sleep(0.1)


def test_json_is_strict_and_takes_arrays(tmp_path):
    write_json(tmp_path / "a.json", {"x": np.float32(0.1), "y": np.arange(2), "z": jax.numpy.ones(())})
    assert read_json(tmp_path / "a.json") == {"x": float(np.float32(0.1)), "y": [0, 1], "z": 1.0}
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    with pytest.raises(TypeError, match="set cannot be written"):
        write_json(tmp_path / "a.json", {"x": {1}})
    assert read_json(tmp_path / "a.json")["y"] == [0, 1]
    assert read_json(tmp_path / "none.json") is None
