"""Reading and writing the files of run and sweep folders: atomic replacement, strict JSON, lines that may be torn."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any


class FileError(Exception):
    """A file the machine does not let us use, told in one sentence that names it and why; entries exit with code 1."""


class WriteError(FileError):
    """A file that cannot be written."""


# All else (too many open files, no rights, a failing disk) says nothing of what is in the file.
_OF_CONTENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)


def refuse_unread(path: pathlib.Path, number: int | None) -> None:
    """Raise the FileError of `path` unless errno `number`, met on reading it, is of its content, or None."""
    if number is not None and number not in _OF_CONTENT:
        raise FileError(f"cannot read {str(path)!r}: {os.strerror(number)}.") from None


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """An OSError of the block becomes the WriteError of `path`: that of a write itself knows no name."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {str(path)!r}: {error.strerror or error}.") from None


def sync(path: pathlib.Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def one_at_a_time(path: pathlib.Path) -> Iterator[None]:
    """Wait until no other process is in such a block of the same `path`, by a lock on `.NAME.lock` beside it.

    For what several processes change: who reads the file first, and then writes it, loses nothing of theirs. Raises
    WriteError.
    """
    with writing(path):
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with writing(path):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        # Closing alone is not enough: a child being started holds a copy until it has become its program.
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


@contextlib.contextmanager
def one_waits(path: pathlib.Path) -> Iterator[bool]:
    """`one_at_a_time` for what is read in the block and written as a whole: False, at once, where another one waits.

    That one has not read yet, and will read what is there now. So of a thousand that come at once two do the work.
    """
    with writing(path):
        turn = os.open(path.with_name(f".{path.name}.next.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with writing(path):
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                taken = False
            except BlockingIOError:
                taken = True
        if taken:
            yield False
            return
        with one_at_a_time(path):
            fcntl.flock(turn, fcntl.LOCK_UN)
            yield True
    finally:
        fcntl.flock(turn, fcntl.LOCK_UN)
        os.close(turn)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """A stream whose content replaces `path` at the end of the block, atomically.

    Whoever reads the file, and whenever this is cut short, it is the old one or the new one. Until then the new one is
    `.NAME.tmp`, which the next who replaces the file takes if this one was killed, and waits for if not. Raises
    WriteError.
    """
    aside = path.with_name(f".{path.name}.tmp")
    with writing(path):
        with _alone(aside) as stream:
            try:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                os.replace(aside, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    if _is_at(stream, aside):  # and not the next one's, after the replacement
                        aside.unlink()
                raise
        sync(path.parent)


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """A stream to an empty file that no other process has such a stream to, where the file system has locks."""
    while True:
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "wb")
        try:
            with _turn(stream):
                if _is_at(stream, path):  # and not what who had it before has renamed or deleted
                    stream.truncate(0)
                    yield stream
                    return
        finally:
            stream.close()


@contextlib.contextmanager
def _turn(stream: IO[bytes]) -> Iterator[None]:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        yield  # a copied folder, which no run can be in: a report is drawn there without taking turns
        return
    try:
        yield
    finally:
        fcntl.flock(stream, fcntl.LOCK_UN)


def _is_at(stream: IO[bytes], path: pathlib.Path) -> bool:
    """Whether the stream's file is the one at `path`, which is opened: NFS remembers what was there for a while."""
    try:
        with open(path, "rb") as there:
            return os.path.samestat(os.fstat(stream.fileno()), os.fstat(there.fileno()))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
        return False


def safe_name(text: str) -> str:
    """A spec or the like as far as a file may be called so."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text).strip("_")


def shortened(name: str, longest: int, identity: str) -> str:
    """A name of at most so many bytes: of a longer one the start, and a digest of what tells it from others."""
    if len(name.encode()) <= longest:
        return name
    start = name.encode()[: longest - 9].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def write_text(path: pathlib.Path, text: str) -> None:
    """Replace a text file atomically."""
    with replacing(path) as stream:
        stream.write(text.encode("utf-8"))


def write_json(path: pathlib.Path, data: Any) -> None:
    """`write_text` of strict JSON; numpy and jax arrays become lists. ValueError on a number that is not finite."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False, default=as_list) + "\n")


def as_list(value: Any) -> Any:
    """A numpy or jax array or scalar as JSON has it; the `default` of a JSON encoder."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file, or None where there is none. ValueError if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except RecursionError:
        raise ValueError("nested without end") from None


def read_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each line's text, and the JSON object it holds: None if it is torn, as one without its newline always is."""
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        yield text, read_line(text)


def read_line(text: str | bytes) -> dict[str, Any] | None:
    """The JSON object that a line holds, as `read_lines` has it."""
    line = None
    if text[-1:] in ("\n", b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
    return line if isinstance(line, dict) else None
