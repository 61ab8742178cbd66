"""DeformConv: a convolution whose kernel positions move by offsets that the data gives.

What each window sees is interpolated once into columns (N, C, *kernel, *out), shared by all output
channels; the rest is a product of matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Affine, Expr, Index, Reduce, affine, cast
from packhorse.kernel.lowering import (
    Lazy,
    Lowering,
    Operand,
    Piece,
    Pieces,
    axes_of,
    lazy,
)
from packhorse.ops import _sampling as sampling
from packhorse.ops._window import Window, narrow, wide, window_of
from packhorse.ops.conv import MAX_PIECES, check_bias, check_channels
from packhorse.ops.registry import Array, Inference, operator
from packhorse.ops.rules import compiled, labelled

__all__ = ["deform_conv"]


@dataclass(frozen=True)
class _Plan:
    """The window, and how many groups of input channels share their offsets."""

    window: Window
    groups: int

    @classmethod
    def of(cls, x: Sequence[int], w: Sequence[int], attr: Callable[[str], Any]) -> _Plan:
        def named(name: str) -> Any:
            return "NOTSET" if name == "auto_pad" else attr(name)

        check_channels("DeformConv", x, w, attr("group"), attr("kernel_shape"))
        groups = int(attr("offset_group"))
        if groups < 1 or x[1] % groups:
            raise ModelError(
                f"offset_group {groups} does not divide {x[1]} input channels. The channel count "
                "must be a multiple of it"
            )
        return cls(window_of("DeformConv", x[2:], w[2:], named), groups)

    def check(self, name: str, shape: Sequence[int], batch: int, each: int) -> None:
        """The offsets hold ``each`` number per kernel position and output element."""
        channels = self.groups * math.prod(self.window.kernel) * each
        wanted = (batch, channels, *self.window.out)
        if tuple(shape) != wanted:
            raise ModelError(f"the {name} has shape {tuple(shape)}, expected {wanted}")


@labelled
def infer_deform_conv(ctx: Inference) -> list[TensorType]:
    """Shape rule of DeformConv: that of Conv."""
    x, w = ctx.shape(0), ctx.shape(1)
    plan = _Plan.of(x, w, ctx.attr)
    plan.check("offset", ctx.shape(2), x[0], len(x) - 2)
    if ctx.has(3):
        check_bias("DeformConv", ctx.shape(3), w[0])
    if ctx.has(4):
        plan.check("mask", ctx.shape(4), x[0], 1)
    return [TensorType(ctx.type(0).dtype, (x[0], w[0], *plan.window.out))]


@compiled
def _lower_deform_conv(ctx: Lowering) -> Lazy | Pieces:
    x, w, group = ctx[0], ctx[1], int(ctx.attr("group"))
    plan = _Plan.of(x.shape, w.shape, ctx.attr)
    if group > MAX_PIECES:
        raise UnsupportedOperator(f"a convolution with {group} groups is not compiled")
    columns = _columns(ctx, plan)
    terms = w.shape[1] * math.prod(plan.window.kernel)
    weights = (w if w.constant is not None else w.stored()).reshape((w.shape[0], terms))
    shape, dtype = ctx.output_types[0]
    size, out = shape[1] // group, axes_of(len(shape))

    def value(g: int) -> Expr:
        axis, channel = ctx.axis(terms), out[1] + g * size
        k = affine(axis[0])
        data = columns.at([out[0], k + g * terms, *out[2:]])
        total = Reduce("sum", (axis,), data * weights.at([channel, k]), data.dtype)
        return ctx[3].at([channel]) + total if ctx.has(3) else total

    if group == 1:
        return lazy(ctx, value(0))
    pieces = (
        Piece(
            Lazy((shape[0], size, *shape[2:]), dtype, value(g)),
            (out[0], out[1] + g * size, *out[2:]),
        )
        for g in range(group)
    )
    return Pieces(shape, dtype, tuple(pieces))


def _columns(ctx: Lowering, plan: _Plan) -> Operand:
    """A kernel that interpolates what every window sees: (N, C * kernel positions, *out)."""
    x, window = ctx[0].stored(), plan.window
    rank, size = len(window.kernel), x.shape[1] // plan.groups
    extents = (x.shape[0], plan.groups, size, *window.kernel, *window.out)
    image, team, member, *rest = axes_of(len(extents))
    taps, out = rest[:rank], rest[rank:]
    place, positions = Affine(), math.prod(window.kernel)  # within the kernel, row-major
    for tap, extent in zip(taps, window.kernel, strict=True):
        place = place * extent + tap
    shared = team * positions + place
    dims = []
    for d, extent in enumerate(x.shape[2:]):
        offset = ctx[2].at([image, shared * rank + d, *out])
        plain = out[d] * window.strides[d] + taps[d] * window.dilations[d] - window.pads[d][0]
        where = cast(Index(plain), offset.dtype) + offset
        dims.append(sampling.tap_exprs(where, extent, sampling.LINEAR))
    channel = team * size + member
    value = sampling.load_taps(x, [image, channel], dims)
    if ctx.has(4):
        value = value * ctx[4].at([image, shared, *out])
    columns = ctx.buffer((x.shape[0], x.shape[1] * positions, *window.out), value.dtype)
    axes = [(f"i{d}", n) for d, n in enumerate(extents)]
    ctx.kernel(axes, [(columns, [image, channel * positions + place, *out], value)])
    return columns


@operator("DeformConv", infer=infer_deform_conv, lower=_lower_deform_conv)
def deform_conv(
    x: Array,
    w: Array,
    offset: Array,
    b: Array | None = None,
    mask: Array | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Deformable convolution, linear interpolation, 0 outside the data (ONNX DeformConv-19).

    Parameters
    ----------
    x : float array (N, C, *spatial)
    w : float array (M, C / group, *kernel)
    offset : float array (N, offset_group * kernel positions * rank, *out)
        How far each kernel position moves along each dimension, in elements.
    b : float array (M,), optional
    mask : float array (N, offset_group * kernel positions, *out), optional
        A factor for each kernel position.

    Returns
    -------
    float array (N, M, *out)

    Raises
    ------
    ModelError
        Shapes and attributes that do not fit together.
    """
    plan = _Plan.of(x.shape, w.shape, locals().__getitem__)
    window, (n, channels) = plan.window, x.shape[:2]
    columns = _sampled(wide(x), wide(offset), plan)
    if mask is not None:
        columns *= wide(mask).reshape(n, plan.groups, 1, *window.kernel, *window.out)
    rows = columns.reshape(n, group, -1, math.prod(window.out))
    weights = wide(w).reshape(group, w.shape[0] // group, -1)
    out = np.matmul(weights, rows).reshape(n, w.shape[0], *window.out)
    if b is not None:
        out += wide(b).reshape(-1, *[1] * len(window.out))
    return narrow(out, x.dtype)


def _sampled(x: Array, offset: Array, plan: _Plan) -> Array:
    """Columns (N, groups of offsets, C / groups, *kernel, *out)."""
    window, rank, n = plan.window, len(plan.window.kernel), x.shape[0]
    moves = offset.reshape(n, plan.groups, *window.kernel, rank, *window.out)
    grid = np.indices((*window.kernel, *window.out), sparse=True)
    dims = []
    for d, extent in enumerate(x.shape[2:]):
        plain = grid[d] * window.dilations[d] + grid[rank + d] * window.strides[d]
        where = moves.take(d, axis=2 + rank) + (plain - window.pads[d][0]).astype(offset.dtype)
        dims.append(sampling.taps(where, extent, sampling.LINEAR))
    data = np.moveaxis(x.reshape(n, plan.groups, -1, *x.shape[2:]), 2, 0)
    image, team = (
        np.arange(count).reshape([-1 if i == d else 1 for i in range(2 + 2 * rank)])
        for d, count in enumerate((n, plan.groups))
    )

    def read(index: tuple[Array, ...]) -> Array:
        where: tuple[Any, ...] = (slice(None), image, team, *index)
        return np.asarray(data[where])

    return np.moveaxis(sampling.gather_taps(read, dims), 0, 2)
