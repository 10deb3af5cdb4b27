"""Multi-hop documents: samples solved by reading them, orders, and ceilings against enumeration."""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from judges import drawn, enumerated_ceiling
from scipy import stats

from positionbias import spec
from positionbias.evaluation.interventions import Permute, rearranged
from positionbias.tasks.base import Batch, batch_axes, find_condition
from positionbias.tasks.multi_hop import ORDERS, MultiHop
from positionbias.tokens import sequential

# ------------------------------------------------------------------------------------------------ ceilings

TINY = {
    "typed": MultiHop(hops=2, documents=4, entities=3, relations=2, typed=True, gaps=()),
    "typed, every entity used": MultiHop(hops=2, documents=4, entities=2, relations=1, typed=True, gaps=()),
    "typed, three chains": MultiHop(hops=2, documents=6, entities=3, relations=1, typed=True, gaps=()),
    "typed, three hops": MultiHop(hops=3, documents=6, entities=2, relations=1, typed=True, gaps=()),
    "typed, with filler": MultiHop(hops=2, documents=4, entities=3, relations=1, typed=True, gaps=(), fillers=2),
    "typed, mixed": MultiHop(hops=2, documents=4, entities=3, relations=1, typed=True, gaps=(), mixed=True),
    "one vocabulary, mixed": MultiHop(hops=2, documents=4, entities=6, relations=2, gaps=(), mixed=True),
    "one vocabulary": MultiHop(hops=2, documents=4, entities=6, relations=3, gaps=()),
    "one vocabulary, with names to spare": MultiHop(hops=2, documents=4, entities=7, relations=2, gaps=()),
}


def choices(task, kinds, count, first, size):
    """Every equally likely choice of `count` tokens for each of several kinds, or of all from one vocabulary."""
    if not task.typed:
        return np.array(list(itertools.permutations(range(first, first + size), kinds * count)))
    each = [itertools.permutations(range(first + k * size, first + (k + 1) * size), count) for k in range(kinds)]
    return np.array([sum(one, ()) for one in itertools.product(*each)])


def every_world(task, removed=False):
    """inputs [W, T] and answers [W] of all equally likely examples of one layout, written out from the definition.

    By symmetry the asked chain is the first. Fillers, where there are any, come first.
    """
    hops, chains = task.hops, task.documents // task.hops
    first_relation = 1 + task.entities * (hops + 1 if task.typed else 1)
    entity = choices(task, hops + 1, chains, 1, task.entities).reshape(-1, hops + 1, chains)
    path = choices(task, hops, 1, first_relation, task.relations)
    order = np.array(list(itertools.permutations(range(int(removed), task.documents))))
    entity, path = np.repeat(entity, len(path), axis=0), np.tile(path, (len(entity), 1))
    documents = [(path[:, k], entity[:, k, c], entity[:, k + 1, c]) for c in range(chains) for k in range(hops)]
    documents = np.moveaxis(np.array(documents), -1, 0)  # [worlds, documents, 3]
    ordered = documents[:, order].reshape(-1, 3 * order.shape[1])
    inputs, answers = [], []
    for taken in range(1 if task.mixed else hops, hops + 1):
        named = np.where(np.arange(hops) < taken, path, 0)[:, ::-1]
        asked = np.repeat(np.concatenate([named, entity[:, 0, :1]], axis=1), len(order), axis=0)
        inputs.append(np.concatenate([np.zeros((len(ordered), task.fillers), int), ordered, asked], axis=1))
        answers.append(np.repeat(entity[:, taken, 0], len(order)))
    return np.concatenate(inputs).astype(np.int32), np.concatenate(answers).astype(np.int32)


def as_batch(task, inputs, answers):
    """The fields of a batch that ceilings and baselines read; documents in their order after the fillers.

    Where fewer hops than all are asked for, `evidence` is found by following the chain.
    """
    count, length = inputs.shape
    shown = (length - task.fillers - task.hops - 1) // 3
    segment = np.zeros(length, np.int32)
    segment[task.fillers : length - task.hops - 1] = np.repeat(np.arange(1, shown + 1), 3)
    targets = np.zeros_like(inputs)
    targets[:, -1] = answers
    fields = dict.fromkeys(Batch._fields)
    evidence = np.full((count, 1, 2 * task.hops), -1)
    for item, row in enumerate(inputs if task.mixed else []):
        documents = row[task.fillers : -task.hops - 1].reshape(-1, 3)
        at, found = row[-1], []
        for _ in range(np.count_nonzero(row[-task.hops - 1 : -1])):
            (slot,) = np.nonzero(documents[:, 1] == at)[0]
            at, first = documents[slot, 2], task.fillers + 3 * slot
            found += [first + 1, first + 2]
        evidence[item, 0, 2 * task.hops - len(found) :] = found
    fields.update(inputs=inputs, targets=targets, query=np.full((count, 1), length - 1), evidence=evidence)
    made = {name: None if value is None else jnp.asarray(value) for name, value in fields.items()}
    return Batch(**{**made, "tokens": sequential(length, segment=segment)})


def judging(judge, batch):
    """A function of what every row sees, bool [T]: `judge` over the batch."""

    def judge_one(one, row):
        return judge(one, jnp.broadcast_to(row, 2 * row.shape))

    judge_all = jax.jit(jax.vmap(judge_one, in_axes=(batch_axes(0, batch.tokens.index.ndim == 1), None)))
    return lambda row: jax.tree.map(np.asarray, judge_all(batch, jnp.asarray(row, bool)))


def rows_of(task, length, random):
    """What a row may see: everything, nothing, random shares, whole documents, documents without what names them."""
    end = length - task.hops - 1
    document = (np.arange(length) - task.fillers) // 3
    place = (np.arange(length) - task.fillers) % 3
    asked = np.arange(length) >= end
    yield np.ones(length, bool)
    yield np.zeros(length, bool)
    yield asked
    yield np.arange(length) == length - 1
    for share in (0.3, 0.6, 0.85):
        yield random.random(length) < share
        yield asked | (random.random(length) < share)
    for _ in range(2):
        yield asked | (random.random(length)[document] < 0.6)
        yield (random.random(length)[document] < 0.7) & ~asked
    for hidden in (1, 2):  # relations are seen, and many entities
        yield asked | (place != hidden) | (random.random(length) < 0.5)
    # The start is hidden, or one relation of the path, and in half of the documents the first entity.
    yield np.where(asked, np.arange(length) != length - 1, (place != 1) | (random.random(length) < 0.5))
    yield np.where(asked, np.arange(length) != end, (place != 1) | (random.random(length) < 0.5))


@pytest.mark.parametrize(
    ("name", "removed"),
    [(name, removed) for name in TINY for removed in (False, True) if not (TINY[name].mixed and removed)],
)
def test_ceiling_is_the_enumerated_posterior(name, removed):
    task = TINY[name]
    inputs, answers = every_world(task, removed)
    thin = np.random.default_rng(1).permutation(len(inputs))[:3000]
    judge = judging(task.ceiling, as_batch(task, inputs[thin], answers[thin]))
    known = 0
    for row in rows_of(task, inputs.shape[1], np.random.default_rng(0)):
        found = judge(row)[:, 0]
        wanted = enumerated_ceiling(inputs, answers, row)[thin]
        unknown = np.isnan(found)
        if task.mixed:  # of fewer hops than all only what is certain is known
            told = row[-task.hops - 1 : -1].all()
            assert not unknown[inputs[thin, -task.hops - 1] > 0].any() or not (told and task.typed)
        else:
            assert unknown.all() or not unknown.any(), "which rows are known depends on what is seen only"
            assert not unknown.any() or not task.typed
        known += not unknown.all()
        assert not row.all() or (found == 1).all()  # also where a document was removed
        np.testing.assert_allclose(found[~unknown], wanted[~unknown], rtol=1e-5, err_msg=f"{row.astype(int)}")
    assert known >= 8


def test_ceiling_is_unknown_where_a_document_may_be_of_any_hop():
    task = TINY["one vocabulary"]
    inputs, answers = every_world(task)
    judge = judging(task.ceiling, as_batch(task, inputs[:1], answers[:1]))
    whole = np.ones(15, bool)
    for hidden, known in (([0], False), ([0, 1, 2], True), ([1], True), ([13], True), ([12, 13], False)):
        row = whole.copy()
        row[hidden] = False
        assert np.isfinite(judge(row)).all() == known, hidden


def test_ceiling_with_the_first_documents_out_of_sight():
    # The second documents of three chains are seen, and of the first ones none, then two.
    task = MultiHop(hops=2, documents=6, entities=9, relations=2)
    inputs = [10, 1, 4, 10, 2, 5, 10, 3, 6, 11, 6, 7, 11, 4, 8, 11, 5, 9, 11, 10, 1]
    judge = judging(task.ceiling, as_batch(task, np.array([inputs]), np.array([8])))
    row = np.arange(21) >= 9
    assert judge(row)[0].tolist() == pytest.approx([1 / 3])
    row[:6] = True
    assert judge(row)[0].tolist() == [1.0]


# ------------------------------------------------------------------------------------------------- samples

SIZES = [
    "multi_hop(hops=2, documents=6, entities=12, relations=3, gaps=[0, 4])",
    "multi_hop(hops=4, documents=12, entities=40, relations=4, gaps=[1], fillers=7)",
    "multi_hop(hops=3, documents=9, entities=3, relations=2, fillers=40, typed=True)",
    "multi_hop(hops=3, documents=12, entities=20, relations=3, gaps=[], mixed=True)",
]


def read(task, item):
    """Subject, relation and object of the documents as they stand, their first rows, and what is asked, from words."""
    words = task.words(np.asarray(item.inputs), task.input)
    asked = words[-task.hops - 1 :]
    rows = [row for row, word in enumerate(words[: -task.hops - 1]) if word != "-"]
    documents = [(rows[i], tuple(words[rows[i + place]] for place in (1, 0, 2))) for i in range(0, len(rows), 3)]
    assert all(rows[i] + 2 == rows[i + 2] for i in range(0, len(rows), 3)), "a document is not in one piece"
    path = [word for word in asked[-2::-1] if word != "-"]
    assert asked[: task.hops - len(path)] == ["-"] * (task.hops - len(path)), "filler stands in front of the path"
    return documents, asked[-1], path, task.words(np.asarray(item.targets), task.output)[-1]


@pytest.mark.parametrize("given", SIZES)
def test_reading_a_sample_gives_its_answer_and_where_it_lies(given):
    task = spec.build("tasks", given, "task")
    made = drawn(task, 40)
    for condition in task.conditions():
        batch = made[condition.name]
        tokens = jax.tree.map(lambda x: np.broadcast_to(x, (40, x.shape[-1])), batch.tokens)
        for b in range(40):
            item = jax.tree.map(lambda x, b=b: x[b], batch._replace(tokens=tokens))
            documents, start, path, answer = read(task, item)
            if task.typed:
                assert (start[0], answer[0]) == ("a", "d")
                assert all(int(relation) - 1 in (2 * hop, 2 * hop + 1) for hop, relation in enumerate(path))
                assert {(one[0][0], one[1], one[2][0]) for _, one in documents} == set(
                    zip("abc", path, "bcd", strict=True)
                )
            removed = condition.name == "remove_first"
            assert len(documents) == task.documents - removed == task.segments(condition)
            assert len(set(path)) == len(path)
            assert (1 if condition.name == "train" else task.hops) <= len(path) <= task.hops

            following = {one[:2]: (slot, row, one[2]) for slot, (row, one) in enumerate(documents)}
            heads = {one[0] for _, one in documents} - {one[2] for _, one in documents}
            if removed:  # the chain that nothing leads into, and that does not begin where chains begin
                assert start not in heads
                (here,) = [one[0] for _, one in documents if one[0] in heads and one[1] == path[1]]
            else:
                here = start
            slots, rows = [], []
            for relation in path[removed:]:
                slot, row, here = following[here, relation]
                slots.append(slot)
                rows += [row + 1, row + 2]
            assert here == answer
            chains = []
            for head in heads:  # every other chain is complete, over the same path
                at, chain = head, []
                for relation in path[1 if removed and (head, path[0]) not in following else 0 :]:
                    slot, _, at = following[at, relation]
                    chain.append(slot)
                chains.append(chain)

            assert item.evidence.tolist() == [[-1] * (item.evidence.size - len(rows)) + rows]
            assert item.query.tolist() == [len(item.inputs) - 1]
            assert item.distance.tolist() == [len(item.inputs) - 1 - rows[-1]]
            assert item.evidence_slot.tolist() == [slots[-1]]
            assert item.query_slot.tolist() == [max(slots) - min(slots) + 1 - len(slots)]
            orders = list(itertools.permutations(range(len(slots))))
            if condition.items == "ordered":  # all chains stand in one order
                (rank,) = {orders.index(tuple(np.argsort(np.argsort(chain)).tolist())) for chain in chains}
                assert item.order.tolist() == [rank]
            else:
                assert item.order.tolist() == [-1]
            assert item.n_distractors.tolist() == [task.documents // task.hops - 1]
            if condition.name == "forward":
                assert slots == sorted(slots)
            if condition.name == "backward":
                assert slots == sorted(slots)[::-1]
            if condition.name.startswith("forward_gap"):
                gap = int(condition.name.removeprefix("forward_gap_"))
                assert slots == [task.documents - 1 - (gap + 1) * k for k in range(task.hops)][::-1]

            segment = np.zeros(len(item.inputs), int)
            for slot, (row, _) in enumerate(documents):
                segment[row : row + 3] = slot + 1
            assert item.tokens.segment.tolist() == segment.tolist()
            role = [3] * len(item.inputs)
            for row, _ in documents:
                role[row : row + 3] = [1, 0, 2]
            role[-task.hops - 1 :] = [5] * task.hops + [4]
            assert item.tokens.role.tolist() == role


def test_the_vocabulary_holds_what_it_should():
    assert MultiHop().input.size == 1 + 128 + 4
    assert MultiHop(typed=True).input.size == 1 + 3 * 128 + 2 * 4
    task = MultiHop(documents=4, entities=6, relations=3)
    batch = drawn(task, 4000, "original")["original"]
    documents = batch.inputs[:, :12].reshape(-1, 4, 3)
    assert stats.chisquare(np.bincount(batch.targets[:, -1], minlength=7)[1:]).pvalue > 1e-4
    assert stats.chisquare(np.bincount(documents[:, 0, 1], minlength=7)[1:]).pvalue > 1e-4
    assert stats.chisquare(np.bincount(documents[:, 0, 0], minlength=10)[7:]).pvalue > 1e-4


# -------------------------------------------------------------------------------------------------- places


def enumerated_prior(task, condition):
    """The shares of both slots over every order of the documents, from the definition of the condition."""
    removed = condition.name == "remove_first"
    shown, gold = task.documents - removed, task.hops - removed
    if condition.name == "train":
        each = [_enumerated(condition, shown, hops) for hops in range(1, gold + 1)]
        return {axis: np.mean([one[axis] for one in each], axis=0) for axis in each[0]}
    return _enumerated(condition, shown, gold)


def _enumerated(condition, shown, gold):
    among, last = np.zeros(shown), np.zeros(shown)
    for slots in itertools.permutations(range(shown), gold):
        if condition.name == "forward":
            slots = tuple(sorted(slots))
        elif condition.name == "backward":
            slots = tuple(sorted(slots))[::-1]
        elif "gap" in condition.name:
            gap = int(condition.name.removeprefix("forward_gap_"))
            slots = tuple(shown - 1 - (gap + 1) * k for k in reversed(range(gold)))
        among[max(slots) - min(slots) + 1 - gold] += 1
        last[slots[-1]] += 1
    return {"query": among / among.sum(), "evidence": last / last.sum()}


@pytest.mark.parametrize(("hops", "documents"), [(2, 8), (3, 9), (4, 8)])
def test_prior_is_the_enumerated_one(hops, documents):
    task = MultiHop(hops=hops, documents=documents, gaps=(0, 1), mixed=True)
    for condition in task.conditions():
        wanted = enumerated_prior(task, condition)
        for axis, share in task.prior(condition).items():
            np.testing.assert_allclose(share, wanted[axis][: len(share)], rtol=1e-12, atol=1e-12)
            assert wanted[axis][len(share) :].sum() == 0


class InTheOrderOfTheChain(MultiHop):
    """Puts documents in random order only in every other example."""

    def _slots(self, key, condition):
        slots = super()._slots(key, condition)
        return jnp.where(jax.random.bernoulli(key), jnp.sort(slots), slots)


def test_the_prior_test_catches_a_biased_sampler():
    for task, right in ((MultiHop(), True), (InTheOrderOfTheChain(), False)):
        batch = drawn(task, 4000, "original")["original"]
        for axis, share in task.prior(task.conditions()[0]).items():
            counts = np.bincount(getattr(batch, f"{axis}_slot")[:, 0], minlength=len(share))
            assert (stats.chisquare(counts, 4000 * share).pvalue > 1e-4) == right, axis


def test_documents_lie_anywhere_among_fillers():
    task = MultiHop(documents=4, entities=6, relations=2, fillers=3)
    batch = drawn(task, 7000, "original")["original"]
    assert batch.inputs.shape == (7000, 4 * 3 + 3 + 3)
    layouts = Counter(tuple(row) for row in (batch.inputs == 0).tolist())
    assert len(layouts) == 35  # places of 3 fillers among 7
    assert stats.chisquare(list(layouts.values())).pvalue > 1e-4


@pytest.mark.parametrize("given", SIZES[1:])
def test_moving_documents_moves_what_is_said_of_them(given):
    task = spec.build("tasks", given, "task")
    condition = find_condition(task, "forward", "condition")
    place = jnp.asarray(np.random.default_rng(0).permutation(task.documents))

    def drawn_and_moved(key):
        item = task.sample(key, condition)
        return item, rearranged(item, place, task)

    item, moved = jax.jit(drawn_and_moved)(jax.random.key(5))
    assert moved.targets.tolist() == item.targets.tolist()
    assert moved.inputs.tolist() != item.inputs.tolist()
    documents, start, path, answer = read(task, moved)
    following = {one[:2]: (slot, one[2]) for slot, (_, one) in enumerate(documents)}
    slots = []
    for relation in path:
        slot, start = following[start, relation]
        slots.append(slot)
    assert start == answer
    assert moved.evidence_slot.tolist() == [slots[-1]]
    assert moved.query_slot.tolist() == [max(slots) - min(slots) + 1 - len(slots)]
    assert moved.order.tolist() == [-1], "chains stand alike no longer"
    Permute().check(task, condition)


def test_stretched_is_a_longer_context_of_the_same_tokens():
    task = MultiHop(documents=8, entities=48)
    longer = task.stretched(4)
    assert longer == MultiHop(documents=32, entities=48)
    assert longer.context_length(longer.conditions()[0]) == 4 * task.context_length(task.conditions()[0])
    far = MultiHop(documents=8, fillers=10, entities=12)
    assert far.stretched(2) == MultiHop(documents=8, fillers=44, entities=12)
    assert far.stretched(2).context_length(far.conditions()[0]) == 2 * far.context_length(far.conditions()[0])
    with pytest.raises(spec.ConfigError, match="entities = 128 is not allowed; allowed: a whole number from 144"):
        MultiHop().stretched(8)


# ----------------------------------------------------------------------------------------------- baselines


def test_baselines_on_a_literal_item():
    task = MultiHop(documents=4, entities=6, relations=2, gaps=())
    #         2 c d   1 a b   2 b e   1 f c   2 1 a -> e
    inputs = [8, 3, 4, 7, 1, 2, 8, 2, 5, 7, 6, 3, 8, 7, 1]
    judge = judging(task.baselines, as_batch(task, np.array([inputs]), np.array([5])))

    def right(seen):
        row = np.zeros(15, bool)
        row[list(seen)] = True
        return {name: round(float(value[0, 0]), 4) for name, value in judge(row).items()}

    sixth = 0.1667
    assert right(range(15)) == {
        "chance": sixth,
        "majority": sixth,
        "nearest": 0,
        "last_document": 1,
        "first_document": 0,
        "any_chain_end": 0.5,
        "order_free": 0.3333,  # d, e and f occur once
    }
    assert right(range(12, 15)) == dict.fromkeys(right([]), sixth)
    cut = right([5, 7, 8, 12])  # without its relation an end is not known to be one; b occurs twice
    assert (cut["nearest"], cut["last_document"], cut["order_free"]) == (1, sixth, 1)
    assert right([5, 6, 7, 8])["last_document"] == sixth, "nor without the path"
    assert right([5, 6, 7, 8, 12])["last_document"] == 1
    typed = MultiHop(documents=4, entities=2, relations=1, typed=True, gaps=())
    inputs, answers = every_world(typed)
    found = judging(typed.baselines, as_batch(typed, inputs, answers))(np.ones(15))
    assert (found["order_free"] == 0.5).all()
    assert (found["any_chain_end"] == 0.5).all()
    ends = judging(typed.baselines, as_batch(typed, inputs, answers))(np.arange(15) % 3 == 2)
    assert (ends["any_chain_end"] == 0.5).all(), "kinds tell ends without a relation"


@pytest.mark.parametrize("typed", [False, True], ids=["one vocabulary", "typed"])
def test_rules_that_read_one_document_are_right_once_in_the_chains_whatever_order_all_chains_stand_in(typed):
    task = MultiHop(hops=2, documents=10, entities=40, relations=3, typed=typed, mixed=True)
    for name, batch in drawn(task, 4000, "train", "original", *ORDERS).items():
        found = judging(task.baselines, batch)(np.ones(batch.inputs.shape[1]))
        assert found["any_chain_end"] == pytest.approx(1 / 5, abs=1e-6)
        for order in np.unique(batch.order):
            means = {rule: float(value[batch.order == order].mean()) for rule, value in found.items()}
            for rule in ("last_document", "first_document"):
                assert means[rule] == pytest.approx(1 / 5, abs=0.04), (name, order, rule)
            if not typed and name == "original":
                assert means["order_free"] == pytest.approx(1 / 9, abs=1e-6)
            if typed or name == "train":
                assert means["order_free"] <= 1 / 5 + 1e-6


@pytest.mark.parametrize("typed", [False, True], ids=["one vocabulary", "typed"])
def test_a_rule_that_reads_no_relation_is_told_something_by_the_order(typed):
    task = MultiHop(hops=2, documents=10, entities=40, relations=3, typed=typed)
    wanted = {"original": 1 / 10, "forward": 1 / 5, "backward": 0}
    for name, batch in drawn(task, 4000, *wanted).items():
        found = judging(task.baselines, batch)(np.ones(batch.inputs.shape[1]))["nearest"]
        assert found.mean() == pytest.approx(wanted[name], abs=0.04 if wanted[name] else 0), name


def test_with_fewer_hops_a_bag_of_tokens_holds_the_answer_twice():
    task = MultiHop(documents=4, entities=6, relations=2, gaps=(), mixed=True)
    #         2 c d   1 a b   2 b e   1 f c   - 1 a -> b
    inputs = [8, 3, 4, 7, 1, 2, 8, 2, 5, 7, 6, 3, 0, 7, 1]
    found = judging(task.baselines, as_batch(task, np.array([inputs]), np.array([2])))(np.ones(15))
    assert {name: float(value[0, 0]) for name, value in found.items()} == {
        "chance": pytest.approx(1 / 6),
        "majority": pytest.approx(1 / 6),
        "nearest": 0,
        "last_document": 0,
        "first_document": 1,
        "any_chain_end": 0.5,
        "order_free": 0.5,  # b and c
    }


def test_the_last_document_is_the_answer_at_every_forward_gap():
    task = MultiHop()
    condition = find_condition(task, "forward_gap_1", "condition")
    batch = drawn(task, 64, condition.name)[condition.name]
    found = judging(task.baselines, batch)(np.ones(task.length(condition)))
    assert (found["last_document"] == 1).all()
    assert (found["nearest"] == 1).all()


# ----------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hops=1", "hops = 1 is not allowed; allowed: a whole number from 2 to 4."),
        ("hops=5", "hops = 5 is not allowed; allowed: a whole number from 2 to 4."),
        (
            "hops=4, documents=3",
            "documents = 3 is not allowed; allowed: a multiple of hops = 4 from 8 to 256, two complete chains or more.",
        ),
        (
            "documents=9",
            "documents = 9 is not allowed; allowed: a multiple of hops = 2 from 4 to 256, two complete chains or more.",
        ),
        (
            "documents=258",
            "documents = 258 is not allowed; allowed: a multiple of hops = 2 from 4 to 256, two complete chains or"
            " more.",
        ),
        (
            "documents=8, entities=11",
            "entities = 11 is not allowed; allowed: a whole number from 12, which the chains of 8 documents need, to"
            " 65536.",
        ),
        (
            "documents=8, entities=3, typed=True",
            "entities = 3 is not allowed; allowed: a whole number from 4, which the chains of 8 documents need, to"
            " 65536.",
        ),
        ("relations=1", "relations = 1 is not allowed; allowed: a whole number from 2 to 65536, one each hop."),
        ("relations=0, typed=True", "relations = 0 is not allowed; allowed: a whole number from 1 to 65536."),
        (
            "documents=8, gaps=[0, 7]",
            "gaps = [0, 7] is not allowed; allowed: different whole numbers from 0 to 6, (documents - hops) / (hops -"
            " 1).",
        ),
        (
            "hops=3, documents=9, gaps=[1, 1]",
            "gaps = [1, 1] is not allowed; allowed: different whole numbers from 0 to 3, (documents - hops) / (hops -"
            " 1).",
        ),
        ("documents=8, fillers=-1", "fillers = -1 is not allowed; allowed: 0 to 8165, 8192 tokens in all."),
        ("documents=8, fillers=8166", "fillers = 8166 is not allowed; allowed: 0 to 8165, 8192 tokens in all."),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("tasks", f"multi_hop({text})", "task")
    assert str(error.value) == f"task: {message}"


def test_the_longest_sequence_is_allowed():
    longest = MultiHop(documents=8, fillers=8165)
    assert longest.length(longest.conditions()[0]) == 8192
