"""`python -m positionbias.masks.show SPEC --length 16 --layers 3`: what a mask lets through, and a stack of layers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from positionbias import spec
from positionbias.arrays import Bool
from positionbias.config.cli import Parser, parse_command_line, run_entry
from positionbias.config.fields import read_by_mask
from positionbias.masks.base import Mask, reach
from positionbias.spec import ConfigError
from positionbias.tokens import Tokens, sequential

COLUMNS = 120
LONGEST = 64  # tokens, in a terminal
MOST_LAYERS = 1000
GROUPS = ("segment", "role", "frame", "scale", "depth", "mode", "hidden", "rank")
PURPOSE = """\
Print a mask, a row for each query and a column for each key, and what a stack of layers with it reaches.

1: the query sees the key, or the output depends on the input by way of some layers; '.': it does not."""


def parser() -> Parser:
    """The flags of this entry."""
    program = "python -m positionbias.masks.show"
    made = Parser(program, PURPOSE)
    made.add_argument("mask", help=f"spec of a mask, or a list with one a layer, as in {program} 'causal & segments'")
    made.add_argument(
        "--length", type=int, help=f"number of tokens, up to {LONGEST}; default: 16, or as many as groups"
    )
    made.add_argument("--context", type=int, default=0, metavar="N", help="number of first tokens that are the context")
    made.add_argument("--layers", type=int, help="number of layers; default: 1, or as many as the list has")
    for name in GROUPS:
        made.add_argument(f"--{name}", metavar="N,N,...", help=f"the {name} of each token; default: 0 for all")
    return made


def main(argv: list[str]) -> int:
    """Print the masks and the reach; returns the exit code."""
    given, _ = parse_command_line(parser(), argv)
    tokens = _tokens(given)
    if given.layers is not None and not 1 <= given.layers <= MOST_LAYERS:
        raise ConfigError(f"--layers: {given.layers} is not allowed; allowed: a whole number from 1 to {MOST_LAYERS}.")
    masks = [spec.build("masks", node, "MASK") for node in spec.parse_layers(given.mask, given.layers, "MASK")]
    print("\n".join([*described(masks, tokens), *untold(masks, tokens)]))
    return 0


def untold(masks: Sequence[Mask], tokens: Tokens) -> list[str]:
    """A line for each field that a mask reads and that is the same for all tokens, with the flag that tells another."""
    read = set().union(*(read_by_mask(mask, tokens, tokens) for mask in masks))
    alike = [name for name in GROUPS if name in read and np.ptp(getattr(tokens, name)) == 0]
    return [f"{name} is {getattr(tokens, name)[0]} for all tokens; --{name} tells others" for name in alike]


def described(masks: Sequence[Mask], tokens: Tokens) -> list[str]:
    """The masks, each told once, and what a stack of them with a residual reaches, first layer first."""
    dense = [np.asarray(mask.dense(tokens, tokens)) for mask in masks]
    names = [spec.canonical(mask) for mask in masks]
    shown = dict(zip(names, dense, strict=True))
    lines = []
    for name, matrix in shown.items():
        where = [number for number, one in enumerate(names, start=1) if one == name]
        told = "" if len(shown) == 1 else f"layer{'s' * (len(where) > 1)} {', '.join(map(str, where))}: "
        lines += [_cut(f"{told}{name}"), *_drawn(matrix), f"sees {_counted(matrix)}", ""]
    found = np.asarray(reach(dense))
    stack = f"{len(masks)} layer{'s' * (len(masks) > 1)} with a residual"
    return [*lines, f"after {stack}", *_drawn(found), f"reaches {_counted(found)}"]


def _cut(line: str) -> str:
    """The line; a mask of a file may have a text of kilobytes."""
    return line if len(line) <= COLUMNS else f"{line[: COLUMNS - 3]}..."


def _drawn(matrix: Bool[np.ndarray, "T T"]) -> list[str]:
    wide = 2 * len(matrix) + 4 <= COLUMNS
    return [
        f"{row:3} {(' ' if wide else '').join('1' if one else '.' for one in seen)}" for row, seen in enumerate(matrix)
    ]


def _counted(matrix: Bool[np.ndarray, "T T"]) -> str:
    away = np.subtract.outer(np.arange(len(matrix)), np.arange(len(matrix)))
    back, ahead = (int(np.max(np.where(matrix, side, 0))) for side in (away, -away))
    return f"{matrix.sum()} of {matrix.size} pairs, up to {back} back and {ahead} ahead"


def _tokens(given: argparse.Namespace) -> Tokens:
    fields = {name: _numbers(name, getattr(given, name)) for name in GROUPS if getattr(given, name) is not None}
    length = given.length if given.length is not None else max([len(field) for field in fields.values()], default=16)
    if not 1 <= length <= LONGEST:
        raise ConfigError(f"--length: {length} is not allowed; allowed: a whole number from 1 to {LONGEST}.")
    for name, field in fields.items():
        if len(field) != length:
            raise ConfigError(f"--{name}: has {len(field)} numbers; allowed: {length}, one a token.")
    if not 0 <= given.context <= length:
        raise ConfigError(f"--context: {given.context} is not allowed; allowed: a whole number from 0 to {length}.")
    return sequential(length, **fields).told_context(given.context)


def _numbers(name: str, text: str) -> np.ndarray:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) <= spec.LARGEST for part in parts):
        raise ConfigError(f"--{name}: {text!r} is not allowed; allowed: whole numbers from 0 with commas between.")
    return np.array(list(map(int, parts)), np.int32)


if __name__ == "__main__":
    run_entry(main)
