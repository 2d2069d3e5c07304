"""The matrix products of a traced program, which the FLOPs of the library are compared with."""

import math

from jax.extend.core import jaxprs_in_params


def products(jaxpr):
    """Twice the multiplications of all products in a traced program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        inner = sum(map(products, jaxprs_in_params(equation.params)))
        total += inner * equation.params.get("length", 1)
    return total
