"""Several processes that train one run: the first of them writes, and what it alone knows reaches the others.

All of them run the same program on the same values in the same order, or they wait for each other for ever: what may
differ, a file that one of them reads, a signal that one of them gets, is agreed on here before anything follows from
it. With one process nothing here costs anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from positionbias.arrays import Tree
from positionbias.errors import ConfigError, GoneError

# In what JAX says where another process does not answer: its parts for CPUs, for GPUs, and for keeping count of all.
_OF_OTHERS = ("Gloo", "NCCL", "oordination", "eartbeat", "UNAVAILABLE", "DEADLINE_EXCEEDED")


def several() -> bool:
    """Whether there is more than one process."""
    return jax.process_count() > 1


def first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def whose(layout: Any) -> str:
    """A line for this process's log: which devices of a mesh are its own, by their places on the axes."""
    mesh, own = layout.mesh(), []
    for place, device in np.ndenumerate(mesh.devices):
        if device.process_index == jax.process_index():
            own.append(", ".join(f"{axis} {at}" for axis, at in zip(mesh.axis_names, place, strict=True)))
    return f"process {jax.process_index()} of {jax.process_count()} has of the mesh: {'; '.join(own) or 'nothing'}"


def placed(tree: Tree, sharding: jax.sharding.Sharding) -> Tree:
    """Arrays of the same values in every process as arrays on the devices of all."""
    if not several():
        return jax.device_put(tree, sharding)

    def one(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf)))
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, tree)


def on_host(tree: Tree) -> Tree:
    """Numpy arrays of arrays on devices, other processes' too; every process gets all of them."""
    if not several():
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def told(value: Any) -> Any:
    """What the first process says, JSON; what others give is not looked at."""
    if not several():
        return value
    text = json.dumps(value).encode() if first() else b""
    size = int(_of_first(np.asarray(len(text), np.int32)))
    return json.loads(_of_first(np.frombuffer(text or bytes(size), np.uint8)).tobytes())


def by_first(do: Callable[[], Any]) -> Any:
    """What `do` returns, JSON, in the first process, which alone does it.

    An error is raised there, and in the others as a ConfigError with the same words.
    """
    if not several():
        return do()
    value: Any = None
    error: Exception | None = None
    if first():
        try:
            value = do()
        except Exception as raised:  # whatever it is, the others wait for an answer
            error = raised
    answer = told({"value": value, "error": None if error is None else str(error)})
    if error is not None:
        raise error
    if answer["error"] is not None:
        raise ConfigError(answer["error"])
    return answer["value"]


def told_arrays(tree: Tree | None, like: Tree) -> Tree:
    """The numpy arrays that the first process has, to the bit, of the shapes and types of `like`."""
    if not several():
        return tree
    leaves, shape = jax.tree.flatten(like)
    sizes = [int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in leaves]
    given = b"".join(np.ascontiguousarray(x).tobytes() for x in jax.tree.leaves(tree)) if first() else bytes(sum(sizes))
    # As bytes: a sum, which sending is, would take -0 for 0.
    parts = np.split(_of_first(np.frombuffer(given, np.uint8)), np.cumsum(sizes)[:-1])
    made = [p.view(x.dtype).reshape(x.shape) for p, x in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(shape, made)


def largest(number: int) -> int:
    """The largest number that a process gives."""
    if not several():
        return number
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.asarray(number, np.int32))))


def refuse_gone(text: str) -> None:
    """Raise GoneError if `text`, what JAX says of an error, is of a process that does not answer any more."""
    if several() and any(words in text for words in _OF_OTHERS):
        raise GoneError(
            f"another process of this run has ended ({text}); the same command, in all of them or in one, goes on from"
            " the last checkpoint."
        ) from None


def _of_first(array: np.ndarray) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))
