"""Waiting and peeking against means and patterns made by hand, and of a model whose first layer attends to nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.last_token import LastToken, of_like_tokens
from positionbias.errors import ConfigError
from positionbias.evaluation.loading import load

ITEMS, REFERENCES, T = 32, 128, 7
INIT = {"embedding": "normal(std=1.0)", **dict.fromkeys(("query", "value", "output"), "fan_in(scale=9.0)")}


@pytest.fixture(scope="module")
def subject(tmp_path_factory, unmeasured_run):
    raw = {
        "name": "last",
        "task": "associative_recall(pairs=2, keys=3, values=2, queries=2, delays=3)",
        "model": {"layers": 2, "width": 8, "heads": 2, "mlp": False, "init": INIT},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"steps": 60, "batch_size": 8, "replicas": 1, "log_every": 60},
        "evaluation": {"items": 4, "batch_size": 4, "influence_items": 4},
    }
    run = load(unmeasured_run(raw, tmp_path_factory.mktemp("run")))
    return Subject(run, run.task.conditions()[0], ITEMS)


def measured(subject):
    analysis = LastToken(references=REFERENCES)
    return jax.device_get(jax.jit(lambda: analysis.measure(subject, [0, 1], jax.random.key(0)))())


def test_rows_are_averaged_over_those_of_the_same_token_at_the_same_position():
    inputs, others = jnp.array([[5, 7]]), jnp.array([[5, 5], [6, 7], [5, 7]])
    streams = jnp.arange(12.0).reshape(1, 3, 2, 2)
    sums, count = of_like_tokens(inputs, others, streams)
    assert count.tolist() == [[2, 2]]
    assert sums.tolist() == [[[[0 + 8, 1 + 9], [6 + 10, 7 + 11]]]]


def test_each_wait_and_transfer_is_what_it_is_by_hand(subject):
    found = measured(subject)
    asked, drawn = jax.random.split(jax.random.key(0))
    batch, others = subject.batch(asked), subject.batch(drawn, REFERENCES)
    names = [f"layers.{layer}.stream" for layer in (0, 1)]
    streams = subject.run.apply(others, names)[1]
    inputs, given = np.asarray(batch.inputs), np.asarray(others.inputs)
    means, matched = [np.zeros((ITEMS, T, 8)) for _ in names], []
    for item, row in np.ndindex(ITEMS, T):
        like = given[:, row] == inputs[item, row]
        matched.append(like.any())
        for layer, name in enumerate(names):
            means[layer][item, row] = np.asarray(streams[name])[like if like.any() else slice(None), row].mean(0)
    assert found["matched"] == pytest.approx(np.mean(matched))

    query, each = np.asarray(batch.query), np.arange(ITEMS)[:, None]

    def answers(wait, transfer):
        """What is said, where all attention is as it is for transfer None."""
        edit = {}
        for layer in (0, 1):
            name = f"layers.{layer}.attention.pattern"
            pattern = np.array(subject.run.apply(batch, [name], edit)[1][name])
            for item, row in np.ndindex(ITEMS, T):
                peeks = row in query[item] and layer < wait + (transfer or 0)
                if transfer is not None and layer >= wait and not peeks:
                    pattern[item, :, row] = np.arange(T) == row
            edit[name] = ("replace", pattern)
            if layer == wait - 1:
                edit[names[layer]] = ("replace", means[layer])
        return np.asarray(subject.run.apply(batch, (), edit)[0])[each, query].argmax(-1)

    said = answers(0, 2), np.asarray(subject.run.apply(batch)[0])[each, query].argmax(-1)
    right = said[1] == np.asarray(batch.targets)[each, query]
    assert found["accuracy"] == pytest.approx(right.mean())
    waiting = [(answers(wait, None) == said[1])[right].mean() for wait in range(3)]
    np.testing.assert_allclose(found["waiting"], waiting, atol=1e-6)
    assert waiting[0] == 1
    peeking = [[(answers(wait, transfer) == said[1])[right].mean() for transfer in range(3)] for wait in range(3)]
    np.testing.assert_allclose(found["peeking"], peeking, atol=1e-6)
    assert len({round(float(x), 3) for row in peeking for x in row}) > 3


def test_a_model_whose_first_layer_attends_to_nothing_waits_one_layer_and_transfers_in_one(subject):
    silent = "['stack']['blocks'][0]['attention']['output']"

    def without(path, x):
        return jnp.zeros_like(x) if jax.tree_util.keystr(path).startswith(silent) else x

    params = jax.tree_util.tree_map_with_path(without, subject.run.weights["params"])
    run = dataclasses.replace(subject.run, weights={**subject.run.weights, "params": params})
    found = measured(dataclasses.replace(subject, run=run))
    assert found["matched"] == 1
    assert found["waiting"][:2].tolist() == [1, 1]
    assert found["peeking"][1].tolist()[1:] == [1, 1]
    assert max(found["waiting"][2], *found["peeking"][:, 0]) < 0.9
    assert (found["wait"], found["transfer"]) == (1, 1)


def test_arguments_are_checked():
    with pytest.raises(ConfigError, match="references = 0 is not allowed; allowed: a whole number from 1"):
        LastToken(references=0)
    with pytest.raises(ConfigError, match="kept = 0"):
        LastToken(kept=0.0)
