"""What data make of a model: one that reads its context, or one that remembers classes.

    python -m positionbias.sweep --config configs/in_context_classification/data.py
    python -m positionbias.study --name in_context_classification    # what its claims need of it

The task and model of Reddy 2024 (arXiv 2312.03002): items of 63 features with a one-hot of 65 positions, at an offset
that is random for each sequence; two causal attention layers of one head with residuals, no norm, unscaled scores, an
MLP of three hidden layers; plain SGD. "bursty" has 1,024 classes, of which a context holds two, four items of each;
"memory" has 64, all different in a context. The first comes to read labels off its context, after a plateau at which it
says one of the two labels, and knows no class; the second knows its classes and reads nothing.

Hardware and time: 2 CPU cores, 20 minutes a replica of 40,000 steps. The study's quick scale halves the width and takes
AdamW for 5,000 steps, 2,000 of "memory": 60 s a replica of "bursty". Numbers to reach
there: 0.98 on novel classes after "bursty" (condition "in_context"), and 0.98 on known ones after "memory"
("in_weights"), which are claims of study.toml.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

COMMON = "items=8, dimension=63, labels=32, noise=0.1, assignment='balanced', position_slots=65"


def get_config(steps: int = 40000) -> ConfigDict:
    return ConfigDict(
        {
            "name": "in_context_classification_data",
            "task": f"in_context_classification({COMMON}, classes=1024, burstiness=4)",
            "model": {
                "layers": 2,
                "width": 128,  # 63 features and 65 positions
                "heads": 1,
                "mask": "causal",
                "position": "none",
                "operator": "softmax(scaled=False)",
                "inputs": "identity",
                "norm": "none",
                "mlp": False,
                "output_projection": False,
                "readout": "mlp",
                "readout_layers": 3,
            },
            "optimizer": {"name": "sgd", "learning_rate": 1e-2, "schedule": "constant"},
            "train": {"steps": steps, "batch_size": 128, "replicas": 5, "log_every": 500},
            "evaluation": {"items": 4096, "every": 5000},
        }
    )


def sweep(add: Callable[..., Any]) -> None:
    add({}, name="bursty")
    add({"task.classes": 64, "task.burstiness": 1}, name="memory")
