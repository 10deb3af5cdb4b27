"""The front of the context favoured by attention that nothing but its causal mask tells of order.

    python -m positionbias.train --config configs/in_context_classification/position_bias.py

Two attention layers without residual, position scheme or MLP, read by an MLP of three hidden layers, learn eight
labelled items of two classes and the label of a ninth (Wu et al. 2025, arXiv 2502.01951, figure 2, here without bias
vectors, for 6,000 steps instead of 100,000, and on vectors of unit length). They come to say one of the two labels
within 1,000 steps, the plateau of 0.516 that theory calls label guessing, and slowly rise above it, by memory: classes
are those of the world, which a guesser who remembers them all needs no context for (its baseline is 1), and on novel
classes (condition "in_context") accuracy stays on the plateau. The point is the bias, in the condition "conflict",
where two equal items have different labels: the gap of a pair is the accuracy when the earlier is right less that when
the later is.

Hardware and time: 2 CPU cores, about 4 minutes. Numbers to reach: accuracy of at least 0.60 for each of the four
replicas (0.636 to 0.667, mean 0.645 +- 0.023 was measured), and an order gap of "conflict" above 0 (0.048 +- 0.021:
first-middle 0.049, first-last 0.086, middle-last 0.011; the paper has 0.059, 0.077 and 0.018).
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "in_context_classification_position_bias",
            "task": "in_context_classification(items=8, classes=2048, labels=32, burstiness=4, noise=0.75)",
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 1,
                "mask": "causal",
                "position": "none",
                "inputs": "identity",
                "residual": "none",
                "norm": "none",
                "mlp": False,
                "output_projection": False,
                "readout": "mlp",
                "readout_layers": 3,
            },
            "optimizer": {"name": "adamw(weight_decay=1e-6)", "learning_rate": 1e-3, "schedule": "constant"},
            "train": {"steps": 6000, "batch_size": 128, "replicas": 4, "log_every": 100},
            "evaluation": {"items": 4096},
        }
    )
