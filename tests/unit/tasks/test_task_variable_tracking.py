"""Variable tracking: samples solved by reading them, orders, and ceilings against enumeration."""

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
from positionbias.tasks import variable_tracking
from positionbias.tasks.base import Batch, find_condition
from positionbias.tasks.variable_tracking import VariableTracking
from positionbias.tokens import sequential

# ------------------------------------------------------------------------------------------------ ceilings

TINY = {
    "value": VariableTracking(hops=1, chains=2, names=5, values=3, ask="value", fillers=1),
    "value, two hops": VariableTracking(hops=2, chains=2, names=6, values=2, ask="value"),
    "value, three chains": VariableTracking(hops=1, chains=3, names=6, values=3, ask="value"),
    "names": VariableTracking(hops=1, chains=2, names=6, values=3, fillers=1),
    "names, two hops": VariableTracking(hops=2, chains=2, names=6, values=2),
    "names, one chain": VariableTracking(hops=3, chains=1, names=5, values=2),
}


def every_world(task, order):
    """inputs [W, T] and answers [W, A] of all equally likely examples, fillers in front, from the definition.

    By symmetry the asked chain is the first, and the others begin in their order.
    """
    steps, chains = task.hops + 1, task.chains
    names = np.array(list(itertools.permutations(range(2, 2 + task.names), steps * chains)))
    values = np.array(list(itertools.permutations(range(2 + task.names, task.input.size), chains)))
    names, values = np.repeat(names, len(values), axis=0).reshape(-1, chains, steps), np.tile(values, (len(names), 1))
    blank = np.zeros(len(names), int)
    inputs, answers = [], []
    for layout in set(itertools.permutations(steps * list(range(chains)))):
        if list(dict.fromkeys(chain for chain in layout if chain)) != list(range(1, chains)):
            continue
        text, count = [blank] * task.fillers, [0] * chains
        for chain in layout:
            step = count[chain] if order == "kept" else task.hops - count[chain]
            text += [names[:, chain, step], blank + 1, names[:, chain, step - 1] if step else values[:, chain]]
            count[chain] += 1
        if task.ask == "value":
            for hop in range(steps):
                inputs.append(np.stack([*text, names[:, 0, hop]], axis=1))
                answers.append(values[:, :1])
        else:
            inputs.append(np.stack([*text, values[:, 0], *names[:, 0, :-1].T], axis=1))
            answers.append(names[:, 0])
    return np.concatenate(inputs).astype(np.int32), np.concatenate(answers).astype(np.int32)


def as_batch(task, inputs, answers):
    """The fields of a batch that ceilings and baselines read."""
    (count, length), rows = inputs.shape, answers.shape[1]
    role = np.full(length, 3, np.int32)
    role[task.fillers : length - rows] = [0, 1, 2] * task.statements
    targets = np.zeros_like(inputs)
    targets[:, -rows:] = answers
    evidence = []
    for text in inputs.tolist():
        at = {text[row]: row for row in range(task.fillers, length - rows, 3)}  # where each name is set
        if task.ask == "value":
            here, found = text[-1], []
            while here in at:
                found += [at[here], at[here] + 2]
                here = text[at[here] + 2]
            evidence.append([found + [-1] * (2 * task.steps - len(found))])
        else:
            follows = {text[row + 2]: row for row in at.values()}
            evidence.append([[follows[one] + 2, follows[one]] for one in text[-rows:]])
    fields = dict.fromkeys(Batch._fields)
    query = np.broadcast_to(np.arange(length - rows, length), (count, rows))
    fields.update(inputs=inputs, targets=targets, query=query, evidence=np.array(evidence, np.int32))
    made = {name: None if value is None else jnp.asarray(value) for name, value in fields.items()}
    return Batch(**{**made, "tokens": sequential(length, role=role)})


def sights(task, length, random):
    """What rows may see [T, T]: everything, nothing, what stands before, the end of it, parts at random."""
    yield np.ones((length, length), bool)
    yield np.zeros((length, length), bool)
    yield np.tri(length, dtype=bool)
    for window in (4, 6, 9):
        yield np.tri(length, dtype=bool) & ~np.tri(length, k=-window, dtype=bool)
    rows = length - 3 * task.statements - task.fillers
    asked = np.arange(length) >= length - rows
    statement = (np.arange(length) - task.fillers) // 3
    yield asked & np.tri(length, dtype=bool)
    for share in (0.3, 0.6, 0.85):
        yield random.random((length, length)) < share
        yield asked | (random.random((length, length)) < share)
        yield asked | (random.random((length, length))[:, statement] < share)


@pytest.mark.parametrize("name", TINY)
def test_ceiling_is_the_enumerated_posterior(name):
    task = TINY[name]
    judge = judging(task.ceiling)
    for order in ("kept", "reversed")[: 1 if task.chains > 2 else 2]:
        inputs, answers = every_world(task, order)
        thin = np.random.default_rng(1).permutation(len(inputs))[:300]
        batch = as_batch(task, inputs[thin], answers[thin])
        for visible in sights(task, inputs.shape[1], np.random.default_rng(0)):
            found = judge(batch, visible)
            for answer, row in enumerate(range(inputs.shape[1] - answers.shape[1], inputs.shape[1])):
                wanted = enumerated_ceiling(inputs, answers[:, answer], visible[row])[thin]
                np.testing.assert_allclose(found[:, answer], wanted, rtol=1e-5, err_msg=f"{row}: {visible[row]}")


@pytest.mark.parametrize("name", ["value, two hops", "names, two hops"])
def test_ceiling_without_layouts_is_right_or_unknown(name, monkeypatch):
    monkeypatch.setattr(variable_tracking, "MOST_LAYOUTS", 0)
    task = TINY[name]
    inputs, answers = every_world(task, "kept")
    thin = np.random.default_rng(1).permutation(len(inputs))[:300]
    batch, judge, unknown = as_batch(task, inputs[thin], answers[thin]), judging(task.ceiling), 0
    for visible in sights(task, inputs.shape[1], np.random.default_rng(0)):
        found = judge(batch, visible)
        for answer, row in enumerate(range(inputs.shape[1] - answers.shape[1], inputs.shape[1])):
            known = ~np.isnan(found[:, answer])
            wanted = enumerated_ceiling(inputs, answers[:, answer], visible[row])[thin]
            np.testing.assert_allclose(found[known, answer], wanted[known], rtol=1e-5)
            unknown += np.sum(~known)
    assert unknown > 0


def test_ceiling_of_many_statements_and_of_mixed_orders():
    large = VariableTracking(hops=4, chains=3)
    mixed = VariableTracking(hops=2, chains=2, names=8, values=8, ask="value")
    for task, condition in ((large, "kept"), (mixed, "shuffled")):
        batch, judge = drawn(task, 64, condition)[condition], judging(task.ceiling)
        length = batch.inputs.shape[1]
        assert (judge(batch, np.tri(length)) == 1).all()
        np.testing.assert_allclose(judge(batch, np.zeros((length, length))), 1 / (64 if task is large else 8))
        assert np.isnan(judge(batch, np.tri(length) - np.tri(length, k=-9))).any()


# ------------------------------------------------------------------------------------------------- samples

SIZES = [
    "variable_tracking(hops=4, chains=1, names=5, values=2)",
    "variable_tracking(hops=2, chains=3, names=12, values=5, fillers=9)",
    "variable_tracking(hops=3, chains=2, names=8, values=2, ask='value')",
    "variable_tracking(hops=1, chains=4, names=9, values=6, ask='value', fillers=7)",
]


def check(task, item, order):
    """Decode an example, solve it, and hold every field to what was found; `order` None: any."""
    words, rows = task.words(np.asarray(item.inputs), task.input), len(item.query)
    text, asked = words[:-rows], words[-rows:]
    equals = [row for row, word in enumerate(text) if word == "="]
    statements = [(row - 1, text[row - 1], text[row + 1]) for row in equals]
    assert len(statements) == task.statements
    assert text.count("-") == task.fillers == len(text) - 3 * len(statements)
    content = {name: held for _, name, held in statements}
    setter = {held: (name, slot) for slot, (_, name, held) in enumerate(statements)}
    assert len(content) == len(setter) == task.statements
    start = {name: row for row, name, _ in statements}

    chains = []
    for value in (held for held in setter if held.isdigit()):
        chain, here = [], value
        while here in setter:
            here, slot = setter[here]
            chain.append((here, slot))
        chains.append((value, chain))
        slots = [slot for _, slot in chain]
        assert len(chain) == task.hops + 1
        if order == "kept":
            assert slots == sorted(slots)
        if order == "reversed":
            assert slots == sorted(slots)[::-1]
    assert len(chains) == task.chains

    said = task.words(np.asarray(item.targets), task.output)[-rows:]
    assert item.query.tolist() == list(range(len(text), len(words)))
    ((value, chain),) = [(v, c) for v, c in chains if asked[0] == v or asked[0] in [name for name, _ in c]]
    names, slots = [name for name, _ in chain], [slot for _, slot in chain]

    def ranked(hops):
        rising = [a < b for a, b in itertools.pairwise(slots[: hops + 1])]
        return -1 if not rising or (any(rising) and not all(rising)) else int(not rising[0])

    if task.ask == "value":
        assert said == [value]
        hops = names.index(asked[0])
        needs = [row for name in names[hops::-1] for row in (start[name], start[name] + 2)]
        assert item.evidence.tolist() == [needs + [-1] * (2 * (task.hops - hops))]
        assert item.distance.tolist() == [len(text) - needs[-1]]
        assert item.query_slot.tolist() == [hops]
        assert item.evidence_slot.tolist() == slots[:1]
        assert item.order.tolist() == [ranked(hops)]
        assert item.source.tolist() == [-1]
        assert item.n_distractors.tolist() == [task.chains - 1]
    else:
        assert asked == [value, *names[:-1]]
        assert said == names
        assert item.evidence.tolist() == [[start[name] + 2, start[name]] for name in names]
        assert item.distance.tolist() == [len(text) + hop - start[name] for hop, name in enumerate(names)]
        assert item.query_slot.tolist() == list(range(task.hops + 1))
        assert item.evidence_slot.tolist() == slots
        assert item.order.tolist() == [ranked(hop) for hop in range(task.hops + 1)]
        assert item.source.tolist() == [*(len(text) + hop + 1 for hop in range(task.hops)), -1]
        assert set(item.n_distractors.tolist()) == {task.statements - 1}

    segment, role = np.zeros(len(words), int), np.full(len(words), 3)
    role[len(text) :] = 4
    for slot, row in enumerate(equals):
        segment[row - 1 : row + 2], role[row - 1 : row + 2] = slot + 1, [0, 1, 2]
    if order is None:  # segments keep their numbers where they go
        segment = np.append(0, item.tokens.segment[equals])[segment]
        assert sorted(item.tokens.segment[equals]) == list(range(1, task.statements + 1))
    assert item.tokens.segment.tolist() == segment.tolist()
    assert item.tokens.role.tolist() == role.tolist()
    return slots


@pytest.mark.parametrize("given", SIZES)
def test_reading_a_sample_gives_its_answer_and_where_it_lies(given):
    task = spec.build("tasks", given, "task")
    for order, batch in drawn(task, 40).items():
        tokens = jax.tree.map(lambda x: np.broadcast_to(x, (40, x.shape[-1])), batch.tokens)
        slots = [
            check(task, jax.tree.map(lambda x, b=b: x[b], batch._replace(tokens=tokens)), order) for b in range(40)
        ]
        assert any(one != sorted(one) for one in slots) == (order != "kept")


def test_words_are_drawn_uniformly():
    batch = drawn(VariableTracking(hops=1, chains=2, names=6, values=5), 3000, "kept")["kept"]
    assert stats.chisquare(np.bincount(batch.targets[:, -1], minlength=8)[2:]).pvalue > 1e-4
    assert stats.chisquare(np.bincount(batch.inputs[:, -2], minlength=13)[8:]).pvalue > 1e-4


# -------------------------------------------------------------------------------------------------- places


def enumerated_prior(task, order):
    """The shares of the evidence's slots over every order of the statements."""
    share = np.zeros(task.statements)
    for slots in itertools.permutations(range(task.statements), task.hops + 1):
        if order != "shuffled":
            slots = sorted(slots, reverse=order == "reversed")
        share[list(slots if task.ask == "names" else slots[:1])] += 1
    return share / share.sum()


@pytest.mark.parametrize("ask", ["names", "value"])
def test_prior_is_the_enumerated_one(ask):
    task = VariableTracking(hops=2, chains=3, ask=ask)
    for condition in task.conditions():
        wanted = enumerated_prior(task, condition.name)
        np.testing.assert_allclose(task.prior(condition)["evidence"], wanted, rtol=1e-12)


class OneLayout(VariableTracking):
    """Puts the chains one after another in every other example."""

    def _slots(self, key, condition):
        plain = jnp.arange(self.statements, dtype=jnp.int32).reshape(self.chains, self.steps)
        return jnp.where(jax.random.bernoulli(key), plain, super()._slots(key, condition))


@pytest.mark.parametrize(("kind", "right"), [(VariableTracking, True), (OneLayout, False)])
def test_the_prior_test_catches_a_biased_sampler(kind, right):
    task = kind(hops=1, chains=3, ask="value")
    share = task.prior(task.conditions()[0])["evidence"]
    counts = np.bincount(drawn(task, 3000, "kept")["kept"].evidence_slot[:, 0], minlength=6)
    assert (counts[share == 0] == 0).all()
    assert (stats.chisquare(counts[share > 0], 3000 * share[share > 0]).pvalue > 1e-4) == right


def test_statements_lie_anywhere_among_fillers():
    batch = drawn(VariableTracking(hops=1, chains=2, names=4, values=2, fillers=3), 7000, "kept")["kept"]
    layouts = Counter(tuple(row) for row in (batch.inputs == 0).tolist())
    assert len(layouts) == 35  # places of 3 fillers among 7
    assert stats.chisquare(list(layouts.values())).pvalue > 1e-4


@pytest.mark.parametrize("given", SIZES[1:])
def test_moving_statements_moves_what_is_said_of_them(given):
    task = spec.build("tasks", given, "task")
    condition = find_condition(task, "kept", "condition")

    @jax.jit
    def moved(key):
        one, other = jax.random.split(key)
        item = task.sample(one, condition)
        return item, rearranged(item, jax.random.permutation(other, task.statements), task)

    ceiling = jax.jit(lambda item: task.ceiling(item, jnp.tri(item.inputs.shape[0], dtype=bool)))
    orders = []
    for seed in range(12):
        item, changed = jax.device_get(moved(jax.random.key(seed)))
        assert changed.targets.tolist() == item.targets.tolist()
        check(task, changed, None)
        np.testing.assert_array_equal(ceiling(changed), 1)
        orders += changed.order.tolist()
    assert set(orders) == {-1, 0, 1}
    Permute().check(task, condition)


def test_stretched_is_a_longer_context_of_the_same_words():
    task = VariableTracking(hops=1, chains=4, names=32)
    assert task.stretched(4) == VariableTracking(hops=1, chains=16, names=32)
    far = VariableTracking(hops=1, chains=2, fillers=8)
    assert far.stretched(3) == VariableTracking(hops=1, chains=2, fillers=48)
    assert far.stretched(3).context_length(far.conditions()[0]) == 3 * far.context_length(far.conditions()[0])
    with pytest.raises(spec.ConfigError, match="names = 32 is not allowed; allowed: a whole number from 64"):
        task.stretched(8)


def test_answers_told_to_later_rows_are_declared():
    task = VariableTracking(hops=2, chains=2)
    condition = task.conditions()[0]
    assert np.argwhere(task.leaks(condition)).tolist() == [[18, 19], [19, 20]]
    asks_value = VariableTracking(hops=2, chains=2, ask="value")
    assert not asks_value.leaks(condition).any()


# ----------------------------------------------------------------------------------------------- baselines


def baselines(task, text, answers, seen):
    length, rows = len(text), len(answers)
    visible = np.zeros((length, length), bool)
    visible[-rows:, list(seen)] = True
    visible &= np.tri(length, dtype=bool)
    found = judging(task.baselines)(as_batch(task, np.array([text]), np.array([answers])), visible)
    return {name: value[0].astype(float).round(4).tolist() for name, value in found.items()}


def test_baselines_of_a_literal_value():
    task = VariableTracking(hops=1, chains=3, names=6, values=4, ask="value")
    #       a = 0    b = 1    c = a    d = 2     e = b    f = d   c? -> 0
    text = [2, 1, 8, 3, 1, 9, 4, 1, 2, 5, 1, 10, 6, 1, 3, 7, 1, 5, 4]
    assert baselines(task, text, [8], range(19)) == {
        "chance": [0.25],
        "majority": [0.25],
        "nearest": [0],
        "order_free": [0.3333],
    }
    assert baselines(task, text, [8], [2, 5, 18])["order_free"] == [0.5]
    assert baselines(task, text, [8], [2, 18])["nearest"] == [1]
    assert all(value == [0.25] for value in baselines(task, text, [8], [18]).values())


def test_baselines_of_literal_names():
    task = VariableTracking(hops=1, chains=2, names=5, values=3)
    #       a = 0    b = 1    c = a    d = b    0 a -> a c
    text = [2, 1, 7, 3, 1, 8, 4, 1, 2, 5, 1, 3, 7, 2]
    assert baselines(task, text, [2, 4], range(14)) == {
        "chance": [0.2, 0.2],
        "majority": [0.2, 0.2],
        "nearest": [0, 0],
        "order_free": [0.5, 0.5],  # a or b, which are copied; c or d, which are not
        "as_written": [1, 0],
    }
    one = VariableTracking(hops=2, chains=1, names=3, values=2)
    text = [3, 1, 5, 2, 1, 3, 4, 1, 2, 5, 3, 2]
    whole = baselines(one, text, [3, 2, 4], range(12))
    assert whole["as_written"] == [1, 1, 1]
    assert whole["order_free"] == [0.5, 1, 1]  # the last of the chain is the one that is not copied
    assert whole["nearest"] == [0, 0, 1]


# ----------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hops=0", "hops = 0 is not allowed; allowed: a whole number from 1 to 127."),
        ("hops=128", "hops = 128 is not allowed; allowed: a whole number from 1 to 127."),
        ("chains=0", "chains = 0 is not allowed; allowed: a whole number from 1 to 51, 256 statements in all."),
        ("chains=52", "chains = 52 is not allowed; allowed: a whole number from 1 to 51, 256 statements in all."),
        (
            "chains=1, ask='value'",
            "chains = 1 is not allowed; allowed: a whole number from 2 to 51, 256 statements in all; a value is asked"
            " for among two or more.",
        ),
        (
            "names=9",
            "names = 9 is not allowed; allowed: a whole number from 10,"
            " one for each of the chains * (hops + 1) statements, to 65536.",
        ),
        (
            "names=65537",
            "names = 65537 is not allowed; allowed: a whole number from 10,"
            " one for each of the chains * (hops + 1) statements, to 65536.",
        ),
        ("chains=3, values=2", "values = 2 is not allowed; allowed: a whole number from 3 to 65536, one a chain."),
        ("chains=1, values=1", "values = 1 is not allowed; allowed: a whole number from 2 to 65536, one a chain."),
        ("fillers=-1", "fillers = -1 is not allowed; allowed: 0 to 8157, 8192 tokens in all."),
        ("fillers=8158", "fillers = 8158 is not allowed; allowed: 0 to 8157, 8192 tokens in all."),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("tasks", f"variable_tracking({text})", "task")
    assert str(error.value) == f"task: {message}"


def test_the_longest_sequence_is_allowed():
    longest = VariableTracking(fillers=8157)
    assert longest.length(longest.conditions()[0]) == 8192
