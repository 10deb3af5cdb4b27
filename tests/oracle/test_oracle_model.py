"""Outputs and sites beside those of TransformerLens."""

import jax
import numpy as np
import pytest

pytest.importorskip("transformer_lens", reason="transformer-lens is not installed")

SITES = {  # ours, and the hook of TransformerLens
    "layers.{}.attention.input": "blocks.{}.hook_resid_pre",
    "layers.{}.attention.query_input": "blocks.{}.hook_q_input",
    "layers.{}.attention.query": "blocks.{}.attn.hook_q",
    "layers.{}.attention.key": "blocks.{}.attn.hook_k",
    "layers.{}.attention.value": "blocks.{}.attn.hook_v",
    "layers.{}.attention.pattern": "blocks.{}.attn.hook_pattern",
    "layers.{}.attention.heads": "blocks.{}.attn.hook_z",
    "layers.{}.attention.head_outputs": "blocks.{}.attn.hook_result",
    "layers.{}.attention.output": "blocks.{}.hook_attn_out",
    "layers.{}.mlp.input": "blocks.{}.hook_mlp_in",
    "layers.{}.mlp.hidden": "blocks.{}.mlp.hook_post",
    "layers.{}.mlp.output": "blocks.{}.hook_mlp_out",
    "layers.{}.stream": "blocks.{}.hook_resid_post",
}
TOLERANCE = 1e-4


@pytest.fixture
def told(both):
    """Outputs, sites and scores of ours, and the cache of the other."""
    from hooked import tensor

    batch = both.subject.batch(jax.random.key(0))
    outputs, sites = both.subject.apply(batch, ["*"])
    logits, cache = both.hooked.run_with_cache(tensor(batch.inputs).long())
    return (np.asarray(outputs), jax.device_get(sites)), (logits.numpy(), cache)


def test_outputs_are_the_same(told):
    (outputs, _), (logits, _) = told
    np.testing.assert_allclose(outputs, logits, atol=TOLERANCE)
    assert np.ptp(outputs) > 5  # of a model that was trained


def test_sites_are_hooks(told):
    (_, sites), (_, cache) = told
    for site, hook in SITES.items():
        for layer in range(2):
            ours, theirs = sites[site.format(layer)], cache[hook.format(layer)].numpy()
            np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, err_msg=f"{site} {layer}")
            assert np.std(ours) > 1e-2, site
    for layer in range(2):  # of which TransformerLens hides keys ahead before the hook, ours behind the site
        ours, theirs = sites[f"layers.{layer}.attention.scores"], cache["attn_scores", layer].numpy()
        seen = np.tri(ours.shape[-1], dtype=bool)
        np.testing.assert_allclose(ours[:, :, seen], theirs[:, :, seen], atol=TOLERANCE)
