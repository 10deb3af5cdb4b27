"""The task protocol, over every registered task."""

import contextlib
import dataclasses
import functools
import inspect
import itertools
import math
import re
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from toys import Rumours, TwoLists

from positionbias import spec
from positionbias.masks.order import Bidirectional, Causal
from positionbias.replicas import replica_keys
from positionbias.tasks import show
from positionbias.tasks.associative_recall import AssociativeRecall
from positionbias.tasks.base import Batch, Task, batch_axes, find_condition, layout, world_of, worlds

AXIS = "tasks"


def shown(name):
    """The samples that a task's docstring shows: spec, condition (empty for the first) and drawing of each."""
    text = inspect.getdoc(spec.load_member(AXIS, name, AXIS))
    return re.findall(r"^One sample of `(.+?)`(?:, condition (\w+))?:\n\n((?: {4}.*\n?)+)", text, re.MULTILINE)


MORE = {
    "inverse_permutation": [f"inverse_permutation(n=4, alphabet=3, scratch={scratch})" for scratch in (True, 3)],
    "associative_recall": [
        "associative_recall(pairs=4, keys=6, values=3, delays=3, padding=1, shift=2)",
        "associative_recall(pairs=4, keys=6, values=3, queries=2, delays=3, distractors=1)",
        "associative_recall(pairs=4, keys=6, values=3, queries=2, delays=5, gap_power=0.01)",
    ],
}
EXAMPLES = {name: list({given: 0 for given, _, _ in shown(name)}) + MORE.get(name, []) for name in spec.names(AXIS)}
ITEMS = 1024  # that are checked and judged
DRAWN = 8192  # whose slots are counted
KEY = jax.random.key(0)
SECOND = jax.random.split(KEY, DRAWN)[1]  # the key of a batch's example 1
CHANCES, TRACED = (0.0, 0.3), 64  # of arguments that may be traced, and examples that are compared
LEVEL = 1e-4  # of the chi-square tests; seeds are fixed
TILT, PART = 1.5, 1 / 8  # how much too often slots are drawn that have this share of the prior: caught for certain
RULES = {"chance", "majority", "nearest", "order_free"}


def world(task, seed=0):
    """What samples of one replica are made of."""
    return world_of(task, replica_keys(seed, 1)[0])


@functools.cache
def drawn(task):
    """Of each condition, examples of one world, ITEMS of them; and the slots of DRAWN that they are the first of.

    [DRAWN, A] an axis. All conditions are one program, which draws once what they share.
    """

    def draw(key, world):
        found = []
        for condition in task.conditions():
            batch = task.batch(key, condition, DRAWN, world)
            first = jax.tree.map(lambda leaf: leaf[:ITEMS], batch._replace(tokens=()) if task.shared_tokens else batch)
            slots = {"query": batch.query_slot, "evidence": batch.evidence_slot}
            found.append((first._replace(tokens=batch.tokens) if task.shared_tokens else first, slots))
        return found

    found = jax.tree.map(np.asarray, jax.jit(draw)(KEY, world(task)))
    return dict(zip(task.conditions(), found, strict=True))


def sampled(task, condition):
    """Many examples of one world."""
    return drawn(task)[condition][0]


def slots_of(task, condition, axis):
    """Independent slots [DRAWN]: of one answer an item, which is fixed in advance by the item's number."""
    slots = drawn(task)[condition][1][axis]
    return slots[np.arange(DRAWN), np.arange(DRAWN) % slots.shape[1]]


def follow(slots, share):
    """Whether slots are spread as declared, by the chi-square test at LEVEL."""
    counts, kept = np.bincount(slots, minlength=len(share)), share > 0
    if counts[~kept].any():
        return False
    return kept.sum() == 1 or stats.chisquare(counts[kept], len(slots) * share[kept]).pvalue > LEVEL


def judging(task):
    """A function of a batch and a mask: ceilings and baselines of every example, compiled once a length."""

    def judges(example, visible):
        return task.ceiling(example, visible), task.baselines(example, visible)

    judge_all = jax.jit(jax.vmap(judges, in_axes=(batch_axes(0, task.shared_tokens), None)))
    return lambda batch, visible: jax.tree.map(np.asarray, judge_all(batch, jnp.asarray(visible)))


def example_of(task, batch, number):
    """One example of a batch."""
    item = jax.tree.map(lambda leaf: leaf[number], batch._replace(tokens=()) if task.shared_tokens else batch)
    return item._replace(tokens=batch.tokens) if task.shared_tokens else item


def same(one, other):
    """Equal; numbers that are not whole to the last bits, which fusing may change."""
    if np.issubdtype(one.dtype, np.floating):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_array_equal(one, other)


def check_static(task):
    """At most four lengths, conditions of different names; rows and context within the sequence; shapes as declared."""
    conditions = task.conditions()
    assert 1 <= len({task.length(c) for c in conditions}) <= 4
    assert len({c.name for c in conditions}) == len(conditions)
    assert len({hash(c) for c in conditions}) == len(conditions)
    for condition in conditions:
        length = task.length(condition)
        rows = np.asarray(task.query_rows(condition))
        assert 0 <= task.context_length(condition) <= length
        assert len(rows) == len(set(rows.tolist())) > 0
        assert rows.min() >= 0
        assert rows.max() < length
        tokens = task.tokens(condition)
        assert all(isinstance(f, np.ndarray) and f.shape[-1] == length for f in tokens), "tokens() is numpy and [T]"
        assert task.leaks(condition).shape == (length, length)
        assert task.leaks(condition).dtype == bool
        for axis, share in task.prior(condition).items():
            assert axis in ("query", "evidence")
            assert math.isclose(share.sum(), 1, rel_tol=1e-9)
        assert task.slots(condition) == {axis: len(share) for axis, share in task.prior(condition).items()}


def check_samples(task):
    """Shapes and ranges of samples agree with what is declared."""
    for condition in task.conditions():
        batch, length = sampled(task, condition), task.length(condition)
        answers = batch.query.shape[1]
        for array, size in ((batch.inputs, task.input), (batch.targets, task.output)):
            if size.kind == "tokens":
                assert array.shape == (ITEMS, length)
                assert array.dtype == np.int32
                assert array.min() >= 0
                assert array.max() < size.size
            else:
                assert array.shape == (ITEMS, length, size.size)
                assert array.dtype == np.float32
        assert batch.weights.shape == (ITEMS, length)
        assert batch.weights.dtype == np.float32
        assert batch.evidence.shape[:2] == (ITEMS, answers)
        for name in ("query", "order", "distance", "n_distractors", "source", "query_slot", "evidence_slot"):
            assert getattr(batch, name).shape == (ITEMS, answers), name
            assert getattr(batch, name).dtype == np.int32, name
        assert batch.evidence.dtype == np.int32
        assert batch.evidence.min() >= -1
        assert batch.evidence.max() < length
        assert (batch.evidence >= 0).any(axis=-1).all(), "an answer needs at least one evidence position"
        assert batch.source.min() >= -1
        assert batch.source.max() < length
        assert batch.order.min() >= -1
        assert batch.n_distractors.min() >= 0
        for one, other in zip(batch.tokens, task.tokens(condition), strict=True):
            if task.shared_tokens:
                np.testing.assert_array_equal(one, other, "samples carry the tokens that tokens() declares")
            assert one.shape == (() if task.shared_tokens else (ITEMS,)) + (length,), "tokens are shared as declared"
        assert batch.tokens.position.max() <= task.tokens(condition).position.max()


def check_rows(task):
    """Answers stand at query rows only, every query row answers, and only answering rows are weighed."""
    for condition in task.conditions():
        batch = sampled(task, condition)
        assert set(np.unique(batch.query)) == set(np.asarray(task.query_rows(condition)).tolist())
        answering = np.zeros(batch.weights.shape, bool)
        np.put_along_axis(answering, batch.query, True, axis=1)
        assert (batch.weights[~answering] == 0).all(), "weights must be zero outside answering rows"
        assert (batch.weights[answering] == 1).all(), "an answering row weighs 1"
        assert answering.sum() == batch.query.size, "two answers at one row"


def check_distance(task):
    """`distance` runs from the query to an evidence position: the nearest that holds the answer, where one does."""
    far = np.iinfo(np.int32).max
    for condition in task.conditions():
        batch = sampled(task, condition)
        gaps = np.where(batch.evidence >= 0, batch.query[..., None] - batch.evidence, far)
        assert (gaps == batch.distance[..., None]).any(axis=-1).all(), "distance is not to an evidence position"
        if task.input == task.output and task.input.kind == "tokens":
            answer = np.take_along_axis(batch.targets, batch.query, axis=1)[..., None]
            held = np.take_along_axis(batch.inputs[:, None], np.maximum(batch.evidence, 0), axis=-1) == answer
            nearest = np.where(held & (gaps != far) & (gaps >= 0), gaps, far).min(axis=-1)
            if (nearest < far).all():  # else answers are computed, and an operand may equal one by chance
                np.testing.assert_array_equal(batch.distance, nearest, "distance is not to the answer")


def check_order(task):
    """Ranks of orders count from 0."""
    ranks = np.unique(np.concatenate([sampled(task, condition).order.reshape(-1) for condition in task.conditions()]))
    ranks = ranks[ranks >= 0]
    np.testing.assert_array_equal(ranks, np.arange(len(ranks)), "an order that never comes has a rank")


def check_leaks(task):
    """`leaks` covers every `source`, the source holds the target, and nothing is declared that never occurs."""
    for condition in task.conditions():
        batch, declared = sampled(task, condition), task.leaks(condition)
        seen = np.zeros_like(declared)
        item, answer = np.nonzero(batch.source >= 0)
        rows, sources = batch.query[item, answer], batch.source[item, answer]
        seen[rows, sources] = True
        np.testing.assert_array_equal(seen, declared, "leaks() is not where sources are")
        if item.size:  # inputs and targets may differ in kind where nothing leaks
            np.testing.assert_array_equal(batch.inputs[item, sources], batch.targets[item, rows])


def check_prior(task):
    """Slots follow the declared prior."""
    for condition in task.conditions():
        for axis, share in task.prior(condition).items():
            slots = drawn(task)[condition][1][axis]
            assert slots.min() >= 0
            assert slots.max() < len(share)
            assert follow(slots_of(task, condition, axis), share), axis


def check_a_tilted_sampler_is_caught(task):
    """On every axis: of the samples, those whose slots come first and have PART of the prior, TILT times as often."""
    random = np.random.default_rng(0)
    for condition in task.conditions():
        for axis, share in task.prior(condition).items():
            if (share > 0).sum() > 1:
                slots = slots_of(task, condition, axis)
                last = np.searchsorted(np.cumsum(share), PART - 1e-6)
                weight = np.where(slots <= last, TILT, 1.0)
                tilted = random.choice(slots, DRAWN, p=weight / weight.sum())
                assert not follow(tilted, share), f"{condition.name}: {axis}"


def commonest(batch):
    """The share of these very items in which the commonest answer of the row is right."""
    rows, answers = batch.query.reshape(-1), np.take_along_axis(batch.targets, batch.query, axis=1).reshape(-1)
    return sum(np.bincount(answers[rows == row]).max() for row in np.unique(rows)) / len(rows)


def check_judges(task):
    """Ceilings and baselines are probabilities; seeing more never lowers the mean ceiling, no rule beats it."""
    judged, blind = judging(task), []
    assert set(task.no_baselines) <= {"majority", "nearest"}, "the others are there for any task"
    for condition in task.conditions():
        batch, tokens = sampled(task, condition), task.tokens(condition)
        nothing = np.zeros((task.length(condition),) * 2, bool)
        masks = [nothing, Causal().dense(tokens, tokens), Bidirectional().dense(tokens, tokens)]
        means, unknown = [], False
        for visible in masks:
            ceiling, baselines = judged(batch, visible)
            assert ceiling.shape == batch.query.shape
            if np.isnan(ceiling).all():  # no ideal observer is known: rules are held against certainty
                ceiling, unknown = np.ones_like(ceiling), True
            assert ceiling.min() >= 0
            assert ceiling.max() <= 1 + 1e-6
            means.append(ceiling.mean())
            assert set(baselines) & RULES == RULES - set(task.no_baselines)
            for name, value in baselines.items():
                assert value.shape == batch.query.shape, name
                assert value.min() >= 0
                assert value.max() <= 1 + 1e-6
                if name == "majority" and condition != task.conditions()[0]:
                    continue  # the observer knows what training asks for: one part of it may suit its commonest answer
                above = (value - ceiling).mean(axis=1)  # of an item: a rule's hits scatter around what they come to
                error = above.std() / math.sqrt(ITEMS)
                assert above.mean() <= 4 * error + 1e-6, f"{name} beats the ceiling"
        assert means[0] <= means[1] + 1e-6
        assert means[1] <= means[2] + 1e-6
        if task.output.kind == "tokens" and not unknown:
            blind.append((means[0], commonest(batch)))
    if blind:  # in the mean over conditions, some of which an observer may not tell apart
        ceiling, guess = np.mean(blind, axis=0)
        assert ceiling <= guess + 4 * math.sqrt(guess / ITEMS), "who sees nothing has one answer a row to say"


def check_pure(task):
    """The same key gives the same example of the same world, in a batch or alone; another key another."""
    own = world(task)
    jax.tree.map(np.testing.assert_array_equal, own, world(task))
    if one := jax.tree.leaves(worlds(task, replica_keys(0, 1))):
        pairs = zip(one, jax.tree.leaves(worlds(task, replica_keys(1, 1))), strict=True)
        assert not all(np.array_equal(one, other) for one, other in pairs), "the world does not depend on its key"
    # Traced a second time and without a leading dimension: whatever is not of the key comes out otherwise.
    alone = jax.jit(lambda key: [task.sample(key, condition, own) for condition in task.conditions()])(SECOND)
    for condition, single in zip(task.conditions(), alone, strict=True):
        batch = sampled(task, condition)
        assert not (batch.inputs == batch.inputs[:1]).all()
        jax.tree.map(same, example_of(task, batch, 1), single)


def allowed(task, name):
    """The task with other values of an argument that may be traced, without those that it refuses."""
    for value in CHANCES:
        with contextlib.suppress(spec.ConfigError):
            other = dataclasses.replace(task, **{name: value})
            if layout(other) == layout(task):
                yield value, other


def check_traced(task):
    """With a traced argument the task samples what it does with that value, to the bit, and judges alike."""
    if not task.traced:
        return
    condition, own = task.conditions()[0], world(task)
    visible = jnp.ones((task.length(condition),) * 2, bool)

    def drawn(task, key, own):
        batch = task.batch(key, condition, TRACED, own)
        judge = jax.vmap(lambda item: task.baselines(item, visible), in_axes=(batch_axes(0, task.shared_tokens),))
        return batch, judge(batch)

    for name in task.traced:
        assert typing.get_type_hints(type(task))[name] is float
        values, others = zip(*allowed(task, name), strict=True)
        traced = jax.jit(lambda value, n=name: drawn(task.with_traced({n: value}), KEY, own))
        constant = jax.jit(lambda o=others: [drawn(other, KEY, own) for other in o])()
        for value, other, found in zip(values, others, constant, strict=True):
            batch, judged = traced(jnp.float32(value))
            jax.tree.map(np.testing.assert_array_equal, batch, found[0])
            jax.tree.map(same, judged, found[1])
            jax.tree.map(np.testing.assert_array_equal, own, world(other))


CHECKS = [
    check_static,
    check_samples,
    check_rows,
    check_distance,
    check_order,
    check_leaks,
    check_prior,
    check_a_tilted_sampler_is_caught,
    check_judges,
    check_pure,
    check_traced,
]


@pytest.mark.parametrize("check", CHECKS)
def test_protocol(built, check):
    check(built)


@pytest.mark.parametrize("slots", [2, 8, 64])
def test_the_prior_check_is_sharp_enough(slots):
    """A sampler tilted so passes less than once in a million, of samples drawn anew from one of its own batches too."""
    gain = PART * (1 - PART) * (TILT - 1) ** 2 / (1 + PART * (TILT - 1)) ** 2
    limit = stats.chi2.isf(LEVEL, slots - 1)
    assert stats.ncx2.cdf(limit, slots - 1, DRAWN * gain) < 1e-6
    # Drawn anew from counts that scatter themselves: twice the variance.
    assert stats.ncx2.cdf(limit / 2, slots - 1, DRAWN * gain / 2) < 1e-6


NAMES = spec.names(AXIS)
FEW = [name if i % 4 == 0 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(NAMES)]


@pytest.mark.parametrize("name", FEW)
def test_a_sample_is_the_same_traced_or_not(name):
    task = spec.build(AXIS, EXAMPLES[name][0], "example")
    condition = task.conditions()[0]
    plain = task.sample(SECOND, condition, world(task))
    jax.tree.map(same, example_of(task, sampled(task, condition), 1), plain)


def test_text_round_trips(built):
    assert spec.build("tasks", spec.canonical(built), "task") == built
    assert hash(built) is not None


def test_is_documented(built):
    assert type(built).__doc__.strip().splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", spec.names(AXIS))
def test_the_docstring_shows_a_sample(name):
    assert shown(name), "write: One sample of `NAME(...)`: and what positionbias.tasks.show draws"
    for given, condition, lines in shown(name):
        task = spec.build(AXIS, given, "docstring")
        chosen = find_condition(task, condition, "docstring") if condition else task.conditions()[0]
        wanted = show.drawn(task, show.sampled(task, chosen))
        assert [line[4:].rstrip() for line in lines.splitlines()] == wanted


# ------------------------------------------------------------------------------------- the suite catches mistakes


class Small(AssociativeRecall):
    """A right task, and the base of the broken ones."""

    def __init__(self):
        super().__init__(pairs=3, keys=4, values=3, delays=2, shift=0)


class Edits(Small):
    """Changes a field of a right sample."""

    def sample(self, key, condition, world=()):
        item = super().sample(key, condition)
        return item._replace(**self.edit(item))


def broken(name, edit=None, **members):
    """A task class that breaks one promise."""
    return type(
        name, (Edits if edit else Small,), {**members, **({"edit": lambda self, item: edit(item)} if edit else {})}
    )


def without(name):
    """Baselines that lack one."""

    def baselines(self, item, visible):
        return {rule: value for rule, value in Small.baselines(self, item, visible).items() if rule != name}

    return baselines


def half(task):
    """The chance where it is a number, else a half."""
    return task.wrong if isinstance(task.wrong, float) else 0.5


class Forgets(Rumours):
    """Draws by another chance if it is traced."""

    def sample(self, key, condition, world=()):
        return dataclasses.replace(Rumours(), wrong=half(self)).sample(key, condition, world)


CALLS = itertools.count()
BROKEN = [
    (
        broken("FavoursASlot", prior=lambda self, c: {"query": np.array([0.7, 0.3]), "evidence": np.full(3, 1 / 3)}),
        check_prior,
    ),
    (broken("WeighsEverything", lambda item: {"weights": jnp.ones_like(item.weights)}), check_rows),
    (broken("HidesALeak", lambda item: {"source": item.evidence[:, 1]}), check_leaks),
    (broken("DeclaresALeak", leaks=lambda self, c: np.ones((self.length(c),) * 2, bool)), check_leaks),
    (broken("TargetOutOfRange", lambda item: {"targets": item.targets + 8}), check_samples),
    (broken("WrongDistance", lambda item: {"distance": item.distance + 5}), check_distance),
    (broken("DistanceToTheKey", lambda item: {"distance": item.distance + 1}), check_distance),
    (broken("RanksWithHoles", lambda item: {"order": item.order + 3}), check_order),
    (broken("WeighsSeven", lambda item: {"weights": 7 * item.weights}), check_rows),
    (broken("EvidenceOutside", lambda item: {"evidence": item.evidence + 40}), check_samples),
    (broken("MovesTokens", lambda item: {"tokens": item.tokens._replace(index=item.tokens.index + 1)}), check_samples),
    (broken("WrongLength", lambda item: {"inputs": item.inputs[:-1]}), check_samples),
    (broken("FloatInputs", lambda item: {"inputs": item.inputs.astype(jnp.float32)}), check_samples),
    (broken("AnswersElsewhere", query_rows=lambda self, c: np.array([0, 1])), check_rows),
    (broken("CeilingOfTwo", ceiling=lambda self, item, visible: jnp.full(1, 2.0)), check_judges),
    (broken("CeilingOfOne", ceiling=lambda self, item, visible: jnp.ones(1)), check_judges),
    (broken("CeilingTooLow", ceiling=lambda self, item, visible: jnp.full(1, 0.1)), check_judges),
    (broken("CeilingABitTooLow", ceiling=lambda self, item, v: 0.97 * Small.ceiling(self, item, v)), check_judges),
    (broken("NoOrderFree", baselines=without("order_free")), check_judges),
    (broken("NoNearest", baselines=without("nearest")), check_judges),
    (broken("SaysWhyButHasIt", no_baselines={"nearest": "there is one"}), check_judges),
    (broken("SaysWhyNoChance", baselines=without("chance"), no_baselines={"chance": "left out"}), check_judges),
    (broken("FiveConditions", conditions=lambda self: Small.conditions(self) * 5), check_static),
    (broken("CountsItsCalls", lambda item: {"inputs": item.inputs + next(CALLS)}), check_pure),
    (Forgets, check_traced),
    (type("JudgesOtherwise", (Rumours,), {"baselines": lambda task, *_: {"chance": half(task)}}), check_traced),
    (type("ItsWorldToo", (Rumours,), {"world": lambda task, key: {"number": jnp.full(4, task.wrong)}}), check_traced),
    (broken("NoRandomness", lambda item: {"inputs": jnp.ones_like(item.inputs)}), check_pure),
]


@pytest.mark.parametrize("task", [Small(), TwoLists()], ids=["shared tokens", "tokens of its own"])
def test_a_right_task_passes(task):
    for check in CHECKS:
        check(task)


def test_a_right_task_with_a_traced_argument_passes():
    check_traced(Rumours())


@pytest.mark.parametrize(("task", "check"), BROKEN, ids=lambda value: value.__name__)
def test_a_broken_task_is_caught(task, check):
    with pytest.raises(AssertionError):
        check(task())


def test_a_new_field_of_batch_needs_a_check_here():
    checked = {"inputs", "targets", "weights", "tokens", "query", "evidence", "order", "distance", "n_distractors"}
    assert set(Batch._fields) == checked | {"source", "query_slot", "evidence_slot"}


# ----------------------------------------------------------------------------------------------- longer contexts

NO_ROOM = {"tree_paths": "labels"}  # the paper has a label for each node of its trees and no more


@pytest.mark.parametrize("name", spec.names(AXIS))
def test_the_default_task_stretches(name):
    task = spec.build(AXIS, name, "task")
    if type(task).stretched is Task.stretched:
        with pytest.raises(spec.ConfigError, match=f"^{name} has no length to stretch"):
            task.stretched(2)
        return
    if name in NO_ROOM:
        with pytest.raises(spec.ConfigError, match=f"^{NO_ROOM[name]} = .* set before training"):
            task.stretched(2)
        task = spec.build(AXIS, f"{name}({NO_ROOM[name]}=256)", "task")
    first = task.conditions()[0]
    for factor in (2, 4):
        longer = task.stretched(factor)
        assert (longer.input, longer.output) == (task.input, task.output), "the vocabulary stays"
        assert longer.conditions()[0].name == first.name
        growth = longer.length(longer.conditions()[0]) / task.length(first)
        assert 0.7 * factor <= growth <= factor + 0.2, "so many times as long, but for the question"
