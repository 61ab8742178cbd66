"""Pad, Trilu and the two operators that trade depth for space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from packhorse.errors import ModelError
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import (
    Affine,
    Call,
    Expr,
    Index,
    IndexLike,
    Load,
    call,
    const,
    is_float,
    select,
)
from packhorse.kernel.lowering import Lazy, Lowered, Lowering, Operand, axes_of, lazy
from packhorse.ops._window import guarded
from packhorse.ops.registry import Inference, operator
from packhorse.ops.rules import Array, compiled, known, labelled, literal, normal_axes, text, whole

__all__ = ["depth_to_space", "pad", "space_to_depth", "trilu"]

_MODES = ("constant", "reflect", "edge", "wrap")


@dataclass(frozen=True)
class _Border:
    """One dimension of Pad: ``start`` and ``extent`` of what is kept, then what is added."""

    start: int
    extent: int
    before: int
    after: int


def _borders(shape: Sequence[int], pads: Array, axes: Array | None) -> list[_Border]:
    """Pads per dimension; negative ones crop before anything is added."""
    rank = len(shape)
    named = list(range(rank)) if axes is None else list(normal_axes(whole(axes, "axes"), rank))
    amounts = whole(pads, "pads")
    if len(amounts) != 2 * len(named):
        raise ModelError(f"pads {amounts} must hold 2 amounts for each of {len(named)} axes")
    found = [_Border(0, n, 0, 0) for n in shape]
    for axis, before, after in zip(named, amounts, amounts[len(named) :], strict=False):
        extent = shape[axis] + min(before, 0) + min(after, 0)
        if extent < 0:
            raise ModelError(f"pads {amounts} crop dimension {axis} of {shape[axis]} below 0")
        found[axis] = _Border(max(-before, 0), extent, max(before, 0), max(after, 0))
    return found


def _mode(value: str | bytes) -> str:
    mode = text(value)
    if mode not in _MODES:
        raise ModelError(f"mode must be one of {', '.join(_MODES)}, found '{mode}'")
    return mode


def _check(borders: Sequence[_Border], mode: str) -> None:
    for d, b in enumerate(borders):
        if mode != "constant" and b.extent == 0 and b.before + b.after > 0:
            raise ModelError(f"dimension {d} is empty: mode '{mode}' has nothing to repeat")


@labelled
def _pad_rule(ctx: Inference) -> Sequence[TensorType]:
    axes = ctx.value(3) if ctx.has(3) else None
    borders = _borders(ctx.shape(0), ctx.value(1), axes)
    _check(borders, _mode(ctx.attr("mode")))
    new = tuple(b.before + b.extent + b.after for b in borders)
    return [TensorType(ctx.type(0).dtype, new)]


def _inside(borders: Sequence[_Border], places: Sequence[Affine]) -> Expr | None:
    """The condition that a place is within the kept part; None when it always is."""
    tests = []
    for place, b in zip(places, borders, strict=True):
        if b.before:
            tests.append(call("ge", Index(place), 0))
        if b.after:
            tests.append(call("lt", Index(place), b.extent))
    if not tests:
        return None
    whole_test = tests[0]
    for test in tests[1:]:
        whole_test = call("and", whole_test, test)
    return whole_test


def _source(place: Affine, b: _Border, mode: str) -> IndexLike:
    """Where in the kept part the element at ``place`` (negative: before it) comes from."""
    if not b.before and not b.after:
        return place + b.start
    i: Expr = Index(place)
    last = b.extent - 1
    if mode == "edge":
        i = call("max", call("min", i, last), 0)
    elif mode == "wrap":
        i = call("mod", i, b.extent)
    elif max(b.before, b.after) <= last:  # one reflection suffices
        i = last - call("abs", last - call("abs", i))
    elif last == 0:
        return Affine((), b.start)
    else:
        i = call("mod", i, 2 * last)
        i = call("min", i, 2 * last - i)
    return i + b.start if b.start else i


def _lower_constant_pad(
    ctx: Lowering, places: Sequence[Affine], borders: Sequence[_Border]
) -> Lazy:
    x = ctx[0]
    if not is_float(x.dtype):
        x = x.stored()  # a guarded load reads 0, which an integer division must not meet
    value = x.at([p + b.start for p, b in zip(places, borders, strict=True)])
    inside = _inside(borders, places)
    if inside is None:
        return lazy(ctx, value)
    fill: Expr = const(0, value.dtype)
    if ctx.has(2):
        fill = literal(ctx[2]) or ctx[2].reshape(()).at(())
    inner = guarded(value, inside)
    if fill == const(0, value.dtype) and _zero_outside(inner):
        return lazy(ctx, inner)
    return lazy(ctx, select(inside, inner, fill))


def _zero_outside(value: Expr) -> bool:
    """True when a guarded value is 0 already where its guard is false."""
    while isinstance(value, Call) and value.op == "cast":
        (value,) = value.args
    return isinstance(value, Load)


@compiled
def _lower_pad(ctx: Lowering) -> Lazy:
    axes = known(ctx, 3, "axes") if ctx.has(3) else None
    borders = _borders(ctx[0].shape, known(ctx, 1, "pads"), axes)
    places = [i - b.before for i, b in zip(axes_of(len(borders)), borders, strict=True)]
    mode = _mode(ctx.attr("mode"))
    if mode == "constant":
        return _lower_constant_pad(ctx, places, borders)
    index = [_source(p, b, mode) for p, b in zip(places, borders, strict=True)]
    return lazy(ctx, ctx[0].at(index))


@operator("Pad", infer=_pad_rule, lower=_lower_pad)
def pad(
    x: Array,
    pads: Array,
    constant_value: Array | None = None,
    axes: Array | None = None,
    *,
    mode: str = "constant",
) -> Array:
    """Add (or crop, when negative) elements at the ends of dimensions (ONNX Pad-21).

    Modes constant, reflect (without repeating the edge), edge and wrap.
    """
    borders, how = _borders(x.shape, pads, axes), _mode(mode)
    _check(borders, how)
    kept = x[tuple(slice(b.start, b.start + b.extent) for b in borders)]
    widths = [(b.before, b.after) for b in borders]
    if how != "constant":
        return np.pad(kept, widths, mode=how)  # type: ignore[call-overload,no-any-return]
    fill = x.dtype.type(0) if constant_value is None else np.asarray(constant_value).reshape(())
    return np.pad(kept, widths, constant_values=fill)


# Trilu


@labelled
def _trilu_rule(ctx: Inference) -> Sequence[TensorType]:
    if len(ctx.shape(0)) < 2:
        raise ModelError(f"the input must have at least 2 dimensions, found {ctx.shape(0)}")
    return [ctx.type(0)]


@compiled
def _lower_trilu(ctx: Lowering) -> Lazy:
    index = axes_of(len(ctx[0].shape))
    diagonal: Expr = Index(index[-1] - index[-2])
    k: Expr = const(0, "int64")
    if ctx.has(1):
        k = literal(ctx[1]) or ctx[1].reshape(()).at(())
    kept = call("ge" if ctx.attr("upper") else "le", diagonal, k)
    return lazy(ctx, select(kept, ctx[0].at(index), 0))


@operator("Trilu", infer=_trilu_rule, lower=_lower_trilu)
def trilu(x: Array, k: Array | None = None, *, upper: int = 1) -> Array:
    """The upper (or lower) triangle of the last two dimensions, else 0 (ONNX Trilu-14).

    ``k`` (int64 scalar) moves the diagonal to the right.
    """
    offset = 0 if k is None else int(np.asarray(k).reshape(()))
    return np.triu(x, offset) if upper else np.tril(x, offset)


# DepthToSpace and SpaceToDepth: six dimensions, permuted


def _blocks(ctx: Inference | Lowering, shape: Sequence[int], down: bool) -> int:
    size = int(ctx.attr("blocksize"))
    if len(shape) != 4 or size < 1:
        raise ModelError(f"needs 4 dimensions and blocksize >= 1, found {tuple(shape)} and {size}")
    fits = shape[2] % size == 0 == shape[3] % size if down else shape[1] % (size * size) == 0
    if not fits:
        raise ModelError(f"shape {tuple(shape)} cannot be cut into blocks of {size}")
    return size


_WIDE = "bchpwq"
_DEEP = {"DCR": "bpqchw", "CRD": "bcpqhw"}
"""Letters of the six dimensions: batch, channel, row, column, place in the block (p, q)."""


def _permute(x: Array, words: tuple[str, str], sizes: dict[str, int]) -> Array:
    six = x.reshape([sizes[c] for c in words[0]])
    return six.transpose([words[0].index(c) for c in words[1]])


def _lower_blocks(ctx: Lowering, words: tuple[str, str], sizes: dict[str, int]) -> Lowered:
    """One kernel over all six axes: affine on both sides, so it vectorises."""
    shape, dtype = ctx.output_types[0]
    source: Operand = ctx[0].reshape([sizes[c] for c in words[0]])
    target = ctx.buffer([sizes[c] for c in words[1]], dtype)
    index = dict(zip(words[1], axes_of(6), strict=True))
    axes = [(f"i{d}", sizes[c]) for d, c in enumerate(words[1])]
    ctx.kernel(axes, [(target, axes_of(6), source.at([index[c] for c in words[0]]))])
    return target.reshape(shape)


def _sizes(space: Sequence[int], depth: Sequence[int], block: int) -> dict[str, int]:
    """Extents by letter, from the shape with large planes and the one with many channels."""
    batch, channels, *_ = space
    return {"b": batch, "c": channels, "h": depth[2], "w": depth[3], "p": block, "q": block}


def _deeper(shape: Sequence[int], block: int) -> tuple[int, ...]:
    return shape[0], shape[1] * block * block, shape[2] // block, shape[3] // block


def _wider(shape: Sequence[int], block: int) -> tuple[int, ...]:
    return shape[0], shape[1] // (block * block), shape[2] * block, shape[3] * block


def _deep(mode: str | bytes) -> str:
    found = _DEEP.get(text(mode))
    if found is None:
        raise ModelError(f"mode must be DCR or CRD, found '{text(mode)}'")
    return found


@labelled
def _depth_to_space_rule(ctx: Inference) -> Sequence[TensorType]:
    _deep(ctx.attr("mode"))
    old = ctx.shape(0)
    return [TensorType(ctx.type(0).dtype, _wider(old, _blocks(ctx, old, False)))]


@compiled
def _lower_depth_to_space(ctx: Lowering) -> Lowered:
    sizes = _sizes(ctx.output_types[0][0], ctx[0].shape, ctx.attr("blocksize"))
    return _lower_blocks(ctx, (_deep(ctx.attr("mode")), _WIDE), sizes)


@operator("DepthToSpace", infer=_depth_to_space_rule, lower=_lower_depth_to_space)
def depth_to_space(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """Channels into blocks of the plane (ONNX DepthToSpace-13)."""
    new = _wider(x.shape, blocksize)
    return _permute(x, (_deep(mode), _WIDE), _sizes(new, x.shape, blocksize)).reshape(new)


@labelled
def _space_to_depth_rule(ctx: Inference) -> Sequence[TensorType]:
    _deep(ctx.attr("mode"))
    old = ctx.shape(0)
    return [TensorType(ctx.type(0).dtype, _deeper(old, _blocks(ctx, old, True)))]


@compiled
def _lower_space_to_depth(ctx: Lowering) -> Lowered:
    sizes = _sizes(ctx[0].shape, ctx.output_types[0][0], ctx.attr("blocksize"))
    return _lower_blocks(ctx, (_WIDE, _deep(ctx.attr("mode"))), sizes)


@operator("SpaceToDepth", infer=_space_to_depth_rule, lower=_lower_space_to_depth)
def space_to_depth(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """Blocks of the plane into channels (ONNX SpaceToDepth-13; ``mode`` as in opset 28)."""
    new = _deeper(x.shape, blocksize)
    return _permute(x, (_WIDE, _deep(mode)), _sizes(x.shape, new, blocksize)).reshape(new)
