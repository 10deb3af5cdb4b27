"""The metrics of one logging interval: gathered a dispatch at a time, judged, averaged."""

from __future__ import annotations

from typing import Any

import numpy as np

from positionbias.arrays import Tree


class NonFinite(Exception):
    """A loss or gradient stopped being a number; entries exit with code 3."""


class Interval:
    """Steps since the last line of metrics. Its contents travel in checkpoints, so that a resumed line is whole."""

    def __init__(self, saved: dict[str, list[list[float]]] | None = None) -> None:
        self._parts = {name: [np.asarray(value, np.float32)] for name, value in (saved or {}).items()}

    def add(self, metrics: Tree, stop: int) -> None:
        """Take the metrics {name: [R, K]} of the K steps up to `stop`; NonFinite names the interval and replica."""
        found = {name: np.asarray(value) for name, value in metrics.items()}
        size = found["loss"].shape[1]
        for name in ("loss", "gradient_norm"):
            finite = np.isfinite(found[name])
            if not finite.all():
                step, replica = np.argwhere(~finite.T)[0]
                raise NonFinite(
                    f"the {name.replace('_', ' ')} of replica {replica} is not finite at step {stop - size + step + 1}"
                    f" (in steps {stop - size + 1} to {stop})"
                )
        for name, value in found.items():
            self._parts.setdefault(name, []).append(value)

    def saved(self) -> dict[str, list[list[float]]]:
        """What a checkpoint keeps of an interval that is not over; exact in JSON."""
        return {name: np.concatenate(parts, axis=1).tolist() for name, parts in self._parts.items()}

    def close(self) -> dict[str, Any]:
        """The mean of each metric per replica; the interval starts anew."""
        means = {
            name: np.mean(np.concatenate(parts, axis=1), axis=1, dtype=np.float64).tolist()
            for name, parts in self._parts.items()
        }
        self._parts = {}
        return means
