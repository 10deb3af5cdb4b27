"""From the raw nested mapping a config file returns to the frozen `schema.Config`, strictly.

Everything that can be refused without building a task or a model is refused here, in one sentence: unknown fields,
wrong types, numbers out of range, specs that name no member, fields that contradict each other. What needs the task
and the model (mask x operator x position x task length) is checked by `config/build.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import operator
import re
import struct
import typing
from collections.abc import Callable, Mapping
from typing import Any

from positionbias import spec
from positionbias.config import schema
from positionbias.spec import ConfigError, require

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}")  # also a folder's name on every system
SAFE_NAME_TEXT = "1 to 100 letters, digits, '_', '-' and '.', a letter or digit first"
SIZES = (1.2e-38, 3.4e38)  # of numbers that are not 0, in 32 bits
# What `train.vary` may name, and where a run of its own has it: a field, or an argument of the spec that a field holds.
# These change no shape, and programs read them as arguments, so that one serves all replicas. Arguments of the task
# that it lets vary (`Task.traced`) come before the seed, which varies fastest.
VARIED = {
    "learning_rate": "optimizer.learning_rate",
    "weight_decay": "optimizer.name.weight_decay",
    "warmup_steps": "optimizer.warmup_steps",
    "init_scale": "model.init_scale",
    "seed": "seed",
}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A field that holds a value rather than a group of fields."""

    field: dataclasses.Field
    annotation: Any

    @property
    def axis(self) -> str | None:
        """The axis its spec comes from, None where it holds no spec."""
        return self.field.metadata.get("axis")

    @property
    def layered(self) -> bool:
        """Whether a layer pattern is allowed."""
        return "layers" in self.field.metadata

    @property
    def is_table(self) -> bool:
        """Whether it holds a table of values by name."""
        return typing.get_origin(self.annotation) is dict

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.field.default is dataclasses.MISSING and self.field.default_factory is dataclasses.MISSING


@functools.cache
def groups() -> dict[str, type]:
    """Every group of fields by its dotted path; the config itself is ""."""
    found: dict[str, type] = {}

    def visit(cls: type, path: str) -> None:
        found[path] = cls
        for name, hint in typing.get_type_hints(cls).items():
            if dataclasses.is_dataclass(hint):
                visit(typing.cast(type, hint), _join(path, name))

    visit(schema.Config, "")
    return found


@functools.cache
def leaves() -> dict[str, Leaf]:
    """Every field that holds a value by its dotted path, in declared order."""
    found = {}
    for path, cls in groups().items():
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if not dataclasses.is_dataclass(hints[field.name]):
                found[_join(path, field.name)] = Leaf(field, hints[field.name])
    return found


def resolve(raw: Mapping[str, Any], written: dict[tuple[str, int, str], str] | None = None) -> schema.Config:
    """Check `raw`, a nested mapping of the fields that differ from their defaults, and freeze it.

    Specs come out with every argument written out, so that a default that changes later does not change what a run
    folder says; layer patterns as `[a, b, a, b]`, or as the single spec where all layers are alike. Raises ConfigError
    naming the first offending field by its dotted path. `written` keeps specs as they came out, for one who resolves
    many configs at once, as the cells of a sweep, which have most specs in common.
    """
    config = _group(schema.Config, plain(raw), "")
    config = _with_specs(config, "", config.model.layers, {} if written is None else written)
    check_safe_name(config.name, "name")
    _check_model(config.model)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, vary=_vary(config)))
    _check_steps(config)
    _check_sharing(config.train)
    return config


def config_hash(config: schema.Config) -> str:
    """12 hex digits that are the same for the same config on every machine, however its specs were spelled."""
    return stored_hash(schema.to_dict(config))


def stored_hash(config: Mapping[str, Any]) -> str:
    """`config_hash` of a config as config.json holds it: of what was written then, whatever fields there are now."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:12]


def plain(value: Any) -> Any:
    """Nested dicts and lists of Python values, from ConfigDicts, mappings and numpy arrays or numbers."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.tolist() if hasattr(value, "tolist") else value


def unknown_field(group: str, name: Any) -> ConfigError:
    """The error for a name that `group` lacks; a field of that very name in another group is the nearest."""
    options = [f.name for f in dataclasses.fields(groups()[group])]
    elsewhere = [path for path in leaves() if path.rpartition(".")[2] == name]
    if elsewhere:
        return ConfigError(
            f"{_join(group, name)}: unknown field {name!r}, did you mean {elsewhere[0]!r}?"
            f" allowed: {', '.join(sorted(options))}."
        )
    return spec.unknown(_join(group, name), "field", name, options)


def not_a_group(path: str, value: Any) -> ConfigError:
    """The error for a value where a group of fields, or a table, belongs."""
    inside = [f.name for f in dataclasses.fields(groups()[path])] if path in groups() else list(VARIED)
    return ConfigError(
        f"{path or 'config'}: {spec.show(value)} is not allowed; allowed: a table of {', '.join(inside)}."
    )


def check_safe_name(value: str, field: str) -> None:
    """Refuse a name that cannot be a folder's everywhere."""
    if not SAFE_NAME.fullmatch(value):
        better = re.sub(r"[^A-Za-z0-9_.\-]+", "_", value).lstrip("_.-")[:100]
        hint = f", did you mean {better!r}?" if better else ";"
        raise ConfigError(f"{field}: {spec.show(value)} is not allowed{hint} allowed: {SAFE_NAME_TEXT}.")


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


def _group(cls: type, raw: Any, path: str) -> Any:
    if not isinstance(raw, Mapping):
        raise not_a_group(path, raw)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in raw:
        if name not in fields:
            raise unknown_field(path, name)
    values = {}
    for name in fields:
        where = _join(path, name)
        if where in groups():
            values[name] = _group(groups()[where], raw.get(name, {}), where)
        elif name in raw:
            values[name] = _value(raw[name], leaves()[where], where)
        elif leaves()[where].required:
            axis = leaves()[where].axis
            raise ConfigError(
                f"{where}: must be given; allowed: {', '.join(spec.names(axis)) if axis else SAFE_NAME_TEXT}."
            )
    return cls(**values)


def _value(value: Any, leaf: Leaf, where: str) -> Any:
    if leaf.is_table:
        if not isinstance(value, Mapping):
            raise not_a_group(where, value)
        return value
    if leaf.axis and not isinstance(value, str):
        raise ConfigError(f"{where}: {spec.show(value)} is not a spec; write name or name(argument=value, ...).")
    value = spec.check_type(value, leaf.annotation, where)
    _in_range(value, leaf.annotation, leaf.field.metadata, where)
    return value


def _in_range(value: Any, annotation: Any, bounds: Mapping[str, Any], where: str) -> None:
    """Refuse a number outside the `bounds` "above", "least" and "most", of which none need be there."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    above, least, most = (bounds.get(bound) for bound in ("above", "least", "most"))
    good = (above is None or value > above) and (least is None or value >= least) and (most is None or value <= most)
    told = {"above": above, "from": least, "to": most}
    shown = " ".join(f"{word} {bound}" for word, bound in told.items() if bound is not None)
    require(good, where, value, f"{spec.type_name(annotation)}, {shown}")
    _refuse_unread(value, where)


def _refuse_unread(value: int | float, where: str) -> None:
    """Refuse a number that programs, which read it in 32 bits, would take for zero or for infinite."""
    held = isinstance(value, int) or value == 0 or SIZES[0] <= abs(value) <= SIZES[1]
    # Whether 0 is allowed is the field's to say.
    require(held, where, value, f"a number of a size from {SIZES[0]} to {SIZES[1]}, as programs read it in 32 bits")


def _refuse_misread(member: Any, where: str) -> None:
    """Refuse a member with a number that programs would take for zero, for infinite, or for one it does not allow."""
    for name in spec.arguments(type(member)):
        value = getattr(member, name)
        _refuse_unread(value, f"{where}: {name}")
        if isinstance(value, float):
            (read,) = struct.unpack("f", struct.pack("f", value))
            try:
                dataclasses.replace(member, **{name: read})
            except ConfigError as error:
                raise ConfigError(f"{where}: {name} = {value} is read in 32 bits by programs, where {error}") from None


def _with_specs(group: Any, path: str, layers: int, written: dict[tuple[str, int, str], str]) -> Any:
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(group):
        value, where = getattr(group, field.name), _join(path, field.name)
        if where in groups():
            changed[field.name] = _with_specs(value, where, layers, written)
        elif leaves()[where].axis:
            if (value, layers, where) not in written:
                written[value, layers, where] = _full(value, layers, where)
            changed[field.name] = written[value, layers, where]
    return dataclasses.replace(group, **changed)


def _full(text: str, layers: int, where: str) -> str:
    axis = typing.cast(str, leaves()[where].axis)
    if not leaves()[where].layered:
        member = spec.build(axis, text, where)
        if where.startswith("optimizer."):
            _refuse_misread(member, where)
        return spec.full(member)
    texts = [spec.full(spec.build(axis, node, where)) for node in spec.parse_layers(text, layers, where)]
    return texts[0] if len(set(texts)) == 1 else f"[{', '.join(texts)}]"


def _check_model(model: schema.Model) -> None:
    if model.head_size is None and model.width % model.heads:
        raise ConfigError(
            f"model.heads = {model.heads} does not divide model.width = {model.width}; allowed: a divisor of the"
            " width, or any number of heads with model.head_size given."
        )
    kinds = [f.name for f in dataclasses.fields(schema.Init)]
    for kind in model.frozen:
        if kind not in kinds:
            raise spec.unknown("model.frozen", "kind of matrix", kind, kinds)
    require(len(set(model.frozen)) == len(model.frozen), "model.frozen", list(model.frozen), "each kind of matrix once")


def may_vary(config: schema.Config) -> dict[str, str]:
    """What `train.vary` may name under this config, and where a run of its own has it; see VARIED."""
    task = spec.build("tasks", config.task, "task")
    *fields, seed = VARIED.items()
    return dict([*fields, *((name, f"task.{name}") for name in task.traced), seed])


def _vary(config: schema.Config) -> dict[str, list[Any]]:
    checked: dict[str, list[Any]] = {}
    raw, replicas, known = config.train.vary, config.train.replicas, may_vary(config)
    for name in raw:
        if name not in known:
            raise spec.unknown(f"train.vary.{name}", "hyperparameter", name, known)
    for name in (n for n in known if n in raw):
        where = f"train.vary.{name}"
        annotation, check = _varied(config, known[name], where)
        values = list(spec.check_type(raw[name], tuple[annotation, ...], where))  # type: ignore[valid-type]
        require(len(values) == len(set(values)) > 0, where, values, "a list of different values")
        for value in values:
            check(value)
            _refuse_unread(value, where)
        read = {struct.pack("f", value) if isinstance(value, float) else value for value in values}
        require(len(values) == len(read), where, values, "values that differ in 32 bits, as programs read them")
        checked[name] = values
    count = math.prod(map(len, checked.values()))
    if checked and count != replicas:
        which = f"train.vary.{next(iter(checked))}" if len(checked) == 1 else "train.vary"
        told = " times ".join(f"{len(values)} of {name}" for name, values in checked.items())
        raise ConfigError(
            f"{which}: {told} make {count} combinations, but train.replicas = {replicas}; allowed: train.replicas ="
            f" {count}, one for each, or a sweep (zipped) for values that go together."
        )
    return checked


def _varied(config: schema.Config, path: str, where: str) -> tuple[Any, Callable[[Any], object]]:
    """The type of what stands at this path, and a function that refuses a value of it that is not allowed."""
    if path in leaves():
        leaf = leaves()[path]
        return leaf.annotation, lambda value: _in_range(value, leaf.annotation, leaf.field.metadata, where)
    field, _, argument = path.rpartition(".")
    member = spec.build(str(leaves()[field].axis), operator.attrgetter(field)(config), field)
    if argument not in spec.arguments(type(member)):
        raise ConfigError(
            f"{where}: {member.spec_name} has no {argument.replace('_', ' ')}; allowed: another {field}, that takes"
            f" {argument}."
        )

    def check(value: Any) -> None:
        try:
            dataclasses.replace(member, **{argument: value})
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    return typing.get_type_hints(type(member))[argument], check


def _check_steps(config: schema.Config) -> None:
    train, checkpoint = config.train, config.checkpoint
    cadences = {
        "train.log_every": train.log_every,
        "evaluation.every": config.evaluation.every,
        "checkpoint.every": checkpoint.every,
    }
    trained = train.steps > 0  # else no cadence and no warm-up has a step to fall on, whatever it is
    for field, every in cadences.items():
        if every is not None and every > train.steps and trained:
            raise ConfigError(f"{field} = {every} is more than train.steps = {train.steps}; allowed: at most that.")
    if checkpoint.keep_every is not None and (checkpoint.every is None or checkpoint.keep_every % checkpoint.every):
        raise ConfigError(
            f"checkpoint.keep_every = {checkpoint.keep_every} does not fit checkpoint.every = {checkpoint.every};"
            " allowed: a multiple of the steps between checkpoints."
        )
    warm = {"optimizer.warmup_steps": [config.optimizer.warmup_steps]}
    warm |= {"train.vary.warmup_steps": train.vary["warmup_steps"]} if "warmup_steps" in train.vary else {}
    for field, steps in warm.items():
        if max(steps) >= train.steps and trained:
            raise ConfigError(
                f"{field} = {max(steps)} leaves nothing of train.steps = {train.steps}; allowed: fewer than that."
            )
    if train.steps_per_dispatch != "auto":
        for field, every in {"train.steps": train.steps, **cadences}.items():
            if every is not None and every % train.steps_per_dispatch:
                raise ConfigError(
                    f"train.steps_per_dispatch = {train.steps_per_dispatch} does not divide {field} = {every};"
                    " allowed: 'auto', or a divisor of the steps and of every cadence."
                )


def _check_sharing(train: schema.Train) -> None:
    mesh, size = train.mesh, train.batch_size
    if mesh.replica != "auto" and train.replicas % mesh.replica:
        raise ConfigError(
            f"train.mesh.replica = {mesh.replica} does not divide train.replicas = {train.replicas};"
            " allowed: 'auto' or a divisor of it."
        )
    told, shards = "train.mesh.fsdp", mesh.fsdp
    if mesh.data != "auto":
        told, shards = "train.mesh.data times fsdp", mesh.data * mesh.fsdp
    if size % shards:
        raise ConfigError(f"{told} = {shards} does not divide train.batch_size = {size}; allowed: a divisor of it.")
    if train.microbatch != "auto" and size // shards % train.microbatch:
        raise ConfigError(
            f"train.microbatch = {train.microbatch} does not divide the {size // shards} sequences that a device has of"
            f" train.batch_size = {size}; allowed: 'auto' or a divisor of them."
            if shards > 1
            else f"train.microbatch = {train.microbatch} does not divide train.batch_size = {size};"
            " allowed: 'auto' or a divisor of it."
        )
