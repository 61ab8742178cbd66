"""The machinery of elementwise operators: one :class:`Map` row gives rule, reference, lowering."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from packhorse.errors import ModelError
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Expr
from packhorse.kernel.lowering import Lazy, Lowering, lazy
from packhorse.ops.registry import Inference, InferRule, Operator, add, define
from packhorse.ops.rules import Array, broadcast, compiled, labelled, literal, same_dtype

__all__ = [
    "ANY",
    "BOOL",
    "FLOAT",
    "INT",
    "NUMBER",
    "Map",
    "broadcasting",
    "check_kinds",
    "define_map",
    "expand",
    "register",
]

FLOAT, INT, NUMBER, BOOL, ANY = "f", "iu", "fiu", "b", "fiubOcSU"
"""Classes of dtypes, as NumPy kinds (bfloat16 and its like count as ``f``)."""

MANY = 2**31
"""Upper bound on the inputs of variadic operators."""


@dataclass(frozen=True)
class Map:
    """One elementwise operator.

    Parameters
    ----------
    name, source : str
        ONNX name and the version of its specification, or the formula.
    reference : callable
        NumPy arrays in, array out; keyword-only parameters are attributes with their defaults.
        float16 and bfloat16 arrive as float32 and the result is rounded back.
    express : callable or None
        The same over scalar expressions, with the same keywords; None has no lowering.
    kinds : str
        NumPy kinds the inputs may have.
    arity : (int, int)
        Least and greatest number of inputs.
    result : dtype name, optional
        Output dtype; default: that of the inputs.
    """

    name: str
    source: str
    reference: Callable[..., Array]
    express: Callable[..., Expr] | None = None
    kinds: str = FLOAT
    arity: tuple[int, int] = (1, 1)
    result: str | None = None


def kind_of(dtype: np.dtype[Any]) -> str:
    """NumPy kind, with ml_dtypes' floats and ints (kind ``V`` or ``f``) put in their class."""
    if dtype.name.startswith(("bfloat", "float")):
        return "f"
    return dtype.kind if not dtype.name.startswith(("int", "uint")) else dtype.name[0]


def check_kinds(dtype: np.dtype[Any], kinds: str) -> None:
    """ModelError when a dtype is not of the given kinds."""
    if kind_of(dtype) not in kinds:
        names = {"f": "float", "i": "int", "u": "uint", "b": "bool"}
        allowed = ", ".join(names[k] for k in kinds if k in names)
        raise ModelError(f"inputs are {dtype}, but must be one of: {allowed}")


def broadcasting(ctx: Inference, dtype: np.dtype[Any]) -> Sequence[TensorType]:
    """One output of that dtype with the broadcast shape of all given inputs."""
    shapes = [t.dims for t in ctx.inputs if t is not None]
    return [TensorType(dtype, broadcast(*shapes))]


def _rule(row: Map) -> InferRule:
    least, most = row.arity

    @labelled
    def infer(ctx: Inference) -> Sequence[TensorType]:
        count = sum(t is not None for t in ctx.inputs)
        if not least <= count <= most:
            wanted = str(least) if least == most else f"{least} or more"
            raise ModelError(f"takes {wanted} inputs, found {count}")
        dtype = same_dtype(ctx)
        check_kinds(dtype, row.kinds)
        return broadcasting(ctx, np.dtype(row.result) if row.result else dtype)

    return infer


def widen(x: Array | None) -> Any:
    """float16 and bfloat16 as float32, everything else as it is."""
    if x is None:
        return None
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype.name in ("float16", "bfloat16") else x


def _reference(row: Map) -> Callable[..., Array]:
    @functools.wraps(row.reference)
    def run(*inputs: Array, **attrs: Any) -> Array:
        with np.errstate(all="ignore"):
            value = np.asarray(row.reference(*map(widen, inputs), **attrs))
            return value.astype(row.result or np.asarray(inputs[0]).dtype, copy=False)

    run.__name__ = run.__qualname__ = row.name
    run.__doc__ = f"{row.name}, elementwise with broadcasting ({row.source})."
    return run


def expand(ctx: Lowering, i: int) -> Expr:
    """Element of input ``i`` at the output's axes; constants of one element become literals."""
    shape, _ = ctx.output_types[0]
    found = literal(ctx[i])
    return ctx[i].elementwise(shape) if found is None else found


def _lowering(row: Map) -> Callable[[Lowering], Lazy] | None:
    express = row.express
    if express is None:
        return None
    parameters = inspect.signature(row.reference).parameters.values()
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]

    @compiled
    def lower(ctx: Lowering) -> Lazy:
        given = [expand(ctx, i) for i in range(len(ctx.inputs)) if ctx.has(i)]
        return lazy(ctx, express(*given, **{name: ctx.attr(name) for name in keywords}))

    return lower


def _plain(row: Map) -> Map:
    """Hide the keywords of NumPy's own functions (out, where ...): they are no attributes."""
    function = row.reference
    if not isinstance(function, np.ufunc):
        return row
    return replace(row, reference=lambda *inputs: function(*inputs))


def define_map(row: Map, domain: str = "") -> Operator:
    """The operator of a row; the table does not know it yet."""
    row = _plain(row)
    return define(row.name, _reference(row), infer=_rule(row), lower=_lowering(row), domain=domain)


def register(rows: Sequence[Map]) -> None:
    """Put every row into the operator table."""
    for row in rows:
        add(define_map(row))
