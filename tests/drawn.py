"""Configs drawn over the whole registry, for hypothesis: most fields as they are by default, the others anything small.

Specs are made from the types of their members' arguments, so that a new member, argument or field is drawn too.
"""

from __future__ import annotations

import types
import typing
from typing import Any, Literal, Union

from broken import nested
from hypothesis import strategies as st

from positionbias import spec
from positionbias.compatibility import ARGUMENTS
from positionbias.config.resolve import Leaf, leaves

NUMBERS = st.sampled_from([1, 2, 3, 4, 4, 6, 8, 8, 12, 16, 0, -1, 5, 7, 24])
ORDINARY = st.sampled_from([0.5, 1.0, 0.1, 2.0, 0.0, 0.9, -1.0, 1e-6])
REALS = st.one_of(ORDINARY, ORDINARY, ORDINARY, st.sampled_from([100.0, 10000.0, 1e30]))
TEXTS = st.sampled_from(["xla_dense", "xla_chunked", "cudnn", "position", "index", "segment", "nothing"])
# Programs that take minutes, arrays that fill memory, or what is no part of the model; the rest is drawn.
FIXED: dict[str, Any] = {
    "name": "drawn",
    "train.steps": 2,
    "train.log_every": 2,
    "train.replicas": 1,
    "train.vary": {},
    "train.mesh.replica": 1,
    "train.mesh.data": 1,
    "train.mesh.fsdp": 1,
    "train.steps_per_dispatch": "auto",
    "evaluation.every": None,
    "evaluation.items": 4,
    "evaluation.influence_items": 2,
    "checkpoint.every": None,
    "checkpoint.keep_last": 2,
    "checkpoint.keep_every": None,
    "model.layers": 2,
}
OF_FIELDS: dict[str, Any] = {
    "model.width": st.sampled_from([16, 32, 12, 8, 7]),
    "model.heads": st.sampled_from([2, 1, 4, 3]),
    "train.batch_size": st.sampled_from([4, 2, 3]),
    "train.microbatch": st.sampled_from(["auto", 1, 2, 4]),
    "model.frozen": st.lists(
        st.sampled_from(["embedding", "position", "query", "output", "mlp_in", "lyer"]), max_size=2
    ),
}
# Tasks of few tokens, of which a model of any operator is compiled in a second or two.
SMALL = {
    "associative_recall": "pairs=3, keys=4, values=4, delays=2, shift=2",
    "common_words": "common=2, often=2, others=4, vocabulary=16",
    "context_or_prior": "subjects=8, relations=2, objects=8, folds=2, documents=2",
    "entity_binding": "groups=3, members=2, names=8",
    "factual_recall": "groups=4, held_out=1, noise=3, noise_kinds=2",
    "grid_recall": "side=2, objects=8, colours=4",
    "in_context_classification": "items=4, dimension=4, classes=16, labels=4, burstiness=2",
    "in_context_regression": "dimension=2, examples=4",
    "inverse_permutation": "n=3, alphabet=4",
    "inverse_permutation_matrix": "d=3",
    "modular_addition": "modulus=7",
    "multi_hop": "documents=4, entities=12, relations=2",
    "needle": "keys=2, depths=2, cell=3, key_tokens=8, value_tokens=8",
    "rebinding": "lists=2, size=2, vocabulary=8",
    "reversal": "pairs=4, both=2, begin=True",
    "reversal_in_context": "pairs=3, names=8",
    "set_disjointness": "train=[[2, 4]], test=[[3, 4]], vocabulary=16",
    "text": "window=16",
    "tree_paths": "nodes=4, longest=3, labels=4",
    "variable_tracking": "hops=2, chains=2, names=8, values=8",
}


def specs(axis: str, reals: st.SearchStrategy[float], depth: int = 2) -> st.SearchStrategy[str]:
    """Specs of an axis: any member with any arguments, masks combined too."""
    single = st.sampled_from(spec.names(axis)).flatmap(lambda name: _member(axis, name, reals, depth))
    if axis != "masks" or not depth:
        return single
    inner = specs(axis, reals, depth - 1)
    pairs = st.tuples(inner, st.sampled_from("&|"), inner).map(lambda parts: "({}) {} ({})".format(*parts))
    return st.one_of(single, single, single, inner.map(lambda text: f"~({text})"), pairs)


def _member(axis: str, name: str, reals: st.SearchStrategy[float], depth: int) -> st.SearchStrategy[str]:
    """A member as it is told in an example, or with any of its arguments set."""
    told = SMALL.get(name) if axis == "tasks" else ARGUMENTS.get(name)
    plain = st.just(f"{name}({told})" if told else name)
    cls = spec.load_member(axis, name, axis)
    fields, hints = spec.arguments(cls), typing.get_type_hints(cls)
    if not fields:
        return plain
    changed = st.sampled_from(sorted(fields)).flatmap(
        lambda argument: _value(hints[argument], reals, depth).map(lambda value: (argument, value))
    )
    return st.one_of(plain, plain, changed.map(lambda pair: _set(name, told or "", *pair)))


def _set(name: str, told: str, argument: str, value: str) -> str:
    """A spec with one argument more, or another value of it."""
    node = spec.parse(f"{name}({told})", "drawn")
    assert isinstance(node, spec.Call)
    kept = [f"{key}={spec.str_node(given)}" for key, given in node.keywords if key != argument]
    return f"{name}({', '.join([*kept, f'{argument}={value}'])})"


def _value(annotation: Any, reals: st.SearchStrategy[float], depth: int) -> st.SearchStrategy[str]:
    """Text of a value of that type, most often one that is allowed."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return st.one_of([_value(one, reals, depth) for one in inner])
    if origin is Literal:
        return st.sampled_from([repr(one) for one in inner])
    if origin is tuple:
        return st.lists(_value(inner[0], reals, depth), max_size=3).map(lambda parts: f"[{', '.join(parts)}]")
    if hasattr(annotation, "axis"):
        return specs(annotation.axis, reals, max(depth - 1, 0))
    plain = {int: NUMBERS.map(str), float: reals.map(str), bool: st.booleans().map(str), str: TEXTS.map(repr)}
    return plain.get(annotation, st.just("None"))


def _field(path: str, leaf: Leaf, reals: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    """Values of a field of the config."""
    if path in OF_FIELDS:
        return OF_FIELDS[path]
    if leaf.axis:
        single = specs(leaf.axis, reals)
        if not leaf.layered:
            return single
        return st.one_of(single, st.tuples(single, single).map(lambda both: f"[{both[0]}, {both[1]}]"))
    origin, inner = typing.get_origin(leaf.annotation), typing.get_args(leaf.annotation)
    if origin is Literal:
        return st.sampled_from(inner)
    kinds = inner if origin in (Union, types.UnionType) else (leaf.annotation,)
    plain = {int: NUMBERS, float: reals, bool: st.booleans(), type(None): st.none()}
    return st.one_of(
        [st.sampled_from(typing.get_args(k)) if typing.get_origin(k) is Literal else plain[k] for k in kinds]
    )


@st.composite
def configs(draw: st.DrawFn, ordinary: bool = False) -> dict[str, Any]:
    """A config, nested as a file returns it: a task, and up to six other fields that are not as by default.

    Of `ordinary` ones no learning rate and no argument is of a size that numbers overflow by.
    """
    reals = ORDINARY if ordinary else REALS
    rates = [1e-3, 1e-2] if ordinary else [1e-3, 1e-2, 1.0, 1e30]
    rate = "optimizer.learning_rate"
    free = {path: leaf for path, leaf in leaves().items() if path not in {*FIXED, "task", rate}}
    model = [path for path in free if free[path].axis and path.count(".") == 1 and path.startswith("model")]
    chosen = [
        *draw(st.lists(st.sampled_from(model), max_size=3)),
        *draw(st.lists(st.sampled_from(sorted(free)), max_size=3)),
    ]
    made: dict[str, Any] = {"model.width": 16, "model.heads": 2, "train.batch_size": 4, "evaluation.batch_size": 4}
    made |= FIXED | {"task": draw(specs("tasks", reals)), rate: draw(st.sampled_from(rates))}
    made |= {path: draw(_field(path, free[path], reals)) for path in dict.fromkeys(chosen)}
    return nested(made, {})
