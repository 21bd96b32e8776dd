"""Reading a program's memory off its jaxpr, without running it."""

from __future__ import annotations

import jax.extend
import numpy as np

# For programs that run once: LLVM takes a third of the time to compile them, and the results are the same.
QUICK_XLA = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def largest_intermediate(jaxpr) -> int:
    """Bytes of the largest array that any equation of the program makes, inner programs included."""
    largest = 0
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            shape = getattr(variable.aval, "shape", ())
            largest = max(largest, int(np.prod(shape)) * variable.aval.dtype.itemsize)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            largest = max(largest, largest_intermediate(inner))
    return largest
