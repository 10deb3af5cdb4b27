"""Two hops under a causal mask, and with a context that sees all of itself.

    python -m positionbias.sweep --config configs/multi_hop/masks.py

The model and task are those of configs/multi_hop/quick.py; "context_bidirectional" replaces the causal masks of its
last three layers, and leaves the first, which sees one token back. Huang et al. 2025 (arXiv 2505.11754) find that
documents in the order of the chain help causal models, and bidirectional ones less.

Hardware and time: 2 CPU cores, about 5 minutes for both cells (153 s of training a cell were measured with other work
on the machine, 240 s with much). Numbers to reach: two hops ("original") at 0.95 or more in at least half of the four
replicas of either. Measured were 1.000 in three of four and a guess (0.51, 0.50) in the fourth, the same seed in both:
0.878 [0.491, 1.265] causal, 0.876 [0.480, 1.271] bidirectional. No order helps either at this size: forward minus
backward is -0.003 [-0.013, 0.007] and -0.003 [-0.011, 0.006], where the paper has forward ahead. The last row, which
looks both documents up by itself, does not mind where they stand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "multi_hop_masks",
            "task": "multi_hop(hops=2, documents=4, entities=8, relations=1, gaps=[0, 1], typed=True, mixed=True)",
            "model": {
                "layers": 4,
                "width": 64,
                "heads": 1,
                "head_size": 64,
                "mlp": False,
                "position": "learned",
                "readout": "tied",
                "init": {
                    "embedding": "normal(std=1.0)",
                    "position": "normal(std=1.0)",
                    "value": "identity",
                    "output": "identity(scale=0.5)",
                },
            },
            "optimizer": {"name": "adamw(b2=0.98)", "learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": 3000, "batch_size": 64, "replicas": 4, "log_every": 100},
            "evaluation": {"items": 4096},
        }
    )


def sweep(add: Callable[..., Any]) -> None:
    for mask in ("causal", "context_bidirectional"):
        add({"model.mask": f"[causal & sliding_window(2)] + [{mask}] * 3"}, name=mask)
