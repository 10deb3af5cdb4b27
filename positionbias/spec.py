"""The spec grammar and the registry: how every member of every axis is named.

A spec reads `name`, `name(arg=value, ...)`, for masks also `a & b`, `a | b`, `~a`, and for layer patterns lists with
`*` and `+`: `"causal & sliding_window(16)"`, `"[rope(base=500), none] * 2"`. Text is parsed with Python's `ast`
restricted to names, calls, literals and those operators; nothing is ever evaluated.

A member is a frozen dataclass decorated with `@member("axis", "name")`; its fields are the spec's arguments. The
registry finds members by reading the package's source for that decorator, so a new file is enough to add one and
nothing is imported to list or check a name.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import functools
import importlib
import math
import pathlib
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, Union

from positionbias.aliases import meant
from positionbias.errors import ConfigError, nearest, show, type_name, unknown, unreadable
from positionbias.errors import require as require

PACKAGE = pathlib.Path(__file__).parent
T = TypeVar("T", bound=type)
_MEMBERS: dict[tuple[str, str], type] = {}
_hints = functools.cache(typing.get_type_hints)  # a third of the time of ten thousand configs
LARGEST = 2**31 - 1  # whole numbers become int32 on the device
LONGEST = 1000  # entries of a pattern that is repeated
NESTING = 100  # far below what would exhaust Python's stack
_DECORATOR = re.compile(r'^@member\("(\w+)", "(\w+)"\)', re.MULTILINE)


# --------------------------------------------------------------------------------------------------------- grammar


@dataclasses.dataclass(frozen=True)
class Call:
    """`name(*positional, **keywords)`; values are literals or nested nodes."""

    name: str
    positional: tuple[Any, ...] = ()
    keywords: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Combine:
    """`left & right`, `left | right` or, with `right` None, `~left`."""

    operator: Literal["&", "|", "~"]
    left: Any
    right: Any = None


Node = Call | Combine


def _literal(node: ast.expr, field: str, text: str) -> Any:
    operator = getattr(node, "op", None)
    if isinstance(node, ast.Name | ast.Call) or isinstance(operator, ast.BitAnd | ast.BitOr | ast.Invert):
        return _node(node, field, text)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        told = f"{ast.unparse(node)!r} in {text!r} is not allowed"
        raise ConfigError(f"{field}: {told}; allowed: a number, text, True, False, None, a list or a spec.") from None


def _node(node: ast.expr, field: str, text: str) -> Node:
    if isinstance(node, ast.Name):
        return Call(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        for keyword in node.keywords:
            if keyword.arg is None:
                raise ConfigError(f"{field}: '**' is not allowed in {text!r}; write each argument as name=value.")
        times = collections.Counter(str(k.arg) for k in node.keywords)
        if twice := sorted(name for name, count in times.items() if count > 1):
            raise ConfigError(f"{field}: argument {twice[0]!r} is given twice in {text!r}.")
        return Call(
            node.func.id,
            tuple(_literal(a, field, text) for a in node.args),
            tuple((str(k.arg), _literal(k.value, field, text)) for k in node.keywords),
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        sign: Literal["&", "|"] = "&" if isinstance(node.op, ast.BitAnd) else "|"
        return Combine(sign, _node(node.left, field, text), _node(node.right, field, text))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return Combine("~", _node(node.operand, field, text))
    told, logical = ast.unparse(node), isinstance(node, ast.BoolOp) or isinstance(getattr(node, "op", None), ast.Not)
    where = "" if told == text.strip() else f" in {text!r}"
    how = "masks combine with &, | and ~" if logical else "write name or name(argument=value, ...)"
    raise ConfigError(f"{field}: {told!r}{where} is not a spec; {how}.")


def _tree(text: Any, field: str, end: str = "") -> ast.expr:
    """What `text` with `end` behind it reads as; errors tell the text alone."""
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{field}: {text!r} is not a spec; write name or name(argument=value, ...).")
    if sum(text.count(sign) for sign in "(~[") > NESTING:
        raise ConfigError(f"{field}: {show(text)} is nested too deeply; allowed: {NESTING} signs of '(', '[' and '~'.")
    try:
        return ast.parse(text.strip() + end, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise unreadable(field, text, error) from None


def parse(text: str, field: str) -> Node:
    """Parse one spec; `field` is the config field that errors name."""
    return _node(_tree(text, field), field, text)


def _pattern(node: ast.expr, field: str, text: str) -> list[Node]:
    if isinstance(node, ast.List):
        return [_node(element, field, text) for element in node.elts]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _pattern(node.left, field, text) + _pattern(node.right, field, text)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = node.left, node.right
        if isinstance(left, ast.Constant):
            left, right = right, left
        if isinstance(right, ast.Constant) and type(right.value) is int and 1 <= right.value <= LONGEST:
            once = _pattern(left, field, text)
            if len(once) * right.value > LONGEST:  # told before it is made: lists of lists of lists fill any memory
                raise ConfigError(f"{field}: the pattern {show(text)} has more than {LONGEST} entries.")
            return once * right.value
        raise ConfigError(f"{field}: a list in {text!r} may be repeated by a whole number from 1 to {LONGEST} only.")
    raise ConfigError(f"{field}: '*' and '+' in {text!r} work on lists only, as in '[a, b] * 2'.")


def parse_several(text: str, field: str) -> list[Node]:
    """The nodes of `SPEC, SPEC2, ...`."""
    tree = _tree(text, field, end=",")
    return [_node(element, field, text) for element in (tree.elts if isinstance(tree, ast.Tuple) else [tree])]


def is_pattern(text: str, field: str) -> bool:
    """Whether `text` is a layer pattern (a list expression) rather than one spec for every layer."""
    node = _tree(text, field)
    return isinstance(node, ast.List) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult))


def parse_layers(text: str, layers: int | None, field: str) -> list[Node]:
    """One node a layer: a single spec serves every layer, a pattern must have `layers` entries (None: any number)."""
    if not is_pattern(text, field):
        return [parse(text, field)] * (layers or 1)
    nodes = _pattern(_tree(text, field), field, text)
    if layers is not None and len(nodes) != layers:
        entries = f"{len(nodes)} {'entry' if len(nodes) == 1 else 'entries'}"
        raise ConfigError(f"{field}: the pattern {text!r} has {entries}, allowed: {layers}, one a layer.")
    return nodes


# -------------------------------------------------------------------------------------------------------- registry


def member(axis: str, name: str) -> Callable[[T], T]:
    """Class decorator: register a frozen dataclass as `name` on `axis`. Write both as plain string literals."""

    def register(cls: T) -> T:
        cls.axis, cls.spec_name = axis, name  # type: ignore[attr-defined]
        _MEMBERS[axis, name] = cls
        return cls

    return register


@functools.cache
def _index() -> dict[str, dict[str, str]]:
    index: dict[str, dict[str, str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts))
        for axis, name in _DECORATOR.findall(path.read_text(encoding="utf-8")):
            if name in index.setdefault(axis, {}):
                raise RuntimeError(f"{axis} member {name!r} is defined in both {index[axis][name]} and {module}")
            index[axis][name] = module
    return index


def axes() -> list[str]:
    """The names of all axes."""
    return sorted(_index())


def names(axis: str) -> list[str]:
    """The registered names of one axis, without importing any of them."""
    return sorted(_index().get(axis, {}))


def source(axis: str, name: str) -> pathlib.Path:
    """The file that defines a registered member, found without importing it."""
    return PACKAGE.parent.joinpath(*_index()[axis][name].split(".")).with_suffix(".py")


def one_of(axis: str) -> str:
    """What a member of the axis is called: "mask" of "masks"."""
    return "analysis" if axis == "analyses" else axis.removesuffix("s")


def unknown_member(axis: str, name: str, field: str) -> ConfigError:
    """The error for a name that no member of the axis has: the one it is known by, else the nearest."""
    if (axis, name) in _MEMBERS and name not in names(axis):
        module = _MEMBERS[axis, name].__module__
        inside = module.startswith(f"{PACKAGE.name}.")
        why = "in a line that is not found without importing it" if inside else "outside of the package"
        allowed = f'@member("{axis}", "{name}") as a line of its own' if inside else f"a file in {PACKAGE}"
        return ConfigError(
            f"{field}: {one_of(axis)} {name!r} is defined in {module}, {why}, where neither a sweep's nor a later"
            f" command would find it; allowed: {allowed}."
        )
    called = meant(axis, str(name), {one: source(axis, one) for one in names(axis)})
    return unknown(field, one_of(axis), name, names(axis), called)


def load_member(axis: str, name: str, field: str) -> type:
    """Import and return the class registered as `name` on `axis`; ConfigError with the nearest name if none is."""
    modules = _index().get(axis, {})
    if name not in modules:
        raise unknown_member(axis, name, field)
    importlib.import_module(modules[name])
    return _MEMBERS[axis, name]


def arguments(cls: type) -> dict[str, dataclasses.Field]:
    """The spec arguments of a member: the dataclass fields its constructor takes."""
    return {f.name: f for f in dataclasses.fields(cls) if f.init}


def construct(cls: type, values: Mapping[str, Any], field: str, what: str) -> Any:
    """Build a checked dataclass: every name known, every required one given, every type right.

    A `ConfigError` raised by the class's own `__post_init__` is prefixed with `field`.
    """
    fields = arguments(cls)
    for name in values:
        if name not in fields:
            raise unknown(field, f"argument of {what}", name, fields)
    needed = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [n for n in needed if n not in values]:
        raise ConfigError(f"{field}: {what} needs the argument {missing[0]!r}; allowed: {', '.join(fields)}.")
    hints = _hints(cls)
    checked = {name: check_type(value, hints[name], f"{field}.{name}") for name, value in values.items()}
    try:
        return cls(**checked)
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from None


def build(axis: str, node: Node | str, field: str) -> Any:
    """Build the member that `node` (or its text) names. Only masks may be combined with `&`, `|` and `~`."""
    if isinstance(node, str):
        node = parse(node, field)
    if isinstance(node, Combine):
        if axis != "masks":
            raise ConfigError(f"{field}: '{node.operator}' combines masks only; allowed here: one name of {axis}.")
        left = build(axis, node.left, field)
        if node.operator == "~":
            return ~left
        right = build(axis, node.right, field)
        try:
            return left & right if node.operator == "&" else left | right
        except ConfigError as error:
            raise ConfigError(f"{field}: {error}") from None
    cls = load_member(axis, node.name, field)
    fields = list(arguments(cls))
    if len(node.positional) > len(fields):
        raise ConfigError(
            f"{field}: {node.name} takes at most {len(fields)} arguments, got {len(node.positional)};"
            f" allowed: {', '.join(fields) or 'none'}."
        )
    values = dict(zip(fields, node.positional, strict=False))
    for name, value in node.keywords:
        if name in values:
            raise ConfigError(f"{field}: argument {name!r} of {node.name} is given twice.")
        values[name] = value
    return construct(cls, values, field, node.name)


# ----------------------------------------------------------------------------------------------------------- types


def check_type(value: Any, annotation: Any, field: str) -> Any:
    """Return `value` as the annotation wants it (an int where a float is asked becomes one) or raise ConfigError."""
    try:
        return _coerce(value, annotation, field)
    except TypeError:
        shown = str_node(value) if isinstance(value, Call | Combine) else show(value)
        hint = ""
        plain = isinstance(value, Call) and not value.positional and not value.keywords
        if isinstance(value, str) and _names_member(value, annotation):
            hint = f" in quotes, did you mean {value.strip()} without"
        if plain and (_takes_text(annotation) or type_name(annotation).find(repr(value.name)) >= 0):
            hint = f" without quotes, did you mean {value.name!r}"
        if typing.get_origin(annotation) is Literal and isinstance(value, str):
            hint = nearest(value, [a for a in typing.get_args(annotation) if isinstance(a, str)]).removesuffix("?")
        raise ConfigError(f"{field}: {shown} is not allowed{hint}; allowed: {type_name(annotation)}.") from None


def _names_member(text: str, annotation: Any) -> bool:
    """Whether a spec is asked for and `text` is one."""
    options = typing.get_args(annotation) or (annotation,)
    axis = next((one.axis for one in options if hasattr(one, "axis")), None)
    try:
        return axis is not None and build(axis, text, "") is not None
    except ConfigError:
        return False


def _takes_text(annotation: Any) -> bool:
    unions = (Union, types.UnionType)
    return annotation is str or (typing.get_origin(annotation) in unions and str in typing.get_args(annotation))


def _coerce(value: Any, annotation: Any, field: str) -> Any:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin is Literal:
        if any(value == a and type(value) is type(a) for a in args):
            return value
        raise TypeError
    if origin in (Union, types.UnionType):
        for option in args:
            try:
                return _coerce(value, option, field)
            except TypeError:
                continue
        raise TypeError
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise TypeError
        return tuple(_coerce(v, args[0], field) for v in value)
    if hasattr(annotation, "axis"):
        if isinstance(value, Call | Combine):
            return build(annotation.axis, value, field)
        if isinstance(value, annotation):
            return value
        raise TypeError
    if annotation is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise TypeError from None
    if type(value) is annotation:
        if annotation is float and not math.isfinite(value):
            raise TypeError
        if annotation is int and abs(value) > LARGEST:
            raise ConfigError(f"{field}: {show(value)} is not allowed; allowed: whole numbers up to {LARGEST}.")
        return value
    raise TypeError


# ------------------------------------------------------------------------------------------------------------ text


def str_node(value: Any) -> str:
    """The text of a parsed node or literal."""
    if isinstance(value, Call):
        inner = [str_node(v) for v in value.positional] + [f"{k}={str_node(v)}" for k, v in value.keywords]
        return f"{value.name}({', '.join(inner)})" if inner else value.name
    if isinstance(value, Combine):
        if value.operator == "~":
            return f"~{_wrap(value.left)}"
        return f"{_wrap(value.left)} {value.operator} {_wrap(value.right)}"
    return repr(value)


def _wrap(value: Any) -> str:
    text = str_node(value)
    return f"({text})" if isinstance(value, Combine) and value.operator != "~" else text


def canonical(built: Any) -> str:
    """The short text of a built member, for labels: keyword arguments in declared order, defaults left out."""
    return _text(built, lambda value, field: value == field.default and type(value) is type(field.default))


def full(built: Any) -> str:
    """The whole text of a built member, for records: every argument written out, whatever its default becomes later."""
    return _text(built, lambda value, field: False)


def _text(built: Any, left_out: Callable[[Any, dataclasses.Field], bool]) -> str:
    if hasattr(built, "combined"):
        return str(built.combined(lambda part: _text(part, left_out)))
    inner = []
    for name, field in arguments(type(built)).items():
        value = getattr(built, name)
        if left_out(value, field):
            continue
        nested = hasattr(value, "spec_name") or hasattr(value, "combined")
        inner.append(f"{name}={_text(value, left_out) if nested else repr(value)}")
    return f"{built.spec_name}({', '.join(inner)})" if inner else built.spec_name
