"""What does not fit is told in a sentence."""

import numpy as np
import pytest
from recurrence_oracle import drawn

from positionbias.errors import ConfigError
from positionbias.kernels import linear_attention, linear_choice

SHAPES = drawn(6, "key and value")


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"k": SHAPES["k"][:, :5]}, r"q \[2, 6, 2, 6\], k \[2, 5, 2, 6\], v .* do not fit together; allowed: q and k"),
        ({"v": SHAPES["v"][:, :, :1]}, r"v \[2, 6, 1, 4\] do not fit together"),
        ({"q": SHAPES["q"][0]}, r"q \[6, 2, 6\], .* do not fit together"),
        ({"q": SHAPES["q"].astype(np.int32)}, "q is int32; allowed: real numbers"),
        ({"v": SHAPES["v"].astype(np.float16)}, "q, k, v are float32, float32, float16; allowed: one type"),
        ({"log_decay": SHAPES["log_decay"][..., :3]}, r"log_decay has shape \[2, 6, 2, 3\]; allowed: \[B, T, N\] = "),
        ({"value_log_decay": SHAPES["v"][..., 0]}, r"value_log_decay has shape \[2, 6, 2\]; allowed: \[B, T, N, K\]"),
        (
            {"normalise": True},
            r"initial_state is \[2, 2, 6, 4\] of float32; allowed: \[B, N, H, K \+ 1\] = \[2, 2, 6, 5\] of float32",
        ),
        (
            {"initial_state": SHAPES["initial_state"].astype(np.float16)},
            r"initial_state is \[2, 2, 6, 4\] of float16; allowed: .* of float32",
        ),
        ({"inclusive": 1}, "inclusive = 1 is not allowed; allowed: True or False"),
        ({"resets": np.zeros((2, 5), bool)}, r"resets is bool \[2, 5\]; allowed: booleans \[T\] or \[B, T\] for q"),
        ({"resets": np.zeros(6)}, r"resets is float64 \[6\]; allowed: booleans"),
        ({"valid": np.zeros((5, 6), bool)}, r"valid is bool \[5, 6\]; allowed: booleans \[T\] or \[B, T\] for q"),
        ({"feature": lambda x: x[..., :5]}, r"log_decay has shape \[2, 6, 2, 6\]; allowed: .* = \[2, 6, 2, 5\]"),
        ({"chunk": 48}, "chunk = 48 is not allowed; allowed: powers of two, or None"),
        ({"chunk": 0}, "chunk = 0 is not allowed; allowed: powers of two"),
        ({"impl": "xla_chunk"}, "impl: unknown driver 'xla_chunk', did you mean 'xla_chunked'"),
        ({"impl": "xla_quadratic"}, "impl = 'xla_quadratic' cannot do this: value_log_decay is one of each channel"),
    ],
)
def test_what_does_not_fit_is_told(told, why):
    with pytest.raises(ConfigError, match=why):
        linear_attention(**{**SHAPES, **told})


def test_an_unknown_platform_is_told():
    with pytest.raises(ConfigError, match="platform: unknown platform 'tpus', did you mean 'tpu'"):
        linear_choice(**SHAPES, platform="tpus")


@pytest.mark.parametrize(
    ("told", "options", "why"),
    [
        ({}, {}, None),
        ({}, {"chunk": 4}, "chunk = 4 is less than 8 steps"),
        ({"size": 2000, "values": 2000}, {}, "chunks of 8 steps with keys of 2000 and values of 2000 need about"),
        ({"gates": "key and value", "size": 256, "values": 256}, {"chunk": 8}, None),
        (
            {"length": 300, "gates": "key and value", "size": 256, "values": 256},
            {"chunk": 256},
            "chunks of 256 steps with keys of 256 and values of 256 need about 26 MiB of vector memory",
        ),
    ],
)
def test_why_a_tpu_cannot_is_told(told, options, why):
    passed = dict(linear_choice(**drawn(**{"length": 6, **told}), **options, platform="tpu").passed_over)
    assert (why is None and not passed) or passed["mosaic_tpu"].startswith(why)


def test_a_driver_for_another_chip_is_told():
    with pytest.raises(ConfigError, match="impl = 'mosaic_tpu' cannot do this: the platform is cpu"):
        linear_attention(**SHAPES, impl="mosaic_tpu")
