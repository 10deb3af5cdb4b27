"""Windowed distances and future influence against loops, and the heads that they are read of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.waad_fai import WaadFai, influence, windowed
from positionbias.errors import ConfigError

T = 7
EVEN = np.tri(T) / np.arange(1, T + 1)[:, None]


def by_hand(attention, window, low, high):
    waad = [sum(attention[t, s] * min(t - s, window) for s in range(t + 1)) for t in range(T)]
    rows = [range(s + low, min(T - 1, s + high) + 1) for s in range(T)]
    return waad, [np.mean([attention[t, s] for t in some]) if some else 0.0 for s, some in enumerate(rows)]


@pytest.mark.parametrize("attention", [EVEN, np.random.default_rng(0).dirichlet(np.ones(T), size=T)])
def test_it_is_the_formula_also_where_rows_look_ahead(attention):
    waad, fai = by_hand(attention, 3, 2, 4)
    given = jnp.asarray(attention, jnp.float32)
    np.testing.assert_allclose(windowed(given, 3), waad, atol=1e-5)
    np.testing.assert_allclose(influence(given, 2, 4), fai, atol=1e-6)


def test_even_attention_has_known_numbers():
    """Half of the rows so far, until the window clips it; and 1 / (t + 1) of later rows."""
    np.testing.assert_allclose(windowed(jnp.asarray(EVEN), 100), np.arange(T) / 2, atol=1e-5)
    np.testing.assert_allclose(windowed(jnp.asarray(EVEN), 2)[-1], 11 / 7, atol=1e-5)
    np.testing.assert_allclose(influence(jnp.asarray(EVEN), 1, 2)[0], (1 / 2 + 1 / 3) / 2, atol=1e-6)
    assert float(influence(jnp.asarray(EVEN), 1, 2)[-1]) == 0


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "rhythm",
        "task": "associative_recall(pairs=2, keys=4, values=2, delays=3)",
        "model": {"layers": 2, "width": 8, "heads": 2, "init": {"query": "fan_in(scale=9.0)"}},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], 16)


def test_local_heads_tell_distances_and_global_ones_influence(subject):
    key = jax.random.key(0)
    found = jax.jit(lambda: WaadFai(window=3, low=4, high=5).measure(subject, [0, 1], key))()
    batch = subject.batch(key)
    outputs, sites = subject.run.apply(batch, ["*.pattern"])
    heads = np.stack([np.asarray(sites[f"layers.{i}.attention.pattern"]) for i in (0, 1)]).swapaxes(1, 2)
    heads = heads.reshape(4, 16, T, T)
    index = np.arange(T)
    distance = (heads * (index[:, None] - index)).sum(-1).mean((1, 2))
    np.testing.assert_allclose(np.asarray(found["distance"]).reshape(-1), distance, atol=1e-5)
    local, wide = heads[distance.argmin()], heads[distance.argmax()]  # 0.3 of four heads is one
    waad = np.array([by_hand(local[item], 3, 4, 5)[0] for item in range(16)])
    fai = np.array([by_hand(wide[item], 3, 4, 5)[1] for item in range(16)])
    np.testing.assert_allclose(found["waad"], waad.mean(0), atol=1e-5)
    np.testing.assert_allclose(found["fai"], fai.mean(0), atol=1e-5)

    said = np.asarray(jax.nn.log_softmax(outputs))
    entropy = -(np.exp(said) * said).sum(-1)
    np.testing.assert_allclose(found["entropy"], entropy.mean(0), atol=1e-5)
    follows = np.mean([np.corrcoef(waad[item], entropy[item])[0, 1] for item in range(16)])
    assert float(found["follows"]) == pytest.approx(follows, abs=1e-3)
    assert float(found["starts"]) == pytest.approx(waad[:, [0, 2]].mean() / waad[:, [1, 3]].mean(), abs=1e-4)
    evidence = [[row for row in np.asarray(batch.evidence[item, 0]) if row + 4 < T] for item in range(16)]
    needed = np.mean([fai[item, rows].mean() for item, rows in enumerate(evidence)])
    assert float(found["anchors"]) == pytest.approx(needed / fai[:, :3].mean(), abs=1e-4)
    np.testing.assert_allclose(found["waad_even"], by_hand(EVEN, 3, 4, 5)[0], atol=1e-5)
    np.testing.assert_allclose(found["fai_even"], by_hand(EVEN, 3, 4, 5)[1], atol=1e-5)


def test_arguments_are_checked(subject):
    with pytest.raises(ConfigError, match="high = 1 is not allowed; allowed: low = 2 to"):
        WaadFai(high=1)
    with pytest.raises(ConfigError, match="window = 0"):
        WaadFai(window=0)
    with pytest.raises(ConfigError, match="low = 7 is not allowed; allowed: 1 to 6, as there are 7 rows"):
        WaadFai(low=7).check(subject)
