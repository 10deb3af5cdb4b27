"""The logit lens beside that of TransformerLens."""

import jax
import numpy as np
import pytest

from positionbias.analysis.logit_lens import LogitLens

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformer_lens", reason="transformer-lens is not installed")


def test_logit_lens(both):
    """With the norm's statistics of every layer anew: without `recompute_ln` it takes those of the last."""
    from hooked import Prompts

    key = jax.random.key(1)
    found = jax.jit(lambda: LogitLens().measure(both.subject, [0, 1], key))()
    prompts = Prompts.of(both.subject, both.hooked, key)
    logits, cache = both.hooked.run_with_cache(prompts.clean)
    streams = cache.accumulated_resid(incl_mid=False)[1:]  # without what the first layer reads
    read = both.hooked.unembed(cache.apply_ln_to_stack(streams, recompute_ln=True).flatten(0, 1))
    each = torch.arange(len(prompts.row))
    last = read.unflatten(0, streams.shape[:2])[:, each, prompts.row]  # [L, B, V]
    said = last.argmax(dim=-1)
    right = last.log_softmax(dim=-1)[:, each, prompts.right]
    agrees = said == logits[each, prompts.row].argmax(dim=-1)
    assert len(streams) == 2
    np.testing.assert_allclose(found["log_probability"], right.mean(dim=1), rtol=1e-4)
    np.testing.assert_allclose(found["accuracy"], (said == prompts.right).float().mean(dim=1), atol=1e-6)
    np.testing.assert_allclose(found["agrees"], agrees.float().mean(dim=1), atol=1e-6)
    settled = torch.where(agrees[0], 1, 2).float().mean()
    np.testing.assert_allclose(found["commitment"], settled, atol=1e-6)
    assert 1 < settled < 2
