"""Edge patching and edge attribution beside AutoCircuit (Miller et al. 2024, arXiv 2407.08734)."""

import copy
import sys
import types

import jax
import numpy as np
import pytest

from positionbias.analysis.edge_attribution import EdgeAttribution
from positionbias.analysis.path_patching import PathPatching

torch = pytest.importorskip("torch", reason="torch is not installed")
lens = pytest.importorskip("transformer_lens", reason="transformer-lens is not installed")


@pytest.fixture(scope="module")
def circuit():
    """The parts of AutoCircuit, whose annotations name the cache as TransformerLens did before its version 3."""
    cache = types.ModuleType("transformer_lens.past_key_value_caching")
    cache.HookedTransformerKeyValueCache = lens.TransformerLensKeyValueCache
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lens, "HookedTransformerKeyValueCache", lens.TransformerLensKeyValueCache, raising=False)
        patch.setitem(sys.modules, cache.__name__, cache)
        graphs = pytest.importorskip("auto_circuit.utils.graph_utils", reason="auto-circuit is not installed")
        from auto_circuit.data import PromptDataLoader, PromptDataset
        from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
        from auto_circuit.utils.ablation_activations import src_ablations

    return types.SimpleNamespace(
        graphs=graphs,
        loader=PromptDataLoader,
        items=PromptDataset,
        mask_gradients=mask_gradient_prune_scores,
        sent=src_ablations,
    )


@pytest.fixture
def asked(circuit, make_both):
    """`asked(key)`: the subject, prompts, and a patchable model of the task whose last row answers."""
    from hooked import Prompts

    both = make_both("learned")
    model = circuit.graphs.patchable_model(copy.deepcopy(both.hooked), True, "last_seq", separate_qkv=True)

    def ask(key):
        prompts = Prompts.of(both.subject, both.hooked, key)
        assert (prompts.row == prompts.clean.shape[1] - 1).all()
        return both.subject, prompts, model

    return ask


def place(name):
    """The hook and the head of a reader of ours, as AutoCircuit's masks have them."""
    part, *rest = name.split(".")
    if name == "output":
        return "blocks.1.hook_resid_post", None
    if rest:
        return f"blocks.{part[1:]}.hook_{rest[1]}_input", int(rest[0])
    return f"blocks.{part[1:]}.hook_mlp_in", None


def table(scores, subject):
    """Scores of AutoCircuit as [sender, reader], 0 where there is no edge."""
    from positionbias.analysis.edges import graph

    parts = graph(subject)
    found = np.zeros(parts.real.shape)
    for column, name in enumerate(parts.labels["reader"]):
        hook, head = place(name)
        masks = scores[hook] if head is None else scores[hook][head]
        assert len(masks) == parts.real[:, column].sum()  # senders come in one order
        found[: len(masks), column] = masks.numpy()
    return found


def margin_of_last(prompts, last):
    """m of outputs of the last row [B, V]."""
    each = torch.arange(len(last))
    return (last[each, prompts.right] - last[each, prompts.wrong]).mean().item()


def test_path_patching(circuit, asked):
    """One edge of the corrupted run in the clean one and back, every edge."""
    key = jax.random.key(5)
    subject, prompts, model = asked(key)
    found = jax.jit(lambda: PathPatching().measure(subject, [0, 1], key))()
    runs = {"lost": (prompts.clean, prompts.corrupted), "restored": (prompts.corrupted, prompts.clean)}
    whole = {name: margin_of_last(prompts, model(run)[:, -1]) for name, (run, _) in runs.items()}
    gap = whole["lost"] - whole["restored"]
    assert gap > 1
    for name, (run, other) in runs.items():
        sent = circuit.sent(model, other)
        scores = model.new_prune_scores()
        for edge in model.edges:
            with circuit.graphs.patch_mode(model, sent, [edge]):
                change = margin_of_last(prompts, model(run)[:, -1]) - whole[name]
            scores[edge.dest.module_name][edge.patch_idx] = (-change if name == "lost" else change) / gap
        known = table(scores, subject)
        np.testing.assert_allclose(found[name], known, atol=1e-4, err_msg=name)
        assert np.ptp(known) > 0.3, name


def test_edge_attribution_patching(circuit, asked):
    """The gradient by the mask of every edge, of a loss that is -m."""
    key = jax.random.key(6)
    drawn, _ = jax.random.split(key)
    subject, prompts, model = asked(drawn)
    found = jax.jit(lambda: EdgeAttribution().measure(subject, [0, 1], key))()
    answers = [list(x[:, None]) for x in (prompts.right, prompts.wrong)]
    items = circuit.items(prompts.clean, prompts.corrupted, *answers)
    loader = circuit.loader(items, None, 0, batch_size=len(prompts.row))
    scores = circuit.mask_gradients(model, loader, None, "logit", "avg_diff", mask_val=0.0)
    clean, corrupted = (margin_of_last(prompts, model(x)[:, -1]) for x in (prompts.clean, prompts.corrupted))
    known = table(scores, subject) / (clean - corrupted)
    np.testing.assert_allclose(found["eap"], known, atol=1e-4)
    assert np.ptp(known) > 0.3
