"""Entities bound by their group: one of a pair is named, and its partner is asked for, from either side.

    python -m positionbias.train --config configs/entity_binding/quick.py

A causal transformer reads four groups of two entities, bound anew in every prompt, and names the other one of the group
that the last entity stands in. Any entity of the slot asked for is right once in four. In "before" the answer stands
before the named entity, so that its token cannot know the name, in "after" behind it.

Hardware and time: 2 CPU cores, a minute of training (73 s, with other work on the machine, were measured). Number to
reach: at least 0.98 for each of the four replicas, in "train", "before" and "after" (1.000 was measured in all).
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "entity_binding_quick",
            "task": "entity_binding(groups=4, members=2, names=8)",
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 4,
                "mask": "causal",
                "position": "rope",
                "init": {"embedding": "normal(std=0.5)"},
            },
            "optimizer": {"name": "adamw", "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 100},
            "train": {"steps": 1000, "batch_size": 64, "replicas": 4, "log_every": 100},
            "evaluation": {"items": 4096},
        }
    )
