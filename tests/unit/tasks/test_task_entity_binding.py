"""Entity binding: samples solved by reading them, the prior, the ceiling by enumeration, and simple rules."""

import functools
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from judges import drawn, enumerated_ceiling, judging_alike
from scipy import stats

from positionbias import spec
from positionbias.evaluation.interventions import Swap
from positionbias.tasks.base import Batch, find_condition
from positionbias.tasks.entity_binding import EntityBinding


def check(task, item, condition):
    """Decode an example, solve it, and hold every field to what was found; returns (named slot, asked slot)."""
    size = task.groups * task.members
    words = task.words(np.asarray(item.inputs), task.input)
    groups = [words[start : start + task.members] for start in range(0, size, task.members)]
    slots = "abcdefgh"[: task.members]
    assert all([word[0] for word in group] == list(slots) for group in groups)
    assert len(set(words[:size])) == size
    mark, name = words[size:]
    ((number, group),) = [(number, group) for number, group in enumerate(groups) if name in group]
    named, asked = slots.index(name[0]), slots.index(mark[0])
    assert mark == slots[asked] + "?"
    assert named != asked
    target = task.words(np.asarray(item.targets), task.output)
    assert target[-1] == group[asked]
    assert np.flatnonzero(item.weights).tolist() == item.query.tolist() == [size + 1]
    assert item.evidence.tolist() == [[number * task.members + named, number * task.members + asked]]
    assert item.order.tolist() == [int(asked < named)]
    if condition in ("before", "after"):
        assert (asked < named) == (condition == "before")
    assert item.distance.tolist() == [size + 1 - number * task.members - asked]
    assert item.n_distractors.tolist() == [task.groups - 1]
    assert item.source.tolist() == [-1]
    assert item.query_slot.tolist() == [asked]
    assert item.evidence_slot.tolist() == [number]
    return named, asked


@pytest.mark.parametrize("task", [EntityBinding(5, 3, 7), EntityBinding(4, 2, 4)], ids=["three", "two"])
def test_reading_a_sample_gives_its_answer_and_where_it_lies(task):
    for condition, batch in drawn(task, 200).items():
        batch = batch._replace(tokens=None)
        pairs = {check(task, jax.tree.map(lambda x, b=b: x[b], batch), condition) for b in range(200)}
        every = itertools.permutations(range(task.members), 2)
        wanted = {(n, a) for n, a in every if condition == "train" or (a < n) == (condition == "before")}
        assert pairs == wanted


def test_tokens_tell_the_groups_apart():
    task = EntityBinding(groups=3, members=2, names=4)
    tokens = task.tokens(task.conditions()[0])
    assert tokens.segment.tolist() == [1, 1, 2, 2, 3, 3, 0, 0]
    assert tokens.role.tolist() == [0, 0, 0, 0, 0, 0, 1, 2]
    assert [task.word(token) for token in range(10)] == ["a?", "b?", "a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"]


def test_prior_counts_pairs():
    task = EntityBinding(groups=4, members=3, names=9)
    prior = {c.name: task.prior(c)["query"].tolist() for c in task.conditions()}
    third = pytest.approx(1 / 3)
    assert prior == {
        "train": [third] * 3,
        "before": [pytest.approx(2 / 3), third, 0],
        "after": [0, third, pytest.approx(2 / 3)],
    }
    assert task.prior(task.conditions()[0])["evidence"].tolist() == [0.25] * 4


class FirstHalf(EntityBinding):
    """Asks for one of the first two groups three times of four."""

    def sample(self, key, condition, world=()):
        one, other = (super(FirstHalf, self).sample(k, condition) for k in jax.random.split(key))
        picked = jax.tree.map(lambda a, b: jnp.where(one.evidence_slot[0] < 2, a, b), one, other)
        return picked._replace(tokens=one.tokens)


@pytest.mark.parametrize(("kind", "right"), [(EntityBinding, True), (FirstHalf, False)])
def test_the_prior_test_catches_a_biased_sampler(kind, right):
    task = kind(groups=4, members=3, names=5)
    batch = drawn(task, 2000)["train"]
    groups = np.bincount(batch.evidence_slot[:, 0], minlength=4)
    assert (stats.chisquare(groups).pvalue > 1e-4) == right
    entities = np.stack([np.bincount(batch.inputs[:, slot] - 3 - 5 * slot, minlength=5) for slot in range(3)])
    assert stats.chisquare(entities, axis=1).pvalue.min() > 1e-4


# --------------------------------------------------------------------------------------------------- judged


@functools.cache
def every_case(task):
    """(chance, inputs, target) of all that training may show, by the definition."""
    n, m, first = task.groups, task.members, task.members
    columns = [
        list(itertools.permutations(range(first + slot * task.names, first + (slot + 1) * task.names), n))
        for slot in range(m)
    ]
    pairs = list(itertools.permutations(range(m), 2))
    cases = []
    for drawn_columns in itertools.product(*columns):
        groups = list(zip(*drawn_columns, strict=True))
        for group, (named, asked) in itertools.product(groups, pairs):
            cases.append(([x for one in groups for x in one] + [asked, group[named]], group[asked]))
    return [(Fraction(1, len(cases)), *case) for case in cases]


def as_batch(cases):
    """The fields that ceilings and baselines read."""
    _, inputs, target = (np.array(column) for column in zip(*cases, strict=True))
    targets = np.zeros_like(inputs)
    targets[:, -1] = target
    fields = dict.fromkeys(Batch._fields)
    fields.update(inputs=inputs, targets=targets, query=np.full((len(cases), 1), inputs.shape[1] - 1))
    return Batch(**{name: None if value is None else jnp.asarray(value) for name, value in fields.items()})


@pytest.mark.parametrize("task", [EntityBinding(2, 2, 3), EntityBinding(3, 2, 3), EntityBinding(2, 3, 2)], ids=str)
def test_ceiling_is_the_enumerated_posterior(task):
    cases = every_case(task)
    batch = as_batch(cases)
    judge, inputs = judging_alike(task.ceiling, batch), np.asarray(batch.inputs)
    answers = np.array([case[-1] for case in cases])  # all cases are equally likely
    for seen in itertools.product([False, True], repeat=inputs.shape[1]):
        wanted = enumerated_ceiling(inputs, answers, seen)
        np.testing.assert_allclose(judge(seen)[:, 0], wanted, rtol=1e-4, err_msg=str(seen))


def test_baselines_on_literal_items():
    task = EntityBinding(groups=3, members=2, names=4)
    #       a0 b3 a2 b1 a3 b0, b? a2 -> b1; entities of a are 2 .. 5, of b 6 .. 9
    text = [2, 9, 4, 7, 5, 6, 1, 4]

    def rules(answer, seen):
        found = judging_alike(task.baselines, as_batch([(1, text, answer)]))(np.isin(np.arange(8), list(seen)))
        assert found["majority"] == found["chance"]
        return [found[name].tolist()[0][0] for name in ("chance", "nearest", "order_free")]

    assert rules(7, range(8)) == [0.25, 0, pytest.approx(1 / 3)]
    assert rules(6, range(8)) == [0.25, 1, pytest.approx(1 / 3)]
    assert rules(7, [0, 1, 2, 3, 6]) == [0.25, 1, 0.5]
    assert rules(6, [0, 1, 2, 3, 6]) == [0.25, 0, 0]
    assert rules(7, [0, 2, 4, 6]) == [0.25, 0.25, 0.25]
    assert rules(7, [*range(6), 7]) == [0.125, 0.125, 0.125]


# ------------------------------------------------------------------------------------------------- the rest


def test_swapped_groups_keep_their_answer():
    task = EntityBinding(groups=4, members=3, names=6)
    condition = find_condition(task, "before", "condition")
    swap = Swap(first=0, second=-1)
    swap.check(task, condition)

    @jax.jit
    def swapped(key):
        item = task.sample(key, condition)
        return item, swap.change(key, item, task, condition)

    for seed in range(8):
        item, changed = jax.device_get(swapped(jax.random.key(seed)))
        assert changed.targets.tolist() == item.targets.tolist()
        place = {0: 3, 3: 0}.get(int(item.evidence_slot[0]), int(item.evidence_slot[0]))
        assert changed.evidence_slot.tolist() == [place]
        check(task, changed, "before")


def test_stretched_has_more_groups_of_the_same_entities():
    assert EntityBinding(groups=4, names=16).stretched(4) == EntityBinding(groups=16, names=16)
    with pytest.raises(spec.ConfigError, match="names = 16 is not allowed; allowed: a whole number from 20"):
        EntityBinding(groups=4, names=16).stretched(5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("members=1", "members = 1 is not allowed; allowed: a whole number from 2 to 26."),
        ("members=27", "members = 27 is not allowed; allowed: a whole number from 2 to 26."),
        ("groups=1", "groups = 1 is not allowed; allowed: a whole number from 2 to 2730, 8192 tokens in all."),
        ("groups=2731", "groups = 2731 is not allowed; allowed: a whole number from 2 to 2730, 8192 tokens in all."),
        (
            "names=19",
            "names = 19 is not allowed; allowed: a whole number from 20,"
            " one for each of the groups, to 21845, 65536 entities in all.",
        ),
        (
            "names=21846",
            "names = 21846 is not allowed; allowed: a whole number from 20,"
            " one for each of the groups, to 21845, 65536 entities in all.",
        ),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("tasks", f"entity_binding({text})", "task")
    assert str(error.value) == f"task: {message}"
