"""Kernels: what operators are computed by."""

from positionbias.kernels.aux import Aux, PerHead, PerKey, PerQuery, Relative, Scalar
from positionbias.kernels.softmax_attention.call import attention, choice, merge
from positionbias.kernels.softmax_attention.ladder import check_impl
from positionbias.kernels.softmax_attention.problem import Stats

__all__ = [
    "Aux",
    "PerHead",
    "PerKey",
    "PerQuery",
    "Relative",
    "Scalar",
    "Stats",
    "attention",
    "check_impl",
    "choice",
    "merge",
]
