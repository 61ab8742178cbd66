"""Reading between the elements: interpolation at coordinates that tensors hold.

A coordinate along one dimension becomes taps: indices, weights, and where an index lies inside
the data. References have them as arrays (:func:`taps`, :func:`gather_taps`), lowerings as
expressions (:func:`tap_exprs`, :func:`load_taps`); both combine the taps of all dimensions.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from packhorse.kernel.expr import Expr, IndexLike, call, cast, select
from packhorse.kernel.lowering import Operand
from packhorse.ops._window import guarded
from packhorse.ops.registry import Array

__all__ = ["CUBIC", "LINEAR", "NEAREST", "Tap", "TapExpr", "gather_taps", "load_taps"]
__all__ += ["tap_exprs", "taps"]

NEAREST, LINEAR, CUBIC = "nearest", "linear", "cubic"
_A = -0.75
"""Coefficient of the cubic, as PyTorch and ONNX have it."""


@dataclass(frozen=True)
class Tap:
    """One neighbour along one dimension: where it is, its weight (None: 1), whether it exists."""

    index: Array
    weight: Array | None
    inside: Array | None = None


@dataclass(frozen=True)
class TapExpr:
    """The same as expressions; ``index`` is int64."""

    index: Expr
    weight: Expr | None
    inside: Expr | None = None


Fold: TypeAlias = "Callable[[Array], Array] | None"
"""Maps indices outside the data to one inside; None: such elements count 0."""


def _linear(t: float) -> list[float]:
    return [1 - t, t]


def _cubic(t: float) -> list[float]:
    """Weights of the elements at -1, 0, 1 and 2; also right for arrays and expressions."""
    u, s, v = t + 1, 1 - t, 2 - t
    return [
        ((u * _A - 5 * _A) * u + 8 * _A) * u - 4 * _A,
        (t * (_A + 2) - (_A + 3)) * t * t + 1,
        (s * (_A + 2) - (_A + 3)) * s * s + 1,
        ((v * _A - 5 * _A) * v + 8 * _A) * v - 4 * _A,
    ]


_WEIGHTS = {LINEAR: (0, _linear), CUBIC: (-1, _cubic)}
"""mode: offset of the first tap from the coordinate's floor, and the weights."""


def taps(where: Array, extent: int, mode: str, fold: Fold = None) -> list[Tap]:
    """The taps of coordinates along a dimension of ``extent`` elements (NumPy).

    Coordinates are floats, 0 at the first element; NaN gives NaN, or for ``nearest`` element 0.
    """
    with np.errstate(invalid="ignore"):
        near = np.rint(where) if mode == NEAREST else np.floor(where)
        # far outside is as good as just outside, and safe to convert
        base = np.nan_to_num(np.clip(near, -9, extent + 9)).astype(np.int64)
    if mode == NEAREST:
        return [_tap(base, None, extent, fold)]
    first, function = _WEIGHTS[mode]
    weights: list[Array] = function(where - near)  # type: ignore[arg-type, assignment]
    return [_tap(base + first + k, w, extent, fold) for k, w in enumerate(weights)]


def _tap(index: Array, weight: Array | None, extent: int, fold: Fold) -> Tap:
    if fold is not None:
        return Tap(fold(index), weight)
    inside = (index >= 0) & (index < extent)
    return Tap(np.clip(index, 0, extent - 1), weight, inside)


def gather_taps(
    read: Callable[[tuple[Array, ...]], Array],
    dims: Sequence[Sequence[Tap]],
    join: Callable[[Array, Array], Array] = operator.add,
) -> Array:
    """Sum (``join``) over the combinations of taps of ``read(indices)`` times their weights."""
    total: Array | None = None
    for chosen in itertools.product(*dims):
        value = read(tuple(tap.index for tap in chosen))
        for tap in chosen:
            if tap.inside is not None:
                value = np.where(tap.inside, value, value.dtype.type(0))
            if tap.weight is not None:
                value = value * tap.weight.astype(value.dtype)
        total = value if total is None else join(total, value)
    assert total is not None
    return total


def tap_exprs(
    where: Expr, extent: int, mode: str, fold: Callable[[Expr], Expr] | None = None
) -> list[TapExpr]:
    """The taps of a coordinate, a float expression, along a dimension of ``extent`` elements."""
    near = call("round" if mode == NEAREST else "floor", where)
    base = cast(call("max", call("min", near, extent + 9), -9), "int64")
    if mode == NEAREST:
        return [_tap_expr(base, None, extent, fold)]
    first, function = _WEIGHTS[mode]
    weights: list[Expr] = function(where - near)  # type: ignore[arg-type, assignment]
    return [_tap_expr(base + (first + k), w, extent, fold) for k, w in enumerate(weights)]


def _tap_expr(
    index: Expr, weight: Expr | None, extent: int, fold: Callable[[Expr], Expr] | None
) -> TapExpr:
    if fold is not None:  # a NaN's index must not stray either
        return TapExpr(call("max", call("min", fold(index), extent - 1), 0), weight)
    return TapExpr(index, weight, call("and", call("ge", index, 0), call("lt", index, extent)))


def load_taps(
    x: Operand,
    before: Sequence[IndexLike],
    dims: Sequence[Sequence[TapExpr]],
    join: Callable[[Expr, Expr], Expr] = operator.add,
) -> Expr:
    """As :func:`gather_taps`, reading ``x[(*before, *indices)]`` where all of them are inside."""
    total: Expr | None = None
    for chosen in itertools.product(*dims):
        value = x.at([*before, *(tap.index for tap in chosen)])
        inside = [tap.inside for tap in chosen if tap.inside is not None]
        if inside:
            value = guarded(value, functools.reduce(lambda a, b: call("and", a, b), inside))
        for tap in chosen:
            if tap.weight is not None:
                value = value * cast(tap.weight, value.dtype)
        total = value if total is None else join(total, value)
    assert total is not None
    return total


def clamp_expr(extent: int) -> Callable[[Expr], Expr]:
    """Fold of a border that repeats: the nearest element."""
    return lambda index: call("max", call("min", index, extent - 1), 0)


def reflect_expr(extent: int, align: bool) -> Callable[[Expr], Expr]:
    """Fold of a mirrored border: about the outer elements (``align``) or their outer edges."""
    period = max(2 * (extent - 1) if align else 2 * extent, 1)

    def fold(index: Expr) -> Expr:
        place = call("mod", index, period)
        return select(call("lt", place, extent), place, (period if align else period - 1) - place)

    return fold


def clamp(extent: int) -> Callable[[Array], Array]:
    """:func:`clamp_expr` of arrays."""
    return lambda index: np.clip(index, 0, extent - 1)


def reflect(extent: int, align: bool) -> Callable[[Array], Array]:
    """:func:`reflect_expr` of arrays."""
    period = max(2 * (extent - 1) if align else 2 * extent, 1)

    def fold(index: Array) -> Array:
        place = np.mod(index, period)
        return np.where(place < extent, place, (period if align else period - 1) - place)

    return fold
