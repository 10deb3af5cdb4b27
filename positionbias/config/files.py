"""Reading a config file: a Python file that defines `get_config(...)`, given as `FILE` or `FILE:arg=value,arg2=value`.

`get_config` returns a ConfigDict or a dict of the fields that differ from their defaults. Its parameters are the
file's arguments; their annotations, or else their defaults, say what a value may be. The file may also define sweeps
(see `config/sweeps.py`). A file that raises is told in one sentence with its line.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import pathlib
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Union

from positionbias import spec
from positionbias.config.resolve import plain
from positionbias.spec import ConfigError

A_CONFIG = "a Python file that defines get_config"
DEFINES = re.compile(r"^(def |from .*import .*)?get_config\b", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """A config file that has been read once, and the arguments it was given."""

    path: str
    arguments: dict[str, Any]
    module: types.ModuleType

    def raw(self) -> dict[str, Any]:
        """What `get_config` returns, as nested plain dicts that belong to the caller."""
        with _told_in_one_sentence(self.path):
            returned = plain(self.module.get_config(**self.arguments))
        if not isinstance(returned, dict):
            raise ConfigError(
                f"--config: get_config of {self.path} returned {spec.show(returned)}; allowed: a ConfigDict or a dict."
            )
        return returned

    def functions(self, prefix: str) -> dict[str, Callable[..., Any]]:
        """The file's functions called `prefix` or `prefix_...`, by their whole name, in the order written."""
        return {
            name: value
            for name, value in vars(self.module).items()
            if isinstance(value, types.FunctionType) and (name == prefix or name.startswith(f"{prefix}_"))
        }

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call one of the file's functions; ConfigError with the file's line if it raises."""
        _not_async(function, self.path)
        with _told_in_one_sentence(self.path):
            function(*arguments)


def read(path_with_arguments: str) -> ConfigFile:
    """Run the file of `FILE` or `FILE:arg=value,...` and check the arguments against its `get_config`."""
    head, separator, given = path_with_arguments.partition(".py:")
    path = f"{head}.py" if separator else path_with_arguments
    module = _run(path)
    get_config = vars(module).get("get_config")
    if not callable(get_config):
        near = spec.nearest("get_config", [n for n, v in vars(module).items() if isinstance(v, types.FunctionType)])
        found = f" ({near.removeprefix(', ')})" if near else ""
        raise ConfigError(
            f"--config: {path} defines no function get_config{found}; allowed: get_config(...) -> config."
        )
    _not_async(get_config, path)
    return ConfigFile(path, _arguments(get_config, given if separator else None, path), module)


def parse_value(text: str, annotation: Any, field: str) -> Any:
    """The value that `text` means where `annotation` is asked: text as it is, all else as a Python literal.

    Where a member of an axis is asked, the text is a spec and comes back parsed. The type itself is checked later,
    by whoever takes the value; text that can be no allowed value is refused here.
    """
    options = list(_options(annotation))
    if all(isinstance(o, str) for o in options):
        return text
    try:
        value, literal = ast.literal_eval(text.strip()), True
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        value, literal = text, False
    if str in options:
        return value if value is None and type(None) in options else text
    if literal or Any in options:
        return value
    if any(hasattr(option, "axis") for option in options):
        return spec.parse(text, field)
    return spec.check_type(text, annotation, field)


def _options(annotation: Any) -> Iterator[Any]:
    """The alternatives of an annotation: types, and the values of Literals."""
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType):
        for option in typing.get_args(annotation):
            yield from _options(option)
    elif origin is typing.Literal:
        yield from typing.get_args(annotation)
    else:
        yield annotation


def _run(path: str) -> types.ModuleType:
    file = pathlib.Path(path)
    if file.is_dir():
        inside = ", ".join(_neighbours(file / "config.py")) or A_CONFIG
        raise ConfigError(f"--config: {path!r} is a folder; allowed: {inside}.")
    if not file.is_file():
        raise spec.unknown("--config", "file", path, _neighbours(file) or [A_CONFIG])
    module = types.ModuleType(f"config_file_{file.stem}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # dataclasses defined in the file look their module up
    with _told_in_one_sentence(path):
        # Compiled here rather than imported, so that the file as it is now is what runs and no cache is left beside it.
        exec(compile(file.read_bytes(), path, "exec", dont_inherit=True), vars(module))
    return module


def _not_async(function: Callable[..., Any], path: str) -> None:
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"--config: {function.__name__} of {path} is async; allowed: a plain function.")


def _neighbours(file: pathlib.Path) -> list[str]:
    """Config files the user may have meant: those of the folder, or if there is none, of the folders beside it; and
    where the path is relative, those under configs/."""
    folder, pattern = file.parent, "*.py"
    while not folder.is_dir():
        folder, pattern = folder.parent, f"*/{pattern}"
    found = {*folder.glob(pattern), *(() if file.is_absolute() else pathlib.Path("configs").rglob("*.py"))}
    return [str(path) for path in sorted(found) if _defines_a_config(path)][:50]


def _defines_a_config(path: pathlib.Path) -> bool:
    with contextlib.suppress(OSError):
        return bool(DEFINES.search(path.read_text(encoding="utf-8", errors="replace")))
    return False


def _arguments(get_config: Callable[..., Any], given: str | None, path: str) -> dict[str, Any]:
    parameters = inspect.signature(get_config).parameters
    for parameter in parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(
                f"--config: get_config of {path} takes '{parameter}'; allowed: arguments with a name of their own."
            )
    try:
        hints = typing.get_type_hints(get_config)
    except (NameError, TypeError):
        hints = {}
    values: dict[str, Any] = {}
    for part in [] if given is None else _split(given):
        name, separator, text = (piece.strip() for piece in part.partition("="))
        if not separator or not name:
            raise ConfigError(
                f"--config: cannot read the file argument {part!r}; allowed: name=value with the names"
                f" {', '.join(parameters) or '(none)'}."
            )
        if name not in parameters:
            raise spec.unknown("--config", f"argument of {path}:", name, parameters)
        if name in values:
            raise ConfigError(f"--config: the file argument {name!r} is given twice.")
        annotation = _annotation(parameters[name], hints)
        value = parse_value(text, annotation, f"--config {path}:{name}")
        values[name] = spec.check_type(value, annotation, f"--config {path}:{name}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in values:
            raise ConfigError(f"--config: {path} needs its argument {name!r}; write {path}:{name}=VALUE.")
    return values


def _annotation(parameter: inspect.Parameter, hints: dict[str, Any]) -> Any:
    if parameter.name in hints:
        hint = hints[parameter.name]
        return typing.get_origin(hint) if typing.get_origin(hint) in (list, dict) else hint
    return Any if parameter.default in (None, parameter.empty) else type(parameter.default)


def _split(text: str) -> list[str]:
    """Cut at the commas that stand outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


@contextlib.contextmanager
def _told_in_one_sentence(path: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a file may raise or exit as it likes, and its errors may not even have a text
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        if isinstance(error, SyntaxError) and error.filename == path:
            lines.append(error.lineno)
        where = f"{path}, line {lines[-1]}" if lines and lines[-1] else path
        text = "raised"
        with contextlib.suppress(Exception):
            text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split()) or text
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        raise ConfigError(f"--config: {where}: {kind}{text}{'' if text[-1] in '.?' else '.'}") from None
