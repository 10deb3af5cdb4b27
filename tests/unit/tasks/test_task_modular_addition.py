"""Modular addition: samples against the definition, ceilings against enumeration of every sum."""

import itertools
from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.masks.order import Causal
from positionbias.replicas import replica_keys
from positionbias.tasks.base import worlds
from positionbias.tasks.modular_addition import ModularAddition

TASK = ModularAddition(modulus=5, terms=3, train_share=0.6)


make_worlds = jax.jit(worlds, static_argnums=0)


def world_of(task, seed=0):
    return jax.tree.map(lambda leaf: np.asarray(leaf[0]), make_worlds(task, replica_keys(seed, 1)))


def drawn(task, condition, items, world):
    """A batch without the tokens all items share, numpy."""
    make = jax.jit(lambda key, world: task.batch(key, condition, items, world)._replace(tokens=None))
    return jax.tree.map(np.asarray, make(jax.random.key(0), world))


def sums_of(task, world):
    """Every sum of each condition, by the definition of its class."""
    found = {"train": set(), "held_out": set()}
    trained = set(world["classes"][: round(task.train_share * task.modulus)].tolist())
    for x in itertools.product(range(task.modulus), repeat=task.terms):
        number = sum(int(c) * n for c, n in zip(world["coefficients"], x, strict=True)) % task.modulus
        found["train" if number in trained else "held_out"].add(x)
    return found


@pytest.fixture(scope="module")
def world():
    return world_of(TASK)


@pytest.fixture(scope="module")
def batches(world):
    return {c.name: drawn(TASK, c, 4000, world) for c in TASK.conditions()}


def test_samples_follow_the_definition(batches, world):
    sums = sums_of(TASK, world)
    assert {name: len(those) for name, those in sums.items()} == {"train": 75, "held_out": 50}
    for name, batch in batches.items():
        assert (batch.inputs[:, 3] == 5).all()
        np.testing.assert_array_equal(batch.targets[:, 3], batch.inputs[:, :3].sum(axis=1) % 5)
        assert not batch.targets[:, :3].any()
        assert (batch.weights == [0, 0, 0, 1]).all()
        assert (batch.evidence == [[0, 1, 2]]).all()
        assert (batch.query == 3).all()
        assert (batch.distance == 1).all()
        assert (batch.n_distractors == (2 if name == "train" else 1)).all()
        counts = Counter(map(tuple, batch.inputs[:, :3].tolist()))
        assert set(counts) == sums[name], "every sum of the condition and no other"
        mean = 4000 / len(sums[name])
        assert max(abs(count - mean) for count in counts.values()) < 5 * mean**0.5


@pytest.mark.parametrize("seed", range(8))
def test_classes_leave_sums_even_whatever_is_hidden(seed):
    """The world's coefficients are all different and none is 0, which is what the ceiling stands on."""
    world = world_of(TASK, seed)
    assert len(set(world["coefficients"].tolist())) == 3
    assert world["coefficients"].min() > 0
    assert world["coefficients"].max() < 5
    assert sorted(world["classes"].tolist()) == [0, 1, 2, 3, 4]


def test_replicas_hold_out_different_sums():
    found = [world_of(TASK, seed) for seed in range(6)]
    assert len({frozenset(sums_of(TASK, world)["held_out"]) for world in found}) > 3
    assert len({tuple(world["classes"].tolist()) for world in found}) > 3
    assert len({tuple(world["coefficients"].tolist()) for world in found}) > 2


@pytest.mark.parametrize("name", ["train", "held_out"])
def test_ceiling_is_the_enumerated_posterior(batches, world, name):
    sums, batch = sorted(sums_of(TASK, world)[name]), batches[name]
    judge = jax.jit(jax.vmap(TASK.ceiling, in_axes=(0, None)))
    for size in range(4):
        for seen in itertools.combinations(range(3), size):
            visible = np.zeros((4, 4), bool)
            visible[3, [*seen, 3]] = True
            posterior = defaultdict(Counter)
            for x in sums:
                posterior[tuple(x[i] for i in seen)][sum(x) % 5] += 1
            peak = {view: max(counts.values()) / sum(counts.values()) for view, counts in posterior.items()}
            wanted = [[peak[tuple(x[i] for i in seen)]] for x in batch.inputs[:50].tolist()]
            few = jax.tree.map(lambda leaf: leaf[:50], batch)
            np.testing.assert_allclose(judge(few, jnp.asarray(visible)), wanted, rtol=1e-6, err_msg=str(seen))


def test_baselines_on_a_literal_item(batches):
    item = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), batches["train"])
    item = item._replace(inputs=jnp.array([4, 0, 3, 5]), targets=jnp.array([0, 0, 0, 2]))
    judge = jax.jit(TASK.baselines)

    def right(seen):
        visible = np.zeros((4, 4), bool)
        visible[3, seen] = True
        return {k: v.tolist() for k, v in judge(item, jnp.asarray(visible)).items()}

    fifth = [pytest.approx(0.2)]
    even = {"chance": fifth, "majority": fifth}
    assert right([0, 1, 2, 3]) == {**even, "nearest": [0.0], "order_free": [1.0]}
    assert right([0, 2]) == {**even, "nearest": [0.0], "order_free": [1.0]}
    assert right([1, 2]) == {**even, "nearest": [0.0], "order_free": [0.0]}
    assert right([3]) == {**even, "nearest": fifth, "order_free": [0.0]}
    item = item._replace(inputs=jnp.array([4, 1, 2, 5]))
    assert right([0, 1, 2, 3])["nearest"] == [1.0], "the others add up to the modulus"
    assert right([0, 1, 3])["nearest"] == [0.0]


def test_a_causal_mask_shows_all_operands():
    (condition, _) = TASK.conditions()
    tokens = TASK.tokens(condition)
    assert tokens.segment.tolist() == [1, 2, 3, 0]
    assert tokens.role.tolist() == [0, 0, 0, 1]
    assert Causal().dense(tokens, tokens)[3].all()
    assert [TASK.word(token) for token in range(6)] == ["0", "1", "2", "3", "4", "="]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modulus=3", "modulus = 3 is not allowed; allowed: a prime from 5 to 1009."),
        ("modulus=49", "modulus = 49 is not allowed; allowed: a prime from 5 to 1009."),
        ("modulus=1013", "modulus = 1013 is not allowed; allowed: a prime from 5 to 1009."),
        ("modulus=-7", "modulus = -7 is not allowed; allowed: a prime from 5 to 1009."),
        ("terms=1", "terms = 1 is not allowed; allowed: a whole number from 2 to 16."),
        ("modulus=5, terms=5", "terms = 5 is not allowed; allowed: a whole number from 2 to 4."),
        (
            "train_share=1.0",
            "train_share = 1.0 is not allowed; allowed: a share between 0 and 1 that leaves both conditions a class of"
            " sums.",
        ),
        (
            "modulus=5, train_share=0.05",
            "train_share = 0.05 is not allowed; allowed: a share between 0 and 1 that leaves both conditions a class of"
            " sums.",
        ),
    ],
)
def test_bad_sizes_are_refused(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("tasks", f"modular_addition({text})", "task")
    assert str(error.value) == f"task: {message}"


def test_the_largest_sizes_are_drawn():
    task = ModularAddition(modulus=1009, terms=16)
    condition = task.conditions()[1]
    world = world_of(task)
    batch = drawn(task, condition, 200, world)
    np.testing.assert_array_equal(batch.targets[:, -1], batch.inputs[:, :16].sum(axis=1) % 1009)
    numbers = (batch.inputs[:, :16].astype(np.int64) @ world["coefficients"].astype(np.int64)) % 1009
    assert set(numbers.tolist()) <= set(world["classes"][round(0.7 * 1009) :].tolist()), "nothing overflows"
    assert batch.inputs[:, :16].max() < 1009
