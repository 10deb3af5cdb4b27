"""Edge attribution beside the authors' code of EAP-IG (Hanna et al. 2024, arXiv 2403.17806)."""

import jax
import numpy as np
import pytest

from positionbias.analysis.edge_scores import estimated, exact, of_items
from positionbias.analysis.edges import graph

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformer_lens", reason="transformer-lens is not installed")
attribute = pytest.importorskip("eap.attribute", reason="eap is not installed, the code of EAP-IG")

STEPS = 3


@pytest.fixture
def scores(both, monkeypatch):
    """`scores(swapped, name, **options)`: changes of m by [sender, reader], as a function of the authors has them.

    With `swapped`, from the corrupted items to the clean ones.
    """
    from eap import evaluate
    from eap.graph import Graph
    from hooked import Prompts

    subject, model, key = both.subject, both.hooked, jax.random.key(7)
    prompts, parts, zeros = Prompts.of(subject, model, key), graph(subject), torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *sizes, device=None, **told: zeros(*sizes, **told))  # they ask for CUDA
    for module in (attribute, evaluate):
        monkeypatch.setattr(module, "tokenize_plus", lambda model, tokens: (tokens, None, None, tokens.shape[1]))

    def margin(logits, clean_logits, lengths, label):
        found = prompts.margins(logits)
        return found.sum() if torch.is_grad_enabled() else found

    def make(swapped, name, **options):
        both_ways = [prompts.clean, prompts.corrupted]
        items = [(*(reversed(both_ways) if swapped else both_ways), None)]
        made = Graph.from_model(model)
        with torch.set_grad_enabled(name != "get_scores_exact"):
            found = getattr(attribute, name)(model.requires_grad_(True), made, items, margin, quiet=True, **options)
        model.requires_grad_(False)
        table = np.zeros(parts.real.shape)
        for edge in made.edges.values():
            sender = edge.parent.name.replace("h", "")
            reader = edge.child.name.replace("h", "").replace("logits", "output")
            reader = reader if edge.qkv is None else f"{reader}.{edge.qkv}"
            place = parts.labels["sender"].index(sender), parts.labels["reader"].index(reader)
            assert parts.real[place]
            table[place] = found[edge.matrix_index]
        assert len(made.edges) == parts.real.sum()
        return table

    return make, key


@pytest.fixture
def ours(both, scores):
    """The same of ours: exact, EAP and EAP-IG."""
    subject, parts = both.subject, graph(both.subject)

    def one(pair, clean, other):
        return {
            "exact": exact(pair, pair.clean, other),
            "eap": estimated(pair, clean, other, 1),
            "eap_ig": estimated(pair, clean, other, STEPS),
        }

    found = jax.jit(lambda: of_items(subject, parts, subject.batch(scores[1]), one))()
    return {name: np.asarray(found[name]) for name in ("exact", "eap", "eap_ig")} | {
        "exact": np.where(parts.real, found["exact"] - found["clean"], 0)
    }


def test_edges_that_are_patched(scores, ours):
    known = scores[0](False, "get_scores_exact")
    np.testing.assert_allclose(ours["exact"], known, atol=2e-4)
    assert np.ptp(known) > 1


def test_attribution_by_gradients(scores, ours):
    """The gradient of the clean run; and the mean of `STEPS` runs up to it.

    The authors count embeddings z' + k / m (z - z') from k = 0 to m - 1, where the paper has 1 to m (eq. 3): from the
    corrupted run on. With both runs swapped these are those of the paper, and all differences of the other sign; as
    they are, the means differ by the gradients of the two ends.
    """
    make, _ = scores
    clean = make(False, "get_scores_eap")
    np.testing.assert_allclose(ours["eap"], clean, atol=2e-4)
    np.testing.assert_allclose(ours["eap_ig"], -make(True, "get_scores_eap_ig", steps=STEPS), atol=2e-4)
    ends = clean + make(True, "get_scores_eap")
    theirs = make(False, "get_scores_eap_ig", steps=STEPS)
    np.testing.assert_allclose(ours["eap_ig"], theirs + ends / STEPS, atol=2e-4)
    assert np.abs(ends).max() > 0.1
    assert np.ptp(ours["eap_ig"]) > 1
