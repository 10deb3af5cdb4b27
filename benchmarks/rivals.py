"""Attention of other libraries, on the problems that the package's drivers are timed on.

Each function takes a problem and returns what maps q, k, v [B, T, N, H] to outputs, or raises `Skip` with the reason
why it cannot. That of PyTorch is a whole program, as it is no function of jax. What may be missing is imported inside
the functions.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from problems import TILE, WINDOW, Problem
from timed import Skip

from positionbias import tokens

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def jax_nn_xla(problem: Problem) -> Attend:
    """`jax.nn.dot_product_attention` by XLA, with the whole mask as an array."""
    if problem.mask is None or problem.name == "causal":
        return lambda q, k, v: jax.nn.dot_product_attention(
            q, k, v, is_causal=problem.mask is not None, implementation="xla"
        )
    return lambda q, k, v: jax.nn.dot_product_attention(
        q, k, v, mask=problem.traced()[None, None], implementation="xla"
    )


def jax_nn_cudnn(problem: Problem) -> Attend:
    """`jax.nn.dot_product_attention` by cuDNN."""
    _wants_gpu(problem)
    if problem.name not in ("none", "causal", "window"):
        raise Skip(f"cuDNN is told no mask like {problem.name}")
    more = {"local_window_size": (WINDOW - 1, 0)} if problem.name == "window" else {}
    return lambda q, k, v: jax.nn.dot_product_attention(
        q, k, v, is_causal=problem.causal, implementation="cudnn", **more
    )


def jax_mosaic_gpu(problem: Problem) -> Attend:
    """JAX's own example kernel for Hopper: it computes in float16, and has no gradient of causal attention."""
    _wants_gpu(problem)
    if problem.name not in ("none", "causal"):
        raise Skip(f"the kernel has no mask like {problem.name}")
    from jax.experimental.pallas.ops.gpu import attention_mgpu

    blocks = dict.fromkeys(("block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), 64)
    config = attention_mgpu.TuningConfig(
        block_q=64, block_kv=128, max_concurrent_steps=2, causal=problem.causal, **blocks
    )
    scale = problem.q.shape[-1] ** -0.5  # which the kernel leaves to its caller

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        given = q * jnp.asarray(scale, q.dtype), k, v
        return attention_mgpu.attention(*(x.astype(jnp.float16) for x in given), config).astype(q.dtype)

    return attend


def jax_triton(problem: Problem) -> Attend:
    """JAX's deprecated kernel by Triton."""
    _wants_gpu(problem)
    if problem.name not in ("none", "causal", "documents"):
        raise Skip(f"the kernel has no mask like {problem.name}")
    from jax.experimental.pallas.ops.gpu import attention

    segments = None
    if problem.name == "documents":
        segments = jnp.broadcast_to(problem.tokens.segment, problem.q.shape[:2])
    scale = problem.q.shape[-1] ** -0.5
    return lambda q, k, v: attention.mha(q, k, v, segments, sm_scale=scale, causal=problem.causal)


def jax_splash(problem: Problem) -> Attend:
    """JAX's splash attention for TPU, with the mask as an array where it has none of that kind."""
    if jax.default_backend() != "tpu":
        raise Skip("the kernel is for tpu")
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads = problem.length, problem.q.shape[2]
    made = {
        "none": lambda: masks.FullMask((length, length)),
        "causal": lambda: masks.CausalMask((length, length)),
        "window": lambda: masks.LocalMask((length, length), (WINDOW - 1, 0), 0),
    }
    one = made.get(problem.name, lambda: masks.NumpyMask(problem.dense()))()
    run = jax.vmap(kernel.make_splash_mha_single_device(masks.MultiHeadMask([one] * heads)))
    scale = problem.q.shape[-1] ** -0.5

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * jnp.asarray(scale, q.dtype), k, v))
        return jnp.swapaxes(run(q, k, v), 1, 2)

    return attend


def _wants_gpu(problem: Problem) -> None:
    if jax.default_backend() != "gpu":
        raise Skip("the kernel is for gpu")
    if problem.q.dtype.itemsize != 2:
        raise Skip(f"the kernel takes numbers of 16 bits, not {problem.q.dtype}")


RIVALS: dict[str, Callable[[Problem], Attend]] = {
    function.__name__: function for function in (jax_nn_xla, jax_nn_cudnn, jax_mosaic_gpu, jax_triton, jax_splash)
}
FLEX = "torch_flex"


def torch_version() -> str | None:
    """Of PyTorch, without importing it; None where it is not installed."""
    return importlib.metadata.version("torch") if importlib.util.find_spec("torch") else None


class Flex:
    """PyTorch's FlexAttention under `torch.compile`."""

    def __init__(self, problem: Problem, mode: str) -> None:
        if torch_version() is None:
            raise Skip("torch is not installed")
        if mode == "penalty":
            raise Skip("FlexAttention does not tell the attention received")
        import torch
        from torch.nn.attention import flex_attention

        if not torch.cuda.is_available():
            raise Skip("torch has no CUDA device, and FlexAttention is slow to compile for others")
        self._torch, self._mode = torch, mode
        kind = getattr(torch, str(problem.q.dtype))
        arrays = (np.asarray(jnp.swapaxes(x, 1, 2), np.float32) for x in (problem.q, problem.k, problem.v, problem.w))
        q, k, v, self._w = (torch.tensor(x, device="cuda").to(kind) for x in arrays)
        self._qkv = [x.requires_grad_(mode == "train") for x in (q, k, v)]
        allowed = self._rule(problem)
        length = problem.length
        blocks = None
        if allowed is not None:
            made = torch.compile(flex_attention.create_block_mask)
            blocks = made(allowed, None, None, length, length, device="cuda", BLOCK_SIZE=TILE)
        torch._dynamo.reset()
        compiled = torch.compile(flex_attention.flex_attention, dynamic=False)
        self._attend = lambda: compiled(*self._qkv, block_mask=blocks)
        self.wait(self.call())
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.wait(self.call())
        self.memory = int(torch.cuda.max_memory_allocated() - before)

    def _rule(self, problem: Problem) -> Any:
        """The mask as FlexAttention takes it."""
        torch, length = self._torch, problem.length
        segment = torch.tensor(problem.tokens.segment, device="cuda")
        if problem.name == "random_blocks":
            starts = tokens.sequential(-(-length // TILE))
            starts = starts._replace(index=starts.index * TILE)
            table = torch.tensor(np.asarray(problem.mask.dense(starts, starts)), device="cuda")
        rules = {
            "none": None,
            "causal": lambda b, h, q, k: k <= q,
            "window": lambda b, h, q, k: (k <= q) & (q - k < WINDOW),
            "documents": lambda b, h, q, k: (k <= q) & (segment[q] == segment[k]),
            "prefix": lambda b, h, q, k: (k <= q) | (k < length // 4),
            "power_of_two": lambda b, h, q, k: (k <= q) & (((q - k) & (q - k - 1)) == 0),
            "random_blocks": lambda b, h, q, k: (k <= q) & table[q // TILE, k // TILE],
        }
        return rules[problem.name]

    def call(self) -> Any:
        """Start one run; returns what it makes."""
        if self._mode == "forward":
            with self._torch.no_grad():
                return self._attend()
        for x in self._qkv:
            x.grad = None
        o = self._attend()
        (o.float() * self._w.float()).sum().backward()
        return [x.grad for x in self._qkv]

    def wait(self, made: Any) -> None:
        """Until it is there."""
        self._torch.cuda.synchronize()

    def output(self) -> np.ndarray:
        """What a forward run makes, [B, T, N, H]."""
        return np.swapaxes(self.call().float().cpu().numpy(), 1, 2)
