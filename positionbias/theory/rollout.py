"""Where content-free attention takes its output from: the product of the layers' attention matrices."""

from __future__ import annotations

import numpy as np

from positionbias.arrays import Bool, Float


def attention(allowed: Bool[np.ndarray, "T T"], bias: Float[np.ndarray, "T T"] | None) -> Float[np.ndarray, "T T"]:
    """Softmax of `bias` (zero if None) over each row's allowed entries; a row with none is zero. float64."""
    scores = np.where(allowed, 0.0 if bias is None else np.asarray(bias, np.float64), -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(total > 0, total, 1.0)


def rollout(
    allowed: Bool[np.ndarray, "T T"],
    bias: Float[np.ndarray, "T T"] | None,
    layers: int,
    residual: bool = False,
) -> Float[np.ndarray, "T T"]:
    """Share of output i that comes from input j after `layers` equal layers of attention that ignores content.

    The product of Wu et al. 2025 (arXiv 2502.01951, section 4). `residual` mixes each layer half and half with the
    identity, the attention rollout of Abnar and Zuidema 2020 (arXiv 2005.00928). Rows sum to 1, or to less where an
    input is reached from a row that sees nothing.
    """
    step = attention(allowed, bias)
    if residual:
        step = step + np.eye(len(step))
        step = step / step.sum(axis=-1, keepdims=True)
    return np.linalg.matrix_power(step, layers)
