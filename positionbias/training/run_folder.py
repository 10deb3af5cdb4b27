"""The run folder: who owns it, which config it belongs to, and what its run has come to.

`.lock` is held by the one process that writes here, and freed by the system when that process ends, however it ends:
a manifest that says `running` in a folder whose lock is free was left by a killed run, which the same command resumes.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

from positionbias import runtime
from positionbias.config.resolve import stored_hash
from positionbias.errors import GoneError
from positionbias.files import FileError, WriteError, as_list, read_json, write_json
from positionbias.spec import PACKAGE, ConfigError

STATUSES = ("running", "finished", "stopped", "failed")
PACKAGES = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "numpy": "numpy",
    "positionbias": "positionbias",
}
CIRCUMSTANCES = ("commit", "dirty", "versions", "devices", "threads", "auto", "data")
GIT_SECONDS = 5.0  # longest wait for git, which may sit on a slow disk


class FolderInUse(Exception):
    """Another process owns the run folder; entries print it and exit with code 4."""


# ------------------------------------------------------------------------------------------------------------ folder


class RunFolder:
    """A claimed run folder; a context manager that releases it, and writes down an error that escapes.

    `previous` is the manifest that was there, {} in a fresh folder; `manifest` is the one kept since.
    """

    def __init__(self, path: pathlib.Path, lock: int, manifest: dict[str, Any], previous: dict[str, Any]) -> None:
        self.path, self.manifest, self.previous = path, manifest, previous
        self._lock: int | None = lock
        self._changing = threading.Lock()  # a checkpoint is saved on the side
        self._source = _Source()

    @classmethod
    def claim(
        cls, workdir: pathlib.Path | str, config: dict[str, Any], config_hash: str, command: list[str]
    ) -> RunFolder:
        """Take `workdir` for the run of `config`, the one given by the user, before `auto` is resolved.

        Raises ConfigError for a folder of another config or of something else, FolderInUse if another process holds
        it; neither leaves a trace. Raises WriteError on a full disk. A finished run's manifest is left as it is until
        the first `update`.
        """
        path = pathlib.Path(workdir).absolute()
        try:
            _check(path, config, config_hash)
        except OSError as error:
            raise ConfigError(f"workdir: cannot read {str(path)!r}: {error.strerror}.") from None
        lock = _hold(path)
        try:
            _check(path, config, config_hash)  # again: another run may have begun here in between
            if not (path / "config.json").exists():
                write_json(path / "config.json", {"config": config, "hash": config_hash, "command": command})
            previous = _previous(path, config_hash)
            folder = cls(path, lock, _fresh(config_hash, previous), previous)
            if previous.get("status") != "finished":
                folder.update()
        except BaseException:
            _free(lock)
            raise
        return folder

    def update(self, **fields: Any) -> None:
        """Change fields of the manifest and write it. Raises WriteError, and then they are as they were."""
        for name in fields:
            if name not in self.manifest:
                raise KeyError(f"the manifest has no field {name!r}; it has {', '.join(self.manifest)}")
        if fields.get("status", "running") not in STATUSES:
            raise ValueError(f"status {fields['status']!r}; allowed: {', '.join(STATUSES)}")
        # While the run goes on, nobody waits for git; its last word does.
        ends = fields.get("status", "running") != "running"
        found = self._source.found(GIT_SECONDS if ends else 0.0)
        with self._changing:
            changed = {**self.manifest, **found, **fields}
            write_json(self.path / "manifest.json", changed)
            self.manifest = changed

    def circumstances(self) -> dict[str, Any]:
        """All that the bits of a run depend on beside its config, JSON-ready; waits for git."""
        found = self._source.found(GIT_SECONDS)
        with self._changing:
            self.manifest.update(found)
            return {name: self.manifest[name] for name in CIRCUMSTANCES}

    def release(self) -> None:
        """Let another process have the folder; may be called twice."""
        if self._lock is not None:
            _free(self._lock)
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if self.manifest["status"] == "running":
                with contextlib.suppress(WriteError):  # what ended the run is the error to be told
                    self._write_down(error)
        finally:
            self.release()

    def _write_down(self, error: BaseException | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.update(status="stopped", message="interrupted, without a checkpoint of the last steps")
        elif isinstance(error, ConfigError) and self.previous:  # refused: the folder stays as it was
            write_json(self.path / "manifest.json", self.previous)
        elif isinstance(error, FileError | MemoryError | ConfigError | GoneError):
            self.update(status="failed", message=str(error))
        elif isinstance(error, Exception):
            self.update(status="failed", message=f"{type(error).__name__}: {error}".splitlines()[0])


@contextlib.contextmanager
def locked(path: pathlib.Path, part: bool = False) -> Iterator[None]:
    """Keep others out of a run or sweep folder, made if it is not there; those who hold a `part` let each other in.

    Raises FolderInUse, or ConfigError if nothing can be written there.
    """
    lock = _hold(path.absolute(), part)
    try:
        yield
    finally:
        _free(lock)


def _hold(path: pathlib.Path, part: bool = False) -> int:
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:  # checkpoints cannot be written there
        raise ConfigError(f"workdir: {str(path)!r} is not UTF-8; allowed: a path that is.") from None
    try:
        path.mkdir(parents=True, exist_ok=True)
        return _take_lock(path, part)
    except OSError as error:
        raise ConfigError(f"workdir: cannot write in {str(path)!r}: {error.strerror}.") from None


def _take_lock(path: pathlib.Path, part: bool) -> int:
    """Hold `.lock` until its descriptor is closed. flock, not lockf: it also tells two claims of one process apart."""
    lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if part else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        owner, *_ = [*os.read(lock, 1000).decode("utf-8", "replace").strip().splitlines(), "another process"]
        os.close(lock)
        raise FolderInUse(f"workdir: {str(path)!r} is in use by {owner}.") from None
    with contextlib.suppress(OSError):  # on a full disk the lock holds, and nobody is named
        os.ftruncate(lock, 0)
        several = "several processes, of which the last to begin was " if part else ""
        os.write(lock, f"{several}{this_process()}\n".encode())
    return lock


def this_process() -> str:
    """What tells this process from all others that may see a folder: `process 123 on HOST`."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def _free(lock: int) -> None:
    # Closing alone is not enough: a child being started, git for one, holds a copy until it has become its program.
    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


def _check(path: pathlib.Path, config: dict[str, Any], config_hash: str) -> None:
    """Refuse a folder that is not this config's to write in."""
    if not path.exists():
        return
    if not path.is_dir():
        raise ConfigError(f"workdir: {str(path)!r} is a file; allowed: a new folder or this config's run folder.")
    # A claim that was killed early has left no more than these.
    foreign = sorted(p.name for p in path.iterdir() if p.name not in (".lock", ".config.json.tmp"))
    if not foreign:
        return
    try:
        there = read_json(path / "config.json")
        known, before = there["hash"], dict(there["config"])
        found = stored_hash(before)  # of what is there, whatever it says of itself
    except (ValueError, TypeError, KeyError, RecursionError):
        if "manifest.json" in foreign:
            raise ConfigError(
                f"workdir: the config.json of {str(path)!r}, which holds a run, is gone or damaged;"
                " allowed: a folder as it was written."
            ) from None
        raise ConfigError(
            f"workdir: {str(path)!r} holds {foreign[0]!r} but no run;"
            " allowed: a new or empty folder, or this config's run folder."
        ) from None
    if found != known:
        raise ConfigError(
            f"workdir: the config of {str(path)!r} has hash {found}, but config.json says {known};"
            " allowed: a folder as it was written."
        )
    if known != config_hash:
        raise ConfigError(
            f"workdir: {str(path)!r} belongs to another config, {known}, this one is {config_hash}"
            f"{_differences(before, config)}; allowed: a new folder or this config's run folder."
        )


def _previous(path: pathlib.Path, config_hash: str) -> dict[str, Any]:
    try:
        found = read_json(path / "manifest.json") or {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"workdir: the manifest.json of {str(path)!r} is not JSON; delete it to go on.")
    if found.get("hash", config_hash) != config_hash:
        raise ConfigError(
            f"workdir: the manifest.json of {str(path)!r} is of another config, {found['hash']}, this one is"
            f" {config_hash}; allowed: a folder as it was written."
        )
    return found


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    old, new = dict(_fields(before)), dict(_fields(now))
    changed = [name for name in {**new, **old} if old.get(name, "absent") != new.get(name, "absent")]
    if not changed:
        return ""
    shown = [f"{name} = {old.get(name, 'absent')} there, {new.get(name, 'absent')} here" for name in changed[:3]]
    more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
    return f" ({'; '.join(shown)}{more})"


def _fields(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, default=as_list)


# ---------------------------------------------------------------------------------------------------------- manifest


def _fresh(config_hash: str, previous: dict[str, Any]) -> dict[str, Any]:
    """A manifest for a run that starts or goes on now; nothing in it tells one host from its twin."""
    import jax  # costs nothing by now, and analysis reads run folders without it

    return {
        "status": "running",
        "step": previous.get("step", 0),
        "hash": config_hash,
        "commit": None,  # of the checkout the package runs from; None where it is installed
        "dirty": None,  # whether the package there was changed, new files included
        "versions": _versions(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "threads": runtime.cores(),
        "auto": {},
        "data": {},  # length and checksum of what is read from a corpus
        "bits_guaranteed": previous.get("bits_guaranteed", True),
        "seconds": previous.get("seconds", 0.0),
        "message": "",
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name, package in PACKAGES.items():
        versions[name] = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(package)
    return versions


class _Source:
    """What git says of the package's checkout, asked for on the side: a run does not wait for it to start."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._ask, daemon=True)
        if (PACKAGE.parent / ".git").exists():
            self._thread.start()

    def found(self, wait: float) -> dict[str, Any]:
        """{"commit", "dirty"} if known within `wait` seconds, else {}."""
        if wait and self._thread.ident is not None:
            self._thread.join(wait)
        return dict(self._found)

    def _ask(self) -> None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            commit = _git("rev-parse", "HEAD")
            self._found = {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--", str(PACKAGE)))}


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "--no-optional-locks", "-C", str(PACKAGE.parent), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=GIT_SECONDS,
        start_new_session=True,  # so that Ctrl-C, which stops the run cleanly, does not cut git short
    ).stdout.strip()
