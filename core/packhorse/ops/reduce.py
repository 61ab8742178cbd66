"""Reductions over axes, and the positions of extremes: ArgMax, ArgMin, Hardmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import (
    Affine,
    Expr,
    Index,
    Reduce,
    affine,
    call,
    cast,
    const,
    is_float,
    select,
)
from packhorse.kernel.lowering import Lazy, Lowered, Lowering, axes_of, compute_dtype, lazy
from packhorse.ops._window import narrow, wide
from packhorse.ops.registry import Array, Inference, operator
from packhorse.ops.rules import compiled, known, labelled, normal_axes, normal_axis, whole

__all__ = ["hardmax"]


@dataclass(frozen=True)
class Reduction:
    """One row of the table of reductions.

    ``before`` maps elements (None: unchanged), ``combine`` is the kernel's reduction, ``after``
    maps the total and gets the number of elements reduced. ``whole`` is the NumPy reference where
    before-combine-after is not it.
    """

    name: str
    combine: str
    source: str
    before: Callable[[Expr], Expr] | None = None
    after: Callable[[Expr, int], Expr] | None = None
    reference: Callable[..., Array] = np.sum
    floats_only: bool = False


def lowest(dtype: np.dtype[Any]) -> Any:
    """Neutral element of a maximum."""
    if dtype.kind == "b":
        return False
    return np.iinfo(dtype).min if dtype.kind in "iu" else -math.inf


def highest(dtype: np.dtype[Any]) -> Any:
    """Neutral element of a minimum."""
    if dtype.kind == "b":
        return True
    return np.iinfo(dtype).max if dtype.kind in "iu" else math.inf


def _mean(x: Array, axis: tuple[int, ...]) -> Array:
    if x.dtype.kind == "f":
        count = math.prod(x.shape[a] for a in axis)
        return np.asarray(x.sum(axis=axis, keepdims=True) / x.dtype.type(count))
    # integers truncate towards zero, like a division
    count = math.prod(x.shape[a] for a in axis)
    total = x.sum(axis=axis, keepdims=True, dtype=x.dtype)
    return np.asarray(np.trunc(total / max(count, 1)))


def _log_sum_exp(x: Array, axis: tuple[int, ...]) -> Array:
    x = x if x.dtype.kind == "f" else x.astype(np.float64)
    top = x.max(axis=axis, keepdims=True, initial=-np.inf)
    base = np.where(np.isfinite(top), top, 0)
    return np.asarray(np.log(np.exp(x - base).sum(axis=axis, keepdims=True)) + base)


def _total(fn: Callable[[Array], Any], last: Callable[[Array], Any]) -> Callable[..., Array]:
    def reference(x: Array, axis: tuple[int, ...]) -> Array:
        total = np.sum(fn(x), axis=axis, keepdims=True, dtype=x.dtype)
        return np.asarray(last(total))

    return reference


def _same(x: Array) -> Array:
    return x


def _square(x: Any) -> Any:
    return x * x


REDUCTIONS = (
    Reduction("ReduceSum", "sum", "ReduceSum-13", reference=_total(_same, _same)),
    Reduction(
        "ReduceMean", "sum", "ReduceMean-18",
        after=lambda v, n: v * (1 / n) if is_float(v.dtype) else call("div", v, n),
        reference=_mean,
    ),
    Reduction(
        "ReduceMax", "max", "ReduceMax-20",
        reference=lambda x, axis: np.max(x, axis=axis, keepdims=True, initial=lowest(x.dtype)),
    ),
    Reduction(
        "ReduceMin", "min", "ReduceMin-20",
        reference=lambda x, axis: np.min(x, axis=axis, keepdims=True, initial=highest(x.dtype)),
    ),
    Reduction(
        "ReduceProd", "prod", "ReduceProd-18",
        reference=lambda x, axis: np.prod(x, axis=axis, keepdims=True, dtype=x.dtype),
    ),
    Reduction(
        "ReduceL1", "sum", "ReduceL1-18", before=lambda v: call("abs", v),
        reference=_total(np.abs, _same),
    ),
    Reduction(
        "ReduceL2", "sum", "ReduceL2-18", before=_square, after=lambda v, _: call("sqrt", v),
        reference=_total(_square, np.sqrt), floats_only=True,
    ),
    Reduction(
        "ReduceSumSquare", "sum", "ReduceSumSquare-18", before=_square,
        reference=_total(_square, _same),
    ),
    Reduction(
        "ReduceLogSum", "sum", "ReduceLogSum-18", after=lambda v, _: call("log", v),
        reference=_total(_same, np.log), floats_only=True,
    ),
    Reduction("ReduceLogSumExp", "sum", "ReduceLogSumExp-18", reference=_log_sum_exp,
              floats_only=True),
)  # fmt: skip
"""All reductions with axes as an input; integers keep their dtype."""


def reduced_axes(axes: Array | None, rank: int, noop: int) -> tuple[int, ...] | None:
    """The axes to reduce, sorted; None when the operator is the identity."""
    listed = [] if axes is None else whole(axes, "axes")
    if listed:
        return tuple(sorted(normal_axes(listed, rank)))
    return None if noop else tuple(range(rank))


def reduced_shape(shape: Sequence[int], axes: Sequence[int], keepdims: int) -> tuple[int, ...]:
    """Shape after reducing ``axes``: 1 in their place, or dropped."""
    kept = ((d, n) for d, n in enumerate(shape) if keepdims or d not in axes)
    return tuple(1 if d in axes else n for d, n in kept)


@labelled
def infer_reduce(ctx: Inference) -> list[TensorType]:
    """Shape rule of the reductions; axes must be known."""
    x = ctx.type(0)
    axes = ctx.value(1) if ctx.has(1) else None
    found = reduced_axes(axes, len(x.dims), ctx.attr("noop_with_empty_axes"))
    if found is None:
        return [x]
    return [TensorType(x.dtype, reduced_shape(x.dims, found, ctx.attr("keepdims")))]


def gather_index(
    rank: int, reduced: dict[int, Affine], keepdims: int
) -> tuple[list[Affine], list[Affine]]:
    """Input index with ``reduced`` axes bound, and the same with zeros at reduced ones."""
    out = list(axes_of(rank))
    if not keepdims:
        free = iter(out)
        out = [Affine() if d in reduced else next(free) for d in range(rank)]
    return [reduced.get(d, out[d]) for d in range(rank)], out


def _nothing(row: Reduction, dtype: str) -> Expr:
    """What a reduction over no elements gives, as NumPy has it."""
    with np.errstate(all="ignore"):
        found = row.reference(np.zeros(0, dtype), axis=(0,))
    return const(np.asarray(found).reshape(()).item(), dtype)


def _lower(row: Reduction) -> Callable[[Lowering], Lowered]:
    def lower(ctx: Lowering) -> Lowered:
        x = ctx[0]
        axes = reduced_axes(
            known(ctx, 1, "axes") if ctx.has(1) else None,
            len(x.shape),
            ctx.attr("noop_with_empty_axes"),
        )
        if axes is None:
            return x
        logic = x.dtype == "bool" and row.combine not in ("max", "min")
        if logic or (row.floats_only and not is_float(x.dtype)):
            raise UnsupportedOperator(f"{row.name} of {x.dtype} is not compiled")
        count = math.prod(x.shape[a] for a in axes)
        if not count:
            return lazy(ctx, _nothing(row, compute_dtype(x.dtype)))

        def over(combine: str, fn: Callable[[Expr], Expr] | None) -> Expr:
            bound = {a: ctx.axis(x.shape[a]) for a in axes}
            where = {a: affine(name) for a, (name, _) in bound.items()}
            element = x.at(gather_index(len(x.shape), where, ctx.attr("keepdims"))[0])
            body = fn(element) if fn else element
            return Reduce(combine, tuple(bound.values()), body, body.dtype) if bound else body

        if row.name == "ReduceLogSumExp":
            top = over("max", None)
            # an infinite maximum must not become inf - inf
            base = select(call("lt", call("abs", top), math.inf), top, 0.0)
            total = over("sum", lambda v: call("exp", v - base))
            return lazy(ctx, call("log", total) + base)
        value = over(row.combine, row.before)
        return lazy(ctx, row.after(value, count) if row.after else value)

    return lower


def _register(row: Reduction) -> None:
    def reference(
        x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Array:
        found = reduced_axes(axes, x.ndim, noop_with_empty_axes)
        if found is None:
            return x
        with np.errstate(all="ignore"):  # log of 0 and overflow are results here
            out = row.reference(wide(x), axis=found)
        shape = reduced_shape(x.shape, found, keepdims)
        return narrow(np.asarray(out).reshape(shape), x.dtype)

    reference.__name__ = row.name
    reference.__doc__ = f"""{row.name} over ``axes`` (default: all) (ONNX {row.source}).

    Raises
    ------
    ModelError
        An axis out of range or named twice.
    """
    operator(row.name, infer=infer_reduce, lower=_lower(row))(reference)


for _row in REDUCTIONS:
    _register(_row)


@labelled
def infer_arg(ctx: Inference) -> list[TensorType]:
    """Shape rule of ArgMax and ArgMin: int64 positions along one axis."""
    shape = ctx.shape(0)
    axis = normal_axis(ctx.attr("axis"), len(shape))
    if not shape[axis]:
        raise ModelError(f"axis {axis} of an input of shape {shape} has no elements to compare")
    return [TensorType(np.dtype(np.int64), reduced_shape(shape, (axis,), ctx.attr("keepdims")))]


def _extreme(ctx: Lowering, combine: str, keepdims: int, last: bool = False) -> Expr:
    """Two reductions: the extreme value, then the first or last position that holds it."""
    x = ctx[0].stored()
    axis = normal_axis(ctx.attr("axis"), len(x.shape))
    first, second = ctx.axis(x.shape[axis]), ctx.axis(x.shape[axis])

    def element(name: str) -> Expr:
        return x.at(gather_index(len(x.shape), {axis: affine(name)}, keepdims)[0])

    value = element(first[0])
    best = Reduce(combine, (first,), value, value.dtype)
    position = Index(affine(second[0]))
    other = select(call("eq", element(second[0]), best), position, -1 if last else second[1])
    found: Expr = Reduce("max" if last else "min", (second,), other, "int64")
    # NaN equals nothing: stay inside the axis
    return call("max", found, 0) if last else call("min", found, second[1] - 1)


def _lower_arg(combine: str) -> Callable[[Lowering], Lazy]:
    def lower(ctx: Lowering) -> Lazy:
        last = bool(ctx.attr("select_last_index"))
        return lazy(ctx, _extreme(ctx, combine, ctx.attr("keepdims"), last))

    return lower


def _arg(flip: bool) -> Callable[..., Array]:
    def reference(
        x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
    ) -> Array:
        axis = normal_axis(axis, x.ndim)
        data = np.flip(wide(x), axis) if select_last_index else wide(x)
        found = (np.argmin if flip else np.argmax)(data, axis=axis)
        found = x.shape[axis] - 1 - found if select_last_index else found
        shape = reduced_shape(x.shape, (axis,), keepdims)
        return np.asarray(found, np.int64).reshape(shape)

    name = "ArgMin" if flip else "ArgMax"
    reference.__name__ = name
    reference.__doc__ = f"""Position of the extreme value along ``axis``, int64 (ONNX {name}-13).

    Raises
    ------
    ModelError
        An axis out of range.
    """
    return reference


operator("ArgMax", infer=infer_arg, lower=_lower_arg("max"))(_arg(False))
operator("ArgMin", infer=infer_arg, lower=_lower_arg("min"))(_arg(True))


@labelled
def infer_hardmax(ctx: Inference) -> list[TensorType]:
    """Shape rule of Hardmax: like the input."""
    normal_axis(ctx.attr("axis"), len(ctx.shape(0)))
    return [ctx.type(0)]


@compiled
def _lower_hardmax(ctx: Lowering) -> Lazy:
    shape, dtype = ctx.output_types[0]
    here = Index(axes_of(len(shape))[normal_axis(ctx.attr("axis"), len(shape))])
    return lazy(ctx, cast(call("eq", here, _extreme(ctx, "max", 1)), compute_dtype(dtype)))


@operator("Hardmax", infer=infer_hardmax, lower=_lower_hardmax)
def hardmax(x: Array, *, axis: int = -1) -> Array:
    """1 at the first maximum along an axis, 0 elsewhere (ONNX Hardmax-13).

    Parameters
    ----------
    x : float array of any shape

    Raises
    ------
    ModelError
        An axis out of range.
    """
    axis = normal_axis(axis, x.ndim)
    out = np.zeros_like(x)
    if x.size:
        best = np.expand_dims(np.argmax(wide(x), axis=axis), axis)
        np.put_along_axis(out, best, np.ones((), x.dtype), axis=axis)
    return out
