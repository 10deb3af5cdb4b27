"""Inverse permutation: the sampler's rule, and ceilings against enumeration."""

import itertools
from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.tasks.base import Batch
from positionbias.tasks.inverse_permutation import InversePermutation


def every_world(task):
    """Every equally likely example: inputs, and the slot and letter of each answer."""
    for order in itertools.permutations(range(task.n)):
        for letters in itertools.product(range(task.n, task.n + task.alphabet), repeat=task.n):
            inputs = [*order, *(letters[i] for i in order)]
            inputs += [task.n + task.alphabet] * task.spare
            yield inputs, [order.index(k) for k in range(task.n)], letters


@pytest.mark.parametrize("scratch", [False, True, 1, 2])
def test_ceiling_is_the_enumerated_posterior(scratch):
    task = InversePermutation(n=3, alphabet=2, scratch=scratch)
    worlds = list(every_world(task))
    size = len(worlds[0][0])
    rows = range(size - 3, size)
    fields = dict.fromkeys(Batch._fields)
    fields.update(
        inputs=jnp.array([inputs for inputs, _, _ in worlds]),
        evidence_slot=jnp.array([slots for _, slots, _ in worlds]),
        query=jnp.array([list(rows)] * len(worlds)),
    )
    judge = jax.jit(lambda batch, visible: jax.vmap(lambda item: task.ceiling(item, visible))(batch))
    random = np.random.default_rng(0)
    for visible in [np.tri(size, dtype=bool)] + [random.random((size, size)) < p for p in (0.3, 0.5, 0.5, 0.8, 0.8)]:
        posterior = defaultdict(Counter)
        views = [
            [(row, tuple(t if visible[row, j] else -1 for j, t in enumerate(inputs))) for row in rows]
            for inputs, _, _ in worlds
        ]
        for view, (_, _, letters) in zip(views, worlds, strict=True):
            for seen, letter in zip(view, letters, strict=True):
                posterior[seen][letter] += 1
        peak = {seen: max(counts.values()) / sum(counts.values()) for seen, counts in posterior.items()}
        wanted = [[peak[seen] for seen in view] for view in views]
        np.testing.assert_allclose(judge(Batch(**fields), jnp.asarray(visible)), wanted, rtol=1e-5)


def test_baselines_on_a_literal_item():
    task = InversePermutation(n=3, alphabet=2)
    item = jax.jit(lambda key: task.sample(key, task.conditions()[0]))(jax.random.key(0))
    #                                         c  a  b  |  b  a  b: the letters of slots c, a and b
    item = item._replace(inputs=jnp.array([2, 0, 1, 4, 3, 4]), targets=jnp.array([0, 0, 0, 3, 4, 4]))
    judge = jax.jit(task.baselines)
    causal = {name: value.tolist() for name, value in judge(item, jnp.tri(6, dtype=bool)).items()}
    assert causal == {
        "chance": [0.5] * 3,
        "majority": [0.5] * 3,
        "nearest": [0, 0, 1],  # the letter of the row itself
        "order_free": [0, 0.5, 1],
    }
    ends = judge(item, jnp.zeros((6, 6), bool).at[:, jnp.array([3, 4])].set(True))
    assert ends["nearest"].tolist() == [0, 0, 0], "b at its own row, then a at its own and at the one before"
    assert all((value == 0.5).all() for value in judge(item, jnp.zeros((6, 6), bool)).values())


@pytest.mark.parametrize(("scratch", "count"), [(False, 0), (True, 5), (0, 0), (2, 2), (5, 5)])
def test_samples_follow_the_rule(scratch, count):
    task = InversePermutation(n=5, alphabet=3, scratch=scratch)
    batch = jax.tree.map(np.asarray, jax.jit(lambda key: task.batch(key, task.conditions()[0], 50))(jax.random.key(0)))
    first = 5 + count
    for b in range(50):
        pointers, string = batch.inputs[b, :5], batch.inputs[b, 5:10]
        letters = batch.targets[b, first:]
        np.testing.assert_array_equal(string, letters[pointers])
        np.testing.assert_array_equal(string[batch.evidence_slot[b]], letters)
        np.testing.assert_array_equal(batch.inputs[b, 10:], [8] * count)
        assert (letters >= 5).all()
        assert (letters < 8).all()
    assert batch.query.tolist() == [list(range(first, first + 5))] * 50
    assert set(np.unique(batch.distance)) == set(range(first - 9, first)), "every distance occurs"


@pytest.mark.parametrize(("name", "value"), [("n", 1), ("n", 1025), ("alphabet", 1), ("alphabet", 65537)])
def test_sizes_out_of_range_are_refused(name, value):
    assert InversePermutation(n=1024, alphabet=65536).n == 1024
    with pytest.raises(spec.ConfigError, match=f"^{name} = {value} is not allowed; allowed: a whole number from 2 to "):
        InversePermutation(**{name: value})


@pytest.mark.parametrize("scratch", [-1, 9])
def test_more_scratch_than_letters_is_refused(scratch):
    allowed = "True, False or a whole number up to 8"
    with pytest.raises(spec.ConfigError, match=f"^scratch = {scratch} is not allowed; allowed: {allowed}"):
        InversePermutation(scratch=scratch)
