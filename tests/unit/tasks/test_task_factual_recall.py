"""Factual recall: samples against the definition, what training shows, and ceilings against enumeration."""

import itertools
from collections import Counter, defaultdict
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from positionbias import spec
from positionbias.config.build import build
from positionbias.config.cli import load_config
from positionbias.config.resolve import resolve
from positionbias.models.parameters import Frozen
from positionbias.models.sites import Sites
from positionbias.tasks.base import Batch
from positionbias.tasks.factual_recall import FactualRecall

TINY = {
    "noise": FactualRecall(groups=2, bridges=1, held_out=2, noise=1, noise_kinds=2),
    "more bridges": FactualRecall(groups=3, bridges=2, held_out=1, noise=2, noise_kinds=1),
    "two tokens": FactualRecall(groups=3, bridges=2, held_out=1, noise=0, noise_kinds=1),
}


def every_case(task, condition):
    """Every (probability, inputs, subject's place, relation's place, relation, subject, target), by the definition."""
    n, bridges = task.groups, task.groups * task.bridges
    subjects = n * (task.bridges + task.held_out)
    # (share, relation, subjects): a bridge's fact, a bridge's implication, another's fact.
    kinds = [(1, 1, range(bridges, subjects))]
    if condition == "train":
        third = Fraction(1, 3)
        kinds = [(third, 0, range(bridges)), (third, 1, range(bridges)), (third, 0, range(bridges, subjects))]
    r, b, c, s = 0, 2, 2 + n, 2 + 2 * n
    noises = range(s + subjects, s + subjects + task.noise_kinds)
    for share, relation, allowed in kinds:
        for subject in allowed:
            for place in range(task.noise + 1):
                for later in range(place + 1, task.noise + 2):
                    for noise in itertools.product(noises, repeat=task.noise):
                        chance = Fraction(share) / len(allowed) / (task.noise + 1) / (task.noise + 1 - place)
                        inputs = list(noise)
                        inputs.insert(place, s + subject)
                        inputs.insert(later, r + relation)
                        inputs += [task.vocabulary - 1] if task.noise else []
                        target = (b, c)[relation] + subject % n
                        yield chance / task.noise_kinds**task.noise, inputs, place, later, relation, subject, target


def as_batch(task, cases):
    """The fields that ceilings and baselines read."""
    _, inputs, place, later, relation, _, target = (np.array(column) for column in zip(*cases, strict=True))
    targets = np.zeros_like(inputs)
    targets[:, -1] = target
    fields = dict.fromkeys(Batch._fields)
    fields.update(
        inputs=inputs,
        targets=targets,
        query=np.full((len(cases), 1), inputs.shape[1] - 1),
        evidence=np.stack([later, place], axis=-1)[:, None],
        query_slot=relation[:, None],
        evidence_slot=place[:, None],
    )
    return Batch(**{name: None if value is None else jnp.asarray(value) for name, value in fields.items()})


def sampled(task, condition, items):
    """A batch without the tokens all items share."""
    return jax.jit(lambda key: task.batch(key, condition, items)._replace(tokens=None))(jax.random.key(0))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("condition", ["train", "held_out"])
def test_samples_follow_the_definition(name, condition):
    task = TINY[name]
    chosen = {c.name: c for c in task.conditions()}[condition]
    batch = sampled(task, chosen, 6000)
    cases = list(every_case(task, condition))
    assert sum(case[0] for case in cases) == 1
    wanted = as_batch(task, cases)
    share = defaultdict(Fraction)
    known = {}
    for i, (chance, inputs, *_) in enumerate(cases):
        share[tuple(inputs)] += chance
        known[tuple(inputs)] = i
    inputs = [tuple(row) for row in batch.inputs.tolist()]
    seen = Counter(inputs)
    assert set(seen) <= set(share)
    counts = [seen[one] for one in share]
    assert stats.chisquare(counts, [6000 * float(p) for p in share.values()]).pvalue > 1e-4
    which = np.array([known[one] for one in inputs])
    for field in ("targets", "query", "evidence", "query_slot", "evidence_slot"):
        np.testing.assert_array_equal(getattr(batch, field), np.asarray(getattr(wanted, field))[which], field)
    np.testing.assert_array_equal(batch.distance, batch.query - batch.evidence[..., -1])
    assert batch.weights[:, -1].tolist() == [1.0] * 6000
    assert not batch.weights[:, :-1].any()


def test_training_never_shows_an_implication_it_is_tested_on():
    task = FactualRecall(groups=4, bridges=2, held_out=3, noise=3)
    shown = {"train": set(), "held_out": set()}
    for condition in task.conditions():
        batch = sampled(task, condition, 3000)
        rows = np.asarray(batch.inputs)
        subjects = rows[np.arange(3000), batch.evidence_slot[:, 0]] - task.first_subject
        shown[condition.name] = set(zip(subjects.tolist(), batch.query_slot[:, 0].tolist(), strict=True))
    assert shown["train"] == {(s, 0) for s in range(20)} | {(s, 1) for s in range(8)}
    assert shown["held_out"] == {(s, 1) for s in range(8, 20)}


def test_the_published_sizes_are_the_defaults():
    task = FactualRecall()
    train, held_out = task.conditions()
    assert task.vocabulary == 128
    assert task.length(train) == task.length(held_out) == 16
    assert " ".join(map(task.word, (0, 1, 2, 22, 42, 121, 122, 126, 127))) == "r1 r2 b0 c0 s0 s79 -0 -4 end"
    assert task.word(task.filler) == "-0"
    assert FactualRecall(noise=0).filler is None
    assert FactualRecall(noise=0).length(train) == 2
    assert FactualRecall(noise=0).vocabulary == 128
    np.testing.assert_allclose(task.prior(train)["query"], [2 / 3, 1 / 3])
    np.testing.assert_allclose(task.prior(held_out)["query"], [0, 1])


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("condition", ["train", "held_out"])
def test_ceiling_is_the_enumerated_posterior(name, condition):
    task = TINY[name]
    cases = list(every_case(task, condition))
    batch, size = as_batch(task, cases), len(cases[0][1])
    judge = jax.jit(lambda batch, visible: jax.vmap(lambda item: task.ceiling(item, visible))(batch))
    for seen in itertools.product([False, True], repeat=size):
        visible = np.zeros((size, size), bool)
        visible[-1] = seen
        views = [tuple(t for t, v in zip(inputs, seen, strict=True) if v) for _, inputs, *_ in cases]
        posterior = defaultdict(Counter)
        for view, (chance, *_, target) in zip(views, cases, strict=True):
            posterior[view][target] += chance
        peak = {view: float(max(counts.values()) / sum(counts.values())) for view, counts in posterior.items()}
        found = judge(batch, jnp.asarray(visible))[:, 0]
        np.testing.assert_allclose(found, [peak[view] for view in views], rtol=1e-5, err_msg=str(seen))


def test_baselines_on_literal_items():
    task = FactualRecall(groups=3, bridges=1, held_out=1, noise=1, noise_kinds=1)
    condition = task.conditions()[0]
    third, sixth = pytest.approx(1 / 3), pytest.approx(1 / 6)
    assert task.length(condition) == 4
    judge = jax.jit(task.baselines)

    def found(relation, subject, seen):
        target = 2 + 3 * relation + subject % 3
        inputs = [8 + subject, 14, relation, 15]
        item = jax.tree.map(lambda x: x[0], as_batch(task, [(1, inputs, 0, 2, relation, subject, target)]))
        visible = jnp.zeros((4, 4), bool).at[3, jnp.array(seen)].set(True)
        return [judge(item, visible)[name].tolist()[0] for name in ("chance", "majority", "order_free")]

    assert found(0, 4, [0, 2]) == [third, third, 1.0]
    assert found(1, 1, [0, 2]) == [third, third, 1.0]
    assert found(1, 4, [0, 2]) == [third, third, third], "never trained"
    assert found(1, 4, [0, 3]) == [sixth, 0, sixth], "facts are asked for more often"
    assert found(1, 1, [0, 3]) == [sixth, 0, 0.5]
    assert found(0, 4, [1, 3]) == [sixth, third, pytest.approx(2 / 9)]


def test_a_longer_form_has_the_same_vocabulary():
    task = FactualRecall(noise=13)
    longer = task.stretched(4)
    train = task.conditions()[0]
    assert longer == FactualRecall(noise=58)
    assert longer.context_length(train) == 4 * task.context_length(train)
    assert longer.vocabulary == task.vocabulary
    with pytest.raises(spec.ConfigError, match="no length to stretch"):
        FactualRecall(noise=0).stretched(2)


def test_fixed_attention_is_the_theory(root):
    # logits = (onehot(subject) + onehot(relation)) W_V W_O
    experiment = build(resolve(load_config(str(root / "configs" / "factual_recall" / "fixed_attention.py"))))
    model = jax.jit(experiment.initialise)(jax.random.key(0))
    task, (condition, _) = experiment.task, experiment.task.conditions()
    batch = jax.jit(lambda key: task.batch(key, condition, 8))(jax.random.key(1))
    outputs = model(batch.inputs, batch.tokens, task.context_length(condition), Sites())[:, -1]
    attention = model.stack.blocks[0].attention
    w = np.asarray(attention.value.weight[...], np.float64) @ np.asarray(attention.output.weight[...], np.float64)
    features = np.eye(128)[np.asarray(batch.inputs)].sum(axis=1)
    np.testing.assert_allclose(outputs, features @ w, rtol=1e-4, atol=1e-7)
    assert type(attention.query.weight) is Frozen


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("groups=1", "groups = 1 is not allowed; allowed: a whole number from 2."),
        (
            "bridges=0",
            "bridges = 0 is not allowed; allowed: a whole number from 1, for without a bridge nothing implies.",
        ),
        ("held_out=0", "held_out = 0 is not allowed; allowed: a whole number from 1."),
        ("noise=-1", "noise = -1 is not allowed; allowed: a whole number from 0 to 8189."),
        ("noise=8190", "noise = 8190 is not allowed; allowed: a whole number from 0 to 8189."),
        ("noise_kinds=0", "noise_kinds = 0 is not allowed; allowed: a whole number from 1."),
        (
            "groups=10922",
            "groups * (2 + bridges + held_out) + noise_kinds + 3 = 65540 is not allowed;"
            " allowed: at most 65536 tokens in all.",
        ),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("tasks", f"factual_recall({text})", "task")
    assert str(error.value) == f"task: {message}"
