"""Kernels: what operators are computed by."""

from positionbias.kernels.aux import Aux, PerHead, PerKey, PerQuery, Relative, Scalar
from positionbias.kernels.delta_recurrence.call import delta_rule, linear_memory
from positionbias.kernels.linear_recurrence.call import divided, linear_attention, linear_choice
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
    "delta_rule",
    "divided",
    "linear_attention",
    "linear_choice",
    "linear_memory",
    "merge",
]
