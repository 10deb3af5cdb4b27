"""What cuDNN is asked, and of which GPUs; none is here."""

import types

import jax
import jax.numpy as jnp
import pytest

from positionbias.kernels import attention, choice
from positionbias.kernels.delta_recurrence import mosaic_gpu as delta_gpu
from positionbias.kernels.delta_recurrence.call import posed_delta
from positionbias.kernels.linear_recurrence import mosaic_gpu as linear_gpu
from positionbias.kernels.linear_recurrence.call import posed as of_recurrence
from positionbias.kernels.softmax_attention import cudnn, mosaic_gpu
from positionbias.kernels.softmax_attention.call import posed
from positionbias.masks.order import Bidirectional, Causal, SlidingWindow

Q = jnp.zeros((2, 8, 4, 64), jnp.bfloat16)


@pytest.mark.parametrize(("mask", "causal"), [(Causal(), True), (Bidirectional(), False), (None, False)])
def test_it_is_asked_for_what_the_call_says(mask, causal, monkeypatch):
    asked = {}
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, **told: asked.update(told) or q)
    found = choice(Q, Q, Q, mask=mask, scale=0.3, platform="gpu")
    assert found.driver.name == "cudnn"
    cudnn.run(found.problem)
    assert asked == {"scale": 0.3, "is_causal": causal, "implementation": "cudnn"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"mask": SlidingWindow(2)}, "the mask is another than none and causal"),
        ({"score": lambda s, b, h, q, k: s * 2}, "scores are changed by a rule"),
        ({"stats": ["received"]}, "it gives no received"),
        ({"dropout": (0.1, 0)}, "dropped"),
        ({"normalise": False}, "not normalised"),
    ],
)
def test_what_it_cannot_do_goes_to_another(more, words):
    found = choice(Q, Q, Q, platform="gpu", **more)
    assert found.driver.name == "xla_chunked"
    assert words in dict(found.passed_over)["cudnn"]


def test_other_types_and_head_sizes_go_to_another():
    for q, words in ((Q.astype(jnp.float32), "q is float32"), (jnp.zeros((2, 8, 4, 20), jnp.bfloat16), "head sizes")):
        assert words in dict(choice(q, q, q, platform="gpu").passed_over)["cudnn"]


def test_on_this_machine_it_is_refused():
    with pytest.raises(ValueError, match="the platform is cpu"):
        attention(Q, Q, Q, impl="cudnn")


@pytest.mark.parametrize(
    ("version", "compute_capability", "cudnn_says", "hopper"),
    [
        ("CUDA 13000", "7.5", "this GPU is of compute capability 7.5, and 16 bits want 8.0", False),
        ("CUDA 13000", "8.6", None, False),
        ("CUDA 13000", "9.0", None, True),
        ("CUDA 13000", "10.0", None, False),
        ("ROCm 70000", "gfx942", "this GPU is none of NVIDIA's", False),
    ],
)
def test_a_gpu_of_another_generation_is_told(version, compute_capability, cudnn_says, hopper, monkeypatch):
    client = types.SimpleNamespace(platform_version=version)
    there = types.SimpleNamespace(client=client, compute_capability=compute_capability)
    problem = posed(Q, Q, Q, block_sizes=(64, 64))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [there])
    assert cudnn.unsupported_reason(problem, "gpu") == cudnn_says
    recurrence, rule = of_recurrence(Q, Q, Q), posed_delta(Q, Q, Q, {"strength": jnp.ones(Q.shape[:3])})
    for driver, given in ((mosaic_gpu, problem), (linear_gpu, recurrence), (delta_gpu, rule)):
        told = driver.unsupported_reason(given, "gpu") or ""
        assert told.startswith("this GPU is of another generation than Hopper") != hopper
