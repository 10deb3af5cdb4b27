"""The change point of curves whose course is known, and of the history that a run has logged."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.change_point import ChangePoint, explained
from positionbias.errors import ConfigError


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "changes",
        "task": "associative_recall(pairs=2, keys=4, values=4, delays=2)",
        "model": {"layers": 1, "width": 4, "heads": 1, "mlp": False},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], 4)


def found(subject, loss, orders=200):
    given = {"loss": jnp.asarray(loss, jnp.float32), "step": 10.0 * (1 + jnp.arange(len(loss)))}
    measured = dataclasses.replace(subject, given=given)
    return jax.jit(lambda: ChangePoint(orders).measure(measured, [], jax.random.key(0)))()


def test_the_share_is_that_of_the_two_best_levels():
    curve = np.random.default_rng(0).normal(size=9)
    total = ((curve - curve.mean()) ** 2).sum()
    known = [1 - sum(((part - part.mean()) ** 2).sum() for part in np.split(curve, [k])) / total for k in range(1, 9)]
    np.testing.assert_allclose(explained(jnp.asarray(curve, jnp.float32)), known, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(explained(jnp.full(5, 2.0)), 0)


def test_a_fall_between_plateaus_is_found_and_not_by_chance(subject):
    """Ten lines at 3, a fall over two, and ten at 0.5: its steep part falls together as few orders do."""
    told = found(subject, [3.0] * 10 + [2.2, 1.2] + [0.5] * 10)
    assert told["at"] == 120, "from 1.2 on"
    assert told["before"] == pytest.approx((30 + 2.2) / 11, rel=1e-5)
    assert told["after"] == pytest.approx((1.2 + 5) / 11, rel=1e-5)
    assert told["sharpest"] == pytest.approx(1.0 / 2.5, rel=1e-5)
    assert told["most"] > 0.95 > 0.85 > told["permuted"]
    assert told["chance"] < 0.05


def test_a_straight_line_is_three_quarters_two_levels_whatever_the_order(subject):
    told = found(subject, np.linspace(4, 0, 41))
    assert told["most"] == pytest.approx(0.75, abs=0.01)
    assert told["permuted"] == pytest.approx(float(told["most"]), abs=1e-4)
    assert told["chance"] == 1
    assert told["sharpest"] == pytest.approx(1 / 40, rel=1e-3)


def test_history_is_that_of_each_replica_up_to_the_checkpoint(subject, tmp_path):
    losses = np.arange(12.0).reshape(6, 2)
    lines = [json.dumps({"step": 5 * (i + 1), "loss": list(both)}) for i, both in enumerate(losses)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = dataclasses.replace(subject.run, workdir=tmp_path, step=25)
    given = ChangePoint().given(run)
    np.testing.assert_array_equal(given["loss"], losses[:5].T)
    np.testing.assert_array_equal(given["step"], [[5, 10, 15, 20, 25]] * 2)
    labels = ChangePoint().labelled(dataclasses.replace(subject, run=run), [])
    assert labels["step"] == ("5", "10", "15", "20", "25")
    with pytest.raises(ConfigError, match=r"where 3 lines stand up to step 19; allowed: 4 or more lines of losses"):
        ChangePoint().given(dataclasses.replace(run, step=19))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines[:4]).replace("7.0", "null") + "\n")
    with pytest.raises(ConfigError, match="where 4 lines stand up to step 25, not all with losses; allowed"):
        ChangePoint().given(run)
