"""Broken configs by the hundred: each is one mistake in a config that is otherwise whole.

`cases()` yields them; `write(case, folder)` makes the command-line arguments `--config ...` of an entry.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import pathlib
import typing
from collections.abc import Iterator
from typing import Any

from positionbias import spec
from positionbias.config.resolve import Leaf, groups, leaves

BASE: dict[str, Any] = {
    "name": "t",
    "task": "inverse_permutation(n=4)",
    "train": {"replicas": 2, "steps": 40, "batch_size": 8},
    "evaluation": {"items": 8, "batch_size": 8},
}
Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Broken:
    """The config a file returns, the overrides given with it, and a text the error must hold: what is to blame."""

    config: Any
    overrides: tuple[tuple[str, str], ...]
    blamed: str

    @property
    def label(self) -> str:
        changed = "" if self.config == BASE else f" file {spec.show(self.config)[-40:]}"
        return f"{self.blamed}{changed} {spec.show(self.overrides) if self.overrides else ''}"


def cases() -> list[Broken]:
    """Every broken config; no two are alike."""
    found = [*_names(), *_types(), *_ranges(), *_specs(), *_combinations(), *_shapes(), *_overrides()]
    seen: dict[str, Broken] = {}
    for case in found:
        seen.setdefault(repr((case.config, case.overrides)), case)
    return list(seen.values())


def write(case: Broken, folder: pathlib.Path) -> list[str]:
    """A config file for `case` in `folder`, and the arguments that give it and the overrides to an entry."""
    file = folder / "broken_config.py"
    file.write_text(f"from math import inf, nan\n\n\ndef get_config():\n    return {case.config!r}\n")
    return ["--config", str(file), *(f"--config.{path}={value}" for path, value in case.overrides)]


def put(fields: Fields) -> dict[str, Any]:
    """The base config with dotted fields set."""
    return nested(fields, copy.deepcopy(BASE))


def nested(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    """A config, with dotted fields set in it."""
    for path, value in fields.items():
        *above, name = path.split(".")
        group = config
        for part in above:
            group = group.setdefault(part, {})
        group[name] = value
    return config


def _in_file(fields: Fields, blamed: str) -> Broken:
    return Broken(put(fields), (), blamed)


def _given(fields: dict[str, str], blamed: str) -> Broken:
    return Broken(BASE, tuple(fields.items()), blamed)


def _names() -> Iterator[Broken]:
    """Every field misspelled, in the file and on the command line."""
    for path in leaves():
        wrong = path + path[-1]
        yield _in_file({wrong: 1}, wrong)
        yield _given({wrong: "1"}, wrong)
    for path in filter(None, groups()):
        yield _in_file({f"{path}s": {}}, f"{path}s")
        yield _given({f"{path}s.layers": "1"}, f"{path}s")
    for name in ("learning_rates", "wd", "batch_size"):
        yield _in_file({"train.vary": {name: [1, 2]}}, f"train.vary.{name}")
        yield _given({f"train.vary.{name}": "[1, 2]"}, f"train.vary.{name}")


def _types() -> Iterator[Broken]:
    """Every field with values of types it does not take."""
    for path, leaf in leaves().items():
        for value in _wrong_types(leaf):
            yield _in_file({path: value}, path)
        for text in _wrong_texts(leaf):
            yield _given({path: text}, path)


def _wrong_types(leaf: Leaf) -> list[Any]:
    allowed = spec.type_name(leaf.annotation)
    if leaf.axis:
        return [3, None, ["causal"]]
    if leaf.is_table:
        return [3, None, [1, 2]]
    values: list[Any] = [{"a": 1}, b"x"]
    values += [] if "None" in allowed else [None]
    values += [] if "True" in allowed else [True]
    values += [] if allowed == "text" else ["three"]
    values += [] if "number" in allowed else [3]
    values += [] if allowed.startswith("a number") else [1.5]
    return values + ([math.inf, math.nan] if allowed.startswith("a number") else [])


def _wrong_texts(leaf: Leaf) -> list[str]:
    allowed = spec.type_name(leaf.annotation)
    if leaf.axis:
        return ["", "no_such_member", "1", "f(", "a.b", "lambda: 0"]
    if allowed == "text":
        return ["", "a/b"]
    return ["", "three", "{1}", "__import__('os')", *([] if "list" in allowed else ["[1]"])]


def _ranges() -> Iterator[Broken]:
    """Every bounded field just out of range."""
    for path, leaf in leaves().items():
        for bound, step in (("above", 0), ("least", -1), ("most", 1)):
            if bound in leaf.field.metadata:
                for value in (leaf.field.metadata[bound] + step, -7):
                    yield _in_file({path: value}, path)
                    yield _given({path: str(value)}, path)
        if int in (leaf.annotation, *typing.get_args(leaf.annotation)):
            yield _in_file({path: 2**31}, path)
            yield _given({path: "9" * 5000}, path)


def _specs() -> Iterator[Broken]:
    """Specs with wrong names, arguments and values."""
    for path, text in (
        ("task", "inverse_permutatoin(n=4)"),
        ("task", "inverse_permutation(m=4)"),
        ("task", "inverse_permutation(n='four')"),
        ("task", "inverse_permutation(n=4.0)"),
        ("task", "inverse_permutation(n=-1)"),
        ("task", "inverse_permutation(n=4, n=5)"),
        ("task", "inverse_permutation(4, n=5)"),
        ("task", "inverse_permutation(4, 16, False, 1)"),
        ("task", "inverse_permutation(**x)"),
        ("task", "inverse_permutation(n=99999999999)"),
        ("task", "inverse_permutation(n=1025)"),
        ("task", "inverse_permutation(alphabet=65537)"),
        ("task", "associative_recall(pairs=300000000, keys=300000000)"),
        ("task", "associative_recall(delays=8169)"),
        ("task", "associative_recall(keys=65537)"),
        ("task", "associative_recall(values=65537)"),
        ("task", "[inverse_permutation]"),
        ("task", "inverse_permutation & inverse_permutation"),
        ("task", "causal"),
        ("objective", "nxt_token"),
        ("objective", "next_token(weight=1)"),
        ("model.architecture", "decoder"),
        ("model.architecture", "encoder_decoder(mask=causal)"),
        ("model.architecture", "encoder_decoder(cross_mask=casual)"),
        ("model.mask", "casual"),
        ("model.mask", "sliding_window"),
        ("model.mask", "sliding_window(0)"),
        ("model.mask", "sliding_window(width=True)"),
        ("model.mask", "causal & sliding_windw(4)"),
        ("model.mask", "causal + prefix(2)"),
        ("model.mask", "causal ^ prefix(2)"),
        ("model.mask", "-causal"),
        ("model.mask", "[causal]"),
        ("model.mask", "[causal, bidirectional, causal]"),
        ("model.mask", "[causal] * 0"),
        ("model.mask", "[causal] * 1.5"),
        ("model.mask", "[causal, casual]"),
        ("model.mask", "causal * 2"),
        ("model.mask", "[causal] + bidirectional"),
        ("model.position", "rope(base=1)"),
        ("model.position", "learned(length=2000000000)"),
        ("model.position", "rope(base=1e999)"),
        ("model.position", "rope(bsae=2)"),
        ("model.position", "none & learned"),
        ("model.position", "[rope(500), nope]"),
        ("model.position", "decay(gamma=2)"),
        ("model.operator", "sotfmax"),
        ("model.operator", "softmax(scaled=1)"),
        ("model.operator", "softmax(scaled=yes)"),
        ("model.init.query", "normal"),
        ("model.init.query", "normal(std='big')"),
        ("model.init.embedding", "gaussian(std=1)"),
        ("optimizer.name", "adam"),
        ("optimizer.name", "adamw(beta1=0.9)"),
        ("optimizer.schedule", "cosin"),
        ("optimizer.schedule", "cosine(0.1, 2)"),
    ):
        yield _in_file({path: text}, path)
        yield _given({path: text}, path)


def _combinations() -> Iterator[Broken]:
    """Fields that are each right and contradict each other."""
    both: list[tuple[Fields, str]] = [
        ({"model.width": 64, "model.heads": 5}, "model.heads"),
        ({"model.width": 7}, "model.heads"),
        ({"train.steps": 10}, "train.log_every"),
        ({"train.steps": -1}, "train.steps"),
        ({"train.log_every": 41}, "train.log_every"),
        ({"evaluation.every": 41}, "evaluation.every"),
        ({"checkpoint.every": 50}, "checkpoint.every"),
        ({"checkpoint.keep_every": 20}, "checkpoint.keep_every"),
        ({"checkpoint.every": 10, "checkpoint.keep_every": 25}, "checkpoint.keep_every"),
        ({"optimizer.warmup_steps": 40}, "optimizer.warmup_steps"),
        ({"train.steps_per_dispatch": 3}, "train.steps_per_dispatch"),
        ({"train.steps_per_dispatch": 20, "evaluation.every": 10}, "train.steps_per_dispatch"),
        ({"train.steps_per_dispatch": 20, "checkpoint.every": 30}, "train.steps_per_dispatch"),
        ({"train.steps_per_dispatch": 80}, "train.steps_per_dispatch"),
        ({"train.microbatch": 3}, "train.microbatch"),
        ({"train.microbatch": 16}, "train.microbatch"),
        ({"train.mesh.replica": 4}, "train.mesh.replica"),
        ({"train.replicas": 3, "train.mesh.replica": 2}, "train.mesh.replica"),
        ({"train.mesh.fsdp": 3}, "train.mesh.fsdp"),
        ({"train.mesh.data": 3}, "train.mesh.data"),
        ({"train.mesh.data": 2, "train.microbatch": 8}, "train.microbatch"),
        ({"model.frozen": ["embeddings"]}, "model.frozen"),
        ({"model.frozen": ["query", "query"]}, "model.frozen"),
        ({"model.frozen": [1]}, "model.frozen"),
        ({"train.vary.learning_rate": [1e-3]}, "train.vary.learning_rate"),
        ({"train.vary.learning_rate": [1e-3] * 3}, "train.vary.learning_rate"),
        ({"train.vary.learning_rate": [1e-3, 0]}, "train.vary.learning_rate"),
        ({"train.vary.learning_rate": [1e-3, None]}, "train.vary.learning_rate"),
        ({"train.vary.learning_rate": 1e-3}, "train.vary.learning_rate"),
        ({"train.vary.weight_decay": [0.1, -0.1]}, "train.vary.weight_decay"),
        ({"train.vary.weight_decay": ["a", "b"]}, "train.vary.weight_decay"),
        ({"train.vary.seed": [1, 1]}, "train.vary.seed"),
        ({"train.vary.seed": [1, -1]}, "train.vary.seed"),
        ({"train.vary.seed": [1, 2.0]}, "train.vary.seed"),
        ({"train.vary.seed": [1, 2], "train.replicas": 3}, "train.vary.seed"),
        ({"train.vary.warmup_steps": [1, 40]}, "train.vary.warmup_steps"),
        ({"train.vary.warmup_steps": [1, 2.5]}, "train.vary.warmup_steps"),
        ({"train.vary.init_scale": [1, 0]}, "train.vary.init_scale"),
        ({"train.vary.init_scale": []}, "train.vary.init_scale"),
        ({"train.vary.alphabet": [4, 5]}, "train.vary.alphabet"),
        ({"train.vary": {"seed": [1, 2], "learning_rate": [1, 2]}}, "train.vary"),
        ({"model.mask": "[causal] * 3", "model.layers": 2}, "model.mask"),
        ({"model.mask": "[causal, bidirectional] * 2", "model.layers": 3}, "model.mask"),
    ]
    for fields, blamed in both:
        yield _in_file(fields, blamed)
        yield _given({path: str(value) for path, value in fields.items()}, blamed)


def _shapes() -> Iterator[Broken]:
    """Configs of the wrong shape altogether, and names that are no names."""
    for path, value in itertools.product(filter(None, groups()), (3, None, "decoder_only", [1])):
        yield _in_file({path: value}, path)
    for path in filter(None, groups()):
        yield _given({path: "{}"}, path)
    for path in ("name", "task"):
        yield Broken({key: value for key, value in BASE.items() if key != path}, (), path)
    for name in ("", "a b", "../up", ".hidden", "a/b", "-x", "n" * 101, "é", "a\nb", "con:"):
        yield _in_file({"name": name}, "name")
        yield _given({"name": name}, "name")
    for config in (None, 3, "inverse_permutation", [BASE], []):
        yield Broken(config, (), "config")
    yield Broken({**BASE, 3: 4}, (), "3")
    yield Broken({**BASE, "model.layers": 4}, (), "model.layers")
    yield Broken({**BASE, None: 4}, (), "None")


def _overrides() -> Iterator[Broken]:
    """Mistakes that only the command line can make."""
    for path, text in (
        ("", "1"),
        (".", "1"),
        ("model.", "1"),
        (".model.layers", "1"),
        ("model..layers", "1"),
        ("layers", "4"),
        ("learning_rate", "1e-3"),
        ("model.layers.n", "4"),
        ("task.m", "4"),
        ("task.n", "four"),
        ("task.n.m", "4"),
        ("model.mask.width", "4"),
        ("model.position.base", "4"),
        ("optimizer.name.weight_dcay", "0.1"),
        ("optimizer.name.weight_decay", "much"),
        ("optimizer.schedule.final", "None"),
        ("model.init.query.std", "1"),
        ("train.vary.seed", "1, 2, 3"),
        ("train.vary.seed.first", "1"),
    ):
        yield _given({path: text}, path)
    yield Broken(BASE, (("model.layers", "1"), ("model.layers", "2")), "model.layers")
    yield Broken(BASE, (("task.n", "0"),), "task: n = 0")
    yield Broken(BASE, (("task.n", "5"), ("task.n", "6")), "task.n")
    for text in ("causal & prefix(2)", "~causal", "[causal, sliding_window(2)]"):
        yield Broken(BASE, (("model.mask", text), ("model.mask.width", "3")), "model.mask.width")
    yield Broken({"name": "t"}, (("task.n", "4"),), "task.n")
    yield Broken({**BASE, "model": 3}, (("model.layers", "4"),), "model")
    yield Broken(put({"train.vary": 3}), (("train.vary.seed", "[1, 2]"),), "train.vary")
    yield Broken(put({"task": "inverse_permutation(4, n=5)"}), (("task.alphabet", "4"),), "task")
    yield Broken(put({"task": "inverse_permutation(4, 2, True, 3)"}), (("task.alphabet", "4"),), "at most 3 arguments")
