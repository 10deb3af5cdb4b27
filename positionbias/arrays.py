"""The letter legend of every shape in this project; the page to read first.

    B  batch           sequences in a batch
    T  rows            query positions of an attention, or the length of a sequence
    S  columns         key positions of an attention
    N  heads
    H  head size
    D  width of the residual stream
    V  vocabulary, or number of output features
    L  layers
    R  replicas: independently seeded models trained side by side
    A  answers a sequence asks for
    E  evidence positions an answer needs (-1 padded)

Einsum strings use the same letters: scores are `BTNH,BSNH->BNTS`.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Bool, Float, Int, Key, Shaped

__all__ = ["WITHIN", "Array", "Bool", "Float", "Int", "Key", "Mapped", "Shaped", "Tree"]

Tree = Any  # a pytree of arrays: parameters, optimizer state, metrics
WITHIN = 0.5  # how near to its target every feature of a right answer is, where answers are vectors
Mapped = Any  # numpy or jax array: rules written with operators only take either
