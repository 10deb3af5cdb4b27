"""Rebinding: samples against the rules written out, ceilings against enumeration of all that may be seen."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from positionbias import spec
from positionbias.evaluation.interventions import rearranged
from positionbias.tasks.base import batch_axes, find_condition
from positionbias.tasks.rebinding import ASKS_ROLE, RULES, Rebinding

ITEMS = 3000
# What becomes of the words a, b, c, d.
BECOMES = {"copy": "abcd", "reverse": "dcba", "rotate": "bcda", "swap": "dbca", "first": "aaaa", "last": "dddd"}
# The rules that the second vocabulary is trained under, in the order of the table.
BOUND = {0: [], 1: ["copy"], 3: ["copy", "reverse", "rotate"]}


def shares_of(name, bound):
    """The probability of every rule under the words of either vocabulary, by the definition."""
    if name == "rebound":
        left = [rule for rule in BECOMES if rule not in BOUND[bound]]
        return {}, dict.fromkeys(left, 1 / len(left))
    if name == "familiar" or not bound:
        return dict.fromkeys(BECOMES, 1 / 6), {}
    return dict.fromkeys(BECOMES, 1 / 12), dict.fromkeys(BOUND[bound], 1 / 2 / bound)


def made(rule, words):
    """What `rule` makes of four words."""
    return [words["abcd".index(letter)] for letter in BECOMES[rule]]


@functools.cache
def drawn(task, name):
    condition = find_condition(task, name, "test")
    return jax.tree.map(np.asarray, jax.jit(lambda key: task.batch(key, condition, ITEMS))(jax.random.key(1)))


@pytest.mark.parametrize(
    ("name", "bound"),
    [("train", 1), ("familiar", 1), ("rebound", 1), ("train", 0), ("rebound", 0), ("train", 3), ("rebound", 3)],
)
def test_a_sample_is_lists_and_what_one_rule_makes_of_them(name, bound):
    task = Rebinding(lists=2, size=4, vocabulary=6, bound=bound)
    batch, counts = drawn(task, name), {}
    for item in range(ITEMS):
        text = batch.inputs[item].reshape(2, 10).tolist()
        lists, results = [row[:4] for row in text], [row[5:9] for row in text]
        assert [(row[4], row[9]) for row in text] == [(0, 1)] * 2
        new = {(word - 2) // 6 for row in lists for word in row}
        assert len(new) == 1
        assert all(len(set(row)) == 4 for row in lists)
        fits = [rule for rule in BECOMES if [made(rule, row) for row in lists] == results]
        assert len(fits) == 1, "no two rules make the same of four different words"
        kind = (*new, fits[0])
        counts[kind] = counts.get(kind, 0) + 1
    expected = {(new, rule): ITEMS * p for new in range(2) for rule, p in shares_of(name, bound)[new].items()}
    assert set(counts) == set(expected)
    assert stats.chisquare([counts[k] for k in expected], list(expected.values())).pvalue > 1e-4


def test_every_word_made_is_asked_for_and_stands_where_the_rule_takes_it_from():
    task = Rebinding(lists=3, size=4, vocabulary=9)
    batch = drawn(task, "train")
    np.testing.assert_array_equal(task.query_rows(task.conditions()[0]), batch.query[0])
    for item in range(50):
        for answer, row in enumerate(batch.query[item]):
            at = batch.evidence[item, answer, 0]
            assert batch.inputs[item, at] == batch.targets[item, row] == batch.inputs[item, batch.source[item, answer]]
            assert batch.source[item, answer] == row + 1
            assert batch.distance[item, answer] == row - at > 0
            assert (row // 10, at // 10, at % 10) == (
                batch.query_slot[item, answer],
                batch.query_slot[item, answer],
                batch.evidence_slot[item, answer],
            )


def test_the_published_rules_are_those_of_the_table():
    for name, rule in RULES.items():
        assert "".join("abcd"[at] for at in rule(4)) == BECOMES[name]
        assert len({tuple(other(8)) for other in RULES.values()}) == len(RULES)


# ------------------------------------------------------------------------------------------------ ceilings


def every_world(task, name):
    """inputs [W, T] and weights [W] of all examples, from the definition."""
    inputs, weights = [], []
    for new, shares in enumerate(shares_of(name, task.bound)):
        names = range(2 + new * task.vocabulary, 2 + (new + 1) * task.vocabulary)
        choices = list(itertools.product(itertools.permutations(names, 4), repeat=task.lists))
        for rule, share in shares.items():
            for lists in choices:
                inputs.append([token for words in lists for token in (*words, 0, *made(rule, words), 1)])
                weights.append(share / len(choices))
    return np.array(inputs, np.int32), np.array(weights)


def enumerated(inputs, weights, targets, row):
    """Per example: the posterior's peak, given the inputs that the row sees."""
    numbers = np.random.default_rng(0).integers(2**62, size=inputs.shape[1])
    view = np.unique((inputs * np.where(row, numbers, 0)).sum(axis=1), return_inverse=True)[1]
    total = np.zeros((view.max() + 1, targets.max() + 1))
    np.add.at(total, (view, targets), weights)
    return (total.max(axis=1) / total.sum(axis=1))[view]


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (Rebinding(lists=1, size=4, vocabulary=5), "train"),
        (Rebinding(lists=1, size=4, vocabulary=4), "rebound"),
        (Rebinding(lists=1, size=4, vocabulary=5, bound=3), "train"),
        (Rebinding(lists=1, size=4, vocabulary=5, bound=0), "train"),
        (Rebinding(lists=2, size=4, vocabulary=4), "familiar"),
        (Rebinding(lists=2, size=4, vocabulary=4), "train"),
    ],
    ids=str,
)
def test_ceiling_is_the_enumerated_posterior(task, name):
    condition = find_condition(task, name, "test")
    inputs, weights = every_world(task, name)
    rows, random = task.query_rows(condition), np.random.default_rng(2)
    some = random.choice(len(inputs), min(300, len(inputs)), replace=False)
    size, batch = inputs.shape[1], drawn(task, name)
    take = functools.partial(np.take, indices=np.zeros(len(some), int), axis=0)
    shared = batch._replace(tokens=None)
    items = jax.tree.map(take, shared)._replace(inputs=jnp.asarray(inputs[some]), tokens=task.tokens(condition))
    judge = jax.jit(jax.vmap(task.ceiling, in_axes=(batch_axes(0, True), None)))
    causal = np.tri(size, dtype=bool)
    views = [
        np.ones((size, size), bool),
        np.zeros((size, size), bool),
        causal,
        causal & ~np.tri(size, k=-6, dtype=bool),
    ]
    views += [random.random((size, size)) < share for share in (0.15, 0.3, 0.5, 0.7)]
    views += [causal & (random.random((size, size)) < share) for share in (0.3, 0.6)]
    for visible in views:
        found = np.asarray(judge(items, jnp.asarray(visible)))
        for answer, row in enumerate(rows):
            wanted = enumerated(inputs, weights, inputs[:, row + 1], visible[row])[some]
            np.testing.assert_allclose(found[:, answer], wanted, rtol=1e-5, err_msg=f"row {row}: {visible[row] * 1}")


def test_demonstrations_tell_the_rule():
    task = Rebinding(lists=3, size=4, vocabulary=9)
    causal, judge = np.tri(30, dtype=bool), jax.jit(task.ceiling)
    for name, first in (("familiar", 1 / 2), ("rebound", 3 / 5)):  # reverse, swap and last begin with the last word
        batch = drawn(task, name)
        one = jax.tree.map(lambda x: x[0], batch._replace(tokens=None))
        one = one._replace(tokens=task.tokens(find_condition(task, name, "test")))
        ceiling = np.asarray(judge(one, jnp.asarray(causal)))
        assert ceiling[0] == pytest.approx(first)
        assert (ceiling[4:] == 1).all(), "a list is enough"


def test_baselines_on_a_literal_item():
    task = Rebinding(lists=1, size=4, vocabulary=4)
    #                 a  b  c  d  :  d  b  c  a  ;   swapped
    inputs = np.array([2, 3, 4, 5, 0, 5, 3, 4, 2, 1], np.int32)
    item = jax.tree.map(lambda x: x[0], drawn(task, "familiar")._replace(tokens=None))
    item = item._replace(inputs=jnp.asarray(inputs), targets=jnp.asarray([0, 0, 0, 0, 5, 3, 4, 2, 0, 0]))
    item = item._replace(tokens=task.tokens(find_condition(task, "familiar", "test")))
    judge = jax.jit(task.baselines)
    rules = judge(item, jnp.tri(10, dtype=bool))
    assert rules["copy"].tolist() == [0, 1, 1, 0]
    assert rules["nearest"].tolist() == [1, 0, 0, 0]
    assert rules["order_free"].tolist() == [0.25, 0, 0.5, 1], "any; d again; a or c, for two differ; a is left"
    unseen = judge(item, jnp.zeros((10, 10), bool))
    assert all((value == 0.25).all() for value in unseen.values())
    either = judge(item._replace(tokens=task.tokens(task.conditions()[0])), jnp.zeros((10, 10), bool))
    assert (either["chance"] == 0.125).all(), "of either vocabulary"
    two = judge(item, jnp.zeros((10, 10), bool).at[:, jnp.array([0, 3])].set(True))
    assert two["order_free"].tolist() == [0.5, 0, 0, 0.5]
    assert two["copy"].tolist() == [0, 0.25, 0.25, 0]


@pytest.mark.parametrize("name", ["train", "familiar", "rebound"])
def test_order_free_is_the_best_that_sees_no_order(name):
    """Against what counting tells of every bag: the own list's, and whether words of the list before were the same."""
    task = Rebinding(lists=2, size=4, vocabulary=5)
    batch, causal = drawn(task, name), jnp.tri(20, dtype=bool)
    judge = jax.jit(jax.vmap(lambda item: task.baselines(item, causal)["order_free"], in_axes=(batch_axes(0, True),)))
    values, cases = np.asarray(judge(batch)), {}
    for words, target, value in zip(batch.inputs, batch.targets, values, strict=True):
        for answer, row in enumerate(task.query_rows(task.conditions()[0])):
            first, turn = 10 * (answer // 4), answer % 4
            used = set(words[first + 5 : first + 5 + turn].tolist())
            before = len(set(words[5:9].tolist())) if first else 0
            case = cases.setdefault((words[0] >= 7, before, turn, len(used)), [])
            repeats = float(target[row] in used)
            case.append((repeats / max(len(used), 1), (1 - repeats) / (4 - len(used)), value[answer]))
    answers = sum(map(len, cases.values()))
    best = sum(max(np.sum(case, axis=0)[:2]) for case in cases.values()) / answers
    found = sum(np.sum(case, axis=0)[2] for case in cases.values()) / answers
    assert found == pytest.approx(best, abs=1e-6)


# -------------------------------------------------------------------------------------------------- layout


def test_moving_lists_moves_how_many_stand_before():
    task = Rebinding(lists=3, size=4, vocabulary=9)
    condition = task.conditions()[0]
    item = jax.jit(lambda key: task.sample(key, condition))(jax.random.key(0))
    moved = jax.jit(lambda item: rearranged(item, jnp.array([2, 0, 1]), task))(item)
    assert moved.query_slot.tolist() == [2] * 4 + [0] * 4 + [1] * 4
    for answer, row in enumerate(moved.query.tolist()):
        assert moved.inputs[row + 1] == moved.targets[row] == moved.inputs[moved.evidence[answer, 0]]
        assert moved.source[answer] == row + 1


def test_the_layout_tells_lists_and_conditions_apart():
    task = Rebinding(lists=2, size=4, vocabulary=9)
    for number, condition in enumerate(task.conditions()):
        tokens = task.tokens(condition)
        assert tokens.segment.tolist() == [1] * 10 + [2] * 10
        assert tokens.role.tolist() == [0, 0, 0, 0, ASKS_ROLE + number, 1, 1, 1, 1, 2] * 2
    assert task.stretched(3) == Rebinding(lists=6, size=4, vocabulary=9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lists=0", "lists = 0 is not allowed; allowed: a whole number from 1 to 32."),
        ("lists=33", "lists = 33 is not allowed; allowed: a whole number from 1 to 32."),
        ("size=3", "size = 3 is not allowed; allowed: a whole number from 4 to 8."),
        ("size=9", "size = 9 is not allowed; allowed: a whole number from 4 to 8."),
        ("bound=-1", "bound = -1 is not allowed; allowed: a whole number from 0 to 5, some rule being left."),
        ("bound=6", "bound = 6 is not allowed; allowed: a whole number from 0 to 5, some rule being left."),
        ("vocabulary=3", "vocabulary = 3 is not allowed; allowed: a whole number from size = 4 to 32767."),
        ("vocabulary=32768", "vocabulary = 32768 is not allowed; allowed: a whole number from size = 4 to 32767."),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("tasks", f"rebinding({text})", "task")
    assert str(error.value) == f"task: {message}"
