"""Counterfactuals by hand, and the fit against distributions that are made by one mechanism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.base import Subject
from positionbias.analysis.binding_mechanisms import VARIANTS, BindingMechanisms, Pair, divergence, mixed
from positionbias.errors import ConfigError

GROUPS, MEMBERS, ITEMS = 5, 3, 12


@pytest.fixture(scope="module")
def subject(drawn_run):
    raw = {
        "name": "binding",
        "task": f"entity_binding(groups={GROUPS}, members={MEMBERS}, names=8)",
        "model": {"layers": 1, "width": 8, "heads": 1},
    }
    run = drawn_run(raw)
    return Subject(run, run.task.conditions()[0], ITEMS)


def test_each_mechanism_names_another_group_by_what_the_counterfactual_shows(subject):
    analysis = BindingMechanisms()
    analysis.check(subject)

    def drawn():
        batch = subject.batch(jax.random.key(0))
        return batch, analysis._pair(subject, batch, jax.random.key(1))

    batch, pair = jax.device_get(jax.jit(drawn)())
    assert np.asarray(pair.counted).all(), "entities are all different"
    for i in range(ITEMS):
        was, now = (np.asarray(x)[:-2].reshape(GROUPS, MEMBERS) for x in (batch.inputs[i], pair.inputs[i]))
        slot, name = (int(x) for x in pair.inputs[i][-2:])
        assert slot == batch.inputs[i][-2], "the same slot is asked for"
        place, lexical, reflexive, own = (int(x) for x in pair.groups[i])
        assert len({place, lexical, reflexive, own}) == 4
        named = int(np.argwhere(was == name)[0, 1])
        assert now[place, named] == name == was[lexical, named] != batch.inputs[i][-1]
        assert now[place, slot] == was[reflexive, slot], "the answer of the counterfactual"
        assert batch.targets[i][-1] == was[own, slot]
        np.testing.assert_array_equal(pair.answers[i], was[:, slot])
        others = np.delete(was, slot, axis=1)
        moved = (lexical - place) % GROUPS
        np.testing.assert_array_equal(np.delete(now, slot, axis=1), np.roll(others, -moved, axis=0))
        assert sorted(now[:, slot]) == sorted(was[:, slot])


def test_a_stream_of_the_last_layer_says_what_the_counterfactual_says(subject):
    """So that its answers, restricted to those of the item, are the probabilities told for the layer."""
    key = jax.random.key(0)
    found = jax.jit(lambda: BindingMechanisms(updates=1).measure(subject, [0], key))()
    drawn, moved = jax.random.split(jax.random.split(key)[1])
    batch = subject.batch(drawn)
    pair = BindingMechanisms()._pair(subject, batch, moved)
    outputs = np.asarray(subject.apply(batch._replace(inputs=pair.inputs))[0])[:, -1]
    odds = np.exp(np.take_along_axis(outputs, np.asarray(pair.answers), axis=1))
    odds /= odds.sum(axis=1, keepdims=True)
    for at, name in enumerate(("positional", "lexical", "reflexive", "unchanged")):
        known = odds[np.arange(ITEMS), np.asarray(pair.groups)[:, at]].mean()
        assert float(found[name][0]) == pytest.approx(known, abs=1e-5)
    places = np.asarray(pair.groups)[:, 0]
    known = [odds[places == g, g].mean() if (places == g).any() else 0 for g in range(GROUPS)]
    np.testing.assert_allclose(found["by_group"][0], known, atol=1e-5)


@pytest.mark.parametrize(("term", "needed"), [("positional", 1), ("lexical", 2), ("reflexive", 3)])
def test_the_fit_needs_the_mechanism_that_made_the_distribution(term, needed):
    groups = jax.vmap(lambda key: jax.random.permutation(key, GROUPS)[:4])(jax.random.split(jax.random.key(0), 64))
    held = {"positional": jnp.zeros(()), "width": -4 * jnp.ones(3), "lexical": jnp.zeros(GROUPS)}
    held |= {"reflexive": jnp.zeros(GROUPS)}
    held[term] = held[term] + 4.0
    made = jax.nn.softmax(mixed(held, jnp.ones(3), groups, GROUPS))
    pair = Pair(groups, groups, groups, jnp.ones(64, bool))
    keep = jnp.array([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0]], jnp.float32)
    fit = jax.jit(lambda k: BindingMechanisms()._similarity(GROUPS, k, (pair, made), (pair, made)))
    found = dict(zip(VARIANTS, [float(fit(k)) for k in keep], strict=True))
    assert found["full"] > 0.99
    assert found[VARIANTS[needed]] < 0.75
    assert min(found[VARIANTS[i]] for i in (1, 2, 3) if i != needed) > 0.99


def test_divergence_is_a_bit_between_what_shares_nothing():
    assert float(divergence(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))) == pytest.approx(1)
    assert float(divergence(jnp.array([0.25, 0.75]), jnp.array([0.25, 0.75]))) == 0
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    m = (p + q) / 2
    known = (p @ np.log2(p / m) + q @ np.log2(q / m)) / 2
    assert float(divergence(jnp.asarray(p), jnp.asarray(q))) == pytest.approx(known, rel=1e-5)


@pytest.mark.parametrize(
    "task", ["entity_binding(groups=3, members=3, names=8)", "inverse_permutation(n=4, alphabet=4)"]
)
def test_what_binds_nothing_or_too_few_is_refused(drawn_run, task):
    raw = {
        "name": "unbound",
        "task": task,
        "model": {"layers": 1, "width": 4, "heads": 1},
    }
    run = drawn_run(raw)
    with pytest.raises(ConfigError, match="allowed: a task that binds entities in 4 or more groups of equal size"):
        BindingMechanisms().check(Subject(run, run.task.conditions()[0], 4))
