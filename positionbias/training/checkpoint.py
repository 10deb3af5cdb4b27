"""Checkpoints: Orbax holds the arrays, a mark of our own says that they are whole.

    checkpoints/000600/state/      the state, written by Orbax: nested dicts with string keys, whatever classes made it
    checkpoints/000600/mark.json   format, step, meta, and shape, dtype and digest of every leaf; written last

Orbax alone restores a flipped bit silently, so every load compares every leaf with its digest. A step without a mark
is the leftover of a killed save: it does not count, and the next save sweeps it away. Nothing that is loaded is ever
executed. `folder` is a run's `checkpoints` throughout, and the run's lock its only protection against a second writer.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from positionbias.arrays import Tree
from positionbias.files import WriteError, refuse_unread, sync, write_json, writing
from positionbias.training import by_orbax

FORMAT = 1
MARK = "mark.json"
LATE = 2.0  # seconds that are waited for threads of a save that failed
_STEP = re.compile(r"\d{6,}")


class CheckpointError(Exception):
    """A checkpoint that cannot be used, told in one sentence that names the step and the leaf."""


class ForeignError(CheckpointError):
    """A checkpoint of another format: not damaged, so no older one may stand in for it."""


# ----------------------------------------------------------------------------------------------------- plain trees


def to_plain(tree: Tree) -> dict[str, Any]:
    """Any pytree as nested dicts with string keys: attributes by name, items by number, Flax variables as their value.

    Raises CheckpointError if two leaves would get the same name. What holds no leaf (an empty dict, `EmptyState`)
    leaves no trace; `from_plain` takes it from its `like`.
    """
    return _nest(_by_name(tree))


def from_plain(plain: dict[str, Any], like: Tree) -> Tree:
    """The leaves of `plain` in the structure of `like`, whose leaves are arrays or `jax.ShapeDtypeStruct`s.

    Raises CheckpointError naming the first leaf that is missing, unknown, or of another shape or dtype.
    """
    found, wanted = _by_name(plain), _by_name(like)
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found:
            raise CheckpointError(f"leaf {name!r}, {_kind(wanted[name])}, is missing")
        if name not in wanted:
            raise CheckpointError(f"leaf {name!r}, {_kind(found[name])}, has no place in this model")
        if _kind(found[name]) != _kind(wanted[name]):
            raise CheckpointError(f"leaf {name!r} is {_kind(found[name])}, the model wants {_kind(wanted[name])}")
    return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in wanted])


def _by_name(tree: Tree) -> dict[str, Any]:
    """{"a/b/0": leaf} in the order of the tree's leaves."""
    entries, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
    # How a variable names its value is Flax's affair and changes between its releases: the value stands for it.
    variables = {path for path, leaf in entries if isinstance(leaf, nnx.Variable)}
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = path[:-1] if path[:-1] in variables else path
        name = "/".join(_key(jax.tree_util.keystr((key,), simple=True)) for key in keys) or _key("")
        if name in named:
            raise CheckpointError(f"two leaves have the name {name!r}")
        named[name] = leaf
    return named


def _key(key: Any) -> str:
    # Orbax joins names with dots, we with slashes: such a key could be taken for another leaf's.
    if not isinstance(key, str) or not key or "/" in key or "." in key:
        raise CheckpointError(f"the key {key!r} of the state is not a name; allowed: text without '/' and '.'")
    return key


def _nest(named: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, leaf in named.items():
        *folders, last = name.split("/")
        inner = plain
        for key in folders:
            inner = inner.setdefault(key, {})
        inner[last] = leaf
    return plain


def _flat(plain: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for key, value in plain.items():
        name = prefix + _key(key)
        if isinstance(value, dict):
            yield from _flat(value, name + "/")
        else:
            yield name, np.asarray(value)


def _kind(leaf: Any) -> str:
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{leaf.dtype}{list(leaf.shape)}"


# ----------------------------------------------------------------------------------------------------------- saving


def path_of(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Where the checkpoint of `step` lies."""
    return pathlib.Path(folder).absolute() / f"{step:06d}"


def save(folder: pathlib.Path, step: int, state: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write one step: `state` is nested dicts with string keys and arrays as leaves, `meta` is JSON.

    When it returns, the step is on the disk. A whole step is never overwritten: saving the same leaves again changes
    nothing, other leaves raise CheckpointError; what is there but not whole is replaced. Raises WriteError where it
    cannot be written, and leaves nothing of it.
    """
    leaves = dict(_flat(state))
    for name, leaf in leaves.items():
        if leaf.dtype.kind in "OSU":
            raise CheckpointError(f"checkpoint {step}: leaf {name!r} is not an array of numbers.")
    told = {name: _tell(leaf) for name, leaf in leaves.items()}
    home = path_of(folder, step)
    if whole(folder, step):
        if _read_mark(home, step)["leaves"] != told:
            raise CheckpointError(f"checkpoint {step} is there and whole, and holds another state.")
        return
    _remove(home)
    for leftover in _folders(folder).values():
        if not (leftover / MARK).exists():
            _remove(leftover)
    payload = {"format": FORMAT, "step": step, "meta": meta, "leaves": told}
    threads = set(threading.enumerate())
    try:
        with writing(home):
            home.mkdir(parents=True)
            _write_state(home, state)
            for path in (home, *home.rglob("*")):
                sync(path)
            write_json(home / MARK, {**payload, "sha256": _digest_of_mark(payload)})
            sync(home.parent)
    except WriteError:
        # Where one file fails, Orbax's threads for the others may go on, and would make again what is removed here.
        until = time.monotonic() + LATE
        while (late := set(threading.enumerate()) - threads) and (left := until - time.monotonic()) > 0:
            started = [thread for thread in late if thread.is_alive()]
            if started:
                started[0].join(left)
            else:
                time.sleep(0.01)  # they are being started, and cannot be joined yet
        _remove(home)  # on a full disk the manifest needs the room
        raise


def _write_state(home: pathlib.Path, state: dict[str, Any]) -> None:
    try:
        with _quiet():
            by_orbax.save(home / "state", _nonempty(state))
    except Exception as error:  # its writers tell a full disk as a ValueError of many lines
        number = _errno(error)
        text = str(error).splitlines()[0][:160].rstrip(".") if str(error) else type(error).__name__
        raise WriteError(f"cannot write {str(home)!r}: {os.strerror(number) if number else text}.") from None


def _errno(error: Exception) -> int | None:
    """What the system said, in an OSError or in the text of one of Orbax's."""
    told = re.search(r"os_error_code='(\d+)'", str(error))
    return int(told[1]) if told else getattr(error, "errno", None)


def _nonempty(plain: dict[str, Any]) -> dict[str, Any]:
    """The state without arrays of no elements, which Orbax refuses: the mark tells all there is to know of them."""
    cut: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            cut[key] = _nonempty(value)
        elif np.size(value):
            cut[key] = np.asarray(value)
    return cut


def _tell(leaf: np.ndarray) -> dict[str, Any]:
    content = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
    return {
        "shape": list(leaf.shape),
        "dtype": str(leaf.dtype),
        "sha256": hashlib.sha256(content.data if content.size else b"").hexdigest(),
    }


def _digest_of_mark(payload: dict[str, Any]) -> str:
    # Through JSON and back first: a key that was a number sorts as text from then on.
    text = json.dumps(json.loads(json.dumps(payload)), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


# ---------------------------------------------------------------------------------------------------------- loading


def restore(folder: pathlib.Path, step: int, like: Tree = None) -> tuple[Tree, dict[str, Any]]:
    """(state, meta) of one step, every leaf a numpy array whose bytes were checked against the mark.

    With `like` the state comes back in that structure (see `from_plain`). Raises CheckpointError if the step is not
    whole or does not fit, FileError or MemoryError if this machine cannot read it now.
    """
    home = path_of(folder, step)
    mark = _read_mark(home, step)
    told: dict[str, Any] = mark["leaves"]
    plain = _read_state(home, step, told)
    for name, entry in told.items():
        if 0 in entry["shape"]:
            _graft(plain, name, np.zeros(entry["shape"], jax.numpy.dtype(entry["dtype"])))
    leaves = dict(_flat(plain))
    for name in sorted(told.keys() | leaves.keys()):
        if name not in leaves:
            raise CheckpointError(f"checkpoint {step}: leaf {name!r} is missing.")
        if name not in told:
            raise CheckpointError(f"checkpoint {step}: leaf {name!r} was not saved with it.")
        entry, found = told[name], _tell(leaves[name])
        for field in ("shape", "dtype"):
            if found[field] != entry[field]:
                raise CheckpointError(
                    f"checkpoint {step}: leaf {name!r} has {field} {found[field]}, {entry[field]} was saved."
                )
        if found["sha256"] != entry["sha256"]:
            raise CheckpointError(f"checkpoint {step}: leaf {name!r} does not hold the bits that were saved.")
    return _fitted(step, plain, like), mark["meta"]


def restore_latest(
    folder: pathlib.Path, log: Callable[[str], None], like: Tree = None
) -> tuple[int, Tree, dict[str, Any]] | None:
    """(step, state, meta) of the newest whole step, or None; `log` is told of every later one skipped, and why.

    None means that nothing was ever saved. Raises CheckpointError if steps have marks and none is whole, or if the
    newest that is not damaged has another format or does not fit `like`: an older one would not either.
    """
    marked, reasons = steps(folder), {}
    for step in sorted(_folders(folder), reverse=True):
        try:
            plain, meta = restore(folder, step)
        except ForeignError:
            raise
        except CheckpointError as error:
            log(f"skipped {error}")
            reasons[step] = str(error).rstrip(".")
        else:
            return step, _fitted(step, plain, like), meta
    if marked:
        raise CheckpointError(
            f"no checkpoint can be restored, of {', '.join(map(str, marked))} ({reasons[marked[-1]]})."
        )
    return None


def _fitted(step: int, plain: dict[str, Any], like: Tree) -> Tree:
    if like is None:
        return plain
    try:
        return from_plain(plain, like)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {step} does not fit: {error}.") from None


def steps(folder: pathlib.Path) -> list[int]:
    """Every step that has a mark, oldest first; whether its leaves are whole shows on loading."""
    return sorted(step for step, home in _folders(folder).items() if (home / MARK).exists())


def _read_mark(home: pathlib.Path, step: int) -> dict[str, Any]:
    try:
        mark = json.loads((home / MARK).read_text(encoding="utf-8"))
        digest, form = mark.pop("sha256"), mark["format"]
        found = _digest_of_mark(mark)
    except FileNotFoundError:
        what = "has no mark: its save was cut short" if home.exists() else "is not there"
        raise CheckpointError(f"checkpoint {step} {what}.") from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        refuse_unread(home / MARK, getattr(error, "errno", None))
        raise CheckpointError(f"checkpoint {step}: its mark cannot be read.") from None
    if form != FORMAT:
        raise ForeignError(f"checkpoint {step} has format {form!r}, allowed: {FORMAT}.")
    if found != digest or mark["step"] != step:
        raise CheckpointError(f"checkpoint {step}: its mark does not hold what was saved.")
    return mark


def _read_state(home: pathlib.Path, step: int, told: dict[str, Any]) -> dict[str, Any]:
    try:
        with _quiet():
            return by_orbax.load(home / "state")
    except ImportError:
        raise
    except MemoryError:
        raise MemoryError(f"memory ran out while reading {str(home)!r}.") from None
    except Exception as error:  # whatever a damaged file makes its readers raise
        refuse_unread(home, _errno(error))
        text = str(error) or type(error).__name__
        hit = next((name for name in told if f'"{name.replace("/", ".")}/' in text), None)
        what = f"leaf {hit!r}" if hit else "its state"
        raise CheckpointError(f"checkpoint {step}: {what} cannot be read ({text.splitlines()[0][:160]}).") from None


def _graft(plain: dict[str, Any], name: str, leaf: np.ndarray) -> None:
    *folders, last = name.split("/")
    for key in folders:
        plain = plain[key]
    plain[last] = leaf


def whole(folder: pathlib.Path, step: int) -> bool:
    """Whether the checkpoint of `step` can be restored; reads all of it."""
    try:
        restore(folder, step)
    except CheckpointError:
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax reports a damaged file or a full disk line after line before it raises; our error says it once."""
    _ignore_late_threads()
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


@functools.cache
def _ignore_late_threads() -> None:
    """For good: where one file fails, Orbax's tasks and threads for the others say so too, some much later."""
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            before(unraisable)

    def once(record: logging.LogRecord) -> bool:
        return not ("never retrieved" in record.getMessage() and "OCDBT" in record.getMessage())

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(once)


# ---------------------------------------------------------------------------------------------------------- keeping


def prune(folder: pathlib.Path, keep_last: int, keep_every: int | None, known: Collection[int] = ()) -> None:
    """Delete all but the newest `keep_last` whole steps and, for good, every multiple of `keep_every`.

    A damaged step does not count as one of the newest: it must never displace the last whole one. Steps in `known`,
    which the caller has written or read whole itself, are not read for that.
    """
    kept = 0
    for step in reversed(steps(folder)):
        if kept < keep_last:
            kept += step in known or whole(folder, step)
        elif keep_every is None or step % keep_every:
            _remove(path_of(folder, step))


def _folders(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    folder = pathlib.Path(folder).absolute()
    if not folder.is_dir():
        return {}
    return {int(p.name): p for p in folder.iterdir() if p.is_dir() and _STEP.fullmatch(p.name)}


def _remove(home: pathlib.Path) -> None:
    (home / MARK).unlink(missing_ok=True)  # first, so that a removal cut short leaves nothing that counts
    shutil.rmtree(home, ignore_errors=True)
