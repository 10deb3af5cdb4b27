"""A mask of one's own, entry by entry."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import tokenize

import numpy as np

from positionbias.arrays import Bool, Mapped
from positionbias.masks.base import Mask, across, looked_up
from positionbias.spec import ConfigError, member, require, show
from positionbias.tokens import Tokens

LONGEST = 2048  # tokens on a side: 1 MiB of text in a config
MATRIX = re.compile(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3}):((?:[0-9a-f]{2})+)")
KINDS = ".npy with a matrix of booleans or of 0 and 1, or text with a row of 0 and 1 a line"


@member("masks", "from_file")
@dataclasses.dataclass(frozen=True)
class FromFile(Mask):
    """What a file says: a 1 in row i, column j lets query i see key j, either counted from its first token as stored.

    Of a relative path, from the folder that the command is run in. The file holds a matrix [T, S] of up to 2048
    tokens a side, in NumPy's .npy format or as text, in which blanks and commas do not count; a shorter sequence
    has its upper left corner. What was read becomes `matrix`, ROWSxCOLUMNS: and the bits, row after row, in
    hexadecimal, and `path` becomes the file's name: a config holds both, and where `matrix` is given nothing is
    read. A file of four lines:

        1 0 0 1
        1 1 0 0
        0 1 1 0
        1 0 1 1
    """

    path: str | None
    matrix: str | None = None

    def __post_init__(self) -> None:
        require(self.path is not None or self.matrix is not None, "path", None, f"the path of a file: {KINDS}")
        if self.path is not None:
            if self.matrix is None:
                object.__setattr__(self, "matrix", _text(_read(self.path)))
            object.__setattr__(self, "path", pathlib.PurePath(self.path).name)
        _table(self.matrix)

    def bind(self, q: Tokens, k: Tokens) -> Mask:
        table = _table(self.matrix)
        rows, columns = table.shape
        if q.length > rows or k.length > columns:
            raise ConfigError(
                f"from_file has a matrix of {rows} x {columns}, but {q.length} queries look at {k.length} keys;"
                " allowed: a matrix of at least as many rows and columns."
            )
        return _Table(table, across(q.index.min(axis=-1)), across(k.index.min(axis=-1)))


@dataclasses.dataclass(frozen=True)
class _Table(Mask):
    """A matrix whose rows and columns are for tokens that are stored from `first_query` and `first_key` on."""

    table: Bool[np.ndarray, "T S"]
    first_query: Mapped
    first_key: Mapped

    def allowed(self, q: Tokens, k: Tokens) -> Mapped:
        return looked_up(self.table, q.index - self.first_query, k.index - self.first_key)


def _text(table: Bool[np.ndarray, "T S"]) -> str:
    return f"{table.shape[0]}x{table.shape[1]}:{np.packbits(table).tobytes().hex()}"


def _table(matrix: str | None) -> Bool[np.ndarray, "T S"]:
    found = MATRIX.fullmatch(matrix or "")
    rows, columns = (int(found[1]), int(found[2])) if found else (0, 0)
    if found and max(rows, columns) <= LONGEST:
        packed = np.frombuffer(bytes.fromhex(found[3]), np.uint8)
        table = np.unpackbits(packed, count=rows * columns).astype(bool).reshape(rows, columns)
        if _text(table) == matrix:  # else it has too few bits, or more
            return table
    kept = "what a config keeps of a file, as in '2x2:b0'"
    raise ConfigError(f"matrix = {show(matrix)} is not allowed; allowed: {kept}.")


def _read(path: str) -> Bool[np.ndarray, "T S"]:
    def refused(why: str) -> ConfigError:
        return ConfigError(f"path = {path!r} {why}; allowed: {KINDS}, up to {LONGEST} a side.")

    file = pathlib.Path(path)
    try:
        if not file.is_dir() and file.exists() and not file.is_file():
            raise refused("is no file that ends")  # a device or a pipe, which may never be read through
        if file.stat().st_size > 8 * LONGEST**2 + 4096:
            raise ValueError("too large")
        found = _numbers(file) if file.suffix == ".npy" else _digits(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise refused(f"cannot be read ({error.strerror or error})") from None
    except ConfigError:
        raise
    except (ValueError, EOFError, OverflowError, TypeError, SyntaxError, tokenize.TokenError):
        # Also what numpy says of a broken file, and of text that is not UTF-8.
        raise refused("is not allowed") from None
    if found.ndim != 2 or 0 in found.shape or max(found.shape) > LONGEST:
        raise refused(f"holds an array of shape {list(found.shape)}")
    if not ((found == 0) | (found == 1)).all():
        raise refused("holds other numbers than 0 and 1")
    return found.astype(bool)


def _numbers(file: pathlib.Path) -> np.ndarray:
    # Mapped, as a header may claim more than the file holds, or than fits into memory.
    found = np.asarray(np.lib.format.open_memmap(file, mode="r"))
    if found.dtype.kind not in "biu":
        raise ValueError("neither booleans nor whole numbers")
    return found


def _digits(text: str) -> np.ndarray:
    rows = [re.sub(r"[ \t,]", "", line) for line in text.splitlines()]
    rows = [row for row in rows if row]
    if any(set(row) - set("01") or len(row) != len(rows[0]) for row in rows):
        raise ValueError("not a matrix")
    return np.frombuffer("".join(rows).encode(), np.uint8).reshape(len(rows), -1) == ord("1")
