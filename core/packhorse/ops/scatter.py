"""Operators that write elements at indices held in tensors: ScatterElements and ScatterND.

A kernel computes every output element by itself: from the updates whose index names it. Where the
indices are known when compiling, a table tells the one update of each element; else each element
looks at all updates that may name it, which is worth it up to :data:`MOST`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import (
    Affine,
    Expr,
    Index,
    IndexLike,
    Reduce,
    affine,
    call,
    cast,
    const,
    select,
)
from packhorse.kernel.lowering import Lazy, Lowering, axes_of, lazy
from packhorse.ops._indices import along, check_elements, check_integers, depth, tuples, wrapped
from packhorse.ops._window import guarded
from packhorse.ops.reduce import highest, lowest
from packhorse.ops.registry import Inference, operator
from packhorse.ops.rules import Array, compiled, labelled, normal_axis, text

__all__ = ["MOST", "scatter_elements", "scatter_nd"]

MOST = 64
"""Most updates that an element of a kernel looks at."""

_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "add": np.add.at,
    "mul": np.multiply.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}
_COMBINES = {
    "add": ("sum", "add"),
    "mul": ("prod", "mul"),
    "max": ("max",) * 2,
    "min": ("min",) * 2,
}
"""reduction: combine of the kernel's Reduce, and the scalar operation with the element itself."""

Update = Callable[[IndexLike], Expr]


def _how(reduction: str | bytes) -> str:
    how = text(reduction)
    if how != "none" and how not in _REDUCTIONS:
        raise ModelError(f"reduction must be none, add, mul, max or min, found '{how}'")
    return how


def _scatter(x: Array, where: tuple[Array, ...], updates: Array, reduction: str | bytes) -> Array:
    result, how = x.copy(), _how(reduction)
    if how == "none":
        result[where] = updates
    else:
        _REDUCTIONS[how](result, where, updates)
    return result


def _check_updates(ctx: Inference, wanted: tuple[int, ...]) -> Sequence[TensorType]:
    _how(ctx.attr("reduction"))
    if ctx.type(2).dtype != ctx.type(0).dtype:
        raise ModelError(f"updates are {ctx.type(2).dtype}, the input {ctx.type(0).dtype}")
    if ctx.shape(2) != wanted:
        raise ModelError(f"updates have shape {ctx.shape(2)}, expected {wanted}")
    return [ctx.type(0)]


def _wrap(index: Expr, extent: int) -> Expr:
    """A negative index counts from the end; one outside names no element."""
    i = cast(index, "int64")
    return select(call("lt", i, 0), i + extent, i)


def _refuse_many(count: int) -> None:
    if count > MOST:
        raise UnsupportedOperator(
            f"a scatter of {count} updates for each element with indices that are not known is not "
            "compiled"
        )


def _by_table(ctx: Lowering, table: Array, index: Sequence[Affine], update: Update) -> Lazy:
    """The update whose number stands in the table at ``index``, or the element where it is -1."""
    number = ctx.constant(table.astype(np.int64)).at(index)
    named = call("ge", number, 0)
    element = ctx[0].at(axes_of(len(ctx[0].shape)))
    return lazy(ctx, select(named, guarded(update(call("max", number, 0)), named), element))


def _by_search(
    ctx: Lowering, how: str, count: int, names: Callable[[Affine], Expr], update: Update
) -> Lazy:
    """Combine the updates that name the element; of several without a reduction the last."""
    element = ctx[0].at(axes_of(len(ctx[0].shape)))
    axis = ctx.axis(count)
    j = affine(axis[0])
    if how == "none":
        last = Reduce("max", (axis,), select(names(j), Index(j), -1), "int64")
        named = call("ge", last, 0)
        return lazy(ctx, select(named, guarded(update(call("max", last, 0)), named), element))
    combine, op = _COMBINES[how]
    if element.dtype == "bool":
        raise UnsupportedOperator(f"a scatter with {how} of bool is not compiled")
    value = select(
        names(j), update(j), const(_NEUTRAL[how](np.dtype(element.dtype)), element.dtype)
    )
    return lazy(ctx, call(op, element, Reduce(combine, (axis,), value, element.dtype)))


_NEUTRAL: dict[str, Callable[[np.dtype[Any]], float]] = {
    "add": lambda _: 0,
    "mul": lambda _: 1,
    "max": lowest,
    "min": highest,
}


# ScatterElements


@labelled
def _elements_rule(ctx: Inference) -> Sequence[TensorType]:
    return _check_updates(ctx, check_elements(ctx))


@compiled
def _lower_elements(ctx: Lowering) -> Lazy:
    x, indices, updates = ctx[0], ctx[1], ctx[2].stored()
    axis, how = normal_axis(ctx.attr("axis"), len(x.shape)), _how(ctx.attr("reduction"))
    out, extent = axes_of(len(x.shape)), x.shape[axis]
    if not math.prod(indices.shape):
        return lazy(ctx, x.at(out))

    def at(j: IndexLike) -> list[IndexLike]:
        return [*out[:axis], j, *out[axis + 1 :]]

    if indices.constant is not None and how == "none":
        position = wrapped(indices.constant, extent, "ScatterElements")
        table = np.full(x.shape, -1)
        table[along(indices.shape, axis, position)] = np.arange(indices.shape[axis]).reshape(
            [-1 if d == axis else 1 for d in range(len(x.shape))]
        )
        return _by_table(ctx, table, out, lambda j: updates.at(at(j)))
    _refuse_many(indices.shape[axis])
    shorter = [
        call("lt", Index(o), m)
        for d, (o, n, m) in enumerate(zip(out, x.shape, indices.shape, strict=True))
        if d != axis and m < n
    ]

    def inside(value: Expr) -> Expr:
        for test in shorter:
            value = guarded(value, test)
        return value

    def names(j: Affine) -> Expr:
        found = inside(indices.at(at(j)))
        same = call("eq", _wrap(found, extent), Index(out[axis]))
        for test in shorter:
            same = call("and", same, test)
        return same

    return _by_search(ctx, how, indices.shape[axis], names, lambda j: inside(updates.at(at(j))))


@operator("ScatterElements", infer=_elements_rule, lower=_lower_elements)
def scatter_elements(
    x: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none"
) -> Array:
    """A copy of ``x`` with ``updates`` put where GatherElements reads (ONNX ScatterElements-18).

    Raises
    ------
    ModelError
        An index outside the axis, shapes that do not fit, an unknown reduction.
    """
    axis = normal_axis(axis, x.ndim)
    position = wrapped(indices, x.shape[axis], "ScatterElements")
    return _scatter(x, along(indices.shape, axis, position), updates, reduction)


# ScatterND


@labelled
def _nd_rule(ctx: Inference) -> Sequence[TensorType]:
    check_integers(ctx, 1)
    x, indices = ctx.shape(0), ctx.shape(1)
    return _check_updates(ctx, (*indices[:-1], *x[depth(x, indices, 0) :]))


@compiled
def _lower_nd(ctx: Lowering) -> Lazy:
    x, indices, how = ctx[0], ctx[1], _how(ctx.attr("reduction"))
    named = depth(x.shape, indices.shape, 0)
    count, out = math.prod(indices.shape[:-1]), axes_of(len(x.shape))
    if not count:
        return lazy(ctx, x.at(out))
    updates = ctx[2].reshape((count, *x.shape[named:])).stored()

    def update(j: IndexLike) -> Expr:
        return updates.at([j, *out[named:]])

    if indices.constant is not None and how == "none":
        flat = indices.constant.reshape(count, named)
        table = np.full(x.shape[:named], -1)
        table[tuples(table, flat, 0, "ScatterND")] = np.arange(count)
        return _by_table(ctx, table, out[:named], update)
    _refuse_many(count)
    rows = indices.reshape((count, named))

    def names(j: Affine) -> Expr:
        same: Expr = const(True, "bool")
        for d in range(named):
            place = _wrap(rows.at([j, Affine((), d)]), x.shape[d])
            same = call("and", same, call("eq", place, Index(out[d])))
        return same

    return _by_search(ctx, how, count, names, update)


@operator("ScatterND", infer=_nd_rule, lower=_lower_nd)
def scatter_nd(x: Array, indices: Array, updates: Array, *, reduction: str = "none") -> Array:
    """A copy of ``x`` with ``updates`` put where GatherND reads (ONNX ScatterND-18).

    Raises
    ------
    ModelError
        An index outside the data, shapes that do not fit, an unknown reduction.
    """
    return _scatter(x, tuples(x, indices, 0, "ScatterND"), updates, reduction)
