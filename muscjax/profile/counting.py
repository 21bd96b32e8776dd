"""Operations of a program, counted from its jaxpr with loops multiplied out.

A compiled program's own cost analysis takes the body of every loop once, and this method is made of loops.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

# They move or name data. Everything else counts one operation per element of its result.
_FREE = frozenset(
    {
        "broadcast_in_dim", "concatenate", "convert_element_type", "bitcast_convert_type", "copy", "copy_p",
        "dynamic_slice", "dynamic_update_slice", "expand_dims", "gather", "iota", "pad", "rev", "reshape",
        "scatter", "slice", "split", "squeeze", "stop_gradient", "transpose", "optimization_barrier",
        "platform_index",
    }
)  # fmt: skip
_OF_INPUT = ("reduce_", "cum", "arg", "scatter")  # as many operations as the input has elements


@dataclasses.dataclass(frozen=True)
class Operations:
    """Multiplications and additions each count one."""

    matmul: float = 0.0  # of matrix products and convolutions
    other: float = 0.0
    open_loops: int = 0  # loops whose length only the data know; their bodies count once

    @property
    def total(self) -> float:
        return self.matmul + self.other

    def __add__(self, more: Operations) -> Operations:
        return Operations(
            self.matmul + more.matmul, self.other + more.other, self.open_loops + more.open_loops
        )

    def __mul__(self, times: float) -> Operations:
        return Operations(self.matmul * times, self.other * times, self.open_loops)


def count(function: Callable[..., Any], *arguments: Any) -> Operations:
    """Operations of one call. Scalar integers among the arguments settle the length of loops."""
    closed = jax.make_jaxpr(function)(*arguments)
    return _walk(closed.jaxpr, closed.consts, [_known(leaf) for leaf in jax.tree.leaves(arguments)])[0]


def _known(value: Any) -> Any:
    """A scalar integer or truth value as itself; everything else is unknown, None."""
    if isinstance(value, (bool, int, np.integer, np.bool_)):
        return value
    if getattr(value, "shape", None) != ():
        return None
    whole = jnp.issubdtype(value.dtype, np.integer) or jnp.issubdtype(value.dtype, np.bool_)
    return np.asarray(value)[()] if whole else None


def _walk(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> tuple[Operations, list[Any]]:
    """Operations of the equations, and the outputs where they are known scalar integers."""
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, map(_known, consts), strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def value(variable: Any) -> Any:
        return _known(variable.val) if isinstance(variable, jex.Literal) else known.get(variable)

    total = Operations()
    for equation in jaxpr.eqns:
        operations, outputs = _equation(equation, [value(v) for v in equation.invars])
        total += operations
        known |= dict(zip(equation.outvars, outputs, strict=True))
    return total, [value(v) for v in jaxpr.outvars]


def _equation(equation: Any, inputs: list[Any]) -> tuple[Operations, list[Any]]:
    name, params = equation.primitive.name, equation.params
    unknown = [None] * len(equation.outvars)
    if name == "scan":
        body = params["jaxpr"]
        fixed = inputs[: _scan_constants(params)]
        rest = [None] * (len(body.jaxpr.invars) - len(fixed))
        return _walk(body.jaxpr, body.consts, [*fixed, *rest])[0] * params["length"], unknown
    if name == "while":
        return _while(params, inputs), unknown
    if name == "cond":
        return _cond(params["branches"], inputs, unknown)
    if name == "platform_index":
        return Operations(), [_platform(params["platforms"])]
    inner = list(jex.jaxprs_in_params(params))
    if inner:  # jit, custom rules: the body once, with what is known of its inputs
        body = params.get("jaxpr", params.get("call_jaxpr"))
        if hasattr(body, "consts") and len(body.jaxpr.invars) == len(inputs):
            return _walk(body.jaxpr, body.consts, inputs)
        total = Operations()
        for jaxpr in inner:
            total += _walk(jaxpr, [None] * len(jaxpr.constvars), [None] * len(jaxpr.invars))[0]
        return total, unknown
    outputs = _evaluated(equation, inputs) or unknown
    return _cost(equation), outputs


def _scan_constants(params: Any) -> int:
    """How many inputs of a scan are the same in every step; newer JAX keeps them as a tree."""
    if "num_consts" in params:
        return params["num_consts"]
    tree = params.get("ft_in")
    return (
        0
        if tree is None
        else len(jax.tree.leaves(list(tree.unpack()[0].unpack()), is_leaf=lambda x: x is None))
    )


def _evaluated(equation: Any, inputs: list[Any]) -> list[Any] | None:
    """The outputs of integer arithmetic on known scalars."""
    if not inputs or any(i is None for i in inputs):
        return None
    if any(getattr(v.aval, "shape", None) != () for v in [*equation.invars, *equation.outvars]):
        return None
    given = [np.asarray(i, v.aval.dtype) for i, v in zip(inputs, equation.invars, strict=True)]
    with jax.ensure_compile_time_eval():
        found = equation.primitive.bind(*given, **equation.params)
    return [_known(x) for x in (found if equation.primitive.multiple_results else [found])]


def _while(params: Any, inputs: list[Any]) -> Operations:
    condition, body = params["cond_jaxpr"], params["body_jaxpr"]
    of_condition, of_body = params["cond_nconsts"], params["body_nconsts"]
    carried = inputs[of_condition + of_body :]
    fixed = inputs[of_condition : of_condition + of_body]
    rest = [None] * (len(body.jaxpr.invars) - len(fixed))
    once = _walk(body.jaxpr, body.consts, [*fixed, *rest])[0]
    # A counted loop's only condition is `i < stop`, where i is carried and grows by one.
    test = condition.jaxpr.eqns[-1] if len(condition.jaxpr.eqns) == 1 else None
    if test is not None and test.primitive.name == "lt":
        of = dict(zip(condition.jaxpr.invars, [*inputs[:of_condition], *carried], strict=True))
        start, stop = (
            _known(v.val) if isinstance(v, jex.Literal) else of.get(v) for v in test.invars
        )  # fmt: skip
        if start is not None and stop is not None:
            return once * max(0, int(stop) - int(start))
    return once + Operations(open_loops=1)


def _cond(branches: Any, inputs: list[Any], unknown: list[Any]) -> tuple[Operations, list[Any]]:
    """The branch that is taken where that is known, else the most expensive one."""
    walked = [_walk(branch.jaxpr, branch.consts, inputs[1:]) for branch in branches]
    if inputs[0] is not None:
        return walked[min(int(inputs[0]), len(walked) - 1)]
    return max(walked, key=lambda found: found[0].total)[0], unknown


def _platform(platforms: Any) -> int | None:
    backend = jax.default_backend()
    names = {"gpu": ("gpu", "cuda", "rocm")}.get(backend, (backend,))
    for place, group in enumerate(platforms):
        if group is None or any(name in group for name in names):
            return place
    return None


def _cost(equation: Any) -> Operations:
    name = equation.primitive.name
    out = sum(math.prod(getattr(v.aval, "shape", ())) for v in equation.outvars)
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return Operations(matmul=2.0 * out * math.prod(equation.invars[0].aval.shape[d] for d in contracted))
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        place = equation.params["dimension_numbers"].rhs_spec[0]
        return Operations(matmul=2.0 * out * math.prod(kernel) / kernel[place])
    if name in _FREE:
        return Operations()
    first = equation.invars[0].aval.shape if equation.invars else ()
    if name in ("sort", "top_k"):
        axis = first[equation.params.get("dimension", -1)] if first else 1
        return Operations(other=float(math.prod(first)) * max(1.0, math.log2(max(axis, 2))))
    if name.startswith(_OF_INPUT):
        updates = equation.invars[2].aval.shape if name.startswith("scatter") else first
        return Operations(other=float(math.prod(updates)))
    return Operations(other=float(out))
