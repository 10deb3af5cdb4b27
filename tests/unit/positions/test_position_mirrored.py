"""The mirrored rotation: rope to the left, its mirror image to the right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from positionbias.positions.mirrored import MirroredRoPE
from positionbias.positions.rotary import RoPE
from positionbias.spec import ConfigError
from positionbias.tokens import sequential

Q, K = (jax.random.normal(jax.random.key(i), (2, 5, 3, 8)) for i in (0, 1))
TOKENS = sequential(5, position=np.array([0, 2, 3, 7, 9]))


def rope(q, k):
    sides = RoPE(base=50.0).rotate(q, TOKENS, {}, "query"), RoPE(base=50.0).rotate(k, TOKENS, {}, "key")
    return np.asarray(jnp.einsum("BTNH,BSNH->BNTS", *sides))


def mirrored(q, k):
    return np.asarray(MirroredRoPE(base=50.0).products(q, k, TOKENS, TOKENS, {}))


def test_earlier_keys_are_met_as_by_rope():
    lower = np.tri(5, dtype=bool)
    np.testing.assert_allclose(mirrored(Q, K)[..., lower], rope(Q, K)[..., lower], atol=1e-4)
    assert np.abs(mirrored(Q, K) - rope(Q, K))[..., ~lower].max() > 0.1


def test_a_later_key_is_met_as_if_the_two_had_changed_places():
    """The identity of the catalogue: rotating by -i and -j is a query at j and a key at i."""
    same_q, same_k = (jnp.broadcast_to(x[:, :1], x.shape) for x in (Q, K))
    found = mirrored(same_q, same_k)
    np.testing.assert_allclose(found, np.swapaxes(found, -1, -2), atol=1e-4)


def test_the_base_is_checked_as_ropes():
    with pytest.raises(ConfigError, match=r"base = 1\.0 is not allowed"):
        MirroredRoPE(base=1.0)
