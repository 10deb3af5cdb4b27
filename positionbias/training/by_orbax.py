"""Trees of numpy arrays on disk, by Orbax, in this process alone: of several only the first keeps files."""

from __future__ import annotations

import pathlib
from typing import Any

import jax

from positionbias import hosts


def save(path: pathlib.Path, tree: dict[str, Any]) -> None:
    """Write a tree, nested dicts with names as keys."""
    if not hosts.several():
        import orbax.checkpoint.experimental.v1 as ocp

        ocp.save(path, tree)
        return
    # The newest interface has all processes compare their paths, whichever it is told are there.
    import orbax.checkpoint as before
    from etils import epath

    handler = before.StandardCheckpointHandler(multiprocessing_options=before.options.MultiprocessingOptions(**_only()))
    only = before.options.MultiprocessingOptions(**_only())
    with before.Checkpointer(handler, multiprocessing_options=only) as checkpointer:
        checkpointer.save(epath.Path(path), args=before.args.StandardSave(tree))


def load(path: pathlib.Path) -> dict[str, Any]:
    """The tree that either interface wrote there."""
    import orbax.checkpoint.experimental.v1 as ocp

    if not hosts.several():
        return ocp.load(path)
    with ocp.Context(multiprocessing_options=ocp.options.MultiprocessingOptions(**_only())):
        return ocp.load(path)


def _only() -> dict[str, Any]:
    return {"primary_host": jax.process_index(), "active_processes": {jax.process_index()}}
