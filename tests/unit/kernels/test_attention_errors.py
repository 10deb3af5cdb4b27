"""Arguments of a kind that a call of attention does not take, and rules that cannot be run, each in a sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels_oracle import drawn

from positionbias.errors import ConfigError
from positionbias.kernels import PerHead, Scalar, attention, choice, merge
from positionbias.masks.order import Causal

TABLE = np.arange(6)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"mask": np.ones((6, 6), bool)}, "mask is a ndarray; allowed: None, a Mask or a function"),
        ({"mask": "causal"}, "mask is a str; allowed: None, a Mask or a function"),
        ({"mask": max}, "mask is a builtin_function_or_method; allowed: None, a Mask or a function"),
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
        ({"scale": float("nan")}, "scale = nan is not allowed; allowed: a number"),
        ({"block_sizes": (True, 8)}, r"block_sizes = \(True, 8\) is not allowed; allowed: two whole numbers"),
        ({"normalise": "False"}, "normalise = 'False' is not allowed; allowed: True, False"),
        ({"key_bias": [[[0.0] * 6]] * 2}, "key_bias is a list; allowed: an array"),
        ({"key_bias": np.ones((2, 1, 6), bool)}, "key_bias is of bool; allowed: real numbers"),
        ({"mask": Causal(), "tokens": 3}, r"tokens are \(int\); allowed: \(Tokens, Tokens\)"),
        ({"mask": Causal(), "tokens": (1, 2)}, r"tokens are \(int, int\); allowed: \(Tokens, Tokens\)"),
        ({"dropout": (0.1, "x")}, "dropout has the seed 'x'; allowed: a whole number of 32 bits"),
        ({"dropout": (0.1, 2**40)}, "dropout has the seed 1099511627776; allowed: a whole number of 32 bits"),
        (
            {"dropout": (0.1, jax.random.key(0))},
            r"dropout has the seed key<fry>\[\]; allowed: .* jax.random.bits\(key\)",
        ),
        ({"aux": {3: Scalar(1.0)}}, "aux has the name 3; allowed: text"),
        (
            {"score": lambda s, b, h, q, k, x: s + x, "aux": {"x": PerHead(np.array(["a", "b"]))}},
            r"aux\['x'\], PerHead, holds an array of <U1; allowed: one of numbers or booleans",
        ),
        ({"aux": [1]}, "aux is a list; allowed: a mapping of names to PerQuery, PerKey, PerHead, Scalar, Relative"),
        ({"impl": ["xla_dense"]}, r"impl: unknown driver \['xla_dense'\].*allowed: cudnn"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(told, why):
    with pytest.raises(ConfigError, match=why):
        attention(*drawn(6, 6).values(), **told)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"mask": lambda q, k: k <= q}, r"mask cannot be called as mask\(b, h, q, k\): too many positional arguments"),
        (
            {"score": lambda s, b, h, q, k, slpoe: s * slpoe, "aux": {"slope": Scalar(2.0)}},
            r"score cannot be called as score\(s, b, h, q, k\): .*'slpoe', did you mean 'slope'\?; allowed: a function",
        ),
        (
            {"score": lambda s, b, h, q, k, t: s, "aux": {"t": PerHead([1.0, 2.0])}},
            r"aux\['t'\], PerHead, holds a list",
        ),
        ({"mask": lambda b, h, q, k: None}, "mask returns a NoneType; allowed: one array of booleans"),
        ({"mask": lambda b, h, q, k: (k <= q, q)}, "mask returns a tuple; allowed: one array of booleans"),
        ({"mask": lambda b, h, q, k: q - 3 < k <= q}, "mask asks whether an array is true.*chained.*allowed: &"),
        ({"score": lambda s, b, h, q, k: s if k <= q else -s}, "score asks whether an array is true.*allowed: &"),
        ({"mask": lambda b, h, q, k: k <= q if b == 0 else k >= q}, "mask asks whether an array is true.*`if`"),
        (
            {"score": lambda s, b, h, q, k: s * float(b)},
            "score makes a number of Python .*`float`.*allowed: jax arrays",
        ),
        (
            {"score": lambda s, b, h, q, k: s * [1.0, 2.0][b]},
            "score makes a number of Python .* lists do; allowed: jax",
        ),
        ({"score": lambda s, b, h, q, k: None}, "score returns a NoneType; allowed: one array of real numbers"),
        ({"score": lambda s, b, h, q, k: k <= q}, "score returns bool; allowed: real numbers"),
        ({"score": lambda s, b, h, q, k: s * 1j}, "score returns complex64; allowed: real numbers"),
    ],
)
def test_a_rule_that_cannot_be_one_is_told_in_a_sentence(told, why):
    with pytest.raises(ConfigError, match=why):
        attention(*drawn(6, 6).values(), **told)


def test_an_error_inside_a_rule_is_its_own():
    def score(s, b, h, q, k):
        raise ValueError("of the rule")

    with pytest.raises(ValueError, match=r"^of the rule"):
        attention(*drawn(6, 6).values(), score=score)


def test_what_is_no_array_of_a_known_type_is_told_in_a_sentence():
    q, k, v = drawn(6, 6).values()
    with pytest.raises(ConfigError, match="q is a list; allowed: an array"):
        attention(q.tolist(), k, v)
    with pytest.raises(ConfigError, match=r"of \['float8_e4m3fn'\]; allowed: one floating type .*of bfloat16, float16"):
        attention(*(jnp.asarray(x, jnp.float8_e4m3fn) for x in (q, k, v)))


@pytest.mark.filterwarnings("error")
def test_arrays_of_numpy_are_what_jax_makes_of_them():
    given = [x.astype(np.float64) for x in drawn(6, 6).values()]
    assert choice(*given, platform="tpu").driver.name == "mosaic_tpu"
    np.testing.assert_array_equal(attention(*given), attention(*map(jnp.asarray, given)))
    with jax.enable_x64(True):
        assert choice(*given, platform="tpu").driver.name == "xla_chunked"


def test_numbers_of_numpy_are_numbers():
    q, k, v = drawn(6, 6).values()
    told = attention(q, k, v, dropout=(0.5, 3), block_sizes=(4, 4), impl="xla_dense", scale=0.5)
    same = {"dropout": (np.float32(0.5), np.uint32(3)), "block_sizes": (np.int64(4),) * 2, "scale": np.float32(0.5)}
    np.testing.assert_array_equal(attention(q, k, v, impl="xla_dense", **same), told)


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
    told = attention(*drawn(6, 6).values(), stats=["lse"])
    for given in (told, None, told[0]):
        with pytest.raises(
            ConfigError, match=r"merge is given what are no two arrays; allowed: outputs \[B, T, N, K\]"
        ):
            merge(given, given)
