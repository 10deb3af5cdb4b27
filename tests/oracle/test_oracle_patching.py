"""Activation patching beside `transformer_lens.patching`."""

import itertools

import jax
import numpy as np
import pytest

from positionbias.analysis.patching import PLACES, Patching

torch = pytest.importorskip("torch", reason="torch is not installed")
theirs = pytest.importorskip("transformer_lens.patching", reason="transformer-lens is not installed")

HOOKS = {"stream": "resid_post", "attention": "attn_out"}


def test_activation_patching(both):
    """What a clean activation restores, of streams and of what attention adds by place, and of every head."""
    import pandas
    from hooked import Prompts

    key = jax.random.key(2)
    found = jax.jit(lambda: Patching().measure(both.subject, [0, 1], key))()
    model, prompts = both.hooked, Prompts.of(both.subject, both.hooked, key)
    logits, cache = model.run_with_cache(prompts.clean)

    def margin(logits):
        return prompts.margins(logits).mean()

    rows = torch.arange(prompts.clean.shape[1])
    named = {"evidence": rows == prompts.evidence[:, None], "answer": rows == prompts.row[:, None]}
    named["elsewhere"] = ~(named["evidence"] | named["answer"])

    def restored(activation, index, clean):
        where = named[PLACES[index[1]]]
        activation[where] = clean[where]
        return activation

    clean, corrupted = margin(logits), margin(model(prompts.corrupted))
    told = model, prompts.corrupted, cache, margin
    places = pandas.DataFrame(itertools.product(range(2), range(len(PLACES))), columns=["layer", "place"])
    known = {
        kind: theirs.generic_activation_patch(*told, restored, hook, index_df=places).reshape(2, -1)
        for kind, hook in HOOKS.items()
    }
    known["heads"] = theirs.get_act_patch_attn_head_out_all_pos(*told)
    assert clean - corrupted > 1
    np.testing.assert_allclose(found["clean"], clean, rtol=1e-4)
    np.testing.assert_allclose(found["corrupted"], corrupted, rtol=1e-4)
    for kind, values in known.items():
        shares = ((values - corrupted) / (clean - corrupted)).numpy()
        np.testing.assert_allclose(found[kind], shares, atol=1e-4, err_msg=kind)
        assert np.ptp(shares) > 0.1, kind
