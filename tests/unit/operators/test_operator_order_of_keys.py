"""What a query reads of another sequence however its keys are stored: a loop stores one pass after another."""

import jax.numpy as jnp
import numpy as np
import pytest

from positionbias import compatibility, spec
from positionbias.models.sites import Sites
from positionbias.positions.base import Dims, Placed
from positionbias.tokens import Tokens, joined, sequential

T, N, H = 5, 2, 4
NONE = Placed(spec.build("positions", "none", "test"))
CROSSING = [
    name
    for name in spec.names("operators")
    if "causal_cross" in spec.build("operators", compatibility.example("operators", name), "test").patterns
]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", CROSSING)
def test_keys_of_two_passes_are_read_by_their_places(name, known):
    one = spec.build("operators", compatibility.example("operators", name), "test")
    draw = np.random.default_rng(0)
    own, passes = sequential(T), joined([sequential(T)] * 2)
    order = np.argsort(passes.index, kind="stable")
    params = {
        name: draw.normal(size=matrix.shape).astype(np.float32)
        for name, matrix in one.parameters(Dims(width=N * H, heads=N, head_size=H, length=2 * T)).items()
    }
    x, read = (draw.normal(size=(1, length, N * H)).astype(np.float32) for length in (T, 2 * T))
    q, k, v = (draw.normal(size=(1, length, N, H)).astype(np.float32) for length in (T, 2 * T, 2 * T))
    mask = spec.build("masks", "causal", "test")

    def mixed(k, v, read, tokens):
        tokens = tokens if known else Tokens(*map(jnp.asarray, tokens))
        more = params | one.projected(x, read, params)
        return one(q, k, v, own, tokens, mask, NONE, more, Sites())

    sort = Tokens(*(field[order] for field in passes))
    stored, by_place = mixed(k, v, read, passes), mixed(k[:, order], v[:, order], read[:, order], sort)
    np.testing.assert_allclose(stored, by_place, rtol=1e-4, atol=1e-5)
    later = jnp.asarray(passes.index) > 1
    changed = mixed(*(jnp.where(later[None, :, None, None], 1.0, a) for a in (k, v)), read, passes)
    np.testing.assert_allclose(changed[:, :2], stored[:, :2], rtol=1e-5, atol=1e-6)
