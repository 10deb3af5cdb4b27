"""Factual recall in closed form: ceilings against the task's own, margins against matrices that are written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.spec import ConfigError
from positionbias.tasks.factual_recall import FactualRecall
from positionbias.theory.factual_recall import FactualRecallTheory


@functools.cache
def items(task):
    return jax.jit(lambda key: task.batch(key, task.conditions()[0], 30_000))(jax.random.key(0))


@pytest.mark.parametrize("noise", [0, 3])
@pytest.mark.parametrize("unseen", [(), (0,), (1,), (0, 1)])
def test_curves_are_means_of_the_tasks_ceiling(noise, unseen):
    task = FactualRecall(groups=3, bridges=1, held_out=2, noise=noise)
    length = task.length(task.conditions()[0])
    visible = np.ones((length, length), bool)
    visible[-1, list(unseen)] = False
    batch = items(task)
    judge = jax.jit(jax.vmap(lambda one: task.ceiling(one, jnp.asarray(visible))))
    ceiling = np.asarray(judge(batch._replace(tokens=None)))[:, 0]
    curves = FactualRecallTheory(groups=3, bridges=1, held_out=2, noise=noise).curves(visible)
    np.testing.assert_allclose(curves.mean, ceiling.mean(), atol=0.01)
    for slots, curve in ((batch.query_slot, curves.query), (batch.evidence_slot, curves.evidence)):
        means = [ceiling[np.asarray(slots)[:, 0] == slot].mean() for slot in range(len(curve))]
        np.testing.assert_allclose(curve, means, atol=0.02)


def test_curves_refuse_another_length():
    with pytest.raises(ConfigError, match=r"visible has shape \(3, 3\); allowed: \(16, 16\)"):
        FactualRecallTheory().curves(np.ones((3, 3), bool))


# ----------------------------------------------------------------------------------------------------------- margins


def solution(groups, p, q, a, d, tilt=0.0):
    """W [2 groups, groups * (p + q) + 2] with differences between groups a, 1, 1, d, and the least common part."""
    centred = np.eye(groups) - 1 / groups
    facts = np.concatenate([np.kron(a * centred, np.ones((1, p))), np.kron(centred, np.ones((1, q)))], axis=1)
    implications = np.concatenate([np.kron(centred, np.ones((1, p))), np.kron(d * centred, np.ones((1, q)))], axis=1)
    relations = np.repeat([[0.5 - tilt, -0.5 - tilt], [tilt - 0.5, 0.5 + tilt]], groups, axis=0)
    return np.concatenate([np.concatenate([facts, implications]), relations], axis=1)


def margins(weights, groups, p, q):
    """The least margin over trained answers, and the least of held-out implications above other implications."""
    group = np.concatenate([np.repeat(np.arange(groups), p), np.repeat(np.arange(groups), q)])
    trained, held = [], []
    for subject, i in enumerate(group):
        for relation in range(2):
            logits = weights[:, subject] + weights[:, len(group) + relation]
            answer = relation * groups + i
            if relation == 0 or subject < groups * p:
                trained.append(logits[answer] - np.delete(logits, answer).max())
            else:
                held.append(logits[answer] - np.delete(logits[groups:], i).max())
    return min(trained), min(held)


def nuclear(weights):
    return np.linalg.svd(weights, compute_uv=False).sum()


@pytest.mark.parametrize(("p", "q"), [(1, 3), (1, 4), (3, 4), (2, 2), (3, 1)])
def test_the_factorised_margin_is_that_of_the_matrix_of_least_nuclear_norm(p, q):
    groups, margin = 4, FactualRecallTheory(groups=4, bridges=p, held_out=q).factorised_margin()
    best = solution(groups, p, q, 1, margin)
    np.testing.assert_allclose(margins(best, groups, p, q), (1, margin), rtol=1e-12)

    def scaled(weights):
        """The norm of the multiple that has margin 1."""
        least = margins(weights, groups, p, q)[0]
        return nuclear(weights) / least if least > 0 else np.inf

    for a in np.linspace(0.9, 1.5, 7):
        for d in (*np.linspace(0, 1.2, 13), margin):
            for tilt in (-0.1, 0, 0.1, (a - 1) * (1 - 1 / groups) / 2):
                assert (a, d, tilt) == (1, margin, 0) or scaled(solution(groups, p, q, a, d, tilt)) > scaled(
                    best
                ) - 1e-9
    random = np.random.default_rng(0)
    for scale in np.repeat([1.0, 0.1, 0.01, 0.001], 100):
        noise = random.normal(size=best.shape) * random.integers(2, size=best.shape[1])
        assert scaled(best + scale * noise) > scaled(best) - 1e-9
    if p < q:
        assert scaled(solution(groups, p, q, 1, margin + 0.05)) > scaled(best) + 1e-4
        assert scaled(solution(groups, p, q, 1, margin - 0.05)) > scaled(best) + 1e-4


def test_the_papers_sizes():
    assert FactualRecallTheory().factorised_margin() == pytest.approx(0.5774, abs=1e-4)


def test_a_combined_matrix_trained_to_the_end_tells_no_held_out_implication_from_another():
    groups, p, q = 3, 1, 2
    theory = FactualRecallTheory(groups=groups, bridges=p, held_out=q)
    subjects, group = groups * (p + q), np.concatenate([np.arange(3), np.repeat(np.arange(3), q)])
    asked = [(s, r) for s in range(subjects) for r in range(2) if r == 0 or s < groups * p]
    inputs = np.stack([np.eye(subjects + 2)[s] + np.eye(subjects + 2)[subjects + r] for s, r in asked])
    targets = np.stack([np.eye(2 * groups)[r * groups + group[s]] for s, r in asked])
    weights = np.zeros((2 * groups, subjects + 2))
    for _ in range(4000):
        logits = inputs @ weights.T
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        weights -= 0.5 * (share - targets).T @ inputs / len(asked)
    trained, held = margins(weights, groups, p, q)
    assert trained > 1
    assert held == pytest.approx(theory.combined_margin(), abs=1e-9)
    assert theory.combined_loss() == pytest.approx(np.log(3))
