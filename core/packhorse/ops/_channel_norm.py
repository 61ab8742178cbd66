"""Normalisations per channel: batch, instance, group and local response; imported by ``norm``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Expr, Reduce, affine, call, cast
from packhorse.kernel.lowering import Lazy, Lowering, axes_of, compute_dtype, lazy
from packhorse.ops._rows import Rows
from packhorse.ops._window import narrow, wide
from packhorse.ops.registry import Array, Inference, operator
from packhorse.ops.rules import labelled

__all__ = ["batch_normalization", "group_normalization", "instance_normalization", "lrn"]


def check_per_channel(label: str, names: Sequence[str], shapes: Any, channels: int) -> None:
    """Every parameter must hold one number per channel."""
    for name, shape in zip(names, shapes, strict=True):
        if shape != (channels,):
            raise ModelError(
                f"{label}: {name} has shape {shape}, expected ({channels},), one number per channel"
            )


@labelled
def infer_batch(ctx: Inference) -> list[TensorType]:
    """Shape rule of BatchNormalization; statistics are outputs only in training mode."""
    x = ctx.shape(0)
    if len(x) < 2:
        raise ModelError(f"data of shape {x} has no channels. Expected (N, C, ...)")
    names = ("scale", "bias", "mean", "variance")
    check_per_channel(ctx.node.label, names, [ctx.shape(i) for i in range(1, 5)], x[1])
    types = [ctx.type(0), ctx.type(3), ctx.type(4)]
    return types[: len(ctx.node.outputs)]


def lower_batch(ctx: Lowering) -> Lazy:
    """``x * factor + shift``, both folded when the parameters are constants."""
    if ctx.attr("training_mode"):
        raise UnsupportedOperator("BatchNormalization in training mode is not compiled")
    index, epsilon = axes_of(len(ctx[0].shape)), float(ctx.attr("epsilon"))
    channel, dtype = [affine("i1")], compute_dtype(ctx[0].dtype)
    found = [v for v in (ctx[i].constant for i in range(1, 5)) if v is not None]
    if len(found) == 4:
        factor, shift = _folded(found, epsilon)
        scale: Expr = ctx.constant(factor.astype(dtype)).at(channel)
        bias: Expr = ctx.constant(shift.astype(dtype)).at(channel)
    else:
        gain, offset, mean, variance = (cast(ctx[i].at(channel), dtype) for i in range(1, 5))
        scale = gain / call("sqrt", variance + epsilon)
        bias = offset - mean * scale
    return lazy(ctx, ctx[0].at(index) * scale + bias)


def _folded(parameters: Sequence[Array], epsilon: float) -> tuple[Array, Array]:
    scale, bias, mean, variance = (v.astype(np.float64) for v in parameters)
    factor = scale / np.sqrt(variance + epsilon)
    return factor, bias - mean * factor


@operator("BatchNormalization", infer=infer_batch, lower=lower_batch)
def batch_normalization(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    variance: Array,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Any:
    """Normalise per channel (ONNX BatchNormalization-15).

    Parameters
    ----------
    x : float array (N, C, ...)
    scale, bias, mean, variance : float arrays (C,)

    Returns
    -------
    array like ``x``; in training mode also the running mean and variance

    Raises
    ------
    ModelError
        Parameters that are not one number per channel.
    """
    check_per_channel(
        "BatchNormalization", ("scale", "bias", "mean", "variance"),
        [v.shape for v in (scale, bias, mean, variance)], x.shape[1],
    )  # fmt: skip
    ones, data = [1] * (x.ndim - 2), wide(x)
    running: tuple[Array, ...] = ()
    if training_mode:
        axes = (0, *range(2, x.ndim))
        now = data.mean(axis=axes), data.var(axis=axes)
        old = mean, variance
        running = tuple(
            narrow(m * momentum + n * (1 - momentum), m.dtype)
            for m, n in zip(old, now, strict=True)
        )
        mean, variance = now
    factor, shift = (
        v.astype(data.dtype).reshape(-1, *ones)
        for v in _folded((scale, bias, mean, variance), epsilon)
    )
    out = narrow(data * factor + shift, x.dtype)
    return (out, *running) if training_mode else out


def group_count(label: str, shape: Sequence[int], groups: int) -> int:
    """Channels per group; ModelError when the groups do not divide the channels."""
    if len(shape) < 3:
        raise ModelError(f"{label}: data of shape {tuple(shape)} is not (N, C, *spatial)")
    if groups < 1 or shape[1] % groups:
        raise ModelError(
            f"{label}: {groups} groups do not divide {shape[1]} channels. "
            "num_groups must be a divisor of the channel count"
        )
    return shape[1] // groups


@labelled
def infer_group(ctx: Inference) -> list[TensorType]:
    """Shape rule of Instance- and GroupNormalization: like the input."""
    x = ctx.shape(0)
    instance = ctx.node.op == "InstanceNormalization"
    group_count(ctx.node.label, x, x[1] if instance else ctx.attr("num_groups"))
    check_per_channel(ctx.node.label, ("scale", "bias"), (ctx.shape(1), ctx.shape(2)), x[1])
    return [ctx.type(0)]


def lower_instance(ctx: Lowering) -> Lazy:
    """Mean and variance over the spatial dimensions of each channel."""
    rows = Rows(ctx, ctx[0], range(2, len(ctx[0].shape)))
    mean, here = rows.mean(), rows.here
    variance = rows.mean(lambda v: (v - mean) * (v - mean))
    inverse = 1.0 / call("sqrt", variance + float(ctx.attr("epsilon")))
    scale, bias = (cast(ctx[i].at([affine("i1")]), here.dtype) for i in (1, 2))
    return lazy(ctx, (here - mean) * (inverse * scale) + bias)


def lower_group(ctx: Lowering) -> Lazy:
    """Statistics per group in memory, turned into one factor and shift per channel."""
    x, groups = ctx[0], int(ctx.attr("num_groups"))
    n, size = x.shape[0], group_count("GroupNormalization", x.shape, groups)
    count = size * math.prod(x.shape[2:])
    if not count or not n:
        raise UnsupportedOperator("a normalisation over no elements is not compiled")
    source, dtype, out = x.stored(), compute_dtype(x.dtype), axes_of(3)

    def mean_of(fn: Callable[[Expr], Expr]) -> Expr:
        bound = tuple(ctx.axis(e) for e in (*x.shape[2:], size))
        *spatial, inner = (affine(name) for name, _ in bound)
        body = fn(source.at([out[0], out[1] * size + inner, *spatial]))
        return Reduce("sum", bound, body, dtype) * (1 / count)

    mean = mean_of(lambda v: v)
    variance = mean_of(lambda v: (v - mean) * (v - mean))
    inverse = 1.0 / call("sqrt", variance + float(ctx.attr("epsilon")))
    stats = [ctx.buffer((n, groups), dtype) for _ in range(2)]
    two, three = [("i0", n), ("i1", groups)], [("i0", n), ("i1", groups), ("i2", size)]
    ctx.kernel(two, [(stats[0], out[:2], mean), (stats[1], out[:2], inverse)])
    channel = [out[1] * size + out[2]]
    scale, bias = (cast(ctx[i].at(channel), dtype) for i in (1, 2))
    factor = stats[1].at(out[:2]) * scale
    shift = bias - stats[0].at(out[:2]) * factor
    parts = [ctx.buffer((n, groups, size), dtype) for _ in range(2)]
    ctx.kernel(three, [(parts[0], out, factor), (parts[1], out, shift)])
    factor, shift = (p.reshape(x.shape[:2]).at(out[:2]) for p in parts)
    return lazy(ctx, source.at(axes_of(len(x.shape))) * factor + shift)


def _normalise(data: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    centred = data - data.mean(axis=axes, keepdims=True)
    variance = np.square(centred).mean(axis=axes, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + data.dtype.type(epsilon)))


@operator("InstanceNormalization", infer=infer_group, lower=lower_instance)
def instance_normalization(x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-5) -> Array:
    """Normalise every channel of every image (ONNX InstanceNormalization-6).

    Parameters
    ----------
    x : float array (N, C, *spatial)
    scale, bias : float arrays (C,)

    Raises
    ------
    ModelError
        Parameters that are not one number per channel.
    """
    group_count("InstanceNormalization", x.shape, 1)
    names = ("scale", "bias")
    check_per_channel("InstanceNormalization", names, (scale.shape, bias.shape), x.shape[1])
    out = _normalise(wide(x), tuple(range(2, x.ndim)), epsilon)
    ones = [1] * (x.ndim - 2)
    return narrow(out * wide(scale).reshape(-1, *ones) + wide(bias).reshape(-1, *ones), x.dtype)


@operator("GroupNormalization", infer=infer_group, lower=lower_group)
def group_normalization(
    x: Array,
    scale: Array,
    bias: Array,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Array:
    """Normalise every group of channels of every image (ONNX GroupNormalization-21).

    Parameters
    ----------
    x : float array (N, C, *spatial)
    scale, bias : float arrays (C,)

    Raises
    ------
    ModelError
        Groups that do not divide the channels, parameters that are not one number per channel.
    """
    size = group_count("GroupNormalization", x.shape, num_groups)
    names = ("scale", "bias")
    check_per_channel("GroupNormalization", names, (scale.shape, bias.shape), x.shape[1])
    split = wide(x).reshape(x.shape[0], num_groups, size, *x.shape[2:])
    out = _normalise(split, tuple(range(2, split.ndim)), epsilon).reshape(x.shape)
    ones = [1] * (x.ndim - 2)
    return narrow(out * wide(scale).reshape(-1, *ones) + wide(bias).reshape(-1, *ones), x.dtype)


def infer_lrn(ctx: Inference) -> list[TensorType]:
    """Shape rule of LRN: like the input (N, C, ...)."""
    if len(ctx.shape(0)) < 2:
        raise ModelError(f"{ctx.node.label}: data of shape {ctx.shape(0)} has no channels")
    if ctx.attr("size") < 1:
        raise ModelError(f"{ctx.node.label}: size is {ctx.attr('size')}, expected 1 or more")
    return [ctx.type(0)]


def _reach(size: int) -> tuple[int, int]:
    return (size - 1) // 2, size // 2


def lower_lrn(ctx: Lowering) -> Lazy:
    """Sum of squares over neighbouring channels, which are zero outside."""
    x, size = ctx[0], int(ctx.attr("size"))
    alpha, beta, bias = (float(ctx.attr(name)) for name in ("alpha", "beta", "bias"))
    before, after = _reach(size)
    spatial = len(x.shape) - 2
    source = x.stored(halo=((0, 0), (before, after), *[(0, 0)] * spatial))
    index = axes_of(len(x.shape))
    tap = ctx.axis(size)
    near = source.at([index[0], index[1] + affine(tap[0]) - before, *index[2:]])
    total = Reduce("sum", (tap,), near * near, near.dtype)
    base = total * (alpha / size) + bias
    return lazy(ctx, source.at(index) / call("pow", base, beta))


@operator("LRN", infer=infer_lrn, lower=lower_lrn)
def lrn(
    x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Array:
    """Divide by a power of the squares of neighbouring channels (ONNX LRN-13): (N, C, ...)."""
    before, after = _reach(size)
    data = wide(x)
    squares = np.square(data)
    total = np.zeros_like(data)
    for shift in range(-before, after + 1):
        here = slice(max(0, -shift), max(0, min(x.shape[1], x.shape[1] - shift)))
        there = slice(here.start + shift, here.stop + shift)
        total[:, here] += squares[:, there]
    return narrow(data / (bias + alpha / size * total) ** beta, x.dtype)
