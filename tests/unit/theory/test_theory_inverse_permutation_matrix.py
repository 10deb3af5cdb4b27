"""The closed form of inverse permutation in matrix form against the paper's numbers and the task's own ceilings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.masks.order import Bidirectional, Causal
from positionbias.tasks.inverse_permutation_matrix import InversePermutationMatrix
from positionbias.theory.inverse_permutation_matrix import InversePermutationMatrixTheory
from positionbias.tokens import sequential


def visible(mask, length):
    tokens = sequential(length)
    return mask.dense(tokens, tokens)


def test_first_rows_under_a_causal_mask_guess():
    for d, scratch in [(6, False), (10, False), (6, True)]:
        theory = InversePermutationMatrixTheory(d=d, scratch=scratch)
        seen = visible(Causal(), (4 if scratch else 2) * d)
        assert theory.curves(seen).mean == 2.0**-d
        assert theory.squared_error(seen) == d / 4


def test_rows_of_the_permuted_block_know_what_stands_before():
    theory = InversePermutationMatrixTheory(d=10, answer_rows="last")
    curves = theory.curves(visible(Causal(), 20))
    known = np.arange(1, 11) / 10
    np.testing.assert_allclose(curves.query, known + (1 - known) / 1024, rtol=1e-12)
    np.testing.assert_allclose(curves.evidence, curves.query[::-1], rtol=1e-12)
    np.testing.assert_allclose(curves.mean, 0.55 + 0.45 / 1024, rtol=1e-12)
    np.testing.assert_allclose(theory.squared_error(visible(Causal(), 20)), 0.45 * 2.5, rtol=1e-12)


def test_without_a_mask_or_with_scratch_all_is_known():
    for theory, mask, length in [
        (InversePermutationMatrixTheory(), Bidirectional(), 12),
        (InversePermutationMatrixTheory(scratch=True), Bidirectional(), 24),
        (InversePermutationMatrixTheory(scratch=True, answer_rows="last"), Causal(), 24),
    ]:
        curves = theory.curves(visible(mask, length))
        assert curves.mean == 1
        assert (curves.query == 1).all()
        assert (curves.evidence == 1).all()
        assert theory.squared_error(visible(mask, length)) == 0


def test_rows_that_see_letters_and_miss_a_pointer_have_no_closed_form():
    seen = visible(Bidirectional(), 12).copy()
    seen[4, 3] = False
    theory = InversePermutationMatrixTheory()
    assert theory.curves(seen) is None
    assert theory.squared_error(seen) is None
    seen[4, 6:] = False
    assert theory.curves(seen).query.tolist() == [1, 1, 1, 1, 1 / 64, 1]


def test_a_matrix_of_another_length_is_refused():
    for ask in (InversePermutationMatrixTheory().curves, InversePermutationMatrixTheory().squared_error):
        with pytest.raises(spec.ConfigError, match=r"visible has shape \(24, 24\); allowed: \(12, 12\)"):
            ask(np.ones((24, 24), bool))


def test_arguments_are_those_of_the_task():
    of_task, of_theory = (spec.arguments(cls) for cls in (InversePermutationMatrix, InversePermutationMatrixTheory))
    assert {n: f.default for n, f in of_task.items()} == {n: f.default for n, f in of_theory.items()}


@pytest.mark.parametrize(("scratch", "rows"), [(False, "first"), (True, "last"), (False, "last")])
def test_the_ceilings_of_sampled_items_average_to_it(scratch, rows):
    task = InversePermutationMatrix(d=3, scratch=scratch, answer_rows=rows)
    start, size = (3, 12) if scratch else (0, 6)
    seen = np.random.default_rng(0).random((size, size)) < 0.5
    seen[:, start : start + 3] = True
    batch = sampled(task, 4000)
    ceilings = np.asarray(jax.jit(jax.vmap(lambda item: task.ceiling(item, jnp.asarray(seen))))(batch))
    curves = InversePermutationMatrixTheory(d=3, scratch=scratch, answer_rows=rows).curves(seen)
    for slots, curve in [(batch.query_slot, curves.query), (batch.evidence_slot, curves.evidence)]:
        measured = [ceilings[np.asarray(slots) == p].mean() for p in range(3)]
        # 4,000 items a slot with a standard deviation of at most 0.44: four standard errors are 0.028.
        np.testing.assert_allclose(measured, curve, atol=0.028)
    assert max(curves.query.std(), curves.evidence.std()) > 0.05


def sampled(task, items):
    """A batch without the tokens all items share."""
    return jax.jit(lambda key: task.batch(key, task.conditions()[0], items)._replace(tokens=None))(jax.random.key(0))
