"""Needles in a haystack: samples solved by reading them, places, and ceilings against enumeration."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from positionbias import spec
from positionbias.evaluation.interventions import Permute, rearranged
from positionbias.tasks.base import Batch
from positionbias.tasks.needle import Needle

COUNT = 8000


@functools.cache
def drawn(given):
    """COUNT samples of each condition of a task, made by one program."""
    task = spec.build("tasks", given, "task")
    made = jax.jit(lambda key: {c.name: task.batch(key, c, COUNT) for c in task.conditions()})(jax.random.key(0))
    return jax.tree.map(np.asarray, made)


# ------------------------------------------------------------------------------------------------ ceilings

NOISE, MARKER = 0, 1  # where there is one noise token
TINY = {
    "one value a key": Needle(keys=3, queries=2, depths=4, cell=4, key_tokens=3, value_tokens=2, noise_tokens=1),
    "names to spare": Needle(keys=2, depths=3, cell=5, key_tokens=4, value_tokens=2, noise_tokens=1),
    "one key": Needle(keys=1, values=3, depths=5, cell=4, key_tokens=1, value_tokens=2, noise_tokens=1),
    "two of each": Needle(keys=2, values=2, depths=5, cell=4, key_tokens=2, value_tokens=2, noise_tokens=1),
    "made of needles": Needle(
        keys=2, values=2, queries=2, depths=4, cell=4, key_tokens=2, value_tokens=2, noise_tokens=1
    ),
}


def sets(cells, keys, values):
    """Every way to give each key its own cells."""
    if keys == 0:
        yield []
        return
    for mine in itertools.combinations(cells, values):
        for others in sets([cell for cell in cells if cell not in mine], keys - 1, values):
            yield [mine, *others]


def every_world(task):
    """Inputs [W, T], rows that answer [A], their targets [W, A] and cells [W, A] of every equally likely example."""
    first_value = 2 + task.key_tokens
    first_number = first_value + task.value_tokens
    worlds, total = [], task.keys * task.values
    for cells in sets(range(task.depths), task.keys, task.values):
        for offsets in itertools.product(range(task.cell - 2), repeat=total):
            starts = [cell * task.cell + offset for cell, offset in zip(np.ravel(cells), offsets, strict=True)]
            for names in itertools.permutations(range(2, first_value), task.keys):
                for contents in itertools.product(range(first_value, first_number), repeat=total):
                    haystack = [NOISE] * (task.depths * task.cell)
                    for needle, (start, content) in enumerate(zip(starts, contents, strict=True)):
                        haystack[start : start + 3] = MARKER, names[needle // task.values], content
                    orders = itertools.permutations(range(task.values))
                    for asked in itertools.product(list(orders), repeat=task.queries):
                        question, rows, answers = [], [], []
                        for name, (key, order) in zip(names, enumerate(asked), strict=False):
                            question.append(name)
                            for number in order:
                                if task.values > 1:
                                    question.append(first_number + number)
                                rows.append(len(haystack) + len(question) - 1)
                                needle = key * task.values + number  # a key's cells are in ascending order
                                answers.append((contents[needle], np.ravel(cells)[needle]))
                        worlds.append((haystack + question, rows, answers))
    inputs, rows, answers = (np.array(each) for each in zip(*worlds, strict=True))
    return inputs, rows[0], answers[..., 0], answers[..., 1]


def as_batch(task, inputs, rows, targets):
    """The fields of a batch that ceilings and baselines read."""
    fields = dict.fromkeys(Batch._fields)
    said = np.zeros_like(inputs)
    said[:, rows] = targets
    shape = targets.shape
    fields |= {"inputs": inputs, "targets": said, "query": np.broadcast_to(rows, shape)}
    fields["evidence"] = np.zeros((*shape, task.values + 1), np.int32)
    fields["n_distractors"] = np.full(shape, task.keys * task.values - 1)
    return Batch(**{name: None if value is None else jnp.asarray(value) for name, value in fields.items()})


def judging(judge):
    return jax.jit(lambda batch, visible: jax.vmap(lambda item: judge(item, visible))(batch))


def enumerated_ceiling(inputs, rows, targets, visible):
    """Per world and answer: the posterior's peak, given the row and the inputs it sees."""
    found, weights = np.empty(targets.shape), np.random.default_rng(0).integers(2**62, size=inputs.shape[1])
    for answer, row in enumerate(rows):
        hashed = (inputs * np.where(visible[row], weights, 0)).sum(axis=1)  # two views share one never, or nearly
        _, view = np.unique(hashed, return_inverse=True)
        counts = np.zeros((view.max() + 1, targets.max() + 1))
        np.add.at(counts, (view.ravel(), targets[:, answer]), 1)
        found[:, answer] = (counts.max(axis=1) / counts.sum(axis=1))[view.ravel()]
    return found


@pytest.mark.parametrize("name", TINY)
def test_ceiling_is_the_enumerated_posterior(name):
    task = TINY[name]
    inputs, rows, targets, _ = every_world(task)
    some = np.random.default_rng(1).choice(len(inputs), 512, replace=False) if len(inputs) > 512 else slice(None)
    batch, judge = as_batch(task, inputs[some], rows, targets[some]), judging(task.ceiling)
    random = np.random.default_rng(0)
    size, context = inputs.shape[1], task.depths * task.cell
    asks = np.arange(size) >= context
    cases = [np.tri(size, dtype=bool), np.zeros((size, size), bool), np.tri(size, dtype=bool) & asks]
    cases += [np.tri(size, k=-1, dtype=bool), np.tri(size, dtype=bool) & ~np.tri(size, k=-2 * task.cell, dtype=bool)]
    cases += [random.random((size, size)) < share for share in (0.2, 0.4, 0.6, 0.8)]
    # Rows that see every question and little else, and rows that see a token a cell.
    cases += [asks | (random.random((size, size)) < share) for share in (0.15, 0.3, 0.5)]
    cases += [np.tile(asks | (np.arange(size) % task.cell == offset), (size, 1)) for offset in (0, 1, 2)]
    for visible in cases:
        wanted = enumerated_ceiling(inputs, rows, targets, visible)[some]
        np.testing.assert_allclose(judge(batch, jnp.asarray(visible)), wanted, rtol=2e-5, err_msg=str(visible * 1))


def test_counting_the_ways_of_a_large_haystack_neither_overflows_nor_vanishes():
    task = Needle(keys=28, values=8, depths=256, cell=24)
    condition = task.conditions()[0]
    item = jax.jit(lambda key: task.sample(key, condition))(jax.random.key(0))
    size, context = task.length(condition), task.context_length(condition)
    haystack = np.asarray(item.inputs[:context])
    (starts,) = np.nonzero(haystack == task.noise_tokens)
    # The key of the first needle is asked for: it must be the first of its values, wherever the others are.
    item = item._replace(inputs=item.inputs.at[context].set(haystack[starts[0] + 1]))
    asks = np.arange(size) >= context
    first = asks.copy()
    first[: starts[0] + 3] = True
    # All but the needles is seen, which leaves a place a needle, and many places in one cell that has none.
    around = np.ones(size, bool)
    around[(starts[1:, None] + np.arange(3)).ravel()] = False
    cell = min(set(range(starts[0] // 24 + 1, 256)) - set((starts // 24).tolist()))
    around[24 * cell : 24 * (cell + 1)] = False
    judge = jax.jit(task.ceiling)
    answer = int(np.argmin(item.inputs[item.query]))
    for seen in (first, around):
        ceiling = judge(item, jnp.asarray(np.broadcast_to(seen, (size, size))))
        np.testing.assert_allclose(ceiling[answer], 1, rtol=1e-4)


# ------------------------------------------------------------------------------------------------- samples

ONE = "needle(keys=2, depths=4, cell=5, key_tokens=5, value_tokens=4, noise_tokens=2)"
SIZES = [
    ONE,
    "needle(keys=3, values=2, queries=2, depths=8, cell=6, key_tokens=5, value_tokens=4, noise_tokens=3)",
    "needle(keys=5, depths=5, cell=3, queries=3, key_tokens=5, value_tokens=2, noise_tokens=1)",
]


def read(task, item):
    """Needles (row, key, value) as they stand, and the questions (row, key, number), from the words of an example."""
    words = task.words(np.asarray(item.inputs), task.input)
    context = task.depths * task.cell
    needles = [(row, words[row + 1], words[row + 2]) for row in range(context) if words[row] == "!"]
    noise = [row for row in range(context) if words[row].startswith("~")]
    assert len(noise) + 3 * len(needles) == context
    questions, key = [], None
    for row in range(context, len(words)):
        if words[row].startswith("#"):
            questions.append((row, key, int(words[row][1:]) - 1))
        else:
            key = words[row]
            if task.values == 1:
                questions.append((row, key, 0))
    return needles, questions


@pytest.mark.parametrize("given", SIZES)
def test_reading_a_sample_gives_its_answers_and_where_they_lie(given):
    task = spec.build("tasks", given, "task")
    for condition in task.conditions():
        batch = drawn(given)[condition.name]._replace(tokens=None)
        keys, values, queries = (condition[name] for name in ("keys", "values", "queries"))
        for b in range(40):
            item = jax.tree.map(lambda x, b=b: x[b], batch)
            needles, questions = read(task, item)
            assert len(needles) == keys * values
            assert len({key for _, key, _ in needles}) == keys
            assert len({row // task.cell for row, _, _ in needles}) == keys * values
            assert all(row // task.cell == (row + 2) // task.cell for row, _, _ in needles)
            assert len(set(questions)) == queries * values
            assert len({key for _, key, _ in questions}) == queries
            said = task.words(item.targets, task.output)
            assert item.weights.nonzero()[0].tolist() == [row for row, _, _ in questions] == item.query.tolist()
            for answer, (row, asked, number) in enumerate(questions):
                hers = [(at, value) for at, key, value in needles if key == asked]
                assert len(hers) == values
                at, value = hers[number]
                assert said[row] == value
                wanted = [one + 1 for one, _ in hers[: number + 1]] + [-1] * (values - number - 1) + [at + 2]
                assert item.evidence[answer].tolist() == wanted
                assert item.distance[answer] == row - at - 2
                assert item.evidence_slot[answer] == at // task.cell
                assert item.query_slot[answer] == answer
            assert item.n_distractors.tolist() == [keys * values - 1] * len(questions)
            assert item.source.tolist() == [-1] * len(questions)
            assert item.order.tolist() == [0] * len(questions)


def test_conditions_are_those_of_ruler_that_differ():
    def grid(**given):
        task = Needle(**given)
        return {
            c.name: (*dict(c.settings).values(), task.length(c) - task.context_length(c)) for c in task.conditions()
        }

    assert grid() == {"train": (4, 1, 1, 1), "single": (1, 1, 1, 1)}
    assert grid(keys=1) == {"train": (1, 1, 1, 1)}
    assert grid(keys=4, values=2, queries=3) == {
        "train": (4, 2, 3, 9),
        "single": (1, 1, 1, 2),
        "multi_key": (4, 1, 1, 2),
        "multi_value": (1, 2, 1, 3),
        "multi_query": (3, 1, 3, 6),
    }
    assert grid(keys=10) == {"train": (10, 1, 1, 1)}


def test_the_layout_says_where_cells_end_and_what_each_row_asks():
    task = Needle(keys=1, values=2, depths=3, cell=4)
    tokens = task.tokens(task.conditions()[0])
    assert tokens.segment.tolist() == [1] * 4 + [2] * 4 + [3] * 4 + [0] * 3
    assert tokens.role.tolist() == [0] * 12 + [1, 2, 2]
    task = Needle(keys=2, queries=2, depths=3, cell=4)
    assert task.tokens(task.conditions()[0]).role.tolist() == [0] * 12 + [1, 1]


def test_everything_is_uniform_and_depth_knows_nothing_of_the_question():
    batch = drawn(SIZES[1])["train"]
    for answer in range(4):
        assert stats.chisquare(np.bincount(batch.evidence_slot[:, answer], minlength=8)).pvalue > 1e-4
        number = batch.inputs[np.arange(COUNT), batch.query[:, answer]]
        assert stats.chisquare(np.bincount(number - 13, minlength=2)).pvalue > 1e-4
        values = batch.targets[np.arange(COUNT), batch.query[:, answer]]
        assert stats.chisquare(np.bincount(values - 9, minlength=4)).pvalue > 1e-4
    starts = batch.evidence[:, 0, -1] - 2
    assert stats.chisquare(np.bincount(starts % 6, minlength=4)).pvalue > 1e-4
    assert stats.chisquare(np.bincount(batch.inputs[:, 48] - 4, minlength=5)).pvalue > 1e-4
    noise = batch.inputs[:, :48][batch.inputs[:, :48] < 3]
    assert stats.chisquare(np.bincount(noise, minlength=3)).pvalue > 1e-4


def test_the_uniformity_test_catches_values_asked_in_their_order():
    first = np.sort(drawn(SIZES[1])["train"].evidence_slot[:, :2])[:, 0]
    assert stats.chisquare(np.bincount(first, minlength=8)).pvalue < 1e-4


# --------------------------------------------------------------------------------------------------- moved


def test_needles_may_change_places_where_each_key_has_one():
    task = spec.build("tasks", ONE, "task")
    Permute().check(task, task.conditions()[0])
    place = jnp.array([2, 3, 1, 0])
    batch = drawn(ONE)["train"]
    item = jax.tree.map(lambda x: x[0], batch._replace(tokens=None))._replace(tokens=batch.tokens)
    moved = jax.jit(lambda item: rearranged(item, place, task))(item)
    assert moved.targets.tolist() == item.targets.tolist()
    assert moved.inputs.tolist() != item.inputs.tolist()
    needles, ((row, asked, _),) = read(task, moved)
    ((at, value),) = [(at, value) for at, key, value in needles if key == asked]
    assert task.word(int(moved.targets[row])) == value
    assert moved.evidence.tolist() == [[at + 1, at + 2]]
    assert moved.evidence_slot.tolist() == [at // task.cell]
    assert moved.distance.tolist() == [row - at - 2]
    with pytest.raises(spec.ConfigError, match="has no segments that may stand in any order"):
        Permute().check(Needle(values=2), Needle(values=2).conditions()[0])


def test_stretched_is_a_longer_haystack_of_the_same_tokens():
    assert Needle().stretched(4) == Needle(cell=48)
    assert Needle(keys=10, cell=3).stretched(2) == Needle(keys=20, depths=20, cell=3)
    with pytest.raises(
        spec.ConfigError, match="key_tokens = 64 is not allowed; allowed: a whole number from keys = 80"
    ):
        Needle(keys=10).stretched(8)


# ----------------------------------------------------------------------------------------------- baselines


def test_baselines_on_a_literal_item():
    task = Needle(keys=4, depths=4, cell=3, key_tokens=4, value_tokens=3, noise_tokens=1)
    a, b, c = 6, 7, 8
    inputs = np.array([[1, 2, a, 1, 3, b, 1, 4, a, 1, 5, c, 2]])
    batch = as_batch(task, inputs, np.array([12]), np.array([[a]]))
    judge = judging(task.baselines)

    def right(seen):
        row = np.zeros((13, 13), bool)
        row[12, list(seen)] = True
        return {name: float(value[0, 0]) for name, value in judge(batch, jnp.asarray(row)).items()}

    third = pytest.approx(1 / 3)
    assert right(range(13)) == {"chance": third, "majority": third, "nearest": 0.0, "order_free": 1.0}
    assert right([2, 5, 8]) == {"chance": third, "majority": third, "nearest": 1.0, "order_free": 1.0}
    assert right([2, 5]) == {"chance": third, "majority": third, "nearest": 0.0, "order_free": 0.5}
    assert right([2]) == {"chance": third, "majority": third, "nearest": 1.0, "order_free": 1.0}
    assert right([0, 1, 12]) == {"chance": third, "majority": third, "nearest": third, "order_free": third}


def test_one_needle_takes_no_order():
    batch = drawn(ONE)["single"]
    judge = judging(spec.build("tasks", ONE, "task").baselines)
    found = judge(jax.tree.map(lambda x: x[:16], batch._replace(tokens=None)), jnp.ones((21, 21), bool))
    assert (np.asarray(found["order_free"]) == 1).all()


def test_the_ceiling_of_many_needles_is_known_where_all_is_seen():
    task = Needle(keys=256, queries=64, depths=256, cell=3, key_tokens=256)
    item = jax.jit(lambda key: task.sample(key, task.conditions()[0]))(jax.random.key(0))
    seen, judge = np.ones((832, 832), bool), jax.jit(task.ceiling)
    assert (np.asarray(judge(item, jnp.asarray(seen))) == 1).all()
    seen[768, 5] = seen[769, 769] = False  # a value; which key is asked for
    found = np.asarray(judge(item, jnp.asarray(seen)))
    assert np.isnan(found[:2]).all()
    assert (found[2:] == 1).all()


# ----------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depths=0", "depths = 0 is not allowed; allowed: a whole number from 1 to 256."),
        ("depths=257", "depths = 257 is not allowed; allowed: a whole number from 1 to 256."),
        ("values=0", "values = 0 is not allowed; allowed: a whole number from 1 to 8."),
        ("values=9", "values = 9 is not allowed; allowed: a whole number from 1 to 8."),
        ("values=5, depths=4", "values = 5 is not allowed; allowed: a whole number from 1 to 4."),
        ("keys=0", "keys = 0 is not allowed; allowed: a whole number from 1 to 10, depths // values."),
        (
            "values=3",
            "keys = 4 is not allowed; allowed: a whole number from 1 to 3, depths // values.",
        ),
        ("queries=5", "queries = 5 is not allowed; allowed: 1 to 4, the keys."),
        ("queries=0", "queries = 0 is not allowed; allowed: 1 to 4, the keys."),
        ("cell=2", "cell = 2 is not allowed; allowed: a whole number from 3, the tokens of a needle."),
        ("cell=820", "depths * cell = 8200 is not allowed; allowed: at most 8191, for 1 more ask."),
        (
            "cell=8191, depths=1, keys=1, queries=1, values=1, key_tokens=0",
            "key_tokens = 0 is not allowed; allowed: a whole number from keys = 1 to 65536.",
        ),
        ("key_tokens=3", "key_tokens = 3 is not allowed; allowed: a whole number from keys = 4 to 65536."),
        ("value_tokens=1", "value_tokens = 1 is not allowed; allowed: a whole number from 2 to 65536."),
        ("noise_tokens=0", "noise_tokens = 0 is not allowed; allowed: a whole number from 1 to 65536."),
        ("noise_tokens=65537", "noise_tokens = 65537 is not allowed; allowed: a whole number from 1 to 65536."),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("tasks", f"needle({text})", "task")
    assert str(error.value) == f"task: {message}"


def test_the_longest_sequence_is_allowed():
    longest = Needle(keys=1, depths=1, cell=8191)
    assert longest.length(longest.conditions()[0]) == 8192
