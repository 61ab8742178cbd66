"""TopK: the largest or smallest elements along an axis, in order.

A kernel finds one element at a time: the best of those that come after the last one found. That
costs ``k`` passes over the axis and needs no memory, so it is for few elements; more of them are
sorted on the host.
"""

from __future__ import annotations

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Affine, Expr, Index, Reduce, affine, call, const, select
from packhorse.kernel.lowering import Lazy, Lowering, Operand, Piece, Pieces, axes_of, compute_dtype
from packhorse.ops._window import wide
from packhorse.ops.reduce import highest, lowest
from packhorse.ops.registry import Array, Inference, operator
from packhorse.ops.rules import compiled, known, labelled, normal_axis, whole

__all__ = ["MOST", "top_k"]

MOST = 32
"""Most elements that kernels look for."""


def top_shape(shape: tuple[int, ...], k: Array, axis: int) -> tuple[int, tuple[int, ...]]:
    """Normalised axis and shape of TopK's outputs; ModelError when k does not fit."""
    axis = normal_axis(axis, len(shape))
    listed = whole(k, "k")
    if len(listed) != 1 or not 0 <= listed[0] <= shape[axis]:
        raise ModelError(
            f"TopK: k is {listed}, but axis {axis} of an input of shape {shape} has "
            f"{shape[axis]} elements. k must be one number between 0 and that"
        )
    return axis, (*shape[:axis], listed[0], *shape[axis + 1 :])


@labelled
def infer_top_k(ctx: Inference) -> list[TensorType]:
    """Shape rule of TopK: values and int64 positions; k must be known."""
    _, shape = top_shape(ctx.shape(0), ctx.value(1), ctx.attr("axis"))
    return [TensorType(ctx.type(0).dtype, shape), TensorType(np.dtype(np.int64), shape)]


@compiled
def _lower_top_k(ctx: Lowering) -> tuple[Pieces, Pieces]:
    """One kernel per element found; it stores value and position."""
    x = ctx[0].stored()
    axis, shape = top_shape(x.shape, known(ctx, 1, "k"), ctx.attr("axis"))
    count = shape[axis]
    if not 0 < count <= MOST or 0 in x.shape:
        raise UnsupportedOperator(f"TopK of {count} elements is not compiled: 1 to {MOST} are")
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    found: list[tuple[Operand, Operand]] = []
    for _ in range(count):
        found.append(_next(ctx, x, axis, one, found[-1] if found else None))
    dtypes = ctx.output_types[0][1], "int64"
    out = axes_of(len(shape))
    values, places = (
        Pieces(
            shape,
            dtype,
            tuple(
                Piece(
                    Lazy(one, dtype, step[side].at(out)),
                    (*out[:axis], out[axis] + number, *out[axis + 1 :]),
                )
                for number, step in enumerate(found)
            ),
        )
        for side, dtype in enumerate(dtypes)
    )
    return values, places


def _next(
    ctx: Lowering,
    x: Operand,
    axis: int,
    shape: tuple[int, ...],
    last: tuple[Operand, Operand] | None,
) -> tuple[Operand, Operand]:
    """Value and position of the best element after ``last``, in buffers of ``shape``."""
    largest = bool(ctx.attr("largest"))
    combine, better = ("max", "gt") if largest else ("min", "lt")
    dtype, out = compute_dtype(x.dtype), axes_of(len(shape))

    def left(value: Expr, place: Affine) -> Expr:
        """Whether an element comes after the last one: worse, or equal and behind it."""
        if last is None:
            return const(True, "bool")
        limit, behind = last[0].at(out), last[1].at(out)
        same = call("and", call("eq", value, limit), call("gt", Index(place), behind))
        return call("or", call(better, limit, value), same)

    def element(place: Affine) -> Expr:
        return x.at([*out[:axis], place, *out[axis + 1 :]])

    first, second = ctx.axis(x.shape[axis]), ctx.axis(x.shape[axis])
    place = affine(first[0])
    worst = (lowest if largest else highest)(np.dtype(dtype))
    candidate = select(left(element(place), place), element(place), worst)
    best = Reduce(combine, (first,), candidate, dtype)
    place = affine(second[0])
    here = call("and", left(element(place), place), call("eq", element(place), best))
    position: Expr = Reduce("min", (second,), select(here, Index(place), second[1]), "int64")
    position = call("min", position, second[1] - 1)  # NaN equals nothing
    value, where = ctx.buffer(shape, dtype), ctx.buffer(shape, "int64")
    axes = [(f"i{d}", n) for d, n in enumerate(shape)]
    ctx.kernel(axes, [(value, out, best), (where, out, position)])
    return value, where


@operator("TopK", infer=infer_top_k, lower=_lower_top_k)
def top_k(
    x: Array, k: Array, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Array, Array]:
    """The ``k`` largest (smallest) values along an axis, and their positions (ONNX TopK-11).

    Parameters
    ----------
    x : numeric array
    k : int64 array of one element

    Returns
    -------
    array and int64 array, both with ``k`` elements along ``axis``
        Always sorted; of equal values the one at the lower position comes first. Where NaN comes
        is left open.

    Raises
    ------
    ModelError
        ``k`` larger than the axis.
    """
    d, shape = top_shape(x.shape, k, axis)
    data = wide(x)
    if largest:
        # a stable descending order is the reverse of a stable ascending one of the reverse
        order = x.shape[d] - 1 - np.flip(np.argsort(np.flip(data, d), axis=d, kind="stable"), d)
    else:
        order = np.argsort(data, axis=d, kind="stable")
    chosen = np.take(order, np.arange(shape[d]), axis=d).astype(np.int64)
    return np.take_along_axis(x, chosen, axis=d), chosen
