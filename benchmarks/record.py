"""What every benchmark writes beside its numbers: where, when and on which code they were measured."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def header() -> dict[str, Any]:
    """Device, cores, versions, commit and date. Starts a JAX backend, so call it after measuring."""
    import jax

    from positionbias import runtime

    return {
        "device": f"{jax.default_backend()}: {jax.devices()[0].device_kind}",
        "processor": _processor(),
        "cores": runtime.cores(),
        "load": round(os.getloadavg()[0], 1),  # processes that wanted a core in the last minute
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results")),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write(name: str, results: dict[str, Any], folder: pathlib.Path = RESULTS) -> pathlib.Path:
    """Write `NAME.json` to `folder`, results after the header; returns the path."""
    path = folder / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**header(), **results}, indent=1) + "\n", encoding="utf-8")
    return path


def _processor() -> str:
    """The processor's name; empty where the system does not tell."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(*arguments: str) -> str | None:
    """What git says of this checkout; None where it is no checkout."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
