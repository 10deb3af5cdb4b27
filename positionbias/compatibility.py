"""Which members work together: every pair of two axes is built in a small config, and refusals are what build says.

`scripts/members.py` writes it into BUILD.md.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import string
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from positionbias import costs, spec
from positionbias.config.build import build, checked
from positionbias.config.cli import apply_overrides
from positionbias.config.resolve import resolve
from positionbias.config.schema import Config
from positionbias.list import families
from positionbias.operators.base import Operator, Pattern
from positionbias.spec import ConfigError

TOLD = ("interventions", "analyses")  # axes that no config names
AXES = ("masks", "positions", "assignments", "operators", "architectures", "objectives")
PAIRS = (
    ("operators", "positions"),
    ("operators", "architectures"),
    ("operators", "masks"),
    ("architectures", "positions"),
    ("objectives", "architectures"),
    ("masks", "objectives"),
    ("masks", "architectures"),
    ("assignments", "positions"),
    ("assignments", "architectures"),
)
# Arguments of members that cannot do without, and of those whose defaults do not fit so small a config.
ARGUMENTS = {
    "sliding_window": "width=3",
    "prefix": "length=2",
    "dilated_window": "width=2, dilation=2",
    "window_with_sinks": "width=2",
    "modality_mutual": "modality=1, question=2",
    "condition_causal": "condition=1",
    "neighborhood": "width=3",
    "random_permutation_window": "width=3",
    "random_graph": "p=0.5",
    "from_file": "path=None, matrix='24x24:" + "ff" * 72 + "'",
    "block_causal_with_summary": "summary=1",
    "by_rank": "strict=True",
    "switch": "first=causal, second=bidirectional",
    "padded": "by=2",
    "randomized": "longest=24",
    "offset": "most=4",
    "periodic": "period=4",
    "looped": "loops=2",
    "multimodal_softmax": "image=1",
    "lookahead": "most=2",
    "orthogonal_memory": "slots=4",
    "stochastic": "width=3",
    "gated_stochastic": "width=3",
}
FIELDS = {"objectives": "objective"}  # of the others, model.SINGULAR
# Answers stand in inputs here, so that objectives may hide them and masks may leak them.
BASE: dict[str, Any] = {
    "name": "pair",
    "task": "reversal(pairs=4, both=2, begin=True)",
    "model": {"layers": 2, "width": 32, "heads": 2, "position": "none"},
    "train": {"steps": 10, "log_every": 10},
}
VECTORS: dict[str, Any] = {"task": "inverse_permutation_matrix(d=3)", "model.inputs": "vector"}
# Where masks meet architectures or operators a task whose inputs hold no answers, as leaks are told where masks meet
# objectives.
NO_ANSWERS = "associative_recall(pairs=4, keys=8, values=8, delays=1)"
MASKS = ("causal", "context_bidirectional", "bidirectional")  # an operator is built under the first that it honours
PATTERNS = (
    "The four of CAB (Zhang et al., ICML 2023): a query reads all keys or those up to its place, of its own sequence or"
    " another. `tests/contract/test_operator_patterns.py` runs every + and has all else refused with its reason."
)
# What a member needs beside itself, unless the pair says it.
WITH: dict[tuple[str, str], dict[str, str]] = {
    ("objectives", "bidirectional_causal"): {"masks": "switch(causal, bidirectional & ~masked_keys)"},
    ("objectives", "random_order"): {"masks": "[by_rank, by_rank(strict=True)]", "architectures": "two_stacks"},
    ("objectives", "masked_denoising"): {"masks": "bidirectional"},
    ("objectives", "masked_diffusion"): {"masks": "bidirectional"},
    ("masks", "by_rank"): {"objectives": "random_order", "architectures": "two_stacks"},
    ("masks", "masked_keys"): {"objectives": "masked_denoising"},
}
COSTS = (
    f"Of one layer alone, {costs.HEADS} heads of {costs.SIZE} on a CPU, forwards: the numbers kept to go on with a"
    " sequence (`state_size`), and the multiplications and additions of matrix products, 2 for each pair of numbers"
    " multiplied and loops in full, where XLA counts each loop once. Causal where an operator can be. Sizes of spans"
    " and regions stay while T grows, so that `combiner` and `routing` take T^2 in the end; of masks whose keys lie far"
    " apart (`power`, `stochastic`) XLA computes every pair, and drivers by tiles those of tiles that are not empty."
)


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Every pair of two axes: "+" where it is built, "+" and a letter under another mask, else its note's number."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], str]
    notes: tuple[str, ...]
    masks: tuple[str, ...] = ()  # what the letters stand for: a, b, ...


class Told(NamedTuple):
    """What build says of a pair: a refusal, or the mask it is built under, None for that of the pair or of the base."""

    refusal: str | None
    mask: str | None = None


def example(axis: str, name: str) -> str:
    """A spec of the member, with arguments where it needs some."""
    return f"{name}({ARGUMENTS[name]})" if name in ARGUMENTS else name


def field(axis: str) -> str:
    """The config field of an axis."""
    return FIELDS.get(axis, f"model.{spec.one_of(axis)}")


def told(axis: str, name: str, other_axis: str, other: str) -> Told:
    """What build says of the pair; of an operator and no mask, under the one that the operator honours."""
    mask = honoured(name) if axis == "operators" and other_axis != "masks" else MASKS[0]
    why = refusal(axis, name, other_axis, other, None if mask == MASKS[0] else mask)
    return Told(why, None if why is not None or mask == MASKS[0] else mask)


@functools.cache
def honoured(operator: str) -> str:
    """The first mask of a few that the operator is built under."""
    return next(mask for mask in MASKS if refusal("operators", operator, "architectures", "decoder_only", mask) is None)


def pair(axis: str, name: str, other_axis: str, other: str, mask: str | None = None) -> tuple[Config, dict[str, str]]:
    """A small config of the two, under `mask` or what they take by themselves, and the specs it has by axis."""
    chosen = {axis: example(axis, name), other_axis: example(other_axis, other)}
    for key in ((axis, name), (other_axis, other)):
        chosen = WITH.get(key, {}) | chosen
    chosen |= {"masks": mask} if mask is not None else {}
    wanted: dict[str, Any] = {field(one): text for one, text in chosen.items()}
    if {axis, other_axis} & {"operators", "architectures"} and "masks" in chosen and "objectives" not in chosen:
        wanted["task"] = NO_ANSWERS
    if chosen.get("objectives") == "squared_error":
        wanted |= VECTORS
    return resolve(apply_overrides(BASE, wanted)), chosen


@functools.cache
def refusal(axis: str, name: str, other_axis: str, other: str, mask: str | None = None) -> str | None:
    """What build says of `pair`; None if it is built."""
    config, chosen = pair(axis, name, other_axis, other, mask)
    try:
        # What a mask changes is told without making parameters, which takes most of the time.
        (checked if "masks" in (axis, other_axis) and "architectures" not in chosen else build)(config)
    except ConfigError as error:
        single = (spec.build(one, text, one) for one, text in chosen.items() if not spec.is_pattern(text, one))
        named = (str(ConfigError(spec.canonical(member))) for member in single)  # cut as in a sentence
        members = (config.model.mask, config.model.architecture, *chosen.values(), *named)
        return _in_general(str(error), tuple(dict.fromkeys(members)))
    return None


def _in_general(told: str, members: tuple[str, ...]) -> str:
    """A refusal with "..." for the members it speaks of and "n" for rows and inputs, so that like ones are one note."""
    for member in filter(None, members):
        told = re.sub(rf"(: | = |objective |operator |mask ){re.escape(member)}(?=[ ,])", r"\1...", told, count=1)
        told = told.replace(f"model.operator = {member.partition('(')[0]}(", "model.operator = ...(")
    return re.sub(r"\b(rows?|input|position) \d+", r"\1 n", told)


def matrix(rows: str, columns: str) -> Matrix:
    """Every pair of two axes."""
    named = tuple(spec.names(rows)), tuple(spec.names(columns))
    return _noted(*named, {pair: told(rows, pair[0], columns, pair[1]) for pair in itertools.product(*named)})


def _noted(rows: tuple[str, ...], columns: tuple[str, ...], said: Mapping[tuple[str, str], Told]) -> Matrix:
    """A matrix of what build says, each refusal with its note once."""
    notes = tuple(dict.fromkeys(why for why, _ in said.values() if why is not None))
    masks = tuple(dict.fromkeys(mask for _, mask in said.values() if mask is not None))
    cells = {}
    for pair, (why, mask) in said.items():
        letter = "" if mask is None else string.ascii_lowercase[masks.index(mask)]
        cells[pair] = f"+{letter}" if why is None else str(notes.index(why) + 1)
    return Matrix(rows, columns, cells, notes, masks)


def patterns() -> Matrix:
    """Every operator and each of the four patterns, as its declaration has them; the notes are its reasons."""
    names, four = tuple(spec.names("operators")), typing.get_args(Pattern)
    said = {}
    for name in names:
        operator: Operator = spec.build("operators", example("operators", name), "model.operator")
        for pattern in four:
            said[name, pattern] = Told(None if pattern in operator.patterns else f"{operator.lacking(pattern)}.")
    return _noted(names, four, said)


def page() -> str:
    """What BUILD.md says of members: a table an axis, and the matrices."""
    return "\n\n".join(f"### {title}\n\n{make()}" for title, make in sections().items())


def sections() -> dict[str, Callable[[], str]]:
    """The parts of the page by title, each made when it is called, which takes from milliseconds to a minute."""
    made: dict[str, Callable[[], str]] = {
        axis.capitalize(): functools.partial(members_table, axis) for axis in (*AXES, *TOLD)
    }
    made["Operators and patterns"] = lambda: f"{PATTERNS}\n\n{table(patterns())}"
    for rows, columns in PAIRS:
        made[f"{rows.capitalize()} and {columns}"] = functools.partial(matrix_table, rows, columns)
    made["What operators cost"] = lambda: f"{COSTS}\n\n{costs.table(costs.operators(ARGUMENTS))}"
    return made


def members_table(axis: str) -> str:
    """The members of an axis in Markdown, a line each, below one for their family where they have families."""
    lines = [f"| {spec.one_of(axis)} | |", "|---|---|"]
    for family, found in families(axis).items():
        lines += [f"| **{family}** | |"] if family else []
        for entry in found:
            text = entry.doc.replace("|", "\\|")
            lines.append(f"| `{entry.name}` | {text} |")
    return "\n".join(lines)


def matrix_table(rows: str, columns: str) -> str:
    """A matrix in Markdown: + where the pair is built, else the number of what build says; a line if all are built."""
    found = matrix(rows, columns)
    if not found.notes and not found.masks:
        return (
            f"Every one of the {len(found.rows)} {rows} is built with every one of the {len(found.columns)} {columns}."
        )
    return table(found)


def table(found: Matrix) -> str:
    """A matrix in Markdown, with its notes."""
    lines = ["| | " + " | ".join(f"`{name}`" for name in found.columns) + " |", "|---" * (len(found.columns) + 1) + "|"]
    for row in found.rows:
        lines.append(f"| `{row}` | " + " | ".join(found.cells[row, column] for column in found.columns) + " |")
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(found.notes, start=1))] if found.notes else []
    letters = zip(string.ascii_lowercase, found.masks, strict=False)
    under = ", ".join(f"+{letter} under `{mask}`" for letter, mask in letters)
    return "\n".join([*lines, "", f"Built {under}, as not under `{MASKS[0]}`."] if under else lines)
