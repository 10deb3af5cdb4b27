"""How replicas share a program: one after another, or side by side, over one device or several."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from positionbias import hosts
from positionbias.arrays import Int, Key

AXES = ("replica", "data", "fsdp")
BATCH = ("data", "fsdp")  # the axes that share out the sequences of a batch
PER_REPLICA = P("replica")  # a leading R on every leaf
IN_PARTS = P("replica", "fsdp")  # and behind it the parts of a replica
BY_ITEM = P("replica", BATCH)  # and behind it what devices that share a batch have of it


@dataclasses.dataclass(frozen=True)
class Layout:
    """`loop` runs replicas one after another inside one program, `vmap` side by side, over a mesh of devices.

    With `at_once` a device has so many of its own side by side, one such group after another.

    `replica` devices have replicas of their own; of each replica `data` times `fsdp` share the sequences of a batch,
    and `fsdp` keep a part of its parameters each, which all of them gather where they are used (fully sharded data
    parallelism; Rajbhandari et al. 2020, arXiv 1910.02054, stage 3).
    """

    form: Literal["loop", "vmap"]
    replica: int = 1
    data: int = 1
    fsdp: int = 1
    at_once: int | None = None

    @property
    def devices(self) -> int:
        """Devices used."""
        return self.replica * self.shards

    @property
    def shards(self) -> int:
        """Devices that share a batch."""
        return self.data * self.fsdp

    def mesh(self) -> Mesh:
        """The devices used, as the axes `replica`, `data` and `fsdp`."""
        return Mesh(np.asarray(jax.devices()[: self.devices]).reshape(self.replica, self.data, self.fsdp), AXES)

    def place(self, tree: Any, spec: P = PER_REPLICA) -> Any:
        """Put arrays with a leading R on the devices of this layout."""
        return hosts.placed(tree, NamedSharding(self.mesh(), spec))

    def share(self, tree: Any) -> Any:
        """Put arrays that all replicas read on every device of this layout."""
        return self.place(tree, P())

    def over(
        self, function: Callable[..., Any], given: Any = PER_REPLICA, made: Any = PER_REPLICA
    ) -> Callable[..., Any]:
        """`function(replica_tree, *shared)` mapped over the leading R of its first argument's leaves.

        Where a batch is shared out, every one of its devices runs `function`, which must see to it: `each`, `summed`.
        `given` and `made` are the partitions of its first argument and of what it returns, as of `jax.shard_map`.
        """

        def local(tree: Any, *shared: Any) -> Any:
            def of_one(one: Any) -> Any:
                return function(one, *shared)

            if self.form == "loop":
                return jax.lax.map(of_one, tree)
            if self.at_once is None:
                return jax.vmap(of_one)(tree)
            size = self.at_once
            grouped = jax.tree.map(lambda x: x.reshape(len(x) // size, size, *x.shape[1:]), tree)
            found = jax.lax.map(jax.vmap(of_one), grouped)
            return jax.tree.map(lambda x: x.reshape(len(x) * size, *x.shape[2:]), found)

        if self.devices == 1:
            return local

        def spread(tree: Any, *shared: Any) -> Any:
            specs = (given, *(P() for _ in shared))
            mapped = jax.shard_map(local, mesh=self.mesh(), in_specs=specs, out_specs=made, check_vma=False)
            return mapped(tree, *shared)

        return spread

    # ---- inside `over`

    def each(self, function: Callable[[Int[jax.Array, ""]], Any], count: int) -> Any:
        """`function` of 0 to `count` - 1, stacked; devices that share a batch take some each, perhaps beyond the last.

        What is made of it is to be put together by `made=BY_ITEM`.
        """
        most = -(-count // self.shards)
        first = 0 if self.shards == 1 else jax.lax.axis_index(BATCH) * most
        return jax.lax.map(function, first + jnp.arange(most))

    def own(self, tree: Any) -> Any:
        """Of arrays with a leading B the part that this device has of the batch."""
        if self.shards == 1:
            return tree
        at = jax.lax.axis_index(BATCH)
        return jax.tree.map(lambda x: x.reshape(self.shards, -1, *x.shape[1:])[at], tree)

    def summed(self, tree: Any, over: tuple[str, ...] = BATCH) -> Any:
        """The sum of float32 arrays over the devices that share a batch; in one piece, which is sent once."""
        if self.shards == 1:
            return tree
        vector, apart = jax.flatten_util.ravel_pytree(tree)
        return apart(jax.lax.psum(vector, over))


def stream(key: Key[jax.Array, ""], name: str) -> Key[jax.Array, ""]:
    """A named stream of randomness: adding one never shifts another."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def replica_seeds(seed: int, replicas: int, seeds: list[int] | None = None) -> dict[str, Int[np.ndarray, "R"]]:
    """What makes each replica's key: {"seed", "fold"}, numpy.

    Replica r has `seed` and folds r into it. One with a seed of its own (`train.vary`) folds 0: it is replica 0 of a
    run with that seed.
    """
    own = seeds is not None
    return {
        "seed": np.asarray(seeds if own else [seed] * replicas, np.int32),
        "fold": np.zeros(replicas, np.int32) if own else np.arange(replicas, dtype=np.int32),
    }


def replica_keys(seed: int, replicas: int, seeds: list[int] | None = None) -> Key[jax.Array, "R"]:
    """The key of every replica."""
    return keys_of(replica_seeds(seed, replicas, seeds))


def keys_of(seeds: dict[str, Int[np.ndarray, "R"]]) -> Key[jax.Array, "R"]:
    """The key of every replica, from what `replica_seeds` tells."""
    return _keys()(seeds)


@functools.cache
def _keys() -> Any:
    """Compiled once in a process."""
    return jax.jit(jax.vmap(replica_key))


def replica_key(seeds: dict[str, jax.Array]) -> Key[jax.Array, ""]:
    """The key of one replica, from its entries of `replica_seeds`."""
    return jax.random.fold_in(jax.random.key(seeds["seed"]), seeds["fold"])
