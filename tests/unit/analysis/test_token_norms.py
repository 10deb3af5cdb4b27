"""Norms by role and position against the streams themselves, and what levelling embeddings does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.token_norms import TokenNorms, turned

ROLES = [[], [0, 2], [1, 3], [4, 5]]  # no filler in front; keys, values, question


def test_a_turn_is_one_minus_the_cosine():
    x, y = jnp.array([[3.0, 0], [1, 1], [2, 0], [0, 0]]), jnp.array([[0, 2.0], [1, 1], [-1, 0], [1, 2]])
    np.testing.assert_allclose(turned(x, y), [1, 0, 2, 0], atol=1e-6)


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "norms",
        "task": "associative_recall(pairs=2, keys=4, values=4, delays=2)",
        "model": {"layers": 2, "width": 8, "heads": 2},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], 16)


def test_it_tells_the_norms_of_streams_and_answers_with_others(subject):
    key = jax.random.key(0)
    found = jax.device_get(jax.jit(lambda: TokenNorms().measure(subject, [0, 1], key))())
    batch = subject.batch(key)
    outputs, sites = subject.run.apply(batch, ["embedding", "*.stream"])
    streams = [np.asarray(sites[name]) for name in ("embedding", "layers.0.stream", "layers.1.stream")]
    sizes = [np.sqrt((stream**2).sum(-1)) for stream in streams]
    for role, rows in enumerate(ROLES):
        np.testing.assert_allclose(found["embedding"][role], sizes[0][:, rows].mean() if rows else 0, rtol=1e-5)
        for layer in range(2):
            before, after = streams[layer][:, rows], streams[layer + 1][:, rows]
            cosine = (before * after).sum(-1) / sizes[layer][:, rows] / sizes[layer + 1][:, rows]
            np.testing.assert_allclose(found["turned"][layer, role], 1 - cosine.mean() if rows else 0, atol=1e-5)
            known = sizes[layer + 1][:, rows].mean() if rows else 0
            np.testing.assert_allclose(found["stream"][layer, role], known, rtol=1e-5)
    np.testing.assert_allclose(found["position"], [size.mean(0) for size in sizes[1:]], rtol=1e-5)

    unit = streams[0] / sizes[0][..., None]
    given = {
        "intact": streams[0],
        "levelled": unit * sizes[0].mean(-1, keepdims=True)[..., None],
        "swapped": unit * np.roll(sizes[0], -1, axis=-1)[..., None],
    }
    told = set()
    for name, embedding in given.items():
        outputs, _ = subject.run.apply(batch, (), {"embedding": ("replace", embedding)})
        known = float(np.mean(subject.answers(outputs, batch)["log_probability"]))
        assert found[name] == pytest.approx(known, abs=1e-5)
        told.add(round(known, 3))
    assert len(told) == 3
