"""Interchanges of `das` and `boundless_das` beside pyvene (Wu et al. 2024, arXiv 2403.07809)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.analysis.alignment import Training, answers, interchanged, rotated, subspaces
from positionbias.analysis.base import STREAM, last_rows, sites
from positionbias.analysis.boundless_das import boundary
from positionbias.analysis.variables import pairs

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformer_lens", reason="transformer-lens is not installed")
pyvene = pytest.importorskip("pyvene", reason="pyvene is not installed")

COUNT, DIRECTIONS, SIZE = 16, 4, 16


def whole(basis):
    """An orthonormal basis, and what is orthogonal to it behind, as columns."""
    left = np.linalg.svd(basis)[2][len(basis) :]
    return torch.tensor(np.concatenate([basis, left]).T)


def swapped(model, layer, made, base, source, rows):
    """Logits [B, V] of the base's row, where an intervention of pyvene gets that of the source."""
    hook = f"blocks[{layer}].hook_resid_post.output"
    told = pyvene.IntervenableConfig(pyvene.RepresentationConfig(component=hook, unit="pos", intervention=made))
    model.config, model.device = model.cfg, torch.device("cpu")  # which pyvene asks of a model
    asked = pyvene.IntervenableModel(told, model)
    places = tuple([x[:, None].tolist()] for x in rows)
    inputs = ({"input": tokens} for tokens in (base, source))
    with torch.no_grad():
        _, logits = asked(next(inputs), [next(inputs)], {"sources->base": places[::-1]})
    return logits[torch.arange(len(base)), rows[0]]


def turned(kind, rotation):
    """An intervention of pyvene in the space that these columns span."""
    made = kind(embed_dim=SIZE)
    made.rotate_layer.weight = rotation
    np.testing.assert_allclose(made.rotate_layer.weight.detach(), rotation, atol=1e-5)
    return made


@pytest.fixture
def drawn(both):
    """`drawn(key)`: what ours says of pairs by a key, by layer and basis, and their tokens and rows for the other."""
    from hooked import tensor

    subject, names = both.subject, sites([0, 1], STREAM)

    def make(key):
        @jax.jit
        def said(layer, basis):
            found = pairs(subject, names, "answer", key, COUNT)
            return interchanged(subject, names, found, layer, basis), answers(subject, found, {}), found.told

        base, source = (subject.batch(drawn, COUNT) for drawn in jax.random.split(key, 3)[:2])  # as `pairs` has them
        rows = [tensor(last_rows(subject, x)).long() for x in (base, source)]
        return said, (*(tensor(x.inputs).long() for x in (base, source)), rows)

    return make


def test_distributed_alignment(both, drawn):
    """A basis that was learned, in the space of pyvene's rotation: what both say, and how often it is right."""
    said, told = drawn(jax.random.key(8))
    names, training = sites([0, 1], STREAM), Training(40, 32, 2e-2)
    learned = jax.jit(lambda key: subspaces(both.subject, names, "answer", DIRECTIONS, training, key)[:, 0])
    for layer, vectors in enumerate(learned(jax.random.key(9))):
        ours, alone, asked = said(layer, (vectors, jnp.ones(DIRECTIONS)))
        made = turned(pyvene.RotatedSpaceIntervention, whole(np.asarray(vectors)))
        made.set_interchange_dim(DIRECTIONS)
        known = swapped(both.hooked, layer, made, *told).numpy()
        np.testing.assert_allclose(ours, known, atol=2e-4)
        assert np.abs(alone - known).max() > 1, layer
    right, before = ((x.argmax(axis=-1) == asked).mean() for x in (known, alone))
    assert right >= before + 0.25  # of the last layer


def test_boundless_alignment(both, drawn):
    """Every direction has a share. pyvene counts directions from 0, ours from their middles, 1/2."""
    said, told = drawn(jax.random.key(10))
    rotation, bound, temperature = rotated(jax.random.key(11), SIZE, SIZE), 0.4, 0.7
    basis = (rotation, boundary(SIZE, jnp.array(bound), jnp.array(temperature)))
    for layer in range(2):
        made = turned(pyvene.BoundlessRotatedSpaceIntervention, torch.tensor(np.asarray(rotation)).T)
        made.set_intervention_boundaries(bound)
        made.set_temperature(torch.tensor(temperature))
        made.intervention_population.data = made.intervention_population + 0.5
        ours, alone, _ = said(layer, basis)
        known = swapped(both.hooked, layer, made, *told).numpy()
        np.testing.assert_allclose(ours, known, atol=2e-4)
        assert np.abs(alone - known).max() > 0.5, layer
