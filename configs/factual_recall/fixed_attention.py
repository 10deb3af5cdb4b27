"""The same with attention out of the way: two tokens, constant scores, and all that is learned is W_OV.

    python -m positionbias.train --config configs/factual_recall/fixed_attention.py
    python -m positionbias.sweep --config configs/factual_recall/fixed_attention.py

The theory of Huang et al. 2025 (arXiv 2506.10887) holds attention fixed: logits are W_OV (onehot(subject) +
onehot(relation)). A sequence is a subject and a relation; the query-key matrix is frozen to ones, so that every score
of one-hot tokens is 1. Gradient descent on W_V W_O tends to the least nuclear norm that separates what is trained, in
which a fact carries its implication; on one matrix W_OV it tends to the least Frobenius norm, which prefers no
implication for a subject that was shown none: the held-out loss does not come below log 20 = 2.996. AdamW with the
released learning rate and weight decay stands in for it.

Hardware and time: 2 CPU cores, under a minute, a minute and a half for the sweep. Numbers to reach in "held_out", over
four replicas: at least 0.99 in each for the factorised arm (1.000 was measured, loss 0.016), at most 0.1 in the mean
for the combined one (0.062, 95 % interval 0.031 to 0.092, was measured, loss 3.08). Both reach 1 in training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict


def get_config(steps: int = 2000) -> ConfigDict:
    return ConfigDict(
        {
            "name": "factual_recall_fixed_attention",
            "task": "factual_recall(groups=20, bridges=1, held_out=3, noise=0)",
            "model": {
                "layers": 1,
                "width": 128,  # the vocabulary
                "heads": 1,
                "head_size": 128,
                "position": "none",
                "operator": "linear_scores",
                "inputs": "one_hot",
                "residual": "none",
                "norm": "none",
                "mlp": False,
                "qk": "merged",
                "readout": "none",
                "frozen": ["query"],
                "init": {
                    "query": "constant(value=1.0)",
                    "value": "normal(std=0.01)",
                    "output": "normal(std=0.01)",
                },
            },
            "optimizer": {"name": "adamw(weight_decay=0.03)", "learning_rate": 5e-3, "schedule": "constant"},
            "train": {"steps": steps, "batch_size": 128, "replicas": 4, "log_every": 20},
            "evaluation": {"items": 4096},
        }
    )


def sweep(add: Callable[..., Any]) -> None:
    add({}, name="factorised")
    add({"model.ov": "merged"}, name="combined")
