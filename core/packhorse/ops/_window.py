"""Sliding windows: the geometry and the NumPy views convolutions and pools share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from packhorse.errors import ModelError
from packhorse.kernel.expr import Affine, Axis, Expr, Index, Load, affine, call, rewrite
from packhorse.ops.registry import Array
from packhorse.ops.rules import text

__all__ = ["Window", "guarded", "inside", "narrow", "pad_spatial", "patches", "wide", "window_of"]

HALVES = frozenset({"float16", "bfloat16"})


def wide(x: Array) -> Array:
    """float16 and bfloat16 as float32 (what compiled kernels compute in), the rest as it is."""
    return x.astype(np.float32) if x.dtype.name in HALVES else x


def narrow(x: Array, dtype: np.dtype[Any]) -> Array:
    """The result in the dtype of the operator's output."""
    return x.astype(dtype, copy=False)


@dataclass(frozen=True)
class Window:
    """Geometry of a window that slides over the spatial dimensions (one entry per dimension)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    out: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """Distance from the first to behind the last element of the dilated window."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def halo(self, spatial: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """How far the windows read before and behind the data, per spatial dimension.

        ``ceil_mode`` may let the last window hang over further than the padding, and a stride may
        leave some of the padding unread.
        """
        ends = (
            max(0, (o - 1) * s + r - n - p[0])
            for o, s, r, n, p in zip(
                self.out, self.strides, self.reach, spatial, self.pads, strict=True
            )
        )
        return tuple((p[0], end) for p, end in zip(self.pads, ends, strict=True))

    def index(self, taps: Sequence[Axis], first: int = 2) -> tuple[Affine, ...]:
        """Where output ``(i{first}, ...)`` reads its input under the window axes ``taps``."""
        return tuple(
            affine(f"i{first + d}") * s + affine(name) * dil - p[0]
            for d, ((name, _), s, dil, p) in enumerate(
                zip(taps, self.strides, self.dilations, self.pads, strict=True)
            )
        )


def window_of(
    label: str,
    spatial: Sequence[int],
    kernel: Sequence[int],
    attr: Callable[[str], Any],
    ceil: bool = False,
) -> Window:
    """Resolve ``strides``, ``dilations``, ``pads`` and ``auto_pad``.

    Parameters
    ----------
    label : str
        How errors name the node.
    spatial, kernel : sequence of int
        Extents of the data and of the window.
    attr : callable
        Attribute name -> value; None stands for the ONNX default.
    ceil : bool
        ``ceil_mode`` of pools: round the output extents up.

    Raises
    ------
    ModelError
        Attributes of the wrong length, negative pads, non-positive strides, or a window that is
        larger than the padded data.
    """
    rank = len(spatial)
    strides = per_dim(label, "strides", attr("strides"), rank, 1)
    dilations = per_dim(label, "dilations", attr("dilations"), rank, 1)
    flat = per_dim(label, "pads", attr("pads"), 2 * rank, 0, least=0)
    pads = tuple(zip(flat[:rank], flat[rank:], strict=True))
    if len(kernel) != rank:
        raise ModelError(
            f"{label}: kernel {tuple(kernel)} does not fit data with {rank} spatial dimensions "
            f"{tuple(spatial)}. It needs one extent per spatial dimension"
        )
    plan = Window(tuple(kernel), strides, dilations, pads, ())
    auto = text(attr("auto_pad"))
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise ModelError(
            f"{label}: auto_pad is {auto!r}, not one of NOTSET, VALID, SAME_UPPER, SAME_LOWER"
        )
    if auto == "VALID":
        plan = replace(plan, pads=((0, 0),) * rank)
    if auto.startswith("SAME"):
        out = tuple(-(-n // s) for n, s in zip(spatial, strides, strict=True))
        plan = replace(plan, pads=_same_pads(plan, spatial, out, auto == "SAME_UPPER"), out=out)
    else:
        plan = replace(plan, out=_extents(plan, spatial, ceil))
    if any(o < 1 for o in plan.out):
        raise ModelError(
            f"{label}: the window {plan.reach} (dilation included) is larger than the padded "
            f"input, spatial extents {tuple(spatial)} with pads {plan.pads}. "
            "Give a larger input or more padding"
        )
    return plan


def per_dim(
    label: str, name: str, value: Sequence[int] | None, count: int, default: int, least: int = 1
) -> tuple[int, ...]:
    """An attribute with one int per dimension, checked."""
    found = (default,) * count if value is None else tuple(int(v) for v in value)
    if len(found) != count or any(v < least for v in found):
        raise ModelError(
            f"{label}: attribute '{name}' is {list(found)}, expected {count} integers >= {least}"
        )
    return found


def _same_pads(
    plan: Window, spatial: Sequence[int], out: Sequence[int], upper: bool
) -> tuple[tuple[int, int], ...]:
    pads = []
    for n, o, s, r in zip(spatial, out, plan.strides, plan.reach, strict=True):
        total = max(0, (o - 1) * s + r - n)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if upper else (large, small))
    return tuple(pads)


def _extents(plan: Window, spatial: Sequence[int], ceil: bool) -> tuple[int, ...]:
    out = []
    for n, s, r, p in zip(spatial, plan.strides, plan.reach, plan.pads, strict=True):
        room = n + sum(p) - r
        extent = (-(-room // s) if ceil else room // s) + 1
        # ceil_mode: a window that would start in the padding behind the data is dropped
        if ceil and (extent - 1) * s >= n + p[0]:
            extent -= 1
        out.append(extent)
    return tuple(out)


def pad_spatial(x: Array, halo: Sequence[tuple[int, int]], fill: float = 0) -> Array:
    """``x`` (N, C, *spatial) with a border of ``fill`` around its spatial dimensions."""
    if not any(a or b for a, b in halo):
        return x
    shape = x.shape[:2] + tuple(n + a + b for n, (a, b) in zip(x.shape[2:], halo, strict=True))
    out = np.full(shape, fill, x.dtype)
    inner = tuple(slice(a, a + n) for n, (a, _) in zip(x.shape[2:], halo, strict=True))
    out[(slice(None), slice(None), *inner)] = x
    return out


def patches(padded: Array, plan: Window) -> Array:
    """Read-only view (N, C, *out, *kernel) of what each window sees in the padded data."""
    steps = padded.strides[2:]
    return np.lib.stride_tricks.as_strided(
        padded,
        padded.shape[:2] + plan.out + plan.kernel,
        padded.strides[:2]
        + tuple(b * s for b, s in zip(steps, plan.strides, strict=True))
        + tuple(b * d for b, d in zip(steps, plan.dilations, strict=True)),
        writeable=False,
    )


def inside(
    index: Sequence[Affine], spatial: Sequence[int], halo: Sequence[tuple[int, int]]
) -> Expr | None:
    """Condition "the index lies in the data", tested only where the halo lets it leave."""
    guard: Expr | None = None
    for i, n, (before, after) in zip(index, spatial, halo, strict=True):
        tests = [call("ge", Index(i), 0)] if before else []
        tests += [call("lt", Index(i), n)] if after else []
        for test in tests:
            guard = test if guard is None else call("and", guard, test)
    return guard


def guarded(value: Expr, guard: Expr) -> Expr:
    """The same value with every load made only where ``guard`` holds (0 elsewhere); loads within
    the indices of loads too."""

    def visit(node: Expr) -> Expr | None:
        if not isinstance(node, Load):
            return None
        both = guard if node.when is None else call("and", guard, node.when)
        index = tuple(rewrite(i, visit) if isinstance(i, Expr) else i for i in node.index)
        return Load(node.buffer, index, node.dtype, both)

    return rewrite(value, visit)
