"""GridSample: reading data at coordinates that a tensor holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Affine, Expr, call, is_float, select
from packhorse.kernel.lowering import Lazy, Lowering, axes_of, lazy
from packhorse.ops import _sampling as sampling
from packhorse.ops._sampling import CUBIC, LINEAR, NEAREST
from packhorse.ops._window import narrow, wide
from packhorse.ops.registry import Array, Inference, operator
from packhorse.ops.rules import compiled, labelled, text

__all__ = ["grid_sample"]

_MODES = {"bilinear": LINEAR, "bicubic": CUBIC, **{m: m for m in (NEAREST, LINEAR, CUBIC)}}
"""Values of ``mode``, with their names before opset 20."""
_PADDINGS = ("zeros", "border", "reflection")


@dataclass(frozen=True)
class _Options:
    mode: str
    padding: str
    align: bool

    @classmethod
    def of(cls, attr: Callable[[str], Any]) -> _Options:
        mode, padding = text(attr("mode")), text(attr("padding_mode"))
        if mode not in _MODES:
            raise ModelError(f"mode is '{mode}', expected one of nearest, linear, cubic")
        if padding not in _PADDINGS:
            raise ModelError(f"padding_mode is '{padding}', expected {', '.join(_PADDINGS)}")
        return cls(_MODES[mode], padding, bool(attr("align_corners")))

    def edges(self, extent: int) -> tuple[float, float]:
        """Coordinates of -1 and 1: centres of the outer elements, or their outer edges."""
        return (0.0, extent - 1.0) if self.align else (-0.5, extent - 0.5)


@labelled
def infer_grid_sample(ctx: Inference) -> list[TensorType]:
    """Shape rule of GridSample: (N, C, *S) and a grid (N, *out, rank) give (N, C, *out)."""
    _Options.of(ctx.attr)
    x, grid = ctx.shape(0), ctx.shape(1)
    rank = len(x) - 2
    if rank < 1 or len(grid) != len(x) or grid[0] != x[0] or grid[-1] != rank:
        raise ModelError(
            f"data of shape {x} and a grid of shape {grid} do not fit. Expected (N, C, *spatial) "
            "and (N, *out, number of spatial dimensions)"
        )
    if 0 in x[2:] and 0 not in grid[:-1]:
        raise ModelError(f"data of shape {x} has no elements to sample")
    return [TensorType(ctx.type(0).dtype, (*x[:2], *grid[1:-1]))]


@compiled
def _lower_grid_sample(ctx: Lowering) -> Lazy:
    x, grid, options = ctx[0], ctx[1], _Options.of(ctx.attr)
    rank = len(x.shape) - 2
    value = x.stored()
    out = axes_of(rank + 2)
    if options.mode != NEAREST and not is_float(x.at(out).dtype):
        raise UnsupportedOperator(f"interpolation of {x.dtype} is not compiled")
    dims = []
    for d, extent in enumerate(x.shape[2:]):  # the grid holds (x, y, ...): innermost first
        where = grid.at([out[0], *out[2:], Affine((), rank - 1 - d)])
        dims.append(_tap_exprs(where, extent, options))
    return lazy(ctx, sampling.load_taps(value, out[:2], dims))


def _tap_exprs(where: Expr, extent: int, options: _Options) -> list[sampling.TapExpr]:
    """Taps of a grid value between -1 and 1."""
    low, high = options.edges(extent)
    where = (where + 1.0) * ((high - low) / 2) + low
    if options.mode == NEAREST:
        where = call("round", where)
    if options.padding == "zeros":
        return sampling.tap_exprs(where, extent, options.mode)
    if options.padding == "border":
        if options.mode != CUBIC:
            where = call("max", call("min", where, extent - 1.0), 0.0)
        return sampling.tap_exprs(where, extent, options.mode, sampling.clamp_expr(extent))
    if high > low:
        span = high - low
        place = call("abs", where - low)
        place = place - call("floor", place / (2 * span)) * (2 * span)
        inside = call("and", call("ge", where, low), call("le", where, high))
        mirrored = call("min", place, 2 * span - place) + low
        where = select(inside, where, mirrored)
    fold = sampling.reflect_expr(extent, options.align)
    return sampling.tap_exprs(where, extent, options.mode, fold)


def _taps(where: Array, extent: int, options: _Options) -> list[sampling.Tap]:
    """Taps of grid values between -1 and 1."""
    low, high = options.edges(extent)
    where = (where + 1) * where.dtype.type((high - low) / 2) + where.dtype.type(low)
    if options.mode == NEAREST:
        where = np.rint(where)
    if options.padding == "zeros":
        return sampling.taps(where, extent, options.mode)
    if options.padding == "border":
        if options.mode != CUBIC:
            where = np.clip(where, 0, extent - 1)
        return sampling.taps(where, extent, options.mode, sampling.clamp(extent))
    if high > low:
        span = where.dtype.type(high - low)
        with np.errstate(invalid="ignore"):
            place = np.mod(np.abs(where - where.dtype.type(low)), 2 * span)
        mirrored = np.minimum(place, 2 * span - place) + where.dtype.type(low)
        where = np.where((where >= low) & (where <= high), where, mirrored)
    return sampling.taps(where, extent, options.mode, sampling.reflect(extent, options.align))


@operator("GridSample", infer=infer_grid_sample, lower=_lower_grid_sample)
def grid_sample(
    x: Array,
    grid: Array,
    *,
    align_corners: int = 0,
    mode: str = LINEAR,
    padding_mode: str = "zeros",
) -> Array:
    """Interpolate ``x`` at the places a grid names (ONNX GridSample-20).

    Parameters
    ----------
    x : array (N, C, *spatial)
    grid : float array (N, *out, rank)
        Places as (x, y, ...), innermost dimension first; -1 and 1 are the ends of the data:
        centres of the outer elements with ``align_corners``, else their outer edges.
    mode : str
        ``nearest`` (half to even), ``linear`` or ``cubic``.
    padding_mode : str
        What lies outside: ``zeros``, the nearest element (``border``), a mirror (``reflection``).
        A cubic near the border still weights by the place itself, as PyTorch and onnxruntime do
        (ONNX's evaluator moves the place to the border first).

    Returns
    -------
    array (N, C, *out)

    Raises
    ------
    ModelError
        Shapes that do not fit, unknown modes.
    """
    options = _Options.of(locals().__getitem__)
    places = wide(grid)
    batch = np.arange(x.shape[0]).reshape(-1, *[1] * (grid.ndim - 2))
    dims = [_taps(places[..., -1 - d], extent, options) for d, extent in enumerate(x.shape[2:])]
    data = np.moveaxis(x if options.mode == NEAREST else _floats(x), 1, 0)

    def read(index: tuple[Array, ...]) -> Array:
        where: tuple[Any, ...] = (slice(None), batch, *index)
        return np.asarray(data[where])

    with np.errstate(invalid="ignore"):  # a place may be NaN
        return narrow(np.moveaxis(sampling.gather_taps(read, dims), 0, 1), x.dtype)


def _floats(x: Array) -> Array:
    data = wide(x)
    return data if data.dtype.kind in "fc" else data.astype(np.float64)
