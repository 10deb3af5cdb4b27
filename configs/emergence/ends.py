"""Lost in the middle, learned: data whose answers stand at either end, and a scheme that can tell where an end is.

    python -m positionbias.sweep --config configs/emergence/ends.py
    python -m positionbias.study --name emergence                # what its claims need of it

Wu et al. 2025 (arXiv 2502.01951), figure 3: the task of configs/emergence/masks.py with the answer at the first or the
last item only, two layers with residuals. The paper finds a U (the middle worst) with a causal mask and RoPE or
sinusoids, the front alone with a causal mask that tells nothing else, and nothing without either.

Hardware and time: 2 CPU cores, about 6 minutes a cell at 6,000 steps and five replicas (8 with other work on the
machine). The numbers to reach are the claims of study.toml; in the paper, after 100,000 steps, gaps of first-middle and
middle-last of +0.472 and -0.241 for RoPE, +0.276 and -0.006 for the causal mask alone, and 0.00 with neither. Measured
for RoPE was 0.239 [0.219, 0.258] as the lesser of the two, and -0.016 [-0.040, 0.008] with neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    task = "items=8, classes=2048, labels=32, burstiness=4, noise=0.75, answer_positions=[0, 7]"
    return ConfigDict(
        {
            "name": "emergence_ends",
            "task": f"in_context_classification({task})",
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 1,
                "mask": "causal",
                "position": "rope",
                "inputs": "identity",
                "norm": "none",
                "mlp": False,
                "output_projection": False,
                "readout": "mlp",
                "readout_layers": 3,
            },
            "optimizer": {"name": "adamw(weight_decay=1e-6)", "learning_rate": 1e-3, "schedule": "constant"},
            "train": {"steps": 6000, "batch_size": 128, "replicas": 5, "log_every": 100},
            "evaluation": {"items": 8192},
        }
    )


def sweep(add: Callable[..., Any]) -> None:
    add({"model.position": "rope"}, name="causal_rope")
    add({"model.position": "none"}, name="causal")
    add({"model.mask": "bidirectional", "model.position": "none"}, name="neither")
    add({"model.position": "sinusoidal"}, name="causal_sinusoidal")
