"""The command line: `--config FILE`, overrides `--config.a.b=value`, and errors of one sentence for every entry.

An override names a field by its dotted path. Text fields take the value as it is, others a Python literal, spec
fields a whole spec; one name below a spec field edits that argument of the spec, written in the file or not:
`--config.task.n=16`. Whole specs are set before their arguments are edited, in whatever order they were given.
Importing this module imports no JAX, so that `--help` and refusals are quick.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import re
import shlex
import signal
import sys
import textwrap
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from positionbias import spec
from positionbias.config import files
from positionbias.config.resolve import VARIED, Leaf, groups, leaves, not_a_group, plain, unknown_field
from positionbias.errors import GoneError
from positionbias.files import FileError
from positionbias.spec import ConfigError

PREFIX = "--config."
Overrides = Mapping[str, Any] | Iterable[tuple[str, Any]]


# ------------------------------------------------------------------------------------------------------- overrides


def load_config(path_with_arguments: str, overrides: Overrides = ()) -> dict[str, Any]:
    """The raw config of `FILE` or `FILE:arg=value,...` with overrides applied: nested dicts, ready for `resolve`."""
    return apply_overrides(files.read(path_with_arguments).raw(), overrides)


def apply_overrides(raw: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of `raw` with dotted fields set. Text is read by the field's type, other values are taken as they are.

    A field given twice must have the same value both times.
    """
    config = plain(raw)
    if not isinstance(config, dict):
        raise not_a_group("", config)
    wanted: dict[str, Any] = {}
    for path, value in overrides.items() if isinstance(overrides, Mapping) else overrides:
        value = plain(value)
        if path in wanted and wanted[path] != value:
            raise ConfigError(
                f"{path}: is given twice, as {spec.show(wanted[path])} and {spec.show(value)}; allowed: one value."
            )
        wanted[path] = value
    targets = {path: find_target(path) for path in wanted}
    for path in sorted(wanted, key=lambda p: targets[p][1] is not None):
        _set(config, *targets[path], wanted[path])
    _refuse_varied(config, wanted)
    return config


def _refuse_varied(raw: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to set what every replica has a value of its own of, which would do nothing."""
    group = raw.get("train")
    vary = group.get("vary") if isinstance(group, dict) else None
    for name in vary if isinstance(vary, dict) else ():
        path = VARIED.get(name, f"task.{name}")
        if path in wanted:
            raise ConfigError(
                f"{path}: {spec.show(wanted[path])} would do nothing, as train.vary gives every replica its {name};"
                f" allowed: train.vary.{name}, or train.vary without it."
            )


def find_target(path: str) -> tuple[str, str | None]:
    """The field that a dotted path names, and the argument of its spec (or entry of its table) if it goes below."""
    if path in leaves():
        return path, None
    head, _, last = path.rpartition(".")
    if head in leaves() and (leaves()[head].axis or leaves()[head].is_table):
        return head, last
    if path and path in groups():
        inside = [f.name for f in dataclasses.fields(groups()[path])]
        raise ConfigError(
            f"{path}: is a group of fields and cannot be set whole; allowed: one of its fields {', '.join(inside)}."
        )
    parts, depth = path.split("."), 0
    if not all(parts):
        raise spec.unknown(f"{PREFIX}{path}", "field", path, leaves())
    while ".".join(parts[: depth + 1]) in groups():
        depth += 1
    field = ".".join(parts[: depth + 1])
    if field in leaves():
        raise ConfigError(f"{path}: {field} has nothing of that name below it; set {field} itself.")
    raise unknown_field(".".join(parts[:depth]), parts[depth])


def _set(config: dict[str, Any], path: str, below: str | None, value: Any) -> None:
    leaf = leaves()[path]
    *above, name = path.split(".")
    group = config
    for depth, part in enumerate(above):
        group = group.setdefault(part, {})
        if not isinstance(group, dict):
            raise not_a_group(".".join(above[: depth + 1]), group)
    if below is None:
        group[name] = files.parse_value(value, leaf.annotation, path) if isinstance(value, str) else value
    elif leaf.is_table:
        table = group.setdefault(name, {})
        if not isinstance(table, dict):
            raise not_a_group(path, table)
        table[below] = files.parse_value(value, Any, f"{path}.{below}") if isinstance(value, str) else value
    else:
        if name not in group and leaf.required:
            raise ConfigError(f"{path}.{below}: there is no {path} to edit; give {path} itself as well.")
        text = group.get(name, leaf.field.default)
        group[name] = _edited(text, leaf, path, below, value)


def _edited(text: Any, leaf: Leaf, path: str, argument: str, value: Any) -> str:
    """The spec `text` with one of its arguments set."""
    where, axis = f"{path}.{argument}", typing.cast(str, leaf.axis)
    pattern = leaf.layered and spec.is_pattern(text, path)
    node = None if pattern else spec.parse(text, path)
    if not isinstance(node, spec.Call):
        what = "a layer pattern" if pattern else "a combination of masks"
        raise ConfigError(f"{where}: {path} is {what}, {spec.show(text)}; give the whole of {path} instead.")
    cls = spec.load_member(axis, node.name, path)
    fields = spec.arguments(cls)
    if argument not in fields:
        raise spec.unknown(where, f"argument of {node.name}", argument, fields)
    values = dict(zip(fields, node.positional, strict=False))
    if len(node.positional) > len(fields) or any(keyword in values for keyword, _ in node.keywords):
        spec.build(axis, node, path)  # refuses these, naming the argument
    values |= dict(node.keywords)
    annotation = typing.get_type_hints(cls)[argument]
    values[argument] = files.parse_value(value, annotation, where) if isinstance(value, str) else value
    return spec.str_node(spec.Call(node.name, (), tuple(values.items())))


# ---------------------------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ConfigErrors of one sentence and whose flags are never abbreviated.

    A parser with a `--config` flag also takes overrides, and its `--help` lists every field.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    @property
    def flags(self) -> dict[str, argparse.Action]:
        """The actions by their option strings."""
        return {option: action for action in self._actions for option in action.option_strings}

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print with a usage dump."""
        text = " ".join(message.split()).rstrip(".")
        if found := re.fullmatch(r"argument ([^:]+): invalid (int|float) value: (.*)", text):
            kind = "a whole number" if found[2] == "int" else "a number"
            raise ConfigError(f"{found[1]}: {found[3]} is not allowed; allowed: {kind}.")
        if found := re.fullmatch(r"argument ([^:]+): expected (?:at least )?one argument", text):
            raise ConfigError(f"{found[1]}: needs a value; write {found[1]} VALUE.")
        if found := re.fullmatch(r"the following arguments are required: (\w+)", text):
            (what,) = (action.help for action in self._actions if action.dest == found[1])
            raise ConfigError(f"command line: {found[1]} is missing; write the {what}.")
        raise ConfigError(f"command line: {text}; allowed: {', '.join(self._allowed())}.")

    def format_help(self) -> str:
        """The flags and, where overrides are taken, every config field."""
        text = super().format_help()
        return f"{text}\n{describe_fields()}" if "--config" in self.flags else text

    def refuse(self, token: str) -> ConfigError:
        """The error for a token that nothing takes."""
        flag = token.partition("=")[0]
        if not flag.startswith("-"):
            return ConfigError(f"command line: unexpected {token!r}; allowed: {', '.join(self._allowed())}.")
        hint = spec.nearest(flag, self.flags)
        if "--config" in self.flags:
            dotted = flag.lstrip("-")
            same = [PREFIX + path for path in leaves() if dotted in (path, path.rpartition(".")[2])]
            near = spec.nearest(flag, [*self.flags, *(PREFIX + path for path in leaves())])
            hint = f", did you mean {same[0]!r}?" if same else near
        return ConfigError(f"command line: unknown flag {flag!r}{hint or ';'} allowed: {', '.join(self._allowed())}.")

    def missing(self, flag: str, tokens: Sequence[str]) -> ConfigError:
        """The error for a required flag that is not among `tokens`, hinting at it where its value seems to be."""
        for before, token in zip(["", *tokens], tokens, strict=False):
            taken = before in self.flags and self.flags[before].nargs is None
            if token.startswith("--") and token.partition("=")[0] not in self.flags:
                return self.refuse(token)
            if not taken and not token.startswith("-") and (flag != "--config" or ".py" in token):
                wanted = f"{flag} {shlex.quote(token)}"
                return ConfigError(f"command line: unexpected {token!r}, did you mean {wanted!r}?")
        value = self.flags[flag].metavar or flag.lstrip("-").upper()
        return ConfigError(f"command line: {flag} is missing; write {self.prog} {flag} {value} (--help tells more).")

    def _allowed(self) -> list[str]:
        return [*self.flags, *([f"{PREFIX}FIELD=VALUE"] if "--config" in self.flags else [])]


def parse_command_line(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The parser's own flags, and the overrides as (dotted path, text) in the order given.

    Raises ConfigError for an unknown flag, a flag given twice or missing, and an override without a value.
    """
    rest, overrides = [], []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        if "--config" not in parser.flags or not token.startswith(PREFIX):
            rest.append(token)
            continue
        path, separator, value = token.removeprefix(PREFIX).partition("=")
        if not separator:
            if not tokens or tokens[0].startswith("--"):
                raise ConfigError(f"{path}: needs a value; write {PREFIX}{path}=VALUE.")
            value = tokens.pop(0)
        overrides.append((path, value))
    given = [token.partition("=")[0] for token in rest]
    for flag, action in parser.flags.items():
        if action.nargs is None and given.count(flag) > 1:
            raise ConfigError(f"command line: {flag} is given twice; allowed: once.")
    missing = [flag for flag, action in parser.flags.items() if action.required and flag not in given]
    if missing and not {"-h", "--help"} & set(rest):
        raise parser.missing(missing[0], rest)
    namespace, left = parser.parse_known_args(rest)
    if left:
        raise parser.refuse(left[0])
    return namespace, overrides


def folder(given: str, flag: str = "--workdir") -> pathlib.Path:
    """The path given as `flag`; ConfigError for none, an address, and what the system cannot look up."""
    if not given:  # which pathlib takes for the folder one is in
        raise ConfigError(f"{flag}: '' is not allowed; allowed: the path of a folder.")
    if "://" in given:  # which pathlib takes for a folder beside
        raise ConfigError(f"{flag}: {given!r} is an address; allowed: the path of a folder.")
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # what is not there can be made, or is told
            os.stat(given)
    except OSError as error:  # too long a name
        told = f"{given!r} cannot be looked up ({error.strerror})"
        raise ConfigError(f"{flag}: {told}; allowed: the path of a folder.") from None
    return pathlib.Path(given)


def describe_fields() -> str:
    """Every config field with its default and what it is, for `--help`; at most 100 columns."""
    lines = [
        "Any field of the config file can be set with --config.FIELD=VALUE. A spec field takes a whole",
        "spec, as in --config.model.mask='causal & sliding_window(4)', or one argument of it, as in",
        "--config.task.n=16; `python -m positionbias.list` prints every name a spec may use.",
        "",
    ]
    rows = [("field", "default", "meaning")]
    rows += [(path, _default(leaf), _meaning(leaf)) for path, leaf in leaves().items()]
    left, middle = max(len(r[0]) for r in rows), max(len(r[1]) for r in rows)
    for path, default, meaning in rows:
        first, *more = textwrap.wrap(meaning, 100 - left - middle - 6, break_on_hyphens=False)
        lines.append(f"  {path:<{left}}  {default:<{middle}}  {first}")
        lines += [" " * (left + middle + 6) + line for line in more]
    return "\n".join(lines) + "\n"


def _default(leaf: Leaf) -> str:
    if leaf.required:
        return "(required)"
    if leaf.is_table:
        return "{}"
    value = leaf.field.default
    return value if isinstance(value, str) else repr(value).replace("()", "[]")


def _meaning(leaf: Leaf) -> str:
    doc = str(leaf.field.metadata["doc"])
    if leaf.axis:
        return f"{doc} (one of the {leaf.axis}{', or a list, one for each layer' if leaf.layered else ''})"
    if typing.get_origin(leaf.annotation) is typing.Literal:
        named = [value for value in typing.get_args(leaf.annotation) if f"{value}:" not in doc]
        if named:
            *most, last = named
            return f"{doc} ({', '.join(most)} or {last})" if most else f"{doc} ({last})"
    return doc


def run_entry(main: Callable[[list[str]], int]) -> NoReturn:
    """Call `main` with the command line and exit with what it returns, or with what `told` says of its error."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever called
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    try:
        code = main(sys.argv[1:])
    except (Exception, KeyboardInterrupt) as error:
        code = told(error)
    _flush()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # Python would show where it is on its way out
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


def told(error: BaseException) -> int:
    """Print what ended an entry and return its exit code; an error of ours is raised again.

    A ConfigError is one line and exit code 2; so is a disk or memory without room, or a process that is gone, but its
    code is 1.
    """
    if isinstance(error, ConfigError):
        flag = f"--{str(error).partition(':')[0]}"  # of this command line, where what it gave was refused by a library
        dashes = "--" if flag in (token.partition("=")[0] for token in sys.argv) else ""
        print(f"error: {dashes}{error}", file=sys.stderr)
        return 2
    if isinstance(error, FileError | GoneError | MemoryError):
        print(f"error: {error}", file=sys.stderr)
        return 1
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):  # whoever reads the output has seen enough
        return 0
    raise error


def leave(error: BaseException) -> NoReturn:
    """Exit as `run_entry` does, at once: on the way out JAX waits for the other processes, and these for this one."""
    try:
        code = told(error)
    except BaseException:
        traceback.print_exc()
        code = 1
    _flush()
    os._exit(code)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError:  # nothing may be written there on the way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
