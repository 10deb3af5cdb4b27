"""Vertical scores of segments and their kurtosis, against loops and numbers that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.heads import top, without
from positionbias.analysis.receiver_heads import ReceiverHeads, between, counted, kurtosis, received
from positionbias.errors import ConfigError

PART = [None, 0, 0, 2, 1, 1, 1, 3, 3]  # rows of three segments, of which the third stands before the second
ROWS = {part: [i for i, one in enumerate(PART) if one == part] for part in range(4)}
ORDER = [0, 2, 1, 3]
ONE_HOT = np.array([[part == i for i in range(4)] for part in PART], np.float32)


@pytest.mark.parametrize("apart", [1, 2])
def test_scores_are_means_over_the_parts_behind(apart):
    attention = np.random.default_rng(0).uniform(size=(1, 2, 9, 9)).astype(np.float32)
    part = jnp.asarray(ONE_HOT)[None]
    pairs, pair = between(jnp.asarray(attention), part), counted(part, apart)
    found = np.asarray(received(pairs, pair))
    for head, column in np.ndindex(2, 4):
        behind = [row for row in range(4) if ORDER.index(row) - ORDER.index(column) >= apart]
        blocks = [attention[0, head][np.ix_(ROWS[row], ROWS[column])].mean() for row in behind]
        assert found[0, head, column] == pytest.approx(np.mean(blocks) if blocks else 0, rel=1e-5)
    assert not np.asarray(pair)[0, :, 3].any(), "nothing stands behind the question"


def test_parts_without_rows_do_not_count():
    part = jnp.asarray(ONE_HOT * np.array([1, 0, 1, 1], np.float32))[None]
    pair = np.asarray(counted(part, 1))[0]
    assert not pair[1].any()
    assert not pair[:, 1].any()
    assert pair[[3, 2, 0], [0, 0, 2]].tolist() == [True, True, False]


def test_kurtosis_is_that_of_what_is_there():
    """One of ten that stands out has (1 - 6 v) / v with v = 0.1 * 0.9, two have -2, and equal ones nothing."""
    there = jnp.arange(12) < 10
    found = kurtosis(jnp.where(jnp.arange(12) == 3, 0.7, 0.1), there)
    assert float(found) == pytest.approx(0.46 / 0.09, abs=1e-3)
    values = np.random.default_rng(0).normal(size=10)
    centred = values - values.mean()
    expected = (centred**4).mean() / (centred**2).mean() ** 2 - 3
    assert float(kurtosis(jnp.concatenate([jnp.asarray(values), jnp.ones(2)]), there)) == pytest.approx(
        expected, abs=1e-4
    )
    assert float(kurtosis(jnp.full(12, 0.3), there)) == 0
    assert float(kurtosis(jnp.ones(12), there & False)) == 0
    assert float(kurtosis(jnp.array([0.1, 0.9]), jnp.ones(2, bool))) == pytest.approx(-2, abs=1e-5)


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "receivers",
        "task": "associative_recall(pairs=4, keys=4, values=2, delays=1)",
        "model": {"layers": 2, "width": 8, "heads": 2, "init": {"query": "fan_in(scale=9.0)"}},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], 32)


def test_heads_of_the_most_kurtosis_are_taken_out(subject):
    key = jax.random.key(0)
    drawn, fresh, _ = jax.random.split(key, 3)
    found = jax.jit(lambda: ReceiverHeads(share=0.3).measure(subject, [0, 1], key))()
    batch = subject.batch(drawn)
    attention = np.asarray(subject.run.apply(batch, ["layers.1.attention.pattern"])[1]["layers.1.attention.pattern"])
    rows = [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    shares, known = [], []
    for item in range(32):
        blocks = np.array([[attention[item, 0][np.ix_(g, h)].mean() for h in rows] for g in rows])
        score = np.array([blocks[h + 1 :, h].mean() for h in range(4)])
        shares.append(score.max() / score.sum())
        centred = score - score.mean()
        known.append((centred**4).mean() / (centred**2).mean() ** 2 - 3)
    assert float(found["top"][1, 0]) == pytest.approx(np.mean(shares), abs=1e-4)
    assert float(found["kurtosis"][1, 0]) == pytest.approx(np.mean(known), abs=1e-3)

    batch, chosen = subject.batch(fresh), top(found["kurtosis"], 1)
    for name, edit in (("intact", None), ("without", without([0, 1], chosen))):
        outputs, _ = subject.run.apply(batch, (), edit)
        assert float(found[name]) == pytest.approx(float(subject.answers(outputs, batch)["accuracy"].mean()), abs=1e-6)


def test_arguments_are_checked():
    with pytest.raises(ConfigError, match=r"apart = 0 is not allowed; allowed: a whole number from 1"):
        ReceiverHeads(apart=0)
    with pytest.raises(ConfigError, match=r"share = 0\.0 is not allowed; allowed: a number between 0 and 1"):
        ReceiverHeads(share=0.0)
