"""The closed form of inverse permutation against literal formulas and against the task's own ceilings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import spec
from positionbias.masks.order import Bidirectional, Causal
from positionbias.tasks.inverse_permutation import InversePermutation
from positionbias.theory.inverse_permutation import InversePermutationTheory
from positionbias.tokens import sequential


def visible(mask, length):
    tokens = sequential(length)
    return mask.dense(tokens, tokens)


def test_causal_curves_of_the_quickstart():
    curves = InversePermutationTheory(n=8, alphabet=16).curves(visible(Causal(), 16))
    wanted = [0.1796875, 0.296875, 0.4140625, 0.53125, 0.6484375, 0.765625, 0.8828125, 1.0]
    assert curves.query.tolist() == wanted
    assert curves.evidence.tolist() == wanted[::-1]
    assert curves.mean == 0.58984375


def test_whoever_sees_all_is_always_right():
    for theory, length in [(InversePermutationTheory(scratch=True), 24), (InversePermutationTheory(), 16)]:
        curves = theory.curves(visible(Bidirectional(), length))
        assert (curves.query == 1).all()
        assert (curves.evidence == 1).all()
        assert curves.mean == 1
    assert InversePermutationTheory(scratch=True).curves(visible(Causal(), 24)).mean == 1


def test_every_scratch_token_shows_one_slot_more():
    curves = InversePermutationTheory(scratch=3).curves(visible(Causal(), 19))
    seen = np.array([4, 5, 6, 7, 8, 8, 8, 8]) / 8
    assert curves.query.tolist() == (seen + (1 - seen) / 16).tolist()
    assert InversePermutationTheory(scratch=8).curves(visible(Causal(), 24)).mean == 1


def test_rows_that_miss_a_pointer_have_no_closed_form():
    seen = visible(Bidirectional(), 16).copy()
    seen[12, 3] = False
    assert InversePermutationTheory().curves(seen) is None


def test_a_matrix_of_another_length_is_refused():
    with pytest.raises(spec.ConfigError, match=r"visible has shape \(16, 16\); allowed: \(24, 24\)"):
        InversePermutationTheory(scratch=True).curves(np.ones((16, 16), bool))


def test_arguments_are_those_of_the_task():
    of_task, of_theory = (spec.arguments(cls) for cls in (InversePermutation, InversePermutationTheory))
    assert {n: f.default for n, f in of_task.items()} == {n: f.default for n, f in of_theory.items()}
    assert spec.build("theory", "inverse_permutation(n=4)", "theory") == InversePermutationTheory(n=4)


def test_the_ceilings_of_sampled_items_average_to_it():
    task = InversePermutation(n=4, alphabet=3)
    random = np.random.default_rng(0)
    seen = random.random((8, 8)) < 0.5
    seen[:, :4] = True
    batch = jax.jit(lambda key: task.batch(key, task.conditions()[0], 4000))(jax.random.key(0))
    ceilings = np.asarray(jax.jit(jax.vmap(lambda item: task.ceiling(item, jnp.asarray(seen))))(strip(batch)))
    curves = InversePermutationTheory(n=4, alphabet=3).curves(seen)
    for slots, curve in [(batch.query_slot, curves.query), (batch.evidence_slot, curves.evidence)]:
        measured = [ceilings[np.asarray(slots) == p].mean() for p in range(4)]
        # 4,000 items a slot with a standard deviation of at most 1/3: four standard errors are 0.021.
        np.testing.assert_allclose(measured, curve, atol=0.021)
    assert curves.query.std() > 0.05


def strip(batch):
    """The batch without the tokens all items share."""
    return batch._replace(tokens=None)
