"""External functions TVM's compiled code calls by name, written with NumPy.

Each takes host arrays over the caller's memory and writes its results into them. Sources: TVM's
``src/runtime/contrib/{sort,random,cblas}``.
"""

from __future__ import annotations

import threading
from typing import Any, TypeAlias

import numpy as np

from packhorse.errors import ArgumentTypeError, ArgumentValueError

__all__ = [
    "argsort",
    "argsort_nms",
    "batch_matmul",
    "matmul",
    "normal",
    "randint",
    "seed",
    "sort",
    "topk",
    "uniform",
]

Array: TypeAlias = np.ndarray[Any, Any]

_own = threading.local()


# ---------------------------------------------------------------- tvm.contrib.sort


def _order(data: Array, axis: int, ascending: bool) -> Array:
    """Stable order: equal elements keep their places, in both directions, as in TVM."""
    axis = _axis(data, axis)
    if ascending:
        return np.argsort(data, axis=axis, kind="stable")
    flipped = np.argsort(np.flip(data, axis), axis=axis, kind="stable")
    return np.flip(data.shape[axis] - 1 - flipped, axis)


def _axis(data: Array, axis: int) -> int:
    if not -data.ndim <= axis < data.ndim:
        raise ArgumentValueError(
            f"axis {axis} is out of range for {data.ndim} dimensions; give one of "
            f"{-data.ndim} to {data.ndim - 1}"
        )
    return axis % data.ndim


def argsort(data: Array, out: Array, axis: int, is_ascend: bool) -> None:
    """Indices that sort ``data`` along ``axis`` into ``out`` (same shape, any number type)."""
    out[...] = _order(data, axis, bool(is_ascend))


def sort(data: Array, out: Array, axis: int, is_ascend: bool) -> None:
    """Sort ``data`` along ``axis`` into ``out`` (same shape and dtype)."""
    order = _order(data, axis, bool(is_ascend))
    out[...] = np.take_along_axis(data, order, _axis(data, axis))


def argsort_nms(data: Array, sizes: Array, out: Array, axis: int, is_ascend: bool) -> None:
    """As :func:`argsort`, but only the first ``sizes[...]`` elements of each row are sorted.

    ``sizes`` has the shape of ``data`` without ``axis``; the other indices stay in order.
    """
    axis = _axis(data, axis)
    rows, targets = np.moveaxis(data, axis, -1), np.moveaxis(out, axis, -1)
    for where in np.ndindex(rows.shape[:-1]):
        count = max(0, min(int(sizes[where]), rows.shape[-1]))
        order = np.arange(rows.shape[-1])
        order[:count] = _order(rows[where][:count], 0, bool(is_ascend))
        targets[where] = order


def topk(data: Array, *rest: Any) -> None:
    """``topk(data, out..., k, axis, ret_type, is_ascend)``: the first k of the sorted order.

    ``ret_type`` is "both" (two outputs: values, indices), "values" or "indices" (one output).
    k below 1 means all.

    Raises
    ------
    ArgumentValueError
        Another ``ret_type``, or outputs that do not fit it.
    """
    kinds = {"both": ("values", "indices"), "values": ("values",), "indices": ("indices",)}
    *outs, k, axis, ret_type, is_ascend = rest
    wanted = kinds.get(ret_type, ())
    if not wanted or len(outs) != len(wanted):
        raise ArgumentValueError(
            f"topk got ret_type '{ret_type}' and {len(outs)} outputs; 'both' takes two, 'values' "
            "and 'indices' take one"
        )
    axis = _axis(data, axis)
    count = k if k >= 1 else data.shape[axis]
    order = np.take(_order(data, axis, bool(is_ascend)), np.arange(count), axis=axis)
    for kind, out in zip(wanted, outs, strict=True):
        out[...] = order if kind == "indices" else np.take_along_axis(data, order, axis)


# ---------------------------------------------------------------- tvm.contrib.random


def _generator() -> np.random.Generator:
    """One per thread, as in TVM; the numbers are NumPy's, not TVM's."""
    made: np.random.Generator | None = getattr(_own, "generator", None)
    if made is None:
        made = _own.generator = np.random.default_rng()
    return made


def seed(value: int) -> None:
    """Seed this thread's generator."""
    _own.generator = np.random.default_rng(value % 2**64)


def uniform(low: float, high: float, out: Array) -> None:
    """Fill ``out`` with uniform numbers in [low, high)."""
    out[...] = _generator().uniform(low, high, out.shape)


def normal(loc: float, scale: float, out: Array) -> None:
    """Fill ``out`` with normal numbers of that mean and standard deviation."""
    out[...] = _generator().normal(loc, scale, out.shape)


def randint(low: int, high: int, out: Array) -> None:
    """Fill ``out`` with whole numbers in [low, high)."""
    if low >= high:
        raise ArgumentValueError(f"randint needs low < high, found {low} and {high}")
    out[...] = _generator().integers(low, high, out.shape)


# ---------------------------------------------------------------- tvm.contrib.cblas


def _product(
    a: Array, b: Array, out: Array, transa: bool, transb: bool, alpha: float, beta: float
) -> None:
    if a.dtype != b.dtype:
        raise ArgumentTypeError(f"matmul needs operands of one dtype, found {a.dtype}, {b.dtype}")
    left = np.swapaxes(a, -1, -2) if transa else a
    right = np.swapaxes(b, -1, -2) if transb else b
    product = np.matmul(left, right)
    if alpha != 1:
        product = product * np.asarray(alpha, product.dtype)
    if beta != 0:
        product = product + np.asarray(beta, product.dtype) * out
    out[...] = product


def matmul(
    a: Array,
    b: Array,
    out: Array,
    transa: bool,
    transb: bool,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> None:
    """``out = alpha * op(a) @ op(b) + beta * out`` of matrices."""
    _product(a, b, out, bool(transa), bool(transb), alpha, beta)


def batch_matmul(
    a: Array,
    b: Array,
    out: Array,
    transa: bool,
    transb: bool,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> None:
    """The same of each matrix of a batch; a batch of one serves every other."""
    _product(a, b, out, bool(transa), bool(transb), alpha, beta)
