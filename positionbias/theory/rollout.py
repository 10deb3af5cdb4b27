"""Where content-free attention takes its output from: the product of the layers' attention matrices."""

from __future__ import annotations

from collections.abc import Sequence

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


def influence(layers: Sequence[Float[np.ndarray, "N T T"]], normed: bool) -> Float[np.ndarray, "T T"]:
    """Share of input j in E ||d (w . output_i) / d x_j||^2, over w, for weights [N, T, T] of each layer's heads.

    Inputs are independent and of one size, values and outputs are mapped by matrices drawn at random, streams are not
    added: what heads sum up adds in squares, one product of weights for each path through the heads. `normed` layers
    read rows that are brought to one size first, as the last norm does, so that a row which is a mean of many inputs
    counts more than one that is a single input. Rows sum to 1, or are zero.
    """
    length = layers[0].shape[-1]
    paths = np.eye(length)[None]
    for heads in layers:
        if normed:
            paths = paths / _size(paths)
        paths = np.concatenate([head @ paths for head in distinct(heads)])
    paths = paths / _size(paths)
    return np.sum(np.square(paths), axis=0)


def _size(paths: Float[np.ndarray, "P T T"]) -> Float[np.ndarray, "T 1"]:
    """The size of each row, of all paths together; 1 of a row that is zero."""
    size = np.sqrt(np.sum(np.square(paths), axis=(0, 2)))[:, None]
    return np.where(size > 0, size, 1.0)


def distinct(heads: Float[np.ndarray, "N T T"]) -> Float[np.ndarray, "M T T"]:
    """All heads, or one where they are all alike: their paths are one."""
    return heads[:1] if (heads == heads[:1]).all() else heads
