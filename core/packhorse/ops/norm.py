"""Normalisations along rows: Softmax, LogSoftmax, Layer-, RMS- and LpNormalization.

Those per channel are in ``_channel_norm``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from packhorse.errors import ModelError
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import call, cast, select
from packhorse.kernel.lowering import Lazy, Lowering, compute_dtype, lazy
from packhorse.ops import _channel_norm  # noqa: F401 (registers its operators)
from packhorse.ops._rows import Rows
from packhorse.ops._window import narrow, wide
from packhorse.ops.registry import Array, Inference, operator
from packhorse.ops.rules import dtype_of_onnx, labelled, normal_axis

__all__ = ["layer_normalization", "log_softmax", "lp_normalization", "rms_normalization", "softmax"]


@labelled
def infer_along_axis(ctx: Inference) -> list[TensorType]:
    """Shape rule of what normalises along ``axis``: like the input."""
    normal_axis(ctx.attr("axis"), len(ctx.shape(0)))
    return [ctx.type(0)]


def _lower_softmax(log: bool) -> Callable[[Lowering], Lazy]:
    def lower(ctx: Lowering) -> Lazy:
        rows = Rows(ctx, ctx[0], [normal_axis(ctx.attr("axis"), len(ctx[0].shape))])
        top = rows.over("max")
        total = rows.over("sum", lambda v: call("exp", v - top))
        shifted = rows.here - top
        return lazy(ctx, shifted - call("log", total) if log else call("exp", shifted) / total)

    return lower


@operator("Softmax", infer=infer_along_axis, lower=_lower_softmax(log=False))
def softmax(x: Array, *, axis: int = -1) -> Array:
    """``exp(x) / sum(exp(x))`` along an axis (ONNX Softmax-13); float array of any shape.

    Of float16 and bfloat16 the powers and their sum are rounded, as ONNX's function body has it;
    kernels round the result only.

    Raises
    ------
    ModelError
        An axis out of range.
    """
    axis = normal_axis(axis, x.ndim)
    data = wide(x)
    powers = np.exp(data - data.max(axis=axis, keepdims=True, initial=-np.inf))
    powers = wide(narrow(powers, x.dtype))
    total = wide(narrow(powers.sum(axis=axis, keepdims=True), x.dtype))
    return narrow(powers / total, x.dtype)


@operator("LogSoftmax", infer=infer_along_axis, lower=_lower_softmax(log=True))
def log_softmax(x: Array, *, axis: int = -1) -> Array:
    """Logarithm of Softmax along an axis (ONNX LogSoftmax-13); float array of any shape.

    Raises
    ------
    ModelError
        An axis out of range.
    """
    axis = normal_axis(axis, x.ndim)
    data = wide(x)
    shifted = data - data.max(axis=axis, keepdims=True, initial=-np.inf)
    return narrow(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)), x.dtype)


def check_tail(label: str, name: str, shape: tuple[int, ...], normalized: tuple[int, ...]) -> None:
    """A scale or bias must broadcast to the normalised dimensions."""
    try:
        fits = np.broadcast_shapes(shape, normalized) == normalized
    except ValueError:
        fits = False
    if not fits:
        raise ModelError(
            f"{label}: {name} of shape {shape} does not broadcast to the normalised dimensions "
            f"{normalized}"
        )


@labelled
def infer_layer(ctx: Inference) -> list[TensorType]:
    """Shape rule of LayerNormalization: like the input; mean and 1/deviation keep reduced axes."""
    x = ctx.type(0)
    axis = normal_axis(ctx.attr("axis"), len(x.dims))
    for i, name in ((1, "scale"), (2, "bias")):
        if ctx.has(i):
            check_tail(ctx.node.label, name, ctx.shape(i), x.dims[axis:])
    stats = TensorType(
        dtype_of_onnx(ctx.attr("stash_type")),
        (*x.dims[:axis], *[1] * (len(x.dims) - axis)),
    )
    return [x, stats, stats][: len(ctx.node.outputs)]


def lower_layer(ctx: Lowering) -> Lazy | tuple[Lazy, ...]:
    """Mean, centred variance, then scale and bias."""
    x, epsilon = ctx[0], float(ctx.attr("epsilon"))
    shape = x.shape
    axis = normal_axis(ctx.attr("axis"), len(shape))
    rows = Rows(ctx, x, range(axis, len(shape)))
    mean = rows.mean()
    variance = rows.mean(lambda v: (v - mean) * (v - mean))
    inverse = 1.0 / call("sqrt", variance + epsilon)
    value = (rows.here - mean) * inverse * ctx[1].elementwise(shape)
    if ctx.has(2):
        value = value + ctx[2].elementwise(shape)
    outputs = [lazy(ctx, value)]
    for i, stat in enumerate((mean, inverse)[: len(ctx.output_types) - 1], 1):
        stored = cast(stat, compute_dtype(ctx.output_types[i][1]))
        outputs.append(lazy(ctx, stored, i))
    return tuple(outputs) if len(outputs) > 1 else outputs[0]


@operator("LayerNormalization", infer=infer_layer, lower=lower_layer)
def layer_normalization(
    x: Array,
    scale: Array,
    bias: Array | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[Array, Array, Array]:
    """Normalise over the dimensions from ``axis`` on (ONNX LayerNormalization-17).

    Parameters
    ----------
    x : float array
    scale, bias : float arrays that broadcast to ``x.shape[axis:]``

    Returns
    -------
    array like ``x``, mean, and reciprocal standard deviation (dtype ``stash_type``)

    Raises
    ------
    ModelError
        An axis out of range, scale or bias that do not broadcast.
    """
    axis = normal_axis(axis, x.ndim)
    check_tail("LayerNormalization", "scale", scale.shape, x.shape[axis:])
    axes, data = tuple(range(axis, x.ndim)), wide(x)
    mean = data.mean(axis=axes, keepdims=True)
    centred = data - mean
    variance = np.square(centred).mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(variance + data.dtype.type(epsilon))
    out = centred * inverse * wide(scale)
    if bias is not None:
        out = out + wide(bias)
    stash = dtype_of_onnx(stash_type)
    return narrow(out, x.dtype), narrow(mean, stash), narrow(inverse, stash)


@labelled
def infer_rms(ctx: Inference) -> list[TensorType]:
    """Shape rule of RMSNormalization: shape of the input, dtype of the scale."""
    x = ctx.shape(0)
    axis = normal_axis(ctx.attr("axis"), len(x))
    check_tail(ctx.node.label, "scale", ctx.shape(1), x[axis:])
    return [TensorType(ctx.type(1).dtype, x)]


def lower_rms(ctx: Lowering) -> Lazy:
    """``x / sqrt(mean(x * x) + epsilon) * scale``."""
    x, epsilon = ctx[0], float(ctx.attr("epsilon"))
    axis = normal_axis(ctx.attr("axis"), len(x.shape))
    rows = Rows(ctx, x, range(axis, len(x.shape)))
    inverse = 1.0 / call("sqrt", rows.mean(lambda v: v * v) + epsilon)
    scale = ctx[1].elementwise(x.shape)
    return lazy(ctx, cast(rows.here * inverse, scale.dtype) * scale)


@operator("RMSNormalization", infer=infer_rms, lower=lower_rms)
def rms_normalization(
    x: Array, scale: Array, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Array:
    """Divide by the root mean square over the dimensions from ``axis`` on.

    ONNX RMSNormalization-23. ``scale`` broadcasts to ``x.shape[axis:]`` and gives the dtype.

    Raises
    ------
    ModelError
        An axis out of range, a scale that does not broadcast.
    """
    axis = normal_axis(axis, x.ndim)
    check_tail("RMSNormalization", "scale", scale.shape, x.shape[axis:])
    data = wide(x)
    mean = np.square(data).mean(axis=tuple(range(axis, x.ndim)), keepdims=True)
    out = data / np.sqrt(mean + data.dtype.type(epsilon))
    return narrow(narrow(out, wide(scale).dtype) * wide(scale), scale.dtype)


def lower_lp(ctx: Lowering) -> Lazy:
    """Divide by the norm along one axis."""
    rows = Rows(ctx, ctx[0], [normal_axis(ctx.attr("axis"), len(ctx[0].shape))])
    if int(ctx.attr("p")) == 1:
        norm = rows.over("sum", lambda v: call("abs", v))
    else:
        norm = call("sqrt", rows.over("sum", lambda v: v * v))
    value = select(call("eq", norm, 0.0), 0.0 * norm, rows.here / norm)
    return lazy(ctx, value)


@operator("LpNormalization", infer=infer_along_axis, lower=lower_lp)
def lp_normalization(x: Array, *, axis: int = -1, p: int = 2) -> Array:
    """Divide by the 1- or 2-norm along an axis, 0 where it is 0 (ONNX LpNormalization-22).

    Raises
    ------
    ModelError
        An axis out of range.
    """
    axis, data = normal_axis(axis, x.ndim), wide(x)
    norm = np.linalg.norm(data, ord=p, axis=axis, keepdims=True)
    return narrow(np.divide(data, norm, out=np.zeros_like(data), where=norm != 0), x.dtype)
