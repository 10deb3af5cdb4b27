"""Small trained models, as ours and as those of TransformerLens."""

import dataclasses
from typing import Any

import pytest

MODELS = {
    "rope": ("rope", "rms", 2),
    "learned": ("learned", "layer", 1),
}


@dataclasses.dataclass(frozen=True)
class Both:
    """One model twice."""

    subject: Any
    hooked: Any


@pytest.fixture(scope="package")
def make_both(tmp_path_factory, small_run):
    """`make_both(name)` trains a model of `MODELS` and converts it, once."""
    made = {}

    def make(name):
        from hooked import hooked

        from positionbias.analysis.base import Subject
        from positionbias.evaluation.loading import load

        if name not in made:
            position, norm, delays = MODELS[name]
            raw = {
                "name": name,
                "task": f"associative_recall(pairs=3, keys=6, values=6, delays={delays})",
                "model": {"layers": 2, "width": 16, "heads": 2, "position": position, "norm": norm},
                "optimizer": {"learning_rate": 1e-2},
                "train": {"steps": 300, "batch_size": 64, "replicas": 1, "log_every": 300},
                "evaluation": {"items": 4, "batch_size": 4, "influence_items": 4},
            }
            run = load(small_run(raw, tmp_path_factory.mktemp(name)))
            made[name] = Both(Subject(run, run.task.conditions()[0], 16), hooked(run))
        return made[name]

    return make


@pytest.fixture(params=MODELS)
def both(request, make_both):
    """Every model, ours and converted."""
    return make_both(request.param)
