"""What an operator costs: the matrix products of its program, loops in full, and the numbers that it keeps."""

from __future__ import annotations

import math
from typing import Any

from jax.extend.core import jaxprs_in_params


def products(program: Any) -> float:
    """Multiplications and additions of the matrix products and convolutions of a `jax.make_jaxpr`, loops in full.

    2 for each pair of numbers multiplied. XLA's own count (`cost_analysis`) has every loop once. A branch counts as the
    longest of its kind; nan where a loop does not say how often it runs.
    """
    total = 0.0
    for equation in getattr(program, "jaxpr", program).eqns:
        name, params = equation.primitive.name, equation.params
        inner = [products(one) for one in jaxprs_in_params(params)]
        if name == "dot_general":
            shape, ((contracted, _), _) = equation.invars[0].aval.shape, params["dimension_numbers"]
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            channels = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * math.prod(kernel) / channels
        elif name == "scan":
            total += params["length"] * sum(inner)
        elif name == "while":
            total += math.nan if sum(inner) else 0.0
        elif name == "cond":
            total += max(inner)
        else:
            total += sum(inner)
    return total
