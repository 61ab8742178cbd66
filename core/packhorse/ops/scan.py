"""Running totals along one axis: CumSum and CumProd.

The lowering makes passes that are parallel in every element: after the first pass each element
holds the total of a run of :data:`RUN` elements, after the second of ``RUN ** 2``, and so on until
a run covers the axis. So a scan of n elements takes log(n) kernels and no loop that must be
walked in order, and rounds less than one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Index, Reduce, affine, call, const, select
from packhorse.kernel.lowering import Lazy, Lowering, Operand, axes_of, compute_dtype, lazy
from packhorse.ops._window import guarded, narrow, wide
from packhorse.ops.registry import Array, Inference, operator
from packhorse.ops.rules import compiled, known, labelled, normal_axis, whole

__all__ = ["RUN", "Scan"]

RUN = 8
"""Elements each pass combines."""


@dataclass(frozen=True)
class Scan:
    """One row of the table: ``combine`` is the kernel's reduction, ``neutral`` its start."""

    name: str
    source: str
    combine: str
    neutral: int
    accumulate: Callable[..., Any]


@labelled
def infer_scan(ctx: Inference) -> list[TensorType]:
    """Shape rule of scans: like the input."""
    if ctx.values[1] is not None:
        normal_axis(whole(ctx.values[1], "axis")[0], len(ctx.shape(0)))
    return [ctx.type(0)]


def _lower(row: Scan) -> Callable[[Lowering], Lazy]:
    @compiled
    def lower(ctx: Lowering) -> Lazy:
        shape = ctx[0].shape
        axis = normal_axis(whole(known(ctx, 1, "axis"), "axis")[0], len(shape))
        back = 1 if ctx.attr("reverse") else -1
        source, skip = ctx[0].stored(), 1 if ctx.attr("exclusive") else 0
        value, run = _pass(ctx, row, source, axis, back, 1, skip), RUN
        while run < shape[axis]:
            source = ctx.buffer(shape, value.dtype)
            axes = [(f"i{d}", n) for d, n in enumerate(shape)]
            ctx.kernel(axes, [(source, axes_of(len(shape)), value)])
            value, run = _pass(ctx, row, source, axis, back, run, 0), run * RUN
        return lazy(ctx, value)

    return lower


def _pass(
    ctx: Lowering, row: Scan, source: Operand, axis: int, back: int, run: int, skip: int
) -> Reduce:
    """Totals of up to ``RUN`` runs of ``run`` elements, the last of which ends ``skip`` before."""
    extent, dtype = source.shape[axis], compute_dtype(source.dtype)
    tap = ctx.axis(min(RUN, -(-extent // run)))
    index = list(axes_of(len(source.shape)))
    index[axis] = index[axis] + affine(tap[0]) * (back * run) + back * skip
    place = Index(index[axis])
    inside = call("ge", place, 0) if back < 0 else call("lt", place, extent)
    element = guarded(source.at(index), inside)
    if row.neutral:
        element = select(inside, element, const(row.neutral, dtype))
    return Reduce(row.combine, (tap,), element, dtype)


def _register(row: Scan) -> None:
    def reference(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
        d = normal_axis(whole(axis, "axis")[0], x.ndim)
        data = np.flip(wide(x), d) if reverse else wide(x)
        total = row.accumulate(data, axis=d, dtype=data.dtype)
        if exclusive:
            total = np.roll(total, 1, axis=d)
            total[(*[slice(None)] * d, slice(0, 1))] = row.neutral
        return narrow(np.flip(total, d) if reverse else total, x.dtype)

    reference.__name__ = row.name
    reference.__doc__ = f"""{row.source}: running totals along one axis.

    Parameters
    ----------
    x : numeric array
    axis : integer scalar
    exclusive, reverse : int
        Leave the element itself out; run from the end.

    Raises
    ------
    ModelError
        An axis out of range.
    """
    operator(row.name, infer=infer_scan, lower=_lower(row))(reference)


for _row in (
    Scan("CumSum", "ONNX CumSum-14", "sum", 0, np.cumsum),
    Scan("CumProd", "ONNX CumProd-26", "prod", 1, np.cumprod),
):
    _register(_row)
