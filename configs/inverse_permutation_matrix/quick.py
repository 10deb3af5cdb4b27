"""A causal mask forbids what two layers could do: undoing a permutation of bit vectors, in the paper's own form.

    python -m positionbias.train --config configs/inverse_permutation_matrix/quick.py
    python -m positionbias.sweep --config configs/inverse_permutation_matrix/quick.py

The model of Alur et al. 2025 (arXiv 2509.24125): attention only, one head a layer with one matrix A and scores h A h',
no value or output matrix, a stream that each layer doubles by concatenation, a linear readout, squared error. It reads
[X, I], a row with its one-hot position. The config is the arm without a mask; the sweep adds the causal one, which sees
nothing of Y at the rows that answer, and the causal one with scratch rows around, which answers on the last. Adam
takes the place of the paper's clipped SGD, which needs thousands of steps more. "ten_bits" has the paper's d = 10.

Hardware and time: 2 CPU cores, 40 s, 3 minutes for the sweep. Numbers to reach, in the mean over four replicas: row
accuracy at least 0.99 without a mask and with scratch (1.000 was measured in all replicas of both, also in 16 and 12 of
another seed), and 2^-6 = 0.016 +- 0.005 for causal (0.0155, 95 % interval 0.0148 to 0.0163, was measured), whose
squared error stays at d/4 = 1.5 (1.503).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

D = 6


def get_config(steps: int = 1000) -> ConfigDict:
    return ConfigDict(
        {
            "name": "inverse_permutation_matrix_quick",
            "task": f"inverse_permutation_matrix(d={D})",
            "objective": "squared_error",
            "model": {
                "layers": 2,
                "width": D + 2 * D,
                "heads": 1,
                "mask": "bidirectional",
                "position": "none",
                "operator": "softmax(scaled=False)",
                "inputs": "identity",
                "residual": "concatenate",
                "norm": "none",
                "mlp": False,
                "qk": "merged",
                "ov": "identity",
                "init": {"query": "normal(std=0.02)", "readout": "normal(std=0.02)"},
            },
            "optimizer": {"name": "adamw", "learning_rate": 1e-2, "schedule": "constant"},
            "train": {"steps": steps, "batch_size": 256, "replicas": 4, "log_every": 20},
            "evaluation": {"items": 8192},
        }
    )


def sweep(add: Callable[..., Any]) -> None:
    add({}, name="no_mask")
    add({"model.mask": "causal"}, name="causal")
    scratch = {"task.scratch": True, "task.answer_rows": "last", "model.width": D + 4 * D}
    add({"model.mask": "causal", **scratch}, name="causal_scratch")


def sweep_ten_bits(add: Callable[..., Any]) -> None:
    add({"task.d": 10, "model.width": 30}, name="no_mask")
    add({"task.d": 10, "model.width": 30, "model.mask": "causal"}, name="causal")
    scratch = {"task.scratch": True, "task.answer_rows": "last", "model.width": 50}
    add({"task.d": 10, "model.mask": "causal", **scratch}, name="causal_scratch")
