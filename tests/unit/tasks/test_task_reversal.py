"""Reversal: samples against the definition, what training shows, and ceilings against enumeration."""

import itertools
from collections import Counter, defaultdict
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from judges import drawn, judging_alike
from scipy import stats

from positionbias import spec
from positionbias.tasks.base import Batch
from positionbias.tasks.reversal import Reversal, ReversalInContext

FORWARD, BACKWARD = 0, 1
BOTH = "allowed: a whole number from 0 to 7, below pairs = 8, for some must be held out."
TINY = {
    "training": Reversal(pairs=4, both=1),
    "training, no pair both ways": Reversal(pairs=3, both=0),
    "training, with a beginning": Reversal(pairs=3, both=1, begin=True),
    "in context": ReversalInContext(pairs=2, names=2),
    "in context, with names to spare": ReversalInContext(pairs=2, names=3),
}


def stated(task, condition):
    """Every (probability, inputs, query, evidence, direction, slot, target) of the training form, by the definition."""
    n = task.pairs
    forward = [(FORWARD, pair) for pair in range(n)]
    told_backward = [(BACKWARD, pair) for pair in range(task.both)]
    questions = {
        "train": forward + told_backward,
        "forward": forward,
        "backward": told_backward,
        "held_out": [(BACKWARD, pair) for pair in range(task.both, n)],
    }[condition]
    for direction, pair in questions:
        a, b = 2 + pair, 2 + n + pair
        name, answer = (a, b) if direction == FORWARD else (b, a)
        begin = [2 + 2 * n] * task.begin
        row = 1 + task.begin
        inputs = [*begin, name, direction, answer]
        yield Fraction(1, len(questions)), inputs, row, [row, row - 1], direction, 0, answer


def prompted(task, condition):
    """The same of the in-context form."""
    k, n = task.pairs, task.names
    directions = {"train": [FORWARD, BACKWARD], "forward": [FORWARD], "backward": [BACKWARD]}[condition]
    firsts = list(itertools.permutations(range(2, 2 + n), k))
    seconds = list(itertools.permutations(range(2 + n, 2 + 2 * n), k))
    chance = Fraction(1, len(firsts) * len(seconds) * k * len(directions))
    for a, b, slot, direction in itertools.product(firsts, seconds, range(k), directions):
        prompt = [token for pair in zip(a, b, strict=True) for token in (pair[0], FORWARD, pair[1])]
        name, answer = (a[slot], b[slot]) if direction == FORWARD else (b[slot], a[slot])
        evidence = [prompt.index(name), prompt.index(answer)]
        yield chance, [*prompt, direction, name], 3 * k + 1, evidence, direction, slot, answer


def every_case(task, condition):
    """All that may be asked, and how often."""
    return list((stated if isinstance(task, Reversal) else prompted)(task, condition))


def as_batch(cases):
    """The fields that ceilings and baselines read."""
    _, inputs, query, evidence, direction, slot, target = (np.array(column) for column in zip(*cases, strict=True))
    targets = np.zeros_like(inputs)
    targets[np.arange(len(cases)), query] = target
    fields = dict.fromkeys(Batch._fields)
    fields.update(
        inputs=inputs,
        targets=targets,
        query=query[:, None],
        evidence=evidence[:, None],
        query_slot=direction[:, None],
        evidence_slot=slot[:, None],
    )
    return Batch(**{name: None if value is None else jnp.asarray(value) for name, value in fields.items()})


@pytest.mark.parametrize("name", TINY)
def test_samples_follow_the_definition(name):
    task = TINY[name]
    for condition, batch in drawn(task, 6000).items():
        cases = every_case(task, condition)
        assert sum(case[0] for case in cases) == 1
        known = {tuple(case[1]): i for i, case in enumerate(cases)}
        assert len(known) == len(cases)
        inputs = [tuple(row) for row in batch.inputs.tolist()]
        seen = Counter(inputs)
        assert set(seen) <= set(known)
        if len(cases) > 1:
            shares = [6000 * float(case[0]) for case in cases]
            assert stats.chisquare([seen[one] for one in known], shares).pvalue > 1e-4
        which, wanted = np.array([known[one] for one in inputs]), as_batch(cases)
        for field in ("targets", "query", "evidence", "query_slot", "evidence_slot"):
            np.testing.assert_array_equal(getattr(batch, field), np.asarray(getattr(wanted, field))[which], field)
        np.testing.assert_array_equal(batch.distance, batch.query - batch.evidence[..., -1])
        np.testing.assert_array_equal(np.argwhere(batch.weights)[:, 1], batch.query[:, 0])
        assert set(np.unique(batch.weights)) == {0.0, 1.0}
        in_prompt = isinstance(task, ReversalInContext)
        np.testing.assert_array_equal(batch.order, batch.query_slot if in_prompt else 0)
        np.testing.assert_array_equal(batch.source, -1 if in_prompt else 2 + task.begin)


def test_training_never_states_backward_what_is_held_out():
    task = Reversal(pairs=6, both=2)
    shown = {name: set(map(tuple, batch.inputs.tolist())) for name, batch in drawn(task, 500).items()}
    assert not shown["held_out"] & shown["train"]
    assert shown["train"] == shown["forward"] | shown["backward"]
    assert {b for b, _, _ in shown["held_out"]} == {10, 11, 12, 13}
    assert {b for b, _, _ in shown["backward"]} == {8, 9}
    assert " ".join(map(task.word, (0, 1, 2, 7, 8, 13))) == "R R^-1 a0 a5 b0 b5"


@pytest.mark.parametrize(
    ("name", "condition"),
    [(name, c.name) for name, task in TINY.items() for c in task.conditions() if c.name in ("train", "held_out")],
)
def test_ceiling_is_the_enumerated_posterior(name, condition):
    # "forward" and "backward" are parts of "train", and judged by the same observer.
    task = TINY[name]
    cases = every_case(task, condition)
    size = len(cases[0][1])
    judge = judging_alike(task.ceiling, as_batch(cases))
    for seen in itertools.product([False, True], repeat=size):
        views = [tuple(t for t, v in zip(case[1], seen, strict=True) if v) for case in cases]
        posterior = defaultdict(Counter)
        for view, (chance, *_, target) in zip(views, cases, strict=True):
            posterior[view][target] += chance
        peak = {view: float(max(counts.values()) / sum(counts.values())) for view, counts in posterior.items()}
        np.testing.assert_allclose(judge(seen)[:, 0], [peak[view] for view in views], rtol=1e-5, err_msg=str(seen))


def test_a_reader_that_only_looks_up_is_at_chance_where_the_curse_is():
    task = Reversal(pairs=8, both=3)
    found = {}
    for condition in ("forward", "backward", "held_out"):
        batch = as_batch(every_case(task, condition))
        whole = judging_alike(task.baselines, batch)([True, True, False])
        alone = judging_alike(task.baselines, batch)([False, True, False])
        found[condition] = [sorted(set(rule[name][:, 0].tolist())) for rule in (whole, alone) for name in sorted(rule)]
    # With the name: chance, majority, order_free; without it: the same. A name not seen may be any told backward.
    third = [pytest.approx(1 / 3)]
    assert found["forward"] == [[0.125], [0.125], [1.0], [0.125], [0.125], [0.125]]
    assert found["backward"] == [[0.125], third, [1.0], [0.125], third, third]
    assert found["held_out"] == [[0.125], [0.0], [0.125], [0.125], [0.0], [0.125]]


def test_majority_of_reversal_without_direction_or_without_a_pair_told_backward():
    def found(task, condition, seen):
        judge = judging_alike(task.baselines, as_batch(every_case(task, condition)))
        return sorted(set(judge(seen)["majority"].ravel()))

    blind, alone = [False, False, False], [False, True, False]
    assert found(Reversal(pairs=8, both=2), "train", blind) == [pytest.approx(0.1)]
    assert found(Reversal(pairs=8, both=2), "held_out", blind) == [0]
    assert found(Reversal(pairs=8, both=0), "held_out", blind) == [0]
    assert found(Reversal(pairs=8, both=0), "held_out", alone) == [0.125], "no name was ever asked for"


def test_baselines_of_a_prompt():
    task = ReversalInContext(pairs=3, names=8)
    a, b = [2, 3, 4], [12, 11, 10]
    prompt = [2, 0, 12, 3, 0, 11, 4, 0, 10]

    def found(slot, direction, seen):
        name, answer = (a[slot], b[slot]) if direction == FORWARD else (b[slot], a[slot])
        evidence = [prompt.index(name), prompt.index(answer)]
        item = as_batch([(1, [*prompt, direction, name], 10, evidence, direction, slot, answer)])
        rules = judging_alike(task.baselines, item)(np.isin(np.arange(11), seen))
        return [rules[name].tolist()[0][0] for name in ("chance", "majority", "nearest", "order_free")]

    third = pytest.approx(1 / 3)
    everything = range(11)
    assert found(2, FORWARD, everything) == [0.125, 0.125, 1, third]
    assert found(0, BACKWARD, everything) == [0.125, 0.125, 0, third]
    assert found(0, BACKWARD, [0, 3, 9, 10]) == [0.125, 0.125, 0, 0.5]
    assert found(0, BACKWARD, [0, 10]) == [0.125, 0.125, 1, 1], "the name alone tells the direction"
    assert found(0, FORWARD, [9]) == [0.125] * 4
    assert found(0, FORWARD, range(9)) == [0.0625, 0.0625, 0.0625, pytest.approx(1 / 6)]


def test_a_longer_prompt_has_the_same_vocabulary():
    task = ReversalInContext(pairs=4, names=16)
    longer, train = task.stretched(4), task.conditions()[0]
    assert longer == ReversalInContext(pairs=16, names=16)
    assert longer.context_length(train) == 4 * task.context_length(train)
    assert longer.input == task.input == Reversal(pairs=16, both=8).input
    assert [longer.word(token) for token in range(34)] == [
        Reversal(pairs=16, both=8).word(token) for token in range(34)
    ]
    with pytest.raises(spec.ConfigError, match="no length to stretch"):
        Reversal().stretched(2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reversal(pairs=1, both=0)", "pairs = 1 is not allowed; allowed: a whole number from 2 to 32767."),
        ("reversal(pairs=32768)", "pairs = 32768 is not allowed; allowed: a whole number from 2 to 32767."),
        (
            "reversal(pairs=8, both=8)",
            f"both = 8 is not allowed; {BOTH}",
        ),
        (
            "reversal(pairs=8, both=-1)",
            f"both = -1 is not allowed; {BOTH}",
        ),
        ("reversal_in_context(pairs=1)", "pairs = 1 is not allowed; allowed: a whole number from 2 to 2730."),
        (
            "reversal_in_context(pairs=2731, names=4000)",
            "pairs = 2731 is not allowed; allowed: a whole number from 2 to 2730.",
        ),
        (
            "reversal_in_context(pairs=8, names=7)",
            "names = 7 is not allowed; allowed: a whole number from pairs = 8 to 32767.",
        ),
        (
            "reversal_in_context(pairs=8, names=32768)",
            "names = 32768 is not allowed; allowed: a whole number from pairs = 8 to 32767.",
        ),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("tasks", text, "task")
    assert str(error.value) == f"task: {message}"
