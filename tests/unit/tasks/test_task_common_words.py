"""Common words: samples counted by reading them, where copies stand, and ceilings against enumeration."""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from judges import drawn, enumerated_ceiling, judging
from scipy import stats

from positionbias import spec
from positionbias.evaluation.interventions import Permute, rearranged
from positionbias.tasks import common_words
from positionbias.tasks.base import Batch, find_condition
from positionbias.tasks.common_words import CommonWords

# ------------------------------------------------------------------------------------------------ ceilings

TINY = {
    "two": CommonWords(common=2, often=3, others=2, seldom=1, vocabulary=5),
    "twice at least": CommonWords(common=2, often=3, others=1, seldom=2, vocabulary=4),
    "three, every word used": CommonWords(common=3, often=2, others=2, seldom=1, vocabulary=5),
    "one": CommonWords(common=1, often=3, others=3, seldom=1, vocabulary=6),
}


def arrangements(slots, copies):
    """All different lists of `slots` places with so many `copies` of number 0, 1, ... each."""
    if not copies:
        return [()] if slots == 0 else []
    found = []
    for places in itertools.combinations(range(slots), copies[0]):
        for rest in arrangements(slots - copies[0], copies[1:]):
            others = iter(rest)
            found.append(tuple(0 if place in places else 1 + next(others) for place in range(slots)))
    return found


def every_world(task, place):
    """inputs [W, T] and answers [W, A] of all equally likely examples, from the definition."""
    common, others = [task.often] * task.common, [task.seldom] * task.others
    if place == "shuffled":
        lists = arrangements(sum(common + others), common + others)
    else:
        apart = arrangements(sum(common), common), arrangements(sum(others), others)
        both = [(one, tuple(task.common + word for word in other)) for one, other in itertools.product(*apart)]
        lists = [one + other if place == "early" else other + one for one, other in both]
    lists, inputs, answers = np.array(lists), [], []
    for chosen in itertools.combinations(range(1, task.vocabulary + 1), task.common):
        left = [word for word in range(1, task.vocabulary + 1) if word not in chosen]
        for rest in itertools.combinations(left, task.others):
            told = np.broadcast_to([0, *chosen[:-1]], (len(lists), task.common))
            inputs.append(np.concatenate([np.array(chosen + rest)[lists], told], axis=1))
            answers.append(np.broadcast_to(chosen, (len(lists), task.common)))
    return np.concatenate(inputs).astype(np.int32), np.concatenate(answers).astype(np.int32)


def as_batch(task, inputs, answers, place="shuffled"):
    """The fields of a batch that ceilings and baselines read."""
    (count, length), rows = inputs.shape, answers.shape[1]
    query = np.broadcast_to(np.arange(length - rows, length), (count, rows))
    listed = inputs[:, : length - rows]
    evidence = np.array(
        [[np.flatnonzero(one == word) for word in words] for one, words in zip(listed, answers, strict=True)]
    )
    targets = np.concatenate([np.zeros_like(listed), answers], axis=1)
    fields = dict.fromkeys(Batch._fields)
    fields.update(inputs=inputs, targets=targets, query=query, evidence=evidence)
    made = {name: None if value is None else jnp.asarray(value) for name, value in fields.items()}
    return Batch(**{**made, "tokens": task.tokens(find_condition(task, place, "condition"))})


def sights(length, random):
    """What rows may see [T, T]: everything, nothing, what stands before, its end, random shares."""
    yield np.ones((length, length), bool)
    yield np.zeros((length, length), bool)
    yield np.tri(length, dtype=bool)
    for window in (3, 6):
        yield np.tri(length, dtype=bool) & ~np.tri(length, k=-window, dtype=bool)
    for share in (0.3, 0.6, 0.85):
        yield random.random((length, length)) < share
        yield np.tri(length, dtype=bool) & (random.random((length, length)) < share)


@pytest.mark.parametrize("name", TINY)
def test_ceiling_is_the_enumerated_posterior(name):
    task, judge = TINY[name], judging(TINY[name].ceiling)
    for place in ("shuffled", "early", "late"):
        inputs, answers = every_world(task, place)
        thin = np.resize(np.random.default_rng(1).permutation(len(inputs)), 400)  # one size, compiled once
        batch = as_batch(task, inputs[thin], answers[thin], place)
        for visible in sights(inputs.shape[1], np.random.default_rng(0)):
            found = judge(batch, visible)
            for answer, row in enumerate(range(inputs.shape[1] - task.common, inputs.shape[1])):
                wanted = enumerated_ceiling(inputs, answers[:, answer], visible[row])[thin]
                np.testing.assert_allclose(
                    found[:, answer], wanted, rtol=2e-5, err_msg=f"{place} {row}: {visible[row]}"
                )


def test_ceiling_of_many_words_is_right_or_unknown(monkeypatch):
    monkeypatch.setattr(common_words, "MOST_WEIGHED", 0)
    task = TINY["two"]
    inputs, answers = every_world(task, "shuffled")
    thin = np.random.default_rng(1).permutation(len(inputs))[:400]
    batch, judge, known = as_batch(task, inputs[thin], answers[thin]), judging(task.ceiling), []
    for visible in sights(inputs.shape[1], np.random.default_rng(0)):
        found = judge(batch, visible)
        for answer, row in enumerate(range(inputs.shape[1] - task.common, inputs.shape[1])):
            known.append(~np.isnan(found[:, answer]))
            wanted = enumerated_ceiling(inputs, answers[:, answer], visible[row])[thin]
            np.testing.assert_allclose(found[known[-1], answer], wanted[known[-1]], rtol=2e-5)
    assert np.all(known[4])  # causal
    assert 0.3 < np.mean(known) < 0.9


# ------------------------------------------------------------------------------------------------- samples

SIZES = [
    "common_words(common=4, often=3, others=7, seldom=2, vocabulary=30)",
    "common_words(common=1, often=2, others=1, seldom=1, vocabulary=2)",
    "common_words(common=10, often=6, others=90, seldom=1, vocabulary=100)",
]


def check(task, item, place):
    """Decode an example, count its words, and hold every field to that; `place` None: anywhere."""
    words, said = task.words(np.asarray(item.inputs), task.input), task.words(np.asarray(item.targets), task.output)
    size = task.common * task.often + task.others * task.seldom
    listed, count = words[:size], Counter(words[:size])
    assert sorted(count.values()) == [task.seldom] * task.others + [task.often] * task.common
    ids = {word: int(token) for word, token in zip(listed, item.inputs[:size], strict=True)}
    common = sorted((word for word in count if count[word] == task.often), key=ids.__getitem__)
    assert words[size:] == ["?", *common[:-1]]
    assert said[size:] == common
    block = range(size)
    if place == "early":
        block = range(task.common * task.often)
    if place == "late":
        block = range(task.others * task.seldom, size)
    for answer, word in enumerate(common):
        places = [row for row in range(size) if listed[row] == word]
        assert all(row in block for row in places)
        assert sorted(item.evidence[answer].tolist()) == places
        assert item.distance[answer] == size + answer - places[-1]
        assert item.evidence_slot[answer] == 8 * item.evidence[answer, -1] // size
    assert item.query.tolist() == list(range(size, size + task.common))
    assert item.query_slot.tolist() == list(range(task.common))
    assert item.source.tolist() == [*range(size + 1, size + task.common), -1]
    assert set(item.n_distractors.tolist()) == {task.common + task.others - 1}
    assert set(item.order.tolist()) == {0}


@pytest.mark.parametrize("given", SIZES)
def test_counting_a_sample_gives_its_answers_and_where_they_lie(given):
    task = spec.build("tasks", given, "task")
    for place, batch in drawn(task, 30).items():
        fields = batch._replace(tokens=jax.tree.map(lambda x: np.broadcast_to(x, (30, x.shape[-1])), batch.tokens))
        for b in range(30):
            check(task, jax.tree.map(lambda x, b=b: x[b], fields), place)


def test_common_words_are_drawn_uniformly():
    task = CommonWords(common=2, often=2, others=3, vocabulary=6)
    batch = drawn(task, 3000, "shuffled")["shuffled"]
    pairs = Counter(tuple(row) for row in batch.targets[:, -2:].tolist())
    assert len(pairs) == 15
    assert stats.chisquare(list(pairs.values())).pvalue > 1e-4


class InOrder(CommonWords):
    """Leaves every other list in the order in which words were drawn."""

    def _places(self, key, condition):
        shuffled = super()._places(key, condition)
        count = len(shuffled[0]) + len(shuffled[1])
        plain = jnp.split(jnp.arange(count, dtype=jnp.int32), [len(shuffled[0])])
        return jax.tree.map(lambda a, b: jnp.where(jax.random.bernoulli(key), a, b), tuple(plain), shuffled)


@pytest.mark.parametrize(("kind", "right"), [(CommonWords, True), (InOrder, False)])
def test_the_prior_test_catches_a_biased_sampler(kind, right):
    task = kind(common=2, often=5, others=11, vocabulary=20)
    batch = drawn(task, 3000, "shuffled")["shuffled"]
    share = task.prior(task.conditions()[0])["evidence"]
    np.testing.assert_allclose(share, np.array([3, 3, 2, 3, 3, 2, 3, 2]) / 21)
    counts = np.bincount(batch.evidence_slot[:, 0], minlength=8)
    assert (stats.chisquare(counts, 3000 * share).pvalue > 1e-4) == right


def test_moving_words_moves_their_places():
    task = spec.build("tasks", SIZES[0], "task")
    condition = find_condition(task, "early", "condition")

    @jax.jit
    def moved(key):
        one, other = jax.random.split(key)
        item = task.sample(one, condition)
        return item, rearranged(item, jax.random.permutation(other, task.segments(condition)), task)

    for seed in range(4):
        item, changed = jax.device_get(moved(jax.random.key(seed)))
        shuffled = task.tokens(find_condition(task, "shuffled", "condition")).role
        np.testing.assert_array_equal(changed.tokens.role, shuffled, "who reads it knows nothing of places any more")
        assert changed.targets.tolist() == item.targets.tolist()
        assert changed.inputs.tolist() != item.inputs.tolist()
        check(task, changed, None)
    Permute().check(task, condition)


def test_stretched_is_a_longer_list_of_the_same_words():
    task = CommonWords()
    longer = task.stretched(3)
    assert longer == CommonWords(often=18, seldom=3)
    assert longer.context_length(longer.conditions()[0]) == 3 * task.context_length(task.conditions()[0])


def test_answers_told_to_later_rows_are_declared():
    task = CommonWords(common=3, often=2, others=2)
    assert np.argwhere(task.leaks(task.conditions()[0])).tolist() == [[8, 9], [9, 10]]


# ----------------------------------------------------------------------------------------------- baselines


def test_baselines_of_a_literal_list():
    task = CommonWords(common=3, often=3, others=2, seldom=1, vocabulary=9)
    #       f  b  i  f  a  b  i  i  f  b  c   ?  b  f -> b f i
    text = [6, 2, 9, 6, 1, 2, 9, 9, 6, 2, 3, 0, 2, 6]
    batch, judge = as_batch(task, np.array([text]), np.array([[2, 6, 9]])), judging(task.baselines)

    def right(seen):
        visible = np.tri(14, dtype=bool)
        visible[11:] &= np.isin(np.arange(14), list(seen))
        return {name: value[0].astype(float).round(4).tolist() for name, value in judge(batch, visible).items()}

    ninth = 0.1111
    assert right(range(14)) == {
        "chance": [ninth] * 3,
        "majority": [0, 0, 1],  # a, e and i are the likeliest first, second and third
        "nearest": [0, 0, 0],
        "order_free": [1, 1, 1],
        "any_common": [0.3333, 0.5, 1],
    }
    last = right([0, 3, 6, 7, 9])  # f f i i b, and nothing is seen too often to be another word but f and i
    assert last["nearest"] == [1, 0, 0]
    assert last["order_free"] == [1, 1, 1]
    assert last["any_common"] == [0, 0.5, 0.5]
    assert right([12, 13])["order_free"] == [ninth] * 3
    assert right([12, 13])["any_common"] == [ninth] * 3


def test_majority_is_the_likeliest_word_of_its_place():
    for common, vocabulary in ((2, 5), (3, 8), (4, 9)):
        sets = np.array(list(itertools.combinations(range(vocabulary), common)))
        for number in range(common):
            count = np.bincount(sets[:, number], minlength=vocabulary)
            assert count[min(number * vocabulary // (common - 1), vocabulary - 1)] == count.max()


def test_the_order_free_guess_is_the_ceiling():
    task = CommonWords(common=4, often=6, others=24, vocabulary=48)
    for batch in drawn(task, 64).values():
        visible = np.tri(batch.inputs.shape[1])
        assert (judging(task.ceiling)(batch, visible) == 1).all()
        assert (judging(task.baselines)(batch, visible)["order_free"] == 1).all()


# ----------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("common=0", "common = 0 is not allowed; allowed: a whole number from 1 to 64."),
        ("common=65", "common = 65 is not allowed; allowed: a whole number from 1 to 64."),
        ("others=0", "others = 0 is not allowed; allowed: a whole number from 1 to 65536."),
        ("seldom=0", "seldom = 0 is not allowed; allowed: a whole number from 1 to 8192."),
        ("seldom=6", "often = 6 is not allowed; allowed: a whole number from 7, more than seldom, to 8192."),
        (
            "vocabulary=69",
            "vocabulary = 69 is not allowed; allowed: a whole number from 70, common + others, to 65536.",
        ),
        (
            "others=8123, vocabulary=9000",
            "common * (often + 1) + others * seldom = 8193 is not allowed; allowed: at most 8192 tokens in all.",
        ),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("tasks", f"common_words({text})", "task")
    assert str(error.value) == f"task: {message}"


def test_the_longest_list_is_allowed():
    longest = CommonWords(others=8122, vocabulary=8132)
    assert longest.length(longest.conditions()[0]) == 8192
