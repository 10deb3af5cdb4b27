"""`python -m positionbias.list [AXIS]`: every registered name, with its arguments and one line of what it is.

Members that declare a `family`, as operators do, stand under it. All is read from the source with `ast`, so nothing
is imported and the answer is immediate; but for what one operator costs.
"""

from __future__ import annotations

import ast
import functools
import pathlib
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from positionbias import spec
from positionbias.aliases import meant
from positionbias.config.cli import Parser, parse_command_line, run_entry

COLUMNS = 100
WIDEST = 46  # a longer signature stands on a line of its own


class Entry(NamedTuple):
    """A member as it is listed: its signature's pieces (`arg: type = default`) and its docstring's first line."""

    name: str
    arguments: tuple[str, ...]
    doc: str
    family: str = ""  # as it or the nearest of its bases declares it; empty where none does


def entries(axis: str) -> list[Entry]:
    """The members of an axis, in alphabetical order."""
    return [_entry(axis, name) for name in spec.names(axis)]


def families(axis: str) -> dict[str, list[Entry]]:
    """The members of an axis by the family that they declare, "others" last; all under "" where none declares one."""
    found = entries(axis)
    if not any(entry.family for entry in found):
        return {"": found}
    named = sorted({entry.family for entry in found}, key=lambda family: (not family, family))
    return {family or "others": [entry for entry in found if entry.family == family] for family in named}


def table(axis: str) -> str:
    """The members of an axis as text of at most 100 columns, under a heading for each family where there are some."""
    grouped = families(axis)
    signatures = [_signature(entry) for found in grouped.values() for entry in found]
    left = max((len(signature) for signature in signatures if len(signature) <= WIDEST), default=0)
    return "\n\n".join(_block(f"{axis}: {name}" if name else axis, found, left) for name, found in grouped.items())


def _signature(entry: Entry) -> str:
    return f"{entry.name}({', '.join(entry.arguments)})" if entry.arguments else entry.name


def _block(heading: str, found: list[Entry], left: int) -> str:
    """Members under their heading, each beside or below its signature, for which there are `left` letters."""
    lines = [heading]
    for entry in found:
        signature, indent = _signature(entry), " " * (left + 4)
        wrapped = textwrap.wrap(
            entry.doc, COLUMNS, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        ) or [""]
        if len(signature) <= left:
            wrapped[0] = f"  {signature:<{left}}  {wrapped[0].strip()}".rstrip()
        else:
            whole = signature.replace(": ", ":\0").replace(" = ", "\0=\0").replace(" | ", "\0|\0")  # never cut there
            cut = textwrap.wrap(f"  {whole}", COLUMNS, subsequent_indent=" " * 6, break_on_hyphens=False)
            wrapped = [line.replace("\0", " ") for line in cut] + wrapped
        lines += wrapped
    return "\n".join(lines)


def described(axis: str, name: str) -> str:
    """The signature of a member and its whole docstring; of an operator what it declares and costs too."""
    parts = [_signature(_entry(axis, name)), ast.get_docstring(_found(axis, name)) or ""]
    if axis == "operators":
        from positionbias import facts

        parts.append(facts.operator(name))
    return "\n\n".join(parts)


def main(argv: list[str]) -> int:
    """Print the members of one axis, or of all, or all that is said of one member."""
    parser = Parser("python -m positionbias.list", "Print every registered name with its arguments.")
    parser.add_argument("axis", nargs="?", help=f"one of {', '.join(spec.axes())}; all of them if left out")
    parser.add_argument("name", nargs="?", help="a member of the axis, of which all is printed")
    asked, _ = parse_command_line(parser, argv)
    if asked.axis is not None and asked.axis not in spec.axes():
        raise spec.unknown("AXIS", "axis", asked.axis, spec.axes())
    if asked.name is not None:
        members = {one: spec.source(asked.axis, one) for one in spec.names(asked.axis)}
        name = asked.name if asked.name in members else meant(asked.axis, asked.name, members)
        if name is None:
            raise spec.unknown_member(asked.axis, asked.name, "NAME")
        print(described(asked.axis, name))
        return 0
    print("\n\n".join(table(axis) for axis in ([asked.axis] if asked.axis else spec.axes())))
    if asked.axis:
        print(f"\nall of one: python -m positionbias.list {asked.axis} NAME")
    return 0


@functools.cache
def _module(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _classes(path: pathlib.Path) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in _module(path).body if isinstance(node, ast.ClassDef)}


def _found(axis: str, name: str) -> ast.ClassDef:
    wanted = f"member({axis!r}, {name!r})"
    classes = _classes(spec.source(axis, name)).values()
    return next(one for one in classes if wanted in [ast.unparse(d) for d in one.decorator_list])


def _entry(axis: str, name: str) -> Entry:
    path, found = spec.source(axis, name), _found(axis, name)
    doc = (ast.get_docstring(found) or "").partition("\n")[0]
    return Entry(name, tuple(_fields(path, found).values()), doc, _family(path, found))


def _family(path: pathlib.Path, found: ast.ClassDef) -> str:
    """The `family` that a class declares, else the first of its bases that has one."""
    for node in found.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "family":
            return str(ast.literal_eval(node.value))
    return next(filter(None, (_family(file, base) for file, base in _bases(path, found))), "")


def _fields(path: pathlib.Path, found: ast.ClassDef) -> dict[str, str]:
    """The dataclass's fields by name, inherited ones first, as dataclasses order them."""
    fields: dict[str, str] = {}
    for base_path, base in _bases(path, found):
        if any("dataclass" in ast.unparse(decorator) for decorator in base.decorator_list):
            fields |= _fields(base_path, base)
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            annotation = ast.unparse(node.annotation)
            if not annotation.startswith("ClassVar"):
                default = f" = {ast.unparse(node.value)}" if node.value else ""
                fields[node.target.id] = f"{node.target.id}: {annotation}{default}"
    return fields


def _bases(path: pathlib.Path, found: ast.ClassDef) -> Iterator[tuple[pathlib.Path, ast.ClassDef]]:
    """The bases that this package defines, in the same file or imported from another."""
    imported = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in _module(path).body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{spec.PACKAGE.name}.")
        for alias in node.names
    }
    for base in (b.id for b in found.bases if isinstance(b, ast.Name)):
        file, name = path, base
        if base in imported:
            module, name = imported[base]
            file = spec.PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
        classes = _classes(file) if file.is_file() else {}
        if name in classes:
            yield file, classes[name]


if __name__ == "__main__":
    run_entry(main)
