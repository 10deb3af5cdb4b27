"""What a call of attention refuses, and in which words."""

import jax
import numpy as np
import pytest
from kernels_oracle import drawn

from positionbias.errors import ConfigError
from positionbias.kernels import attention, merge
from positionbias.masks.order import Causal

TABLE = np.arange(6)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"mask": np.ones((6, 6), bool)}, "mask is a ndarray; allowed: None, a Mask or a function"),
        ({"mask": "causal"}, "mask is a str; allowed: None, a Mask or a function"),
        ({"mask": Causal}, "mask is the class Causal; allowed: None, a Mask or a function"),
        ({"score": np.ones((6, 6))}, "score is a ndarray; allowed: None or a function"),
        ({"mask": lambda b, h, q, k: TABLE[q] == TABLE[k]}, r"mask hands .* to numpy.*allowed: jax arrays"),
        ({"score": lambda s, b, h, q, k: s + TABLE[q]}, r"score hands .* to numpy.*allowed: jax arrays"),
        ({"scale": "x"}, "scale = 'x' is not allowed; allowed: a number"),
        ({"scale": [1.0]}, r"scale = \[1.0\] is not allowed; allowed: a number"),
        ({"block_sizes": 128}, "block_sizes = 128 is not allowed; allowed: two whole numbers"),
        ({"block_sizes": ()}, r"block_sizes = \(\) is not allowed; allowed: two whole numbers"),
        ({"stats": 1}, "stats = 1 is not allowed; allowed: a list of names"),
        ({"stats": iter(["lse"])}, "stats = .* is not allowed; allowed: a list of names"),
        ({"impl": ["xla_dense"]}, r"impl: unknown driver \['xla_dense'\].*allowed: cudnn"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(told, why):
    with pytest.raises(ConfigError, match=why):
        attention(*drawn(6, 6).values(), **told)


def test_a_traced_scale_is_told_in_a_sentence():
    with pytest.raises(ConfigError, match="scale is traced; allowed: a number that is known"):
        jax.jit(lambda scale: attention(*drawn(6, 6).values(), scale=scale))(1.0)


def test_what_does_not_merge_is_told_in_a_sentence():
    o, lse = np.zeros((2, 3, 4, 5)), np.zeros((2, 4, 3))
    with pytest.raises(
        ConfigError, match=r"merge is given \[2, 3, 4, 5\], \[2, 3, 4\]; allowed: outputs \[B, T, N, K\]"
    ):
        merge((o, lse), (o, lse.swapaxes(1, 2)))
    with pytest.raises(ConfigError, match=r"merge is given outputs of shapes \[2, 3, 4, 5\] and \[2, 6, 4, 5\]"):
        merge((o, lse), (np.zeros((2, 6, 4, 5)), np.zeros((2, 4, 6))))
