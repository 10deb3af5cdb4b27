"""Where training on in-context classification rests before it tells which label goes with which item."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Plateau:
    """What saying the label of an item of the context at random gets."""

    accuracy: float
    loss: float  # nats, if each label of the context has its share of the items as probability


def label_guessing(kinds: int, labels: int, different: bool) -> Plateau:
    """The plateau of in-context classification with `kinds` classes in a context, equally many items of each.

    Their labels are of `labels`: `different` (Reddy 2024, arXiv 2312.03002), and accuracy is 1 / kinds, loss
    log(kinds), or independent and uniform (Wu et al. 2025, arXiv 2502.01951), and any number of the other classes,
    binomially many, have the answer's label too.
    """
    if different:
        return Plateau(1 / kinds, float(np.log(kinds)))
    chance = np.ones(1)  # of 0, 1, ... others with the answer's label
    for _ in range(kinds - 1):
        chance = np.convolve(chance, [1 - 1 / labels, 1 / labels])
    share = np.arange(1, kinds + 1) / kinds
    return Plateau(float(chance @ share), float(-chance @ np.log(share)))
