"""How replicas share a program: one after another, or side by side, over one device or several."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from positionbias.arrays import Int, Key


@dataclasses.dataclass(frozen=True)
class Layout:
    """`loop` runs replicas one after another inside one program, `vmap` side by side; `devices` share them out."""

    form: Literal["loop", "vmap"]
    devices: int = 1

    def mesh(self) -> Mesh:
        """The devices used, as one axis named `replica`."""
        return Mesh(np.asarray(jax.devices()[: self.devices]), ("replica",))

    def place(self, tree: Any) -> Any:
        """Put arrays with a leading R on the devices of this layout."""
        return jax.device_put(tree, NamedSharding(self.mesh(), P("replica")))

    def share(self, tree: Any) -> Any:
        """Put arrays that all replicas read on every device of this layout."""
        return jax.device_put(tree, NamedSharding(self.mesh(), P()))

    def over(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(replica_tree, *shared)` mapped over the leading R of its first argument's leaves."""

        def local(tree: Any, *shared: Any) -> Any:
            if self.form == "vmap":
                return jax.vmap(lambda one: function(one, *shared))(tree)
            return jax.lax.map(lambda one: function(one, *shared), tree)

        if self.devices == 1:
            return local

        def spread(tree: Any, *shared: Any) -> Any:
            specs = (P("replica"), *(P() for _ in shared))
            mapped = jax.shard_map(local, mesh=self.mesh(), in_specs=specs, out_specs=P("replica"), check_vma=False)
            return mapped(tree, *shared)

        return spread


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
    return jax.jit(jax.vmap(replica_key))(replica_seeds(seed, replicas, seeds))


def replica_key(seeds: dict[str, jax.Array]) -> Key[jax.Array, ""]:
    """The key of one replica, from its entries of `replica_seeds`."""
    return jax.random.fold_in(jax.random.key(seeds["seed"]), seeds["fold"])
