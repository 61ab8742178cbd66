"""Rows of operators that few models use: sampling, regions, signals, quantised products."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Row", "rare_rows"]

Row: TypeAlias = tuple[str, list[Any], dict[str, Any], dict[str, Any]]


def _samples() -> Iterator[Row]:
    modes, paddings = ("nearest", "linear", "cubic"), ("zeros", "border", "reflection")
    for mode, padding, align in product(modes, paddings, (0, 1)):
        attrs = {"mode": mode, "padding_mode": padding, "align_corners": align}
        yield "GridSample", ["f32 2x3x5x7", "f32 2x4x3x2"], attrs, {}
    for dtype, grid in (("f16", "f16"), ("f16", "f32"), ("f64", "f64")):
        yield "GridSample", [f"{dtype} 1x2x6x5", f"{grid}u 1x3x4x2"], {}, {}
    yield "GridSample", ["f32 1x2x3x4x5", "f32u 1x2x3x2x3"], {}, {}
    yield "GridSample", ["i32 1x2x6x5", "f32u 1x3x4x2"], {"mode": "nearest"}, {}
    regions = np.array([[1.2, 0.7, 8.9, 6.1], [-3, -4, 2, 3], [5, 5, 5.1, 20]], np.float32)
    for mode, how in product(("avg", "max"), ("half_pixel", "output_half_pixel")):
        attrs = {
            "mode": mode, "coordinate_transformation_mode": how, "sampling_ratio": 2,
            "output_height": 3, "output_width": 2, "spatial_scale": 0.5,
        }  # fmt: skip
        yield "RoiAlign", ["f32 2x3x9x11", regions, np.array([1, 0, 1])], attrs, {}


def _windows() -> Iterator[Row]:
    for x, w, offset, attrs in (
        ("2x4x6x7", "6x4x3x3", "2x18x6x7", {"pads": [1, 1, 1, 1]}),
        ("1x4x7x7", "6x2x3x2", "1x24x3x6", {"group": 2, "offset_group": 2, "strides": [2, 1]}),
    ):
        yield "DeformConv", [f"f32 {x}", f"f32 {w}", f"f32 {offset}"], attrs, {"constant": (1,)}
    full = ["f32 1x2x5x5", "f32 3x2x2x2", "f32 1x8x4x4", "f32 3", "f32u 1x4x4x4"]
    yield "DeformConv", full, {}, {}
    plans: tuple[tuple[list[int], list[int], int, dict[str, Any]], ...] = (
        ([6, 7], [3, 2], 42, {"pads": [1, 0, 1, 1]}),
        ([8, 9], [3, 2], 9, {"strides": [2, 3]}),
        ([6, 6], [2, 2], 8, {"dilations": [2, 3], "strides": [1, 2]}),
    )
    for image, block, count, attrs in plans:
        shape = f"2x{3 * block[0] * block[1]}x{count}"
        yield from (("Col2Im", [f"{d} {shape}", image, block], attrs, {}) for d in ("f32", "f16"))
    where = np.array([[[[5, 7], [13, 15]]]])
    yield "MaxUnpool", ["f32 1x1x2x2", where], {"kernel_shape": [2, 2], "strides": [2, 2]}, {}


def _signals() -> Iterator[Row]:
    for shape, axis, inverse in product(("2x16x2", "3x9x4x1"), (0, 1, -2), (0, 1)):
        inputs = [f"f32 {shape}", None, np.array(axis)]
        yield "DFT", inputs, {"inverse": inverse}, {"constant": (2,)}
    length = {"constant": (1,)}
    for points in (8, 13, 40):
        yield "DFT", ["f32 2x20x1", np.array(points)], {"onesided": 1}, length
        yield "DFT", ["f32 2x20x2", np.array(points)], {"onesided": 1, "inverse": 1}, length
    yield from (("DFT", [f"{d} 2x16x2"], {}, {}) for d in ("f16", "f64"))
    window = np.hanning(16).astype(np.float32)
    for onesided in (0, 1):
        inputs = ["f32 2x70x1", np.array(5), window]
        yield "STFT", inputs, {"onesided": onesided}, {"constant": (1, 2)}
    yield "STFT", ["f32 2x70x1", np.array(5), "f32 16"], {}, {"constant": (1,)}
    inputs = ["f32 1x40x2", np.array(7), None, np.array(12)]
    yield "STFT", inputs, {"onesided": 0}, {"constant": (1, 3)}
    bands = [np.array(n) for n in (8, 64, 8000)]
    edges = [np.array(n, np.float32) for n in (50, 3900)]
    yield "MelWeightMatrix", [*bands, *edges], {}, {"constant": (0, 1, 2, 3, 4)}


def _quantised() -> Iterator[Row]:
    def number(value: float, dtype: str = "f4") -> Any:
        return np.array(value, dtype)

    fixed = {"constant": (1, 2, 3, 4, 5, 6, 7)}
    for kind, code, mid in (("u8", "u1", 120), ("i8", "i1", -5)):
        left = [number(0.02), number(mid, code)]
        made = [number(0.4), number(mid, code)]
        for a, b in (("3x8", "8x5"), ("2x3x17", "17x6"), ("16x64", "64x40")):
            inputs = [f"{kind} {a}", *left, f"{kind} {b}", number(0.05), number(3, code), *made]
            yield "QLinearMatMul", inputs, {}, fixed
        columns = [np.linspace(0.01, 0.05, 5, dtype="f4"), np.arange(5).astype(code)]
        yield "QLinearMatMul", [f"{kind} 3x8", *left, f"{kind} 8x5", *columns, *made], {}, fixed
        channels = [np.linspace(0.01, 0.05, 4, dtype="f4"), np.zeros(4, "i1")]
        for attrs in ({}, {"pads": [1, 1, 1, 1], "strides": [2, 1]}):
            inputs = [f"{kind} 2x3x7x6", *left, "i8 4x3x3x3", *channels, *made]
            yield "QLinearConv", inputs, attrs, fixed
        inputs = [f"{kind} 1x4x6x6", *left, "i8 4x1x3x3", *channels, *made, "i32 4"]
        yield "QLinearConv", inputs, {"group": 4}, {"constant": (1, 2, 3, 4, 5, 6, 7, 8)}


def _determinants() -> Iterator[Row]:
    for shape in ("1x1", "2x2", "4x3x3", "2x5x5"):
        yield "Det", [f"f32 {shape}"], {}, {}


def rare_rows() -> Iterator[Row]:
    """The rows."""
    for section in (_samples, _windows, _signals, _quantised, _determinants):
        yield from section()
