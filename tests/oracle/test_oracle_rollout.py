"""Attention rollout beside fast-vit-rollout, which is written for vision transformers and hooks any module."""

import copy
import sys
import types

import jax
import numpy as np
import pytest

from positionbias.analysis.rollout import Rollout

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformer_lens", reason="transformer-lens is not installed")


def test_attention_rollout(both, monkeypatch):
    """The row of the last answer, with half of every row the row itself, and nothing discarded."""
    from hooked import Prompts

    vision = types.ModuleType("torchvision")  # of which its command line alone makes use
    vision.transforms = None
    monkeypatch.setitem(sys.modules, "torchvision", vision)
    theirs = pytest.importorskip("fast_vit_rollout.vit_rollout", reason="fast-vit-rollout is not installed")
    key = jax.random.key(12)
    found = jax.jit(lambda: Rollout(residual=True).measure(both.subject, [0, 1], key))()
    prompts = Prompts.of(both.subject, both.hooked, key)
    for layer in range(2):
        reads = "hook_pattern" if layer else "blocks.0.attn.hook_pattern"  # of all layers, or the first alone
        rolled = theirs.ViTAttentionRollout(copy.deepcopy(both.hooked), "mean", 0, reads)(prompts.clean)
        known = rolled[torch.arange(len(prompts.row)), prompts.row].mean(dim=0).numpy()
        np.testing.assert_allclose(found["influence"][layer], known, atol=1e-5)
        assert np.abs(known - found["even"][layer]).max() > 0.02
