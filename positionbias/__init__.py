"""Train small transformers from scratch to find where position bias and recall come from.

`positionbias.load(workdir)` reloads any finished or stopped run for analysis. Importing this package imports
nothing heavy: JAX is first touched by the entry modules and by `load`. It is to be imported before JAX computes
anything, for one setting (`runtime.sound_products`) without which some numbers on a CPU would be wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from positionbias.runtime import sound_products

if TYPE_CHECKING:
    from positionbias.evaluation.loading import LoadedRun

__version__ = "0.1.0"

sound_products()


def load(workdir: str, step: int | None = None, replica: int | str = 0) -> LoadedRun:
    """Reload a run from its folder alone; see `positionbias.evaluation.loading.load`."""
    from positionbias.evaluation.loading import load as load_run

    return load_run(workdir, step=step, replica=replica)
