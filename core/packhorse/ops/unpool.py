"""Putting windows back where they were taken: Col2Im and MaxUnpool."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from packhorse.errors import ModelError
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Expr, Index, IndexLike, Reduce, affine, call
from packhorse.kernel.lowering import Lazy, Lowering, axes_of, lazy
from packhorse.ops._window import Window, guarded, narrow, per_dim, wide, window_of
from packhorse.ops.registry import Array, Inference, operator
from packhorse.ops.rules import compiled, known, labelled, whole

__all__ = ["col2im", "max_unpool"]

# Col2Im


def _blocks(
    columns: Sequence[int], image: Array, block: Array, attr: Callable[[str], Any]
) -> Window:
    """The window whose positions are the blocks; ModelError when the columns do not fit it."""

    def named(name: str) -> Any:
        return "NOTSET" if name == "auto_pad" else attr(name)

    spatial, kernel = whole(image, "image_shape"), whole(block, "block_shape")
    plan = window_of("Col2Im", spatial, kernel, named)
    size, count = math.prod(kernel), math.prod(plan.out)
    if len(columns) != 3 or columns[1] % size or columns[2] != count:
        raise ModelError(
            f"columns of shape {tuple(columns)} do not fit: blocks {tuple(kernel)} have {size} "
            f"elements, and an image {tuple(spatial)} has {count} of them. Expected (N, a multiple "
            f"of {size}, {count})"
        )
    return plan


@labelled
def infer_col2im(ctx: Inference) -> list[TensorType]:
    """Shape rule of Col2Im: (N, C * block, L) -> (N, C, *image); both shapes must be known."""
    x, image = ctx.shape(0), ctx.value(1)
    plan = _blocks(x, image, ctx.value(2), ctx.attr)
    shape = (x[0], x[1] // math.prod(plan.kernel), *whole(image, "image_shape"))
    return [TensorType(ctx.type(0).dtype, shape)]


@compiled
def _lower_col2im(ctx: Lowering) -> Lazy:
    """Every element sums the blocks that cover it, one term per place in a block."""
    shape, _ = ctx.output_types[0]
    image, block = known(ctx, 1, "image_shape"), known(ctx, 2, "block_shape")
    plan = _blocks(ctx[0].shape, image, block, ctx.attr)
    columns = ctx[0].reshape((*shape[:2], *plan.kernel, *plan.out)).stored()
    taps = tuple(ctx.axis(k) for k in plan.kernel)
    where: list[IndexLike] = []
    guard: Expr | None = None
    for d, (name, _) in enumerate(taps):
        # the block whose place `tap` this element is, if its start is one
        start = affine(f"i{d + 2}") + affine(name) * -plan.dilations[d] + plan.pads[d][0]
        stride, number = plan.strides[d], plan.out[d]
        tests = [call("ge", Index(start), 0), call("lt", Index(start), number * stride)]
        if stride > 1:
            tests.append(call("eq", call("mod", Index(start), stride), 0))
        for test in tests:
            guard = test if guard is None else call("and", guard, test)
        where.append(start if stride == 1 else call("floordiv", Index(start), stride))
    value = columns.at([*axes_of(2), *(affine(name) for name, _ in taps), *where])
    assert guard is not None
    return lazy(ctx, Reduce("sum", taps, guarded(value, guard), value.dtype))


@operator("Col2Im", infer=infer_col2im, lower=_lower_col2im)
def col2im(
    x: Array,
    image_shape: Array,
    block_shape: Array,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Add up blocks at the places a sliding window takes them from (ONNX Col2Im-18).

    Parameters
    ----------
    x : numeric array (N, C * elements of a block, number of blocks)
    image_shape, block_shape : int64 arrays (rank,)

    Returns
    -------
    array (N, C, *image_shape)

    Raises
    ------
    ModelError
        Columns that do not fit the image and the blocks.
    """
    found = {"dilations": dilations, "pads": pads, "strides": strides}
    plan = _blocks(x.shape, image_shape, block_shape, found.get)
    spatial = whole(image_shape, "image_shape")
    columns = wide(x).reshape(x.shape[0], -1, *plan.kernel, *plan.out)
    room = [max(n + sum(p), (o - 1) * s + r) for n, p, o, s, r in zip(
        spatial, plan.pads, plan.out, plan.strides, plan.reach, strict=True)]  # fmt: skip
    canvas = np.zeros((*columns.shape[:2], *room), columns.dtype)
    for tap in np.ndindex(*plan.kernel):
        window = tuple(
            slice(t * d, t * d + (o - 1) * s + 1, s)
            for t, d, s, o in zip(tap, plan.dilations, plan.strides, plan.out, strict=True)
        )
        canvas[(slice(None), slice(None), *window)] += columns[(slice(None), slice(None), *tap)]
    inner = tuple(slice(p, p + n) for (p, _), n in zip(plan.pads, spatial, strict=True))
    return narrow(canvas[(slice(None), slice(None), *inner)], x.dtype)


# MaxUnpool: an index may name any element, so it stays on the host


def _unpooled(x: Sequence[int], attr: Callable[[str], Any]) -> tuple[int, ...]:
    """The extents before pooling, as far as the attributes tell: (N, C, *spatial)."""
    rank = len(x) - 2
    kernel = per_dim("MaxUnpool", "kernel_shape", attr("kernel_shape"), rank, 1)
    strides = per_dim("MaxUnpool", "strides", attr("strides"), rank, 1)
    pads = per_dim("MaxUnpool", "pads", attr("pads"), 2 * rank, 0, least=0)
    spatial = (
        (n - 1) * s + k - pads[d] - pads[d + rank]
        for d, (n, s, k) in enumerate(zip(x[2:], strides, kernel, strict=True))
    )
    return (*x[:2], *spatial)


def _output(inferred: Sequence[int], wanted: Array | None) -> tuple[int, ...]:
    if wanted is None:
        return tuple(inferred)
    shape = tuple(whole(wanted, "output_shape"))
    if len(shape) != len(inferred) or any(n < m for n, m in zip(shape, inferred, strict=True)):
        raise ModelError(f"output_shape {shape} is smaller than what was pooled, {tuple(inferred)}")
    return shape


@labelled
def infer_max_unpool(ctx: Inference) -> list[TensorType]:
    """Shape rule of MaxUnpool; an output_shape must be known."""
    if ctx.shape(0) != ctx.shape(1) or len(ctx.shape(0)) < 3:
        raise ModelError(
            f"data of shape {ctx.shape(0)} and indices {ctx.shape(1)} must have one shape, "
            "(N, C, *spatial)"
        )
    shape = _output(_unpooled(ctx.shape(0), ctx.attr), ctx.value(2) if ctx.has(2) else None)
    return [TensorType(ctx.type(0).dtype, shape)]


@operator("MaxUnpool", infer=infer_max_unpool)
def max_unpool(
    x: Array,
    indices: Array,
    output_shape: Array | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Maxima at the places they were taken from, 0 elsewhere (ONNX MaxUnpool-11).

    Parameters
    ----------
    x : float array (N, C, *spatial)
    indices : int64 array of that shape
        Flat positions in data of the extents that kernel, strides and pads imply, as MaxPool
        gives them.
    output_shape : int64 array, optional
        Larger extents; what is added behind is 0.

    Raises
    ------
    ModelError
        An output_shape that is too small, an index outside the data.
    """
    found = {"kernel_shape": kernel_shape, "pads": pads, "strides": strides}
    inferred = _unpooled(x.shape, found.get)
    flat = np.zeros(math.prod(inferred), x.dtype)
    if indices.size and not 0 <= indices.min() <= indices.max() < flat.size:
        raise ModelError(
            f"MaxUnpool: indices from {indices.min()} to {indices.max()} do not lie in data of "
            f"shape {inferred}"
        )
    flat[indices.reshape(-1)] = x.reshape(-1)
    out = np.zeros(_output(inferred, output_shape), x.dtype)
    out[tuple(slice(n) for n in inferred)] = flat.reshape(inferred)
    return out
