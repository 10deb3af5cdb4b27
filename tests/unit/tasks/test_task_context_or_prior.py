"""Context or prior: samples against the definition, what training contradicts, and ceilings against enumeration."""

import functools
import itertools
from collections import Counter, defaultdict
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from judges import judging, judging_alike
from scipy import stats

from positionbias import spec
from positionbias.tasks.base import Batch
from positionbias.tasks.context_or_prior import ContextOrPrior

USE, IGNORE, ABSENT = range(3)
TINY = {
    "one document": ContextOrPrior(subjects=2, relations=2, objects=3, folds=2, documents=1),
    "objects of several facts": ContextOrPrior(subjects=4, relations=1, objects=3, folds=2, documents=2),
    "every subject but one": ContextOrPrior(subjects=3, relations=2, objects=4, folds=3, documents=2),
}
QUESTIONS = {
    "train": [(USE, False), (IGNORE, False), (ABSENT, None)],
    "held_out_use": [(USE, True)],
    "held out": [(USE, True), (IGNORE, True)],  # no condition, but what its observer knows
}


@functools.cache
def drawn(task, count, *names):
    """Samples of the conditions with these names, all if none, made by one program."""
    conditions = [c for c in task.conditions() if c.name in names or not names]
    made = jax.jit(lambda key: {c.name: task.batch(key, c, count)._replace(tokens=None) for c in conditions})
    return jax.tree.map(np.asarray, made(jax.random.key(0)))


def facts(task):
    """The object of every subject and relation."""
    return {(s, r): int(task._objects[s, r]) for s in range(task.subjects) for r in range(task.relations)}


def every_case(task, condition):
    """(chance, inputs, kind, slot, evidence, target) of all that may be asked, by the definition; inputs repeat."""
    known, d = facts(task), task.documents
    s0, r0, o0 = 2, 2 + task.subjects, 2 + task.subjects + task.relations
    for kind, held_out in QUESTIONS[condition]:
        asked = [(s, r) for s, r in known if held_out is None or ((s + r) % task.folds == 0) == held_out]
        intents = [USE, IGNORE] if kind == ABSENT else [kind]
        for (subject, relation), intent, slot in itertools.product(asked, intents, range(d)):
            strangers = itertools.permutations([s for s in range(task.subjects) if s != subject], d)
            objects = list(itertools.permutations([o for o in range(task.objects) if o != known[subject, relation]], d))
            cases = [(named, told) for named in strangers for told in objects]
            chance = Fraction(1, len(QUESTIONS[condition]) * len(asked) * len(intents) * d * len(cases))
            for named, told in cases:
                about = [subject if kind != ABSENT and k == slot else s for k, s in enumerate(named)]
                prompt = [x for s, o in zip(about, told, strict=True) for x in (s0 + s, r0 + relation, o0 + o)]
                evidence, answer = [3 * d + 1, 3 * d + 2], known[subject, relation]
                if kind == USE:
                    evidence, answer = [3 * slot, 3 * slot + 2], told[slot]
                inputs = [*prompt, intent, r0 + relation, s0 + subject]
                yield chance, inputs, kind, slot, evidence, o0 + answer


def as_batch(cases):
    """The fields that ceilings and baselines read."""
    _, inputs, kind, slot, evidence, target = (np.array(column) for column in zip(*cases, strict=True))
    targets = np.zeros_like(inputs)
    targets[:, -1] = target
    fields = dict.fromkeys(Batch._fields)
    fields.update(
        inputs=inputs,
        targets=targets,
        query=np.full((len(cases), 1), inputs.shape[1] - 1),
        evidence=evidence[:, None],
        query_slot=kind[:, None],
        evidence_slot=slot[:, None],
    )
    return Batch(**{name: None if value is None else jnp.asarray(value) for name, value in fields.items()})


@pytest.mark.parametrize("name", ["objects of several facts", "every subject but one"])
def test_samples_follow_the_definition(name):
    task = TINY[name]
    for condition, batch in drawn(task, 6000, "train", "held_out_use").items():
        share, known = defaultdict(Fraction), {}
        for chance, inputs, kind, slot, evidence, target in every_case(task, condition):
            # Where no document is about the subject, the slot is told of one at random.
            key = (tuple(inputs), kind, slot)
            share[key] += chance
            known[key] = (evidence, target)
        assert sum(share.values()) == 1
        kinds, slots = batch.query_slot[:, 0].tolist(), batch.evidence_slot[:, 0].tolist()
        keys = list(zip(map(tuple, batch.inputs.tolist()), kinds, slots, strict=True))
        seen = Counter(keys)
        assert set(seen) <= set(share)
        assert stats.chisquare([seen[k] for k in share], [6000 * float(p) for p in share.values()]).pvalue > 1e-4
        assert batch.evidence[:, 0].tolist() == [known[key][0] for key in keys]
        assert batch.targets[:, -1].tolist() == [known[key][1] for key in keys]
        assert not batch.targets[:, :-1].any()
        np.testing.assert_array_equal(batch.distance, batch.query - batch.evidence[..., -1])
        np.testing.assert_array_equal(batch.weights, np.eye(batch.weights.shape[1])[-1:].repeat(6000, axis=0))
        assert batch.n_distractors[:, 0].tolist() == [task.documents - (kind == USE) for kind in kinds]


def test_samples_solved_by_reading_them():
    task = ContextOrPrior(subjects=12, relations=3, objects=10, folds=4, documents=5)
    shown = drawn(task, 2000)
    taught = {}
    for row, target in zip(shown["absent"].inputs.tolist(), shown["absent"].targets[:, -1].tolist(), strict=True):
        assert row[-1] not in row[:-3:3]
        assert taught.setdefault((row[-1], row[-2]), target) == target
    assert len(taught) == 36
    of_relation = [Counter(o for (_, r), o in taught.items() if r == relation) for relation in (14, 15, 16)]
    assert all(set(count.values()) == {1, 2} and len(count) == 10 for count in of_relation)
    contradicted = defaultdict(set)
    for name in ("train", "use", "ignore", "held_out_use", "held_out_ignore"):
        batch = shown[name]
        for row, target, kind in zip(
            batch.inputs.tolist(), batch.targets[:, -1].tolist(), batch.query_slot, strict=True
        ):
            *documents, intent, relation, subject = row
            told = dict(zip(documents[::3], documents[2::3], strict=True))
            assert len(told) == len(set(told.values())) == 5
            assert set(documents[1::3]) == {relation}
            assert taught[subject, relation] not in told.values()
            assert (subject in told) == (kind != ABSENT)
            assert target == (told[subject] if kind == USE else taught[subject, relation])
            if kind != ABSENT:
                assert kind == intent
                contradicted[name].add((subject, relation))
    assert contradicted["use"] == contradicted["ignore"] == contradicted["train"]
    assert contradicted["held_out_use"] == contradicted["held_out_ignore"] == set(taught) - contradicted["train"]
    held_out = contradicted["held_out_use"]
    assert Counter(relation for _, relation in held_out) == {14: 3, 15: 3, 16: 3}
    assert max(Counter(subject for subject, _ in held_out).values()) == 1
    assert " ".join(map(task.word, (0, 1, 2, 13, 14, 16, 17, 26))) == "use ignore s0 s11 r0 r2 o0 o9"


def test_items_are_the_same_under_both_intents():
    task = ContextOrPrior(subjects=12, relations=3, objects=10, folds=4, documents=5)
    shown = drawn(task, 2000)
    streams = [condition.stream for condition in task.conditions()]
    assert streams == ["train", "trained", "trained", "absent", "held_out", "held_out"]
    for use, ignore in (("use", "ignore"), ("held_out_use", "held_out_ignore")):
        assert shown[use].inputs[:, -3].tolist() == [0] * 2000
        assert shown[ignore].inputs[:, -3].tolist() == [1] * 2000
        np.testing.assert_array_equal(
            np.delete(shown[use].inputs, -3, axis=1), np.delete(shown[ignore].inputs, -3, axis=1)
        )
        assert not (shown[use].targets[:, -1] == shown[ignore].targets[:, -1]).any()


@pytest.mark.parametrize("condition", ["train", "held out"])
@pytest.mark.parametrize("name", TINY)
def test_ceiling_is_the_enumerated_posterior(name, condition):
    # "use", "ignore" and "absent" are parts of "train", and judged by the same observer.
    task = TINY[name]
    cases = list(every_case(task, condition))
    inputs, answers = np.array([case[1] for case in cases]), np.array([case[-1] for case in cases])
    chances = np.array([float(case[0]) for case in cases])
    judge = judging_alike(task.ceiling, as_batch(cases))
    weights = np.random.default_rng(0).integers(2**62, size=inputs.shape[1])
    for seen in itertools.product([False, True], repeat=inputs.shape[1]):
        hashed = (inputs * np.where(seen, weights, 0)).sum(axis=1)  # two views share a number never, or nearly
        view = np.unique(hashed, return_inverse=True)[1]
        mass = np.zeros((view.max() + 1, answers.max() + 1))
        np.add.at(mass, (view, answers), chances)
        peak = (mass.max(axis=1) / mass.sum(axis=1))[view]
        np.testing.assert_allclose(judge(seen)[:, 0], peak, rtol=1e-4, err_msg=str(seen))


def test_baselines_on_literal_items():
    task = ContextOrPrior(subjects=8, relations=1, objects=8, folds=2, documents=3)
    s, o, fact = 2, 11, task._objects[3, 0]
    told = [one for one in range(8) if one != fact][:3]

    def found(kind, seen, intent=None, slot=1):
        named = [5, 6, 7]
        if kind != ABSENT:
            named[slot] = 3
        inputs = [x for n, t in zip(named, told, strict=True) for x in (s + n, 10, o + t)]
        inputs += [kind if intent is None else intent, 10, s + 3]
        answer = told[slot] if kind == USE else fact
        item = as_batch([(1, inputs, kind, slot, [0, 0], o + answer)])
        rules = judging_alike(task.baselines, item)(np.isin(np.arange(12), list(seen)))
        return [rules[name].tolist()[0][0] for name in ("chance", "nearest", "prior", "context", "order_free")]

    everything, third = range(12), pytest.approx(1 / 3)
    assert found(USE, everything) == [0.125, 0, 0, 1, third]
    assert found(USE, everything, slot=2) == [0.125, 1, 0, 1, third]
    assert found(IGNORE, everything) == [0.125, 0, 1, 0, 1]
    assert found(ABSENT, everything, intent=USE) == [0.125, 0, 1, 0.125, 1]
    assert found(ABSENT, everything, intent=IGNORE) == [0.125, 0, 1, 0.125, 1]
    assert found(USE, [3, 4, 5, 9, 10, 11]) == [0.125, 1, 0, 1, 1]
    assert found(USE, [3, 4, 9, 10, 11]) == [0.125, 0.125, 0, 0.125, 0], "no object is seen"
    assert found(USE, [3, 5, 10, 11]) == [0.125, 1, 0, 1, 0], "the intent is not seen"
    assert found(IGNORE, [9, 11]) == [0.125] * 5, "the relation is not seen"


def test_majority_is_the_object_that_training_asks_for_most():
    task = ContextOrPrior(subjects=8, relations=2, objects=6, folds=4, documents=3)
    share = Counter()
    for s, r in itertools.product(range(8), range(2)):
        fact = int(task._objects[s, r])
        share[fact] += Fraction(1, 3 * 16)  # absent
        if (s + r) % 4:
            share[fact] += Fraction(1, 3 * 12)  # ignore
            share.update({told: Fraction(1, 3 * 12 * 5) for told in range(6) if told != fact})  # use
    assert sum(share.values()) == 1
    likeliest = [o for o in range(6) if share[o] == max(share.values())]
    assert len(likeliest) < 6
    batch = drawn(task, 300, "train")["train"]
    found = judging(task.baselines)(batch, np.zeros((12, 12)))["majority"][:, 0]
    wanted = np.isin(batch.targets[:, -1] - (2 + 8 + 2), likeliest) / len(likeliest)
    np.testing.assert_allclose(found, wanted)


def test_a_longer_prompt_has_the_same_facts():
    task = ContextOrPrior()
    longer, train = task.stretched(4), task.conditions()[0]
    assert longer == ContextOrPrior(documents=16)
    assert longer.context_length(train) == 4 * task.context_length(train)
    assert longer.input == task.input
    assert facts(longer) == facts(task)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("documents=0", "documents = 0 is not allowed; allowed: a whole number from 1 to 2729."),
        ("documents=2730", "documents = 2730 is not allowed; allowed: a whole number from 1 to 2729."),
        ("documents=64", "subjects = 64 is not allowed; allowed: a whole number from documents + 1 = 65 to 16384."),
        ("objects=4", "objects = 4 is not allowed; allowed: a whole number from documents + 1 = 5 to 16384."),
        ("objects=16385", "objects = 16385 is not allowed; allowed: a whole number from documents + 1 = 5 to 16384."),
        ("relations=0", "relations = 0 is not allowed; allowed: a whole number from 1 to 1024, 65536 facts in all."),
        (
            "relations=1025",
            "relations = 1025 is not allowed; allowed: a whole number from 1 to 1024, 65536 facts in all.",
        ),
        ("folds=1", "folds = 1 is not allowed; allowed: a whole number from 2 that divides subjects = 64."),
        ("folds=6", "folds = 6 is not allowed; allowed: a whole number from 2 that divides subjects = 64."),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("tasks", f"context_or_prior({text})", "task")
    assert str(error.value) == f"task: {message}"
