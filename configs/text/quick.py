"""What more context is worth in real text: the loss of the next byte by its position in a window of six plays.

    python -m positionbias.train --config configs/text/quick.py

A small causal transformer reads windows of 64 bytes of Shakespeare, which comes with the package, and says every next
byte. The first rows know little more than frequencies do (unigram, bigram); later ones lose less, as long as context
helps. Needs the extra `data`.

Hardware and time: 2 CPU cores, 4 to 5 min. Number to reach: a mean loss of at most 1.7 nats a byte in the condition
"test" (1.625 [1.602, 1.648] was measured over four replicas, 1.581 [1.554, 1.608] in "train"; bigram 2.515, unigram
3.314). By position it falls from 2.56 to 1.56 within 8 bytes, and no further: a model this small makes no more of 64.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config(steps: int = 1500) -> ConfigDict:
    return ConfigDict(
        {
            "name": "text_quick",
            "task": "text(window=64)",
            "model": {"layers": 3, "width": 64, "heads": 4, "mask": "causal", "position": "rope"},
            "optimizer": {"name": "adamw(b2=0.98)", "learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": steps, "batch_size": 32, "replicas": 4, "log_every": 50},
            "evaluation": {"items": 1024},
        }
    )
