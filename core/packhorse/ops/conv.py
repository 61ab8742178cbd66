"""Convolutions: Conv and ConvTranspose, one to three spatial dimensions.

The lowerings state index arithmetic only. Reductions run over (kernel positions, channels), the
order that keeps a channels-last layout and packed weights contiguous.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Affine, Axis, Expr, Reduce, affine, const
from packhorse.kernel.lowering import (
    Lazy,
    Lowering,
    Operand,
    Piece,
    Pieces,
    axes_of,
    compute_dtype,
    lazy,
)
from packhorse.ops._transpose import Phase, Transposed, phases, transposed_of
from packhorse.ops._window import Window, narrow, pad_spatial, patches, wide, window_of
from packhorse.ops.registry import Array, Inference, operator

__all__ = ["conv", "conv_transpose", "convolution", "convolve"]

MAX_PIECES = 256
"""More kernels than this for one operator would cost more to compile than they save."""


def check_channels(
    label: str, x: Sequence[int], w: Sequence[int], group: int, kernel: Sequence[int] | None
) -> None:
    """Check data (N, C, *S) against weights (M, C/group, *K); ModelError names ``label``."""
    if len(x) < 3 or len(w) != len(x):
        raise ModelError(
            f"{label}: data of shape {tuple(x)} and weights of shape {tuple(w)} do not fit. "
            "Expected (N, C, *spatial) and (M, C/group, *kernel) of the same rank, 3 or more"
        )
    if group < 1 or x[1] % group or w[0] % group:
        raise ModelError(
            f"{label}: group {group} does not divide {x[1]} input and {w[0]} output channels. "
            "Both channel counts must be multiples of group"
        )
    if w[1] * group != x[1]:
        raise ModelError(
            f"{label}: the input has {x[1]} channels, but weights of shape {tuple(w)} with "
            f"group {group} expect {w[1] * group}"
        )
    if kernel is not None and tuple(kernel) != tuple(w[2:]):
        raise ModelError(
            f"{label}: kernel_shape {list(kernel)} contradicts weights of shape {tuple(w)}. "
            f"Expected {list(w[2:])}, or leave the attribute out"
        )


def check_bias(label: str, bias: Sequence[int], channels: int) -> None:
    """The bias must be one number per output channel."""
    if tuple(bias) != (channels,):
        raise ModelError(
            f"{label}: the bias has shape {tuple(bias)}, expected ({channels},), one number per "
            "output channel"
        )


def infer_conv(ctx: Inference) -> list[TensorType]:
    """Shape rule of Conv: (N, C, *S), (M, C/g, *K) -> (N, M, *out)."""
    x, w, label = ctx.shape(0), ctx.shape(1), ctx.node.label
    check_channels(label, x, w, ctx.attr("group"), ctx.attr("kernel_shape"))
    if ctx.has(2):
        check_bias(label, ctx.shape(2), w[0])
    plan = window_of(label, x[2:], w[2:], ctx.attr)
    return [TensorType(ctx.type(0).dtype, (x[0], w[0], *plan.out))]


def lower_conv(ctx: Lowering) -> Lazy | Pieces:
    """``bias + sum over (kernel, channel) of x * w``; one piece per group unless depthwise."""

    def finish(total: Expr, channel: Affine) -> Expr:
        return ctx[2].at([channel]) + total if ctx.has(2) else total

    plan = window_of("Conv", ctx[0].shape[2:], ctx[1].shape[2:], ctx.attr)
    return convolution(ctx, plan, lambda data, coef, _: data * coef, finish)


def convolution(
    ctx: Lowering,
    plan: Window,
    product: Callable[[Expr, Expr, Affine], Expr],
    finish: Callable[[Expr, Affine], Expr],
    x: Operand | None = None,
    w: Operand | None = None,
) -> Lazy | Pieces:
    """The loops of a convolution of ``x`` and ``w``, by default inputs 0 and 1.

    ``product(x, w, output channel)`` is what is summed, ``finish(sum, output channel)`` the value.
    """
    x, w, group = x or ctx[0], w or ctx[1], int(ctx.attr("group"))
    source = x.stored(halo=((0, 0), (0, 0), *plan.halo(x.shape[2:])))
    weights = w if w.constant is not None else w.stored()
    taps = [ctx.axis(k) for k in plan.kernel]
    channels, (shape, dtype) = w.shape[1], ctx.output_types[0]

    def value(first_in: Affine | int, first_out: int, depthwise: bool) -> Expr:
        bound = taps if depthwise else [*taps, ctx.axis(channels)]
        inner = Affine() if depthwise else affine(bound[-1][0])
        channel = affine("i1") + first_out
        data = source.at([affine("i0"), inner + first_in, *plan.index(taps)])
        coef = weights.at([channel, inner, *(affine(n) for n, _ in taps)])
        body = product(data, coef, channel)
        return finish(Reduce("sum", tuple(bound), body, body.dtype), channel)

    if group == 1:
        return lazy(ctx, value(0, 0, False))
    if channels == 1 and group == w.shape[0]:
        return lazy(ctx, value(affine("i1"), 0, True))
    if group > MAX_PIECES:
        raise UnsupportedOperator(f"a convolution with {group} groups is not compiled")
    size = w.shape[0] // group
    pieces = (
        Piece(
            Lazy((shape[0], size, *shape[2:]), dtype, value(g * channels, g * size, False)),
            (affine("i0"), affine("i1") + g * size, *axes_of(len(shape))[2:]),
        )
        for g in range(group)
    )
    return Pieces(shape, dtype, tuple(pieces))


@operator("Conv", infer=infer_conv, lower=lower_conv)
def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Convolution (ONNX Conv-11).

    Parameters
    ----------
    x : float array (N, C, *spatial)
    w : float array (M, C / group, *kernel)
    b : float array (M,), optional

    Returns
    -------
    float array (N, M, *out)

    Raises
    ------
    ModelError
        Channels, groups, kernel and padding that do not fit together.
    """
    check_channels("Conv", x.shape, w.shape, group, kernel_shape)
    found = {"auto_pad": auto_pad, "dilations": dilations, "pads": pads, "strides": strides}
    plan = window_of("Conv", x.shape[2:], w.shape[2:], found.get)
    out = convolve(wide(x), wide(w), plan, group)
    if b is not None:
        out += wide(b).reshape(-1, *[1] * len(plan.out))
    return narrow(out, x.dtype)


def convolve(x: Array, w: Array, plan: Window, group: int) -> Array:
    """Convolve (N, C, *S) with (M, C/group, *K) in the dtype of ``x``; a new array (N, M, *out).

    One matrix product per image and group over gathered windows; depthwise convolutions add up
    shifted images instead.
    """
    padded = pad_spatial(x, plan.halo(x.shape[2:]))
    if w.shape[1] == 1 and group > 1:
        return _depthwise(padded, w, plan)
    view = patches(padded, plan)
    n, rank, m = x.shape[0], len(plan.out), w.shape[0]
    size = math.prod(plan.out)
    out = np.empty((n, group, m // group, size), x.dtype)
    weights = w.reshape(group, m // group, -1)
    # (C, *out, *K) -> (C, *K, *out): rows are what one weight row meets
    order = (0, *range(1 + rank, 1 + 2 * rank), *range(1, 1 + rank))
    for image in range(n):
        rows = view[image].transpose(order).reshape(group, weights.shape[2], size)
        np.matmul(weights, rows, out=out[image])
    return out.reshape(n, m, *plan.out)


def _depthwise(padded: Array, w: Array, plan: Window) -> Array:
    n, c = padded.shape[:2]
    times = w.shape[0] // c
    out = np.zeros((n, c, times, *plan.out), padded.dtype)
    windows = patches(padded, plan)[:, :, None]
    ones = [1] * len(plan.out)
    for tap in np.ndindex(*plan.kernel):
        out += windows[(..., *tap)] * w[(slice(None), 0, *tap)].reshape(c, times, *ones)
    return out.reshape(n, c * times, *plan.out)


def check_transposed(label: str, x: Sequence[int], w: Sequence[int], group: int) -> None:
    """Check data (N, C, *S) against weights (C, M/group, *K); ModelError names ``label``."""
    if len(x) < 3 or len(w) != len(x):
        raise ModelError(
            f"{label}: data of shape {tuple(x)} and weights of shape {tuple(w)} do not fit. "
            "Expected (N, C, *spatial) and (C, M/group, *kernel) of the same rank, 3 or more"
        )
    if w[0] != x[1]:
        raise ModelError(
            f"{label}: the input has {x[1]} channels, but weights of shape {tuple(w)} expect {w[0]}"
        )
    if group < 1 or x[1] % group:
        raise ModelError(
            f"{label}: group {group} does not divide {x[1]} input channels. "
            "The channel count must be a multiple of group"
        )


def infer_conv_transpose(ctx: Inference) -> list[TensorType]:
    """Shape rule of ConvTranspose: (N, C, *S), (C, M/g, *K) -> (N, M, *out)."""
    x, w, group, label = ctx.shape(0), ctx.shape(1), ctx.attr("group"), ctx.node.label
    check_transposed(label, x, w, group)
    if ctx.has(2):
        check_bias(label, ctx.shape(2), w[1] * group)
    plan = transposed_of(label, x[2:], w[2:], ctx.attr)
    return [TensorType(ctx.type(0).dtype, (x[0], w[1] * group, *plan.out))]


def lower_conv_transpose(ctx: Lowering) -> Pieces:
    """One piece per phase (output position modulo stride) and group: each is a convolution."""
    x, w, group = ctx[0], ctx[1], int(ctx.attr("group"))
    plan = transposed_of("ConvTranspose", x.shape[2:], w.shape[2:], ctx.attr)
    choices = [phases(plan, d) for d in range(len(plan.out))]
    count = group * math.prod(len(c) for c in choices)
    if count > MAX_PIECES:
        raise UnsupportedOperator(f"ConvTranspose made of {count} phases is not compiled")
    halo = [plan.halo(d, choices[d], n) for d, n in enumerate(x.shape[2:])]
    source = x.stored(halo=((0, 0), (0, 0), *halo))
    weights = w if w.constant is not None else w.stored()
    shape, dtype = ctx.output_types[0]
    return Pieces(shape, dtype, tuple(_phases(ctx, source, weights, group, plan, choices)))


def _phases(
    ctx: Lowering,
    source: Operand,
    weights: Operand,
    group: int,
    plan: Transposed,
    choices: list[list[Phase]],
) -> Iterator[Piece]:
    shape, dtype = ctx.output_types[0]
    m, c = weights.shape[1], source.shape[1] // group
    for g, point in itertools.product(range(group), itertools.product(*choices)):
        # channels last in the reduction; a phase without taps holds the bias alone
        taps: list[Axis] = [ctx.axis(p.taps) for p in point]
        inner = ctx.axis(c)
        first = affine(inner[0]) + g * c
        spatial = [p.source(d, taps[d]) for d, p in enumerate(point)]
        data = source.at([affine("i0"), first, *spatial])
        coef = weights.at(
            [first, affine("i1"), *(p.tap(t) for p, t in zip(point, taps, strict=True))]
        )
        value: Expr = const(0, compute_dtype(dtype))
        if all(p.taps for p in point):
            value = Reduce("sum", (*taps, inner), data * coef, data.dtype)
        if ctx.has(2):
            value = ctx[2].at([affine("i1") + g * m]) + value
        where = [
            affine(f"i{d + 2}") * s + p.first
            for d, (p, s) in enumerate(zip(point, plan.strides, strict=True))
        ]
        extents = tuple(p.extent for p in point)
        yield Piece(
            Lazy((shape[0], m, *extents), dtype, value),
            (affine("i0"), affine("i1") + g * m, *where),
        )


@operator("ConvTranspose", infer=infer_conv_transpose, lower=lower_conv_transpose)
def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Transposed convolution (ONNX ConvTranspose-11).

    Parameters
    ----------
    x : float array (N, C, *spatial)
    w : float array (C, M / group, *kernel)
    b : float array (M,), optional

    Returns
    -------
    float array (N, M, *out)

    Raises
    ------
    ModelError
        Channels, groups or attributes that do not fit together.
    """
    check_transposed("ConvTranspose", x.shape, w.shape, group)
    found = {
        "auto_pad": auto_pad, "dilations": dilations, "pads": pads, "strides": strides,
        "output_padding": output_padding, "output_shape": output_shape,
    }  # fmt: skip
    plan = transposed_of("ConvTranspose", x.shape[2:], w.shape[2:], found.get)
    out = _scatter(wide(x), wide(w), plan, group)
    if b is not None:
        out += wide(b).reshape(-1, *[1] * len(plan.out))
    return narrow(out, x.dtype)


def _scatter(x: Array, w: Array, plan: Transposed, group: int) -> Array:
    """Add every input element times the kernel into a large enough canvas, then crop it."""
    n, c, spatial, m = x.shape[0], x.shape[1], x.shape[2:], w.shape[1]
    kernel = w.shape[2:]
    weights = w.reshape(group, c // group, -1).transpose(0, 2, 1)
    images = x.reshape(n, group, c // group, -1)
    rows = np.matmul(weights, images).reshape(n, group * m, *kernel, *spatial)
    canvas = np.zeros((n, group * m, *plan.canvas(spatial)), x.dtype)
    for tap in np.ndindex(*kernel):
        where = tuple(
            slice(t * d, t * d + (size - 1) * s + 1, s)
            for t, d, s, size in zip(tap, plan.dilations, plan.strides, spatial, strict=True)
        )
        canvas[(slice(None), slice(None), *where)] += rows[(slice(None), slice(None), *tap)]
    crop = tuple(slice(p, p + o) for p, o in zip(plan.before, plan.out, strict=True))
    return canvas[(slice(None), slice(None), *crop)]
