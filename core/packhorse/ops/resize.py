"""Resize and Upsample: every mode is a table of taps per dimension.

Output position ``o`` of a dimension is ``sum over t of weight[o, t] * x[index[o, t]]``, so the
reference is a sum of gathers per dimension and the lowering a gather through constant tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Expr, IndexLike, Reduce, affine, is_float
from packhorse.kernel.lowering import Lazy, Lowering, axes_of, compute_dtype, lazy
from packhorse.ops._window import narrow, wide
from packhorse.ops.registry import Array, Inference, operator
from packhorse.ops.rules import known, labelled, normal_axes, text, whole

__all__ = ["resize", "upsample"]


@dataclass(frozen=True)
class Along:
    """One resized dimension: extents, scale, and its part of the region of interest.

    ``length`` is the output extent before rounding down; the ONNX tests align corners with it.
    """

    axis: int
    size: int
    out: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)

    @property
    def length(self) -> float:
        return self.scale * self.size


@dataclass(frozen=True)
class Options:
    """Attributes of Resize."""

    mode: str
    coordinates: str
    nearest: str
    cubic_a: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float


@dataclass(frozen=True)
class Taps:
    """``index`` and ``weight`` (out, taps); ``outside`` marks positions to extrapolate."""

    axis: int
    index: Array
    weight: Array
    outside: Array | None


def _half_pixel(o: Array, d: Along) -> Array:
    return (o + 0.5) / d.scale - 0.5


def _symmetric(o: Array, d: Along) -> Array:
    # the part of the scaled axis that rounding cut off is shared by both ends
    adjust = d.out / d.length
    return d.size / 2 * (1 - adjust) + (o + 0.5) / d.scale - 0.5


def _align_corners(o: Array, d: Along) -> Array:
    return o * (d.size - 1) / (d.length - 1) if d.out > 1 else np.zeros_like(o)


def _crop(o: Array, d: Along) -> Array:
    start, end = d.roi
    if d.out > 1:
        return start * (d.size - 1) + o * (end - start) * (d.size - 1) / (d.length - 1)
    return np.full_like(o, 0.5 * (start + end) * (d.size - 1))


COORDINATES: dict[str, Callable[[Array, Along], Array]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": lambda o, d: _half_pixel(o, d) if d.out > 1 else np.zeros_like(o),
    "align_corners": _align_corners,
    "asymmetric": lambda o, d: o / d.scale,
    "tf_crop_and_resize": _crop,
}
"""coordinate_transformation_mode: output position -> position in the input."""

NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
"""nearest_mode: position -> whole position."""


def _triangle(x: Array, _: float) -> Array:
    return np.asarray(np.maximum(0, 1 - np.abs(x)))


def _cubic(x: Array, a: float) -> Array:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.asarray(np.where(x <= 1, near, np.where(x < 2, far, 0)))


FILTERS: dict[str, tuple[int, Callable[[Array, float], Array]]] = {
    "linear": (1, _triangle),
    "cubic": (2, _cubic),
}
"""mode: radius of the interpolating function, and the function of (distance, cubic_coeff_a)."""


def taps_of(d: Along, o: Options) -> Taps:
    """The taps of one dimension."""
    where = COORDINATES[o.coordinates](np.arange(d.out, dtype=np.float64), d)
    outside = None
    if o.coordinates == "tf_crop_and_resize":
        outside = (where < 0) | (where > d.size - 1)
    if o.mode == "nearest":
        index = np.clip(NEAREST[o.nearest](where), 0, d.size - 1).astype(np.int64)[:, None]
        return Taps(d.axis, index, np.ones(index.shape), outside)
    radius, function = FILTERS[o.mode]
    # antialias: a function as much wider as the image becomes smaller
    stretch = min(1.0, d.scale) if o.antialias else 1.0
    reach = radius / stretch
    first = np.floor(where - reach).astype(np.int64) + 1
    index = first[:, None] + np.arange(math.ceil(2 * reach))
    weight = function((index - where[:, None]) * stretch, o.cubic_a)
    inside = (index >= 0) & (index < d.size)
    if o.exclude_outside:
        weight = np.where(inside, weight, 0)
    weight = weight / weight.sum(axis=1, keepdims=True)
    used = weight.any(axis=0)
    return Taps(d.axis, np.clip(index, 0, d.size - 1)[:, used], weight[:, used], outside)


def options_of(attr: Callable[[str], Any]) -> Options:
    """Read the attributes; ModelError names one with an unknown value."""
    found = Options(
        text(attr("mode")),
        text(attr("coordinate_transformation_mode")),
        text(attr("nearest_mode")),
        float(attr("cubic_coeff_a")),
        bool(attr("exclude_outside")),
        bool(attr("antialias")),
        float(attr("extrapolation_value")),
    )
    for name, value, values in (
        ("mode", found.mode, ("nearest", *FILTERS)),
        ("coordinate_transformation_mode", found.coordinates, tuple(COORDINATES)),
        ("nearest_mode", found.nearest, tuple(NEAREST)),
    ):
        if value not in values:
            raise ModelError(f"{name} is '{value}', expected one of {', '.join(values)}")
    return found


def dimensions(
    shape: Sequence[int],
    roi: Array | None,
    scales: Array | None,
    sizes: Array | None,
    axes: Sequence[int] | None,
    policy: str,
) -> list[Along]:
    """The resized dimensions; ModelError unless exactly one of scales and sizes is given."""
    chosen = normal_axes(axes, len(shape)) if axes is not None else tuple(range(len(shape)))
    given = scales is not None and scales.size > 0
    if given == (sizes is not None and sizes.size > 0):
        raise ModelError("exactly one of scales and sizes must be given")
    if given and scales is not None:
        values = [float(s) for s in scales]
        _count("scales", values, chosen)
        if min(values, default=1) <= 0:
            raise ModelError(f"scales are {values}, they must be positive")
        # in float32, like the shape inference of ONNX: 10 * float32(0.7) is 7
        extents = [
            math.floor(np.float32(shape[a]) * np.float32(s))
            for a, s in zip(chosen, values, strict=True)
        ]
    else:
        wanted = whole(np.asarray(sizes), "sizes")
        _count("sizes", wanted, chosen)
        ratios = [w / shape[a] for w, a in zip(wanted, chosen, strict=True)]
        if policy == "stretch":
            values, extents = ratios, wanted
        else:
            ratio = (min if policy == "not_larger" else max)(ratios)
            values = [ratio] * len(chosen)
            # half away from zero, as ONNX rounds here
            extents = [math.floor(ratio * shape[a] + 0.5) for a in chosen]
    region = [0.0] * len(chosen) + [1.0] * len(chosen)
    if roi is not None and roi.size:
        region = [float(v) for v in roi]
        _count("roi", region, chosen * 2)
    return [
        Along(a, shape[a], n, s, (region[i], region[i + len(chosen)]))
        for i, (a, n, s) in enumerate(zip(chosen, extents, values, strict=True))
    ]


def _count(name: str, values: Sequence[float], axes: Sequence[int]) -> None:
    if len(values) != len(axes):
        raise ModelError(f"{name} holds {len(values)} numbers, expected {len(axes)}")


def resized_shape(shape: Sequence[int], along: Sequence[Along]) -> tuple[int, ...]:
    """Output shape."""
    out = list(shape)
    for d in along:
        out[d.axis] = d.out
    return tuple(out)


@labelled
def infer_resize(ctx: Inference) -> list[TensorType]:
    """Shape rule of Resize; scales or sizes must be known."""
    x = ctx.type(0)
    options = options_of(ctx.attr)
    scales = ctx.value(2) if ctx.has(2) else None
    sizes = ctx.value(3) if ctx.has(3) else None
    policy = text(ctx.attr("keep_aspect_ratio_policy"))
    if options.coordinates == "tf_crop_and_resize" and not ctx.has(1):
        raise ModelError("tf_crop_and_resize needs the input roi")
    along = dimensions(x.dims, None, scales, sizes, ctx.attr("axes"), policy)
    return [TensorType(x.dtype, resized_shape(x.dims, along))]


def tables(along: Sequence[Along], options: Options) -> list[Taps]:
    """Taps of the dimensions that are not simply copied."""
    found = []
    for d in along:
        taps = taps_of(d, options)
        plain = taps.index.shape[1] == 1 or np.count_nonzero(taps.weight) == d.out
        best = taps.index[np.arange(d.out), np.abs(taps.weight).argmax(axis=1)]
        moved = d.out != d.size or (best != np.arange(d.size)).any()
        if moved or not plain or (taps.outside is not None and taps.outside.any()):
            found.append(taps)
    return found


def interpolate(x: Array, found: Sequence[Taps], extrapolation: float) -> Array:
    """Apply taps one dimension after the other (NumPy)."""
    data = wide(x)
    if any(t.index.shape[1] > 1 for t in found) and data.dtype.kind != "f":
        data = data.astype(np.float32)
    for taps in found:
        ones = [1] * (x.ndim - 1 - taps.axis)
        if taps.index.shape[1] == 1:
            data = np.take(data, taps.index[:, 0], axis=taps.axis)
            continue
        weight = taps.weight.astype(data.dtype)
        total: Array | None = None
        for t in range(weight.shape[1]):
            part = np.take(data, taps.index[:, t], axis=taps.axis) * weight[:, t].reshape(-1, *ones)
            total = part if total is None else total + part
        assert total is not None
        data = total
    for taps in found:
        if taps.outside is not None:
            np.moveaxis(data, taps.axis, 0)[taps.outside] = extrapolation
    return data


def lower_resize(ctx: Lowering) -> Lazy:
    """A gather through constant tables, reduced over the taps of each dimension."""
    options = options_of(ctx.attr)
    roi, scales, sizes = (
        known(ctx, i, "a shape of Resize") if ctx.has(i) else None for i in (1, 2, 3)
    )
    policy = text(ctx.attr("keep_aspect_ratio_policy"))
    along = dimensions(ctx[0].shape, roi, scales, sizes, ctx.attr("axes"), policy)
    return gathered(ctx, tables(along, options))


def gathered(ctx: Lowering, found: Sequence[Taps]) -> Lazy:
    """The lowering of taps."""
    if any(t.outside is not None and t.outside.any() for t in found):
        raise UnsupportedOperator("Resize with extrapolation is not compiled")
    dtype = compute_dtype(ctx[0].dtype)
    many = [t for t in found if t.index.shape[1] > 1]
    if many and not is_float(dtype):
        raise UnsupportedOperator(f"interpolation of {dtype} is not compiled")
    index: list[IndexLike] = list(axes_of(len(ctx[0].shape)))
    bound, factor = [], None
    for taps in found:
        here = affine(f"i{taps.axis}")
        if taps.index.shape[1] == 1:
            index[taps.axis] = ctx.constant(taps.index[:, 0]).at([here])
            continue
        axis = ctx.axis(taps.index.shape[1])
        bound.append(axis)
        where = [here, affine(axis[0])]
        index[taps.axis] = ctx.constant(taps.index).at(where)
        weight: Expr = ctx.constant(taps.weight.astype(dtype)).at(where)
        factor = weight if factor is None else factor * weight
    value = ctx[0].stored().at(index)
    if factor is not None:
        value = Reduce("sum", tuple(bound), value * factor, dtype)
    return lazy(ctx, value)


@operator("Resize", infer=infer_resize, lower=lower_resize)
def resize(
    x: Array,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Array:
    """Resample dimensions (ONNX Resize-19).

    Parameters
    ----------
    x : numeric array
    roi : float array (2 * axes), optional
        Region of interest, used by ``tf_crop_and_resize`` only.
    scales : float array, or sizes : int64 array
        One number per axis; exactly one of the two.

    Returns
    -------
    array of the dtype of ``x``; integers round the interpolated value

    Raises
    ------
    ModelError
        Unknown modes, both or neither of scales and sizes.
    """
    options = options_of(locals().__getitem__)
    policy = text(keep_aspect_ratio_policy)
    along = dimensions(x.shape, roi, scales, sizes, axes, policy)
    out = interpolate(x, tables(along, options), options.extrapolation)
    if out.dtype.kind == "f" and x.dtype.kind in "iu":
        limits = np.iinfo(x.dtype)
        out = np.clip(np.trunc(out), limits.min, limits.max)
    return narrow(np.array(out), x.dtype)


@labelled
def infer_upsample(ctx: Inference) -> list[TensorType]:
    """Shape rule of Upsample; scales must be known."""
    x = ctx.type(0)
    along = dimensions(x.dims, None, ctx.value(1), None, None, "stretch")
    return [TensorType(x.dtype, resized_shape(x.dims, along))]


def _upsample_options(mode: str) -> Options:
    if mode not in ("nearest", "linear", "bilinear"):
        raise ModelError(f"Upsample: mode is '{mode}', expected nearest or linear")
    kind = "nearest" if mode == "nearest" else "linear"
    return Options(kind, "asymmetric", "floor", -0.75, False, False, 0.0)


def lower_upsample(ctx: Lowering) -> Lazy:
    """As Resize."""
    along = dimensions(ctx[0].shape, None, known(ctx, 1, "scales"), None, None, "stretch")
    return gathered(ctx, tables(along, _upsample_options(text(ctx.attr("mode")))))


@operator("Upsample", infer=infer_upsample, lower=lower_upsample)
def upsample(x: Array, scales: Array, *, mode: str = "nearest") -> Array:
    """Resample by ``scales`` (ONNX Upsample-9, deprecated in favour of Resize).

    Raises
    ------
    ModelError
        Unknown mode, scales that do not fit.
    """
    along = dimensions(x.shape, None, scales, None, None, "stretch")
    return narrow(interpolate(x, tables(along, _upsample_options(text(mode))), 0.0), x.dtype)
