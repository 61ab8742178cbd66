"""Pooling: MaxPool, AveragePool, LpPool and their global forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Affine, Axis, Expr, Index, Reduce, affine, call, const, select
from packhorse.kernel.lowering import Lazy, Lowering, Operand, axes_of, compute_dtype, lazy
from packhorse.ops._window import (
    Window,
    guarded,
    inside,
    narrow,
    pad_spatial,
    patches,
    wide,
    window_of,
)
from packhorse.ops.reduce import lowest
from packhorse.ops.registry import Array, Inference, operator

__all__ = [
    "average_pool",
    "global_average_pool",
    "global_lp_pool",
    "global_max_pool",
    "lp_pool",
    "max_pool",
]


def pool_window(label: str, shape: Sequence[int], attr: Callable[[str], Any]) -> Window:
    """Window of a pool over (N, C, *spatial); ModelError when it does not fit."""
    if len(shape) < 3:
        raise ModelError(
            f"{label}: data of shape {tuple(shape)} has no spatial dimensions. "
            "Expected (N, C, *spatial)"
        )
    return window_of(label, shape[2:], attr("kernel_shape"), attr, bool(attr("ceil_mode")))


def infer_pool(ctx: Inference) -> list[TensorType]:
    """Shape rule of all pools; the optional second output of MaxPool holds int64 indices."""
    x = ctx.shape(0)
    plan = pool_window(ctx.node.label, x, ctx.attr)
    shape = (*x[:2], *plan.out)
    types = [TensorType(ctx.type(0).dtype, shape), TensorType(np.dtype(np.int64), shape)]
    return types[: len(ctx.node.outputs)]


def lower_max_pool(ctx: Lowering) -> Lazy | tuple[Lazy, Lazy]:
    """Maximum over the window; positions in the padding are skipped by a guard."""
    x = ctx[0].stored()
    plan = pool_window("MaxPool", x.shape, ctx.attr)
    taps, element, guard = _window_element(ctx, x, plan)
    lowest_ = const(lowest(np.dtype(element.dtype)), element.dtype)
    value = element if guard is None else select(guard, element, lowest_)
    best = Reduce("max", taps, value, value.dtype)
    if len(ctx.output_types) == 1:
        return lazy(ctx, best)
    return lazy(ctx, best), lazy(ctx, _first_position(ctx, x, plan, best), 1)


def _window_element(
    ctx: Lowering, x: Operand, plan: Window
) -> tuple[tuple[Axis, ...], Expr, Expr | None]:
    """Fresh axes over the window, the element there, and where it lies in the data."""
    taps = tuple(ctx.axis(k) for k in plan.kernel)
    index = plan.index(taps)
    value = x.at([*axes_of(2), *index])
    guard = inside(index, x.shape[2:], plan.halo(x.shape[2:]))
    return taps, value if guard is None else guarded(value, guard), guard


def _first_position(ctx: Lowering, x: Operand, plan: Window, best: Expr) -> Expr:
    """Flat position of the first element of the window that equals ``best``."""
    if ctx.attr("storage_order"):
        raise UnsupportedOperator("MaxPool with column-major Indices is not compiled")
    taps, element, guard = _window_element(ctx, x, plan)
    flat = Affine()
    for place, extent in zip((*axes_of(2), *plan.index(taps)), x.shape, strict=True):
        flat = flat * extent + place
    found = call("eq", element, best)
    if guard is not None:
        found = call("and", found, guard)
    last = math.prod(x.shape) - 1  # of NaN, which equals nothing
    return Reduce("min", taps, select(found, Index(flat), last), "int64")


@operator("MaxPool", infer=infer_pool, lower=lower_max_pool)
def max_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> tuple[Array, Array]:
    """Maximum over windows (ONNX MaxPool-12).

    Parameters
    ----------
    x : float, int8 or uint8 array (N, C, *spatial)

    Returns
    -------
    array (N, C, *out) and int64 indices of the maxima in the flattened ``x``
        With ``storage_order=1`` the spatial dimensions count column-major.

    Raises
    ------
    ModelError
        A window larger than the padded input, or attributes that do not fit.
    """
    found = {
        "kernel_shape": kernel_shape, "auto_pad": auto_pad, "ceil_mode": ceil_mode,
        "dilations": dilations, "pads": pads, "strides": strides,
    }  # fmt: skip
    plan = pool_window("MaxPool", x.shape, found.get)
    windows = patches(pad_spatial(x, plan.halo(x.shape[2:]), lowest(x.dtype)), plan)
    taps = list(np.ndindex(*plan.kernel))
    best = windows[(..., *taps[0])].copy()
    which = np.zeros(best.shape, np.int32)
    for i, tap in enumerate(taps[1:], 1):
        candidate = windows[(..., *tap)]
        better = ~(candidate <= best)  # NaN wins, the first of equals stays
        np.copyto(best, candidate, where=better)
        which[better] = i
    return best, _positions(which, x.shape, plan, storage_order)


def _positions(which: Array, shape: Sequence[int], plan: Window, storage_order: int) -> Array:
    """Flat positions in data of ``shape`` of the window elements numbered ``which``."""
    rank, spatial = len(plan.out), shape[2:]
    steps = [
        math.prod(spatial[:d]) if storage_order else math.prod(spatial[d + 1 :])
        for d in range(rank)
    ]
    tap_grid = np.indices(plan.kernel).reshape(rank, -1).T * plan.dilations
    total = (tap_grid @ steps)[which]
    for d in range(rank):
        starts = (np.arange(plan.out[d]) * plan.strides[d] - plan.pads[d][0]) * steps[d]
        total += starts.reshape(-1, *[1] * (rank - 1 - d))
    plane = np.arange(math.prod(shape[:2])) * math.prod(spatial)
    return np.asarray(total + plane.reshape(*shape[:2], *[1] * rank), np.int64)


def counts(plan: Window, spatial: Sequence[int], include_pad: bool) -> Array:
    """How many elements each average is over: shape ``plan.out``, float64.

    Padding counts with ``include_pad``; what ``ceil_mode`` hangs over beyond it never does.
    """
    total = np.ones((), np.float64)
    for d, n in enumerate(spatial):
        before, after = plan.pads[d]
        where = (
            np.arange(plan.out[d])[:, None] * plan.strides[d]
            - before
            + np.arange(plan.kernel[d]) * plan.dilations[d]
        )
        low, high = (-before, n + after) if include_pad else (0, n)
        found = ((where >= low) & (where < high)).sum(axis=1)
        total = total[..., None] * found
    return np.maximum(total, 1)  # a window that sees only padding averages to 0


def lower_average_pool(ctx: Lowering) -> Lazy:
    """Sum over the zero-padded window times a reciprocal count."""
    x = ctx[0]
    spatial = x.shape[2:]
    plan = pool_window("AveragePool", x.shape, ctx.attr)
    taps = tuple(ctx.axis(k) for k in plan.kernel)
    source = x.stored(halo=((0, 0), (0, 0), *plan.halo(spatial)))
    value = source.at([*axes_of(2), *plan.index(taps)])
    share = 1 / counts(plan, spatial, bool(ctx.attr("count_include_pad")))
    total = Reduce("sum", taps, value, value.dtype)
    if (share == share.flat[0]).all():
        return lazy(ctx, total * float(share.flat[0]))
    table = ctx.constant(share.astype(compute_dtype(ctx.output_types[0][1])))
    return lazy(ctx, total * table.at(axes_of(len(x.shape))[2:]))


@operator("AveragePool", infer=infer_pool, lower=lower_average_pool)
def average_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Mean over windows (ONNX AveragePool-19).

    Parameters
    ----------
    x : float array (N, C, *spatial)

    Returns
    -------
    float array (N, C, *out)

    Raises
    ------
    ModelError
        A window larger than the padded input, or attributes that do not fit.
    """
    found = {
        "kernel_shape": kernel_shape, "auto_pad": auto_pad, "ceil_mode": ceil_mode,
        "dilations": dilations, "pads": pads, "strides": strides,
    }  # fmt: skip
    plan = pool_window("AveragePool", x.shape, found.get)
    total = _window_sum(wide(x), plan)
    divisor = counts(plan, x.shape[2:], bool(count_include_pad))
    return narrow(total / divisor.astype(total.dtype), x.dtype)


def _window_sum(x: Array, plan: Window) -> Array:
    windows = patches(pad_spatial(x, plan.halo(x.shape[2:])), plan)
    total = np.zeros(windows.shape[: 2 + len(plan.out)], x.dtype)
    for tap in np.ndindex(*plan.kernel):
        total += windows[(..., *tap)]
    return total


def root(value: Expr, p: int) -> Expr:
    """The p-th root of a sum of p-th powers."""
    if p == 1:
        return value
    return call("sqrt", value) if p == 2 else call("pow", value, 1 / p)


def power(value: Expr, p: int) -> Expr:
    """``|value| ** p``."""
    if p == 2:
        return value * value
    return call("abs", value) if p == 1 else call("pow", call("abs", value), p)


def lower_lp_pool(ctx: Lowering) -> Lazy:
    """p-th root of the window's sum of p-th powers; padding is zero."""
    x, p = ctx[0], int(ctx.attr("p"))
    plan = pool_window("LpPool", x.shape, ctx.attr)
    taps = tuple(ctx.axis(k) for k in plan.kernel)
    source = x.stored(halo=((0, 0), (0, 0), *plan.halo(x.shape[2:])))
    value = power(source.at([*axes_of(2), *plan.index(taps)]), p)
    return lazy(ctx, root(Reduce("sum", taps, value, value.dtype), p))


@operator("LpPool", infer=infer_pool, lower=lower_lp_pool)
def lp_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """p-norm over windows (ONNX LpPool-18): float array (N, C, *spatial) -> (N, C, *out).

    Raises
    ------
    ModelError
        A window larger than the padded input, or attributes that do not fit.
    """
    found = {
        "kernel_shape": kernel_shape, "auto_pad": auto_pad, "ceil_mode": ceil_mode,
        "dilations": dilations, "pads": pads, "strides": strides,
    }  # fmt: skip
    plan = pool_window("LpPool", x.shape, found.get)
    return narrow(_window_sum(np.abs(wide(x)) ** p, plan) ** (1 / p), x.dtype)


def infer_global(ctx: Inference) -> list[TensorType]:
    """Shape rule of the global pools: (N, C, *spatial) -> (N, C, 1, ...)."""
    x = ctx.shape(0)
    if len(x) < 3:
        raise ModelError(
            f"{ctx.node.label}: data of shape {x} has no spatial dimensions. "
            "Expected (N, C, *spatial)"
        )
    return [TensorType(ctx.type(0).dtype, (*x[:2], *[1] * (len(x) - 2)))]


def _over_plane(
    ctx: Lowering, combine: str, fn: Callable[[Expr], Expr] = lambda value: value
) -> Reduce:
    """``combine`` of ``fn(element)`` over the spatial dimensions."""
    x = ctx[0]
    if 0 in x.shape[2:]:
        raise UnsupportedOperator("a global pool over no elements is not compiled")
    axes = tuple(ctx.axis(n) for n in x.shape[2:])
    value = fn(x.at([*axes_of(2), *(affine(name) for name, _ in axes)]))
    return Reduce(combine, axes, value, value.dtype)


def lower_global_average(ctx: Lowering) -> Lazy:
    """Sum over the spatial dimensions times the reciprocal of their size."""
    total = _over_plane(ctx, "sum")
    return lazy(ctx, total * (1 / math.prod(ctx[0].shape[2:])))


@operator("GlobalAveragePool", infer=infer_global, lower=lower_global_average)
def global_average_pool(x: Array) -> Array:
    """Mean over the spatial dimensions (ONNX GlobalAveragePool-1): (N, C, *S) -> (N, C, 1, ...)."""
    mean = wide(x).mean(axis=tuple(range(2, x.ndim)), keepdims=True)
    return narrow(np.asarray(mean), x.dtype)


@operator(
    "GlobalMaxPool",
    infer=infer_global,
    lower=lambda ctx: lazy(ctx, _over_plane(ctx, "max")),
)
def global_max_pool(x: Array) -> Array:
    """Maximum over the spatial dimensions (ONNX GlobalMaxPool-1): (N, C, *S) -> (N, C, 1, ...)."""
    return np.asarray(x.max(axis=tuple(range(2, x.ndim)), keepdims=True))


def lower_global_lp(ctx: Lowering) -> Lazy:
    """p-norm over the spatial dimensions."""
    p = int(ctx.attr("p"))
    return lazy(ctx, root(_over_plane(ctx, "sum", lambda v: power(v, p)), p))


@operator("GlobalLpPool", infer=infer_global, lower=lower_global_lp)
def global_lp_pool(x: Array, *, p: int = 2) -> Array:
    """p-norm over the spatial dimensions (ONNX GlobalLpPool-2): (N, C, *S) -> (N, C, 1, ...)."""
    total = (np.abs(wide(x)) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True)
    return narrow(np.asarray(total ** (1 / p)), x.dtype)
