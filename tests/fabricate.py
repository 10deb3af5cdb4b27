"""Run and sweep folders as training leaves them, made from a formula instead of training, and records of verdicts."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from positionbias.evaluation.summary import summarise
from positionbias.studying.definition import Claim

HASH = "1f3a9c0b"
TASK = "inverse_permutation(n=8, alphabet=16)"


def rows(skill: float = 1.0, replicas: int = 4, seen: str = "causal", n: int = 8, items: int = 256) -> dict[str, Any]:
    """Inverse permutation: right where the answer can be seen (with probability `skill`), else by chance 1/16."""
    generator = np.random.default_rng(replicas)
    replica, _, slot = (i.ravel() for i in np.indices((replicas, items, n)))
    evidence = np.argsort(generator.random((replicas, items, n)), axis=-1).ravel()
    ceiling = np.where((evidence <= slot) | (seen != "causal"), 1.0, 1 / 16)
    right = np.where(ceiling == 1, skill * ceiling + (1 - skill) / 16, 1 / 16)
    jitter = 0.02 * (replica - (replicas - 1) / 2) / max(replicas, 2)
    correct = (generator.random(slot.shape) < right + jitter).astype(int)
    profile = np.tile(np.linspace(1.0, 2.0 + skill, 2 * n), (replicas, 1, 1)) + 0.1 * np.arange(replicas)[:, None, None]
    return {
        "replica": replica,
        "condition": np.zeros_like(slot),
        "query": slot + n,
        "evidence": evidence + n,
        "query_slot": slot,
        "evidence_slot": evidence,
        "distance": slot - evidence,
        "order": np.zeros_like(slot),
        "correct": correct,
        "log_probability": np.log(np.maximum(right, 1e-3)),
        "ceiling": ceiling,
        "baseline/chance": np.full(slot.shape, 1 / 16),
        "baseline/order_free": np.full(slot.shape, 0.258),
        "conditions": ["trained"],
        "axes": {"query": "slot of the query", "evidence": "slot of the evidence"},
        "influence": profile / profile.sum(axis=-1, keepdims=True),
    }


def theory(seen: str = "causal", n: int = 8) -> dict[str, list[float]]:
    if seen != "causal":
        return {"query": [1.0] * n, "evidence": [1.0] * n}
    query = [(k + 1) / n + (1 - (k + 1) / n) / 16 for k in range(n)]
    return {"query": query, "evidence": query[::-1]}


def write_run(path: pathlib.Path, name: str = "quickstart", status: str = "finished", **options: Any) -> pathlib.Path:
    """A run folder; `status` other than finished has no evaluation. `options` go to `rows`, `varied` to the summary.

    `digest` is what it takes for the hash of its config: that of the cell, where cells are told apart by it.
    """
    varied, state_size = options.pop("varied", None), options.pop("state_size", None)
    digest = options.pop("digest", HASH)
    replicas = options.get("replicas", 4)
    path.mkdir(parents=True)
    settings = {
        "name": name,
        "task": TASK,
        "objective": "next_token",
        "seed": 0,
        "model": {"layers": 2, "width": 64, "mask": "causal", "init": {"embedding": "normal(std=0.5)"}, "frozen": []},
        "optimizer": {"name": "adamw", "learning_rate": 0.002, "clip_norm": None},
        "train": {"steps": 600, "batch_size": 64, "replicas": replicas, "vary": varied or {}},
    }
    command = ["python", "-m", "positionbias.train", "--config", "configs/quickstart.py", "--config.model.mask=~causal"]
    _json(path / "config.json", {"config": settings, "hash": digest, "command": command})
    step = 600 if status == "finished" else 340
    _json(
        path / "manifest.json",
        {
            "status": status,
            "step": step,
            "message": "stopped by signal 15" if status == "stopped" else "",
            "hash": digest,
            "commit": "0123456789abcdef",
            "versions": {"positionbias": "0.1.0", "jax": "0.10.2"},
            "devices": ["cpu"],
            "threads": 2,
            "auto": {"microbatch": 16, "replica_layout": "loop", "steps_per_dispatch": 20},
        },
    )
    steps = range(20, step + 1, 20)
    curve = [[2.8 * np.exp(-s / (120 + 9 * r)) + 1.1 + 0.01 * r for r in range(replicas)] for s in steps]
    lines = [{"step": s, "seconds": s / 60, "loss": at} for s, at in zip(steps, curve, strict=True)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status == "finished":
        at_init = rows(**{**options, "skill": 0.0})
        summary = summarise(
            rows(**options),
            at_init,
            steps=600,
            varied=varied,
            theory=theory(options.get("seen", "causal")),
            state_size=state_size,
        )
        _json(path / "summary.json", summary)
    return path


def write_sweep(path: pathlib.Path) -> pathlib.Path:
    """Four arms, of which one failed before it was evaluated and one has yet to start."""
    path.mkdir(parents=True)
    masks = {
        "causal": "causal",
        "bidirectional": "bidirectional",
        "half<b>": "causal",
        "scratch": "causal",
        "later": "causal",
    }
    cells = [{"name": name, "hash": HASH, "overrides": {"model.mask": mask}} for name, mask in masks.items()]
    _json(
        path / "plan.json", {"name": "architectures", "command": ["python", "-m", "positionbias.sweep"], "cells": cells}
    )
    write_run(path / "cells" / "causal", name="causal")
    write_run(path / "cells" / "bidirectional", name="bidirectional", seen="all")
    write_run(path / "cells" / "half<b>", name="half", skill=0.5)
    write_run(path / "cells" / "scratch", name="scratch", status="failed")
    ledger = [{"cell": name, "status": "finished"} for name in ("causal", "bidirectional", "half<b>")]
    ledger.append(
        {"cell": "scratch", "status": "failed", "code": 3, "message": "loss is not finite at steps 320 to 340"}
    )
    (path / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ledger))
    return path


def verdict(claim: Claim, scale: str = "quick", **changes: Any) -> dict[str, Any]:
    """A record of a study's claim as `judging.record` makes it; it holds, unless `changes` say else."""
    told = {"mean": 0.5, "low": 0.4, "high": 0.6}
    return {
        **claim.rule(scale),
        "values": [0.4, 0.45, 0.5, 0.55, 0.6],
        **told,
        "verdict": "holds",
        "reason": "",
        "solved_by": [],
        "at_init": told,
        "null_value": None,
        "commit": ["0123456789ab"],
        "device": ["cpu: cpu"],
        "jax": ["0.10.2"],
        "python": ["3.11.7"],
        "hours": 0.1,
        **changes,
    }


def _json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, allow_nan=False))
