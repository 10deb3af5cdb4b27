"""Tasks of vectors train end to end: vector and identity inputs, squared error, read at the last position."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.tasks.base import Batch, Condition, Size, Task
from positionbias.training.loop import train


@spec.member("tasks", "mean_of_vectors")
@dataclasses.dataclass(frozen=True)
class MeanOfVectors(Task):
    """The last row says the mean of the four vectors read."""

    @property
    def input(self):
        return Size("vectors", 6)

    @property
    def output(self):
        return Size("vectors", 6)

    def conditions(self):
        return (Condition("train"),)

    def length(self, condition):
        return 4

    def context_length(self, condition):
        return 3

    def query_rows(self, condition):
        return np.array([3])

    def prior(self, condition):
        return {"query": np.ones(1), "evidence": np.full(4, 0.25)}

    def sample(self, key, condition, world=()):
        key, slot = jax.random.split(key)
        x = jax.random.normal(key, (4, 6))
        one = jnp.zeros(1, jnp.int32)
        evidence = jax.random.randint(slot, (1,), 0, 4)
        return Batch(
            inputs=x,
            targets=jnp.zeros((4, 6)).at[3].set(x.mean(axis=0)),
            weights=jnp.array([0.0, 0, 0, 1]),
            tokens=self.tokens(condition),
            query=one + 3,
            evidence=evidence[:, None],
            order=one,
            distance=3 - evidence,
            n_distractors=one,
            source=one - 1,
            query_slot=one,
            evidence_slot=evidence,
        )

    def ceiling(self, example, visible):
        return jnp.ones(1)

    def losses(self, example, visible):
        return {"floor": jnp.zeros(1)}

    def baselines(self, example, visible):
        return {"chance": jnp.zeros(1), "order_free": jnp.ones(1)}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    index = {axis: dict(members) for axis, members in spec._index().items()}
    index["tasks"]["mean_of_vectors"] = __name__
    monkeypatch.setattr(spec, "_index", lambda: index)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


@pytest.mark.parametrize(
    "model",
    [
        {"model.inputs": "vector"},
        {"model.inputs": "identity", "model.width": 6, "model.residual": "none", "model.mlp": False},
    ],
    ids=str,
)
def test_vectors_train_and_evaluate(tiny, tmp_path, model):
    wanted = {"task": "mean_of_vectors", "objective": "squared_error", "train.steps": 600, "train.log_every": 200}
    config = tiny({**wanted, "model.norm": "none", **model})
    assert train(config, tmp_path / "run", ["test"], lambda line: None).status == "finished"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["accuracy"]["mean"] > 0.9
    assert summary["at_init"]["accuracy"]["mean"] < summary["accuracy"]["mean"]
    assert len(summary["influence"]) == 4
    loss, before = summary["loss"], summary["at_init"]["loss"]
    assert (loss["floor"], loss["rules"]) == (0, {})
    assert 0 < loss["mean"] < before["mean"]
    assert [row["position"] for row in summary["by_evidence_position"] if row["loss"]["floor"] == 0] == [0, 1, 2, 3]
