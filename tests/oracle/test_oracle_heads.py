"""What heads look at and what they are made of, beside `detect_head` and `FactoredMatrix` of TransformerLens."""

import jax
import numpy as np
import pytest

from positionbias.analysis.induction import Induction
from positionbias.analysis.spectrum import Spectrum

torch = pytest.importorskip("torch", reason="torch is not installed")
detector = pytest.importorskip("transformer_lens.head_detector", reason="transformer-lens is not installed")


def test_previous_token_heads_and_induction_heads(both, monkeypatch):
    """`detect_head` shares a pattern's weight among all its rows, ours a row's: T times theirs over the rows asked."""
    from hooked import Prompts

    model, key = both.hooked, jax.random.key(3)
    found = jax.jit(lambda: Induction().measure(both.subject, [0, 1], key))()
    prompts, length = Prompts.of(both.subject, model, key), both.subject.run.task.length(both.subject.condition)
    monkeypatch.setattr(model, "to_tokens", lambda tokens: tokens)  # there is no tokenizer
    previous, evidence = [], []
    for tokens, row, column in zip(prompts.clean, prompts.row, prompts.evidence, strict=True):
        previous.append(detector.detect_head(model, tokens[None], "previous_token_head"))
        looks = detector.get_induction_head_detection_pattern(tokens[None])
        assert looks[row].nonzero().tolist() == [[column]]  # behind the asked key's copy stands the evidence
        only = torch.zeros_like(looks)
        only[row] = looks[row]
        evidence.append(detector.detect_head(model, tokens[None], only))
    for name, scores, asked in (("previous", previous, length - 1), ("evidence", evidence, 1)):
        known = torch.stack(scores).mean(dim=0).numpy() * length / asked
        np.testing.assert_allclose(found[name], known, atol=1e-5, err_msg=name)
        assert np.abs(known - found[f"{name}_even"]).max() > 0.02, name  # which are told from even attention


def test_singular_values_of_heads(both):
    found = jax.jit(lambda: Spectrum().measure(both.subject, [0, 1], jax.random.key(4)))()
    for name, matrix in (("ov", both.hooked.OV), ("kq", both.hooked.QK)):
        _, values, _ = matrix.svd()
        np.testing.assert_allclose(found[name], values, atol=1e-4 * float(values.max()), err_msg=name)
        np.testing.assert_allclose(found[f"{name}_nuclear"], values.sum(dim=-1), rtol=1e-4)
        np.testing.assert_allclose(found[f"{name}_frobenius"], matrix.norm(), rtol=1e-4)
