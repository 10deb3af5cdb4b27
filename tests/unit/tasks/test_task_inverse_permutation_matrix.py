"""Inverse permutation in matrix form: samples against the definition, ceilings and baselines against enumeration."""

import itertools
from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.config.build import build
from positionbias.masks.order import Bidirectional, Causal
from positionbias.tasks.base import Batch
from positionbias.tasks.inverse_permutation_matrix import InversePermutationMatrix

FORMS = [(False, "first"), (False, "last"), (True, "first"), (True, "last")]


def matrix(p):
    """Row i is the unit vector of p(i)."""
    return np.eye(len(p))[list(p)]


def laid_out(task, p, y):
    """[P ; P Y], with zeros around for scratch, and the one-hot position behind: written out independently."""
    d = task.d
    blocks = [matrix(p), matrix(p) @ y]
    if task.scratch:
        blocks = [np.zeros((d, d)), *blocks, np.zeros((d, d))]
    x = np.concatenate(blocks)
    return np.concatenate([x, np.eye(len(x))], axis=1)


def every_case(task):
    """Every equally likely (inputs, Y, slot of each row)."""
    d = task.d
    for p in itertools.permutations(range(d)):
        for bits in itertools.product((0.0, 1.0), repeat=d * d):
            y = np.array(bits).reshape(d, d)
            yield laid_out(task, p, y), y, [p.index(k) for k in range(d)]


def as_batch(task, cases):
    """The fields that ceilings and baselines read."""
    query = task.query_rows(task.conditions()[0])
    targets = np.zeros((len(cases), len(cases[0][0]), task.d))
    targets[:, query] = [y for _, y, _ in cases]
    fields = dict.fromkeys(Batch._fields)
    fields.update(
        inputs=jnp.array([x for x, _, _ in cases], jnp.float32),
        targets=jnp.asarray(targets),
        evidence_slot=jnp.array([slots for _, _, slots in cases]),
        query=jnp.array([query] * len(cases)),
    )
    return Batch(**fields)


def sampled(task, items):
    """A batch without the tokens all items share."""
    return jax.jit(lambda key: task.batch(key, task.conditions()[0], items)._replace(tokens=None))(jax.random.key(0))


@pytest.mark.parametrize(("scratch", "rows"), FORMS)
def test_samples_follow_the_definition(scratch, rows):
    task = InversePermutationMatrix(d=5, scratch=scratch, answer_rows=rows)
    condition = task.conditions()[0]
    batch = jax.tree.map(np.asarray, sampled(task, 50))
    length, start = (20, 5) if scratch else (10, 0)
    first = 0 if rows == "first" else length - 5
    assert batch.inputs.shape == (50, length, 5 + length)
    for b in range(50):
        p = batch.inputs[b, start : start + 5, :5].argmax(axis=1)
        y = batch.targets[b, first : first + 5]
        assert sorted(p) == [0, 1, 2, 3, 4]
        assert set(np.unique(y)) <= {0.0, 1.0}
        np.testing.assert_array_equal(batch.inputs[b], laid_out(task, p, y))
        slots = np.argsort(p)
        np.testing.assert_array_equal(batch.evidence_slot[b], slots)
        np.testing.assert_array_equal(batch.evidence[b], np.stack([start + slots, start + 5 + slots], axis=-1))
        np.testing.assert_array_equal(batch.distance[b], first + np.arange(5) - start - 5 - slots)
    assert batch.query.tolist() == [list(range(first, first + 5))] * 50
    others = np.setdiff1d(np.arange(length), batch.query[0])
    assert not batch.targets[:, others].any()
    assert abs(batch.targets[:, first : first + 5].mean() - 0.5) < 0.06, "1,250 fair bits: four standard errors"
    assert len({tuple(row) for row in batch.evidence_slot.tolist()}) > 30
    assert task.context_length(condition) == (length if rows == "first" else length - 5)


def test_roles_name_the_blocks():
    condition = InversePermutationMatrix().conditions()[0]
    assert InversePermutationMatrix(d=2).tokens(condition).role.tolist() == [1, 1, 2, 2]
    assert InversePermutationMatrix(d=2, scratch=True).tokens(condition).role.tolist() == [0, 0, 1, 1, 2, 2, 0, 0]


@pytest.mark.parametrize(("scratch", "rows"), FORMS)
def test_ceiling_and_floor_are_those_of_the_enumerated_posterior(scratch, rows):
    task = InversePermutationMatrix(d=2 if scratch else 3, scratch=scratch, answer_rows=rows)
    cases = list(every_case(task))
    batch, size, d = as_batch(task, cases), len(cases[0][0]), task.d
    judge = jax.jit(lambda batch, visible: jax.vmap(lambda item: task.ceiling(item, visible))(batch))
    losses = jax.jit(lambda batch, visible: jax.vmap(lambda item: task.losses(item, visible))(batch))
    random = np.random.default_rng(0)
    contents = np.array([x[:, :d] for x, _, _ in cases])
    for visible in [np.tri(size, dtype=bool)] + [random.random((size, size)) < p for p in (0.3, 0.5, 0.8)]:
        views = [(row, contents[:, visible[row]].reshape(len(cases), -1)) for row in np.asarray(batch.query[0])]
        wanted, least = np.zeros((2, len(cases), d))
        for k, (_, seen) in enumerate(views):
            keys, answers = [v.tobytes() for v in seen], [y[k].tobytes() for _, y, _ in cases]
            posterior = defaultdict(Counter)
            for key, answer in zip(keys, answers, strict=True):
                posterior[key][answer] += 1
            peak = {key: max(counts.values()) / sum(counts.values()) for key, counts in posterior.items()}
            wanted[:, k] = [peak[key] for key in keys]
            truth, same = np.array([y[k] for _, y, _ in cases]), np.unique(keys, return_inverse=True)[1]
            mean = np.stack([np.bincount(same, bits) / np.bincount(same) for bits in truth.T], axis=-1)
            least[:, k] = (mean * (1 - mean)).sum(axis=-1)[same]
        np.testing.assert_allclose(judge(batch, jnp.asarray(visible)), wanted, rtol=1e-5)
        found = losses(batch, jnp.asarray(visible))
        np.testing.assert_allclose(found["floor"], least, rtol=1e-5, atol=1e-6)
        assert (np.asarray(found["chance"]) == d / 4).all()


@pytest.mark.parametrize(
    ("scratch", "rows", "mask", "known"),
    [
        (False, "first", Bidirectional(), 1.0),
        (False, "first", Causal(), 0.0),
        (False, "last", Causal(), 7 / 12),
        (True, "last", Causal(), 1.0),
        (True, "first", Causal(), 0.0),
        (True, "first", Bidirectional(), 1.0),
    ],
)
def test_ceilings_of_the_paper(scratch, rows, mask, known):
    task = InversePermutationMatrix(d=6, scratch=scratch, answer_rows=rows)
    condition = task.conditions()[0]
    tokens = task.tokens(condition)
    visible = jnp.asarray(mask.dense(tokens, tokens))
    found = np.asarray(jax.jit(jax.vmap(lambda item: task.ceiling(item, visible)))(sampled(task, 4000)))
    # With 24,000 answers the share known is within 4 standard errors, 0.013 (0 where it is all or nothing).
    atol = 1e-6 if known in (0.0, 1.0) else 0.013
    np.testing.assert_allclose(found.mean(), known + (1 - known) * 2.0**-6, atol=atol)


def test_baselines_on_a_literal_item():
    task = InversePermutationMatrix(d=3)
    y = np.array([[0, 1, 1], [1, 0, 0], [0, 1, 1]])
    x = laid_out(task, (2, 0, 1), y)  # the rows of P Y: y2, y0, y1
    item = jax.tree.map(lambda a: a[0], as_batch(task, [(x, y, [1, 2, 0])]))
    judge = jax.jit(task.baselines)

    def right(seen):
        visible = np.zeros((6, 6), bool)
        visible[:3, seen] = True
        return {k: v.tolist() for k, v in judge(item, jnp.asarray(visible)).items()}

    eighth = [1 / 8] * 3
    nothing = {"chance": eighth, "majority": eighth, "nearest": eighth, "order_free": eighth}
    assert right([]) == nothing
    assert right([0, 1, 2]) == nothing
    assert right([3, 4, 5]) == {**nothing, "nearest": [1, 0, 1], "order_free": [1, 0, 1]}
    assert right([4, 5]) == {**nothing, "nearest": [1, 0, 1], "order_free": [0.5, 0.5, 0.5]}
    assert right([5]) == {**nothing, "nearest": [0, 1, 0], "order_free": [0, 1, 0]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("d=1", "d = 1 is not allowed; allowed: a whole number from 2 to 128."),
        ("d=129", "d = 129 is not allowed; allowed: a whole number from 2 to 128."),
    ],
)
def test_bad_sizes_are_refused(text, message):
    with pytest.raises(spec.ConfigError) as error:
        spec.build("tasks", f"inverse_permutation_matrix({text})", "task")
    assert str(error.value) == f"task: {message}"
    assert InversePermutationMatrix(d=128).rows == 256


def test_other_answer_rows_are_refused():
    with pytest.raises(
        spec.ConfigError, match=r"task.answer_rows: 'middle' is not allowed; allowed: 'first' or 'last'"
    ):
        spec.build("tasks", "inverse_permutation_matrix(answer_rows='middle')", "task")


def test_an_encoder_decoder_answers_on_the_last_rows_only(tiny):
    model = {"model.architecture": "encoder_decoder", "model.inputs": "vector", "objective": "squared_error"}
    build(tiny({**model, "task": "inverse_permutation_matrix(d=3, answer_rows='last')"}))
    with pytest.raises(spec.ConfigError, match=r"answers at rows 6 and later, but the task asks at row 0"):
        build(tiny({**model, "task": "inverse_permutation_matrix(d=3)"}))
