"""Sizes of operators that make no sense, refused before anything is compiled: what is carried on, what is convolved."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from positionbias import spec
from positionbias.operators.base import Operator
from positionbias.positions.base import Dims
from positionbias.spec import ConfigError

# Numbers of a state, a head, which second-order features of heads of 128 do not exceed, and how many times a key by a
# value it may have where heads are larger: recurrences carry a few such matrices. What has more compiles for minutes.
LARGEST, MATRICES = 2**21, 8
SHORT = 8  # tokens of a convolution that sequences of fewer may have too, as defaults do


def check(operators: Iterable[Operator], dims: Dims, longest: int) -> None:
    """Raise ConfigError for a state or a convolution beyond what sequences of `longest` tokens can use."""
    most = max(LARGEST, MATRICES * dims.head_size * dims.values)
    for layer, operator in enumerate(operators):
        try:
            kept, kernels = _carried(operator, dims) // dims.heads, operator.parameters(dims).values()
        except ConfigError as error:  # sizes that it cannot have at all
            raise ConfigError(f"model.operator: {error}") from None
        if kept > most:
            raise ConfigError(
                f"model.operator: {spec.canonical(operator)} of layer {layer} carries on {kept} numbers a head;"
                f" allowed: {most}, by smaller arguments of it or a smaller model.head_size, now {dims.head_size}."
            )
        taps = max((m.shape[0] for m in kernels if _convolves(m.kind, m.shape)), default=0)
        if taps > max(longest, SHORT):
            raise ConfigError(
                f"model.operator: {spec.canonical(operator)} of layer {layer} convolves {taps} tokens, and the task's"
                f" longest sequence has {longest}; allowed: up to {max(longest, SHORT)}."
            )


def _convolves(kind: str, shape: tuple[int, ...]) -> bool:
    return kind == "convolution" and len(shape) == 2


@functools.cache  # of a sweep's cells most are alike
def _carried(operator: Operator, dims: Dims) -> int:
    return operator.state_size(dims) if operator.carries else 0
