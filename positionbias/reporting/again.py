"""The table of what was measured again after training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from positionbias.config.varied import told as combination
from positionbias.evaluation.rows import CHANGED
from positionbias.evaluation.table import stored_told
from positionbias.reporting.folder import Run
from positionbias.reporting.html import between, grid
from positionbias.reporting.told import ceiling_told, loss_told, shortened


def evaluated_again(run: Run) -> list[str]:
    """The section of a run's evaluations made again; nothing where there are none."""
    if not run.again:
        return []
    body: list[list[Any]] = []
    judged = any("loss" in one for one in run.again.values())
    changed = [name for name in CHANGED if any(name in one for one in run.again.values())]
    gaps = any(one["order_gap"] for one in run.again.values())
    for name, whole, one in ((n, of, one) for n, of in run.again.items() for one in of.get("combinations") or [of]):
        minus, gap = one.get("minus"), one["order_gap"]
        body.append(
            [
                ", ".join([whole.get("variant") or "unchanged", *([combination(one)] if one is not whole else [])]),
                between(one["accuracy"]),
                between(minus, True) if minus else "",
                *(["".join(between(one[share]) for share in changed if share in one)] if changed else []),
                *([between(gap, True) if gap else ""] if gaps else []),
                ceiling_told(one["ceiling"]["mean"], one["ceiling"]["known"]),
                *([loss_told(one) if "loss" in one else ""] if judged else []),
                _measured_on(run, whole),
                name,
            ]
        )
    head = ["items", "accuracy", "minus unchanged"]
    head += [" or ".join(share.replace("_", " ") for share in changed)] if changed else []
    head += [*(["order gap"] if gaps else []), "ceiling", *(["loss"] if judged else []), "task", "file in evals"]
    caption = (
        "Measured after training by positionbias.evaluate, on the first condition of each. Differences are paired by"
        " replica; those of what is under another intervention are to that one alone. Order sensitivity is the share of"
        " answers that another order of the segments changed, answers changed the share that another intervention did."
    )
    return ["<h2>Evaluated again</h2>", grid(head, body, caption, last=2)]


def _measured_on(run: Run, one: Mapping[str, Any]) -> str:
    """The task where it is not the one trained on, and which items if they were stored."""
    task, stored = shortened(one["task"]), one.get("stored")
    told = "as trained" if task == shortened(str(run.settings.get("task"))) else task
    return f"{told}, {stored_told(stored)}" if stored else told
