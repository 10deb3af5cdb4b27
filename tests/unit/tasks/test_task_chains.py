"""Slots of chains: orders by hand, laws against enumeration; and what conditions with paired items share."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from judges import drawn

from positionbias import spec
from positionbias.tasks.chains import arranged, last_slot, order_rank, others_between

SIZES = [(5, 1), (6, 2), (7, 3), (6, 4), (4, 4)]


def test_arranged_shares_out_the_slots_of_each_chain():
    slots = jnp.array([[4, 0, 2], [1, 5, 3]])
    assert arranged(slots, jnp.array([0, 1, 2])).tolist() == [[0, 2, 4], [1, 3, 5]]
    assert arranged(slots, jnp.array([2, 1, 0])).tolist() == [[4, 2, 0], [5, 3, 1]]
    assert arranged(slots, jnp.array([1, 2, 0])).tolist() == [[2, 4, 0], [3, 5, 1]]


def test_order_rank_counts_orders_as_a_dictionary_does():
    found = [int(order_rank(jnp.array(order) * 3 + 1)) for order in itertools.permutations(range(4))]
    assert found == list(range(24))


@pytest.mark.parametrize(("count", "steps"), SIZES)
def test_laws_are_the_enumerated_ones(count, steps):
    sets = list(itertools.combinations(range(count), steps))
    last = np.bincount([max(one) for one in sets], minlength=count) / len(sets)
    between = np.bincount([max(one) - min(one) + 1 - steps for one in sets], minlength=count) / len(sets)
    np.testing.assert_allclose(last_slot(count, steps), last, rtol=1e-12)
    np.testing.assert_allclose(others_between(count, steps), between, rtol=1e-12)


@pytest.mark.parametrize(
    ("given", "items", "names"),
    [
        (
            "multi_hop(hops=2, documents=6, entities=12, relations=3, gaps=[0])",
            "ordered",
            {"random", "forward", "backward"},
        ),
        ("variable_tracking(hops=2, chains=3, names=12, values=5)", "ordered", {"kept", "reversed", "shuffled"}),
        ("common_words(common=3, often=4, others=5, seldom=2, vocabulary=20)", "apart", {"early", "late"}),
    ],
    ids=["multi_hop", "variable_tracking", "common_words"],
)
def test_paired_items_are_the_same_tokens_in_another_order(given, items, names):
    task = spec.build("tasks", given, "task")
    assert {c.name for c in task.conditions() if c.items == items} == names
    for one, other in itertools.combinations(drawn(task, 64, *names).values(), 2):  # of one key
        np.testing.assert_array_equal(np.sort(one.inputs, axis=1), np.sort(other.inputs, axis=1))
        np.testing.assert_array_equal(one.targets, other.targets)
        assert (one.inputs != other.inputs).any()
        if items == "ordered":  # each chain keeps the slots that it has
            rows = [np.sort(batch.evidence.reshape(64, -1), axis=1) for batch in (one, other)]
            np.testing.assert_array_equal(*rows)
