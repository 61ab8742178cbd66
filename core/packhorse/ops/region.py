"""Regions of interest: RoiAlign, NonMaxSuppression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Affine, Expr, Index, Reduce, affine, call, cast, select
from packhorse.kernel.lowering import Lazy, Lowering, axes_of, lazy
from packhorse.ops import _sampling as sampling
from packhorse.ops._indices import safe_index
from packhorse.ops._sampling import LINEAR
from packhorse.ops._window import narrow, wide
from packhorse.ops.registry import Array, Inference, operator
from packhorse.ops.rules import compiled, data_dependent, labelled, text

__all__ = ["non_max_suppression", "roi_align"]


@dataclass(frozen=True)
class _Options:
    """Attributes of RoiAlign."""

    largest: bool
    half_pixel: bool
    out: tuple[int, int]
    samples: int
    scale: float

    @classmethod
    def of(cls, attr: Callable[[str], Any]) -> _Options:
        mode, how = text(attr("mode")), text(attr("coordinate_transformation_mode"))
        if mode not in ("avg", "max"):
            raise ModelError(f"mode is '{mode}', expected avg or max")
        if how not in ("half_pixel", "output_half_pixel"):
            raise ModelError(
                f"coordinate_transformation_mode is '{how}', expected half_pixel or "
                "output_half_pixel"
            )
        out = int(attr("output_height")), int(attr("output_width"))
        samples = int(attr("sampling_ratio"))
        if min(out) < 1 or samples < 0:
            raise ModelError(
                f"an output of {out} with sampling_ratio {samples}: extents must be positive, the "
                "ratio 0 or more"
            )
        return cls(mode == "max", how == "half_pixel", out, samples, float(attr("spatial_scale")))


@labelled
def infer_roi_align(ctx: Inference) -> list[TensorType]:
    """Shape rule of RoiAlign: data (N, C, H, W) and R regions give (R, C, *out)."""
    options = _Options.of(ctx.attr)
    x, rois, batch = ctx.shape(0), ctx.shape(1), ctx.shape(2)
    if len(x) != 4 or len(rois) != 2 or rois[1] != 4 or batch != rois[:1]:
        raise ModelError(
            f"data of shape {x}, regions {rois} and batch_indices {batch} do not fit. Expected "
            "(N, C, H, W), (R, 4) and (R,)"
        )
    if 0 in (x[0], *x[2:]):
        raise ModelError(f"data of shape {x} has no elements to sample")
    return [TensorType(ctx.type(0).dtype, (rois[0], x[1], *options.out))]


def _larger(a: Expr, b: Expr) -> Expr:
    return call("max", a, b)


@compiled
def _lower_roi_align(ctx: Lowering) -> Lazy:
    """A reduction over the samples of each bin."""
    x, options = ctx[0].stored(), _Options.of(ctx.attr)
    if not options.samples:
        raise UnsupportedOperator("RoiAlign with as many samples as a region needs is not compiled")
    region, channel, *_ = axes_of(4)
    image = safe_index(ctx[2].at([region]), x.shape[0])
    dims, bound, tests = [], [], []
    for d, extent in enumerate(x.shape[2:]):
        axis = ctx.axis(options.samples)
        bound.append(axis)
        first, last = (ctx[1].at([region, Affine((), k)]) for k in (1 - d, 3 - d))
        where = _sample_expr(first, last, d, axis[0], options)
        tests += [call("ge", where, -1.0), call("le", where, float(extent))]
        where = call("max", call("min", where, extent - 1.0), 0.0)
        dims.append(sampling.tap_exprs(where, extent, LINEAR, sampling.clamp_expr(extent)))
    if options.largest:
        value = sampling.load_taps(x, [image, channel], dims, _larger)
    else:
        value = sampling.load_taps(x, [image, channel], dims)
    for test in tests:
        value = select(test, value, 0.0)
    if options.largest:
        return lazy(ctx, Reduce("max", tuple(bound), value, value.dtype))
    return lazy(ctx, Reduce("sum", tuple(bound), value, value.dtype) * options.samples**-2)


def _sample_expr(first: Expr, last: Expr, d: int, tap: str, options: _Options) -> Expr:
    """Coordinate of sample ``tap`` of a bin along dimension ``d``."""
    offset = 0.5 if options.half_pixel else 0.0
    start, end = (v * options.scale - offset for v in (first, last))
    size = end - start
    if not options.half_pixel:
        size = call("max", size, 1.0)
    width = size / float(options.out[d])
    place = cast(Index(affine(f"i{2 + d}")), width.dtype)
    sample = (cast(Index(affine(tap)), width.dtype) + 0.5) * (1 / options.samples)
    return start + (place + sample) * width


@operator("RoiAlign", infer=infer_roi_align, lower=_lower_roi_align)
def roi_align(
    x: Array,
    rois: Array,
    batch_indices: Array,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Array:
    """Pool regions to one size by interpolated samples (ONNX RoiAlign-16).

    Parameters
    ----------
    x : float array (N, C, H, W)
    rois : float array (R, 4)
        x1, y1, x2, y2 of each region, in pixels of the image ``spatial_scale`` refers to.
    batch_indices : int64 array (R,)
    sampling_ratio : int
        Samples of a bin along each dimension; 0: as many as the bin has pixels.
    mode : str
        ``avg``, or ``max`` of the *weighted* neighbours of all samples, as ONNX defines it.

    Returns
    -------
    float array (R, C, output_height, output_width)

    Raises
    ------
    ModelError
        Shapes that do not fit, an image that is not there.
    """
    options = _Options.of(locals().__getitem__)
    if batch_indices.size and not 0 <= batch_indices.min() <= batch_indices.max() < len(x):
        raise ModelError(
            f"RoiAlign: batch_indices {batch_indices.tolist()} must lie between 0 and {len(x) - 1}"
        )
    out = np.zeros((len(rois), x.shape[1], *options.out), wide(x).dtype)
    for region, (corners, image) in enumerate(zip(wide(rois), batch_indices, strict=True)):
        out[region] = _pool_region(wide(x)[image], corners, options)
    return narrow(out, x.dtype)


def _pool_region(data: Array, corners: Array, options: _Options) -> Array | float:
    """One region of (C, H, W) data: (C, *out)."""
    dims, counts, valid = [], [], []
    for d, extent in enumerate(data.shape[1:]):
        where, count = _samples(corners[1 - d], corners[3 - d], d, options)
        where = where if d else where[:, None]  # rows and columns of the grid of samples
        valid.append((where >= -1) & (where <= extent))
        counts.append(count)
        where = np.clip(where, 0, extent - 1)
        dims.append(sampling.taps(where, extent, LINEAR, sampling.clamp(extent)))
    if min(counts) < 1:
        return 0.0

    def read(index: tuple[Array, ...]) -> Array:
        return np.asarray(data[:, index[0], index[1]])

    value = sampling.gather_taps(read, dims, np.maximum if options.largest else np.add)
    value = np.where(valid[0] & valid[1], value, value.dtype.type(0))
    bins = value.reshape(len(data), options.out[0], counts[0], options.out[1], counts[1])
    return np.asarray(bins.max(axis=(2, 4)) if options.largest else bins.mean(axis=(2, 4)))


def _samples(first: Any, last: Any, d: int, options: _Options) -> tuple[Array, int]:
    """Coordinates of all samples of a region along a dimension, and how many each bin has."""
    kind = type(first)
    offset = 0.5 if options.half_pixel else 0.0
    start, end = (kind(v * kind(options.scale) - kind(offset)) for v in (first, last))
    size = end - start if options.half_pixel else max(end - start, kind(1))
    width = size / kind(options.out[d])
    count = options.samples or max(int(np.ceil(width)), 0)
    place = np.arange(options.out[d], dtype=kind)[:, None]
    sample = (np.arange(count, dtype=kind) + kind(0.5)) / kind(max(count, 1))
    return np.asarray(start + (place + sample) * width).reshape(-1), count


# NonMaxSuppression: how many boxes are kept depends on the data, so host only


def _count(limit: Array | None) -> int:
    return 0 if limit is None or not limit.size else max(0, int(limit.reshape(-1)[0]))


def _corners(boxes: Array, centred: int) -> Array:
    """Boxes (..., 4) as lower y, x and upper y, x."""
    if centred:
        x, y, width, height = np.moveaxis(boxes, -1, 0)
        two = boxes.dtype.type(2)
        sides = [y - height / two, x - width / two, y + height / two, x + width / two]
        return np.stack(sides, axis=-1)
    first, second = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=-1)


def _overlap(box: Array, others: Array) -> Array:
    """Intersection over union of a box (4,) with others (n, 4); 0 for empty boxes."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0)
    area, areas = (box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(axis=1)
    union = area + areas - common
    sound = (common > 0) & (area > 0) & (areas > 0) & (union > 0)
    return np.asarray(np.divide(common, union, out=np.zeros_like(common), where=sound))


def _select(boxes: Array, order: Array, limit: int, threshold: float) -> list[int]:
    """Greedy choice from box numbers in ``order``, best first."""
    chosen: list[int] = []
    while order.size and len(chosen) < limit:
        chosen.append(int(order[0]))
        rest = order[1:]
        order = rest[~(_overlap(boxes[chosen[-1]], boxes[rest]) > threshold)]
    return chosen


@operator("NonMaxSuppression", infer=data_dependent)
def non_max_suppression(
    boxes: Array,
    scores: Array,
    max_output_boxes_per_class: Array | None = None,
    iou_threshold: Array | None = None,
    score_threshold: Array | None = None,
    *,
    center_point_box: int = 0,
) -> Array:
    """Boxes that no better box of their class overlaps (ONNX NonMaxSuppression-11).

    Parameters
    ----------
    boxes : float array (N, boxes, 4)
        Two opposite corners y, x, y, x; with ``center_point_box`` x, y of the centre, width and
        height.
    scores : float array (N, classes, boxes)
    max_output_boxes_per_class : integer, optional; default 0, which selects nothing
    iou_threshold, score_threshold : float, optional
        More overlap suppresses; a score must be greater to count. Default: 0, and any score.

    Returns
    -------
    int64 array (selected, 3)
        Batch, class, box; the best of each class first, of equal scores the first.

    Raises
    ------
    ModelError
        Shapes that do not fit.
    """
    fits = boxes.ndim == scores.ndim == 3 and boxes.shape[2] == 4
    if not fits or (boxes.shape[0], boxes.shape[1]) != (scores.shape[0], scores.shape[2]):
        raise ModelError(
            f"NonMaxSuppression: boxes {boxes.shape} and scores {scores.shape} do not fit. "
            "Expected (N, boxes, 4) and (N, classes, boxes)"
        )
    limit, corners = _count(max_output_boxes_per_class), _corners(boxes, center_point_box)
    overlap = 0.0 if iou_threshold is None else float(iou_threshold.reshape(-1)[0])
    found = []
    for batch, category in np.ndindex(*scores.shape[:2]):
        marks = scores[batch, category]
        order = np.argsort(-marks, kind="stable")
        if score_threshold is not None and score_threshold.size:
            order = order[marks[order] > score_threshold.reshape(-1)[0]]
        chosen = _select(corners[batch], order, limit, overlap)
        found += [(batch, category, box) for box in chosen]
    return np.array(found, np.int64).reshape(-1, 3)
