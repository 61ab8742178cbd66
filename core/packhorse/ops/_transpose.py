"""Geometry of transposed convolutions: padding rules, and the phases they decompose into.

Output position ``o`` receives input ``i`` through kernel position ``k`` where
``o + before = i * stride + k * dilation``. For a fixed ``o`` modulo stride the admissible ``k``
form an arithmetic progression, so each such *phase* is an ordinary convolution with affine
indices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from packhorse.errors import ModelError
from packhorse.kernel.expr import Affine, Axis, affine
from packhorse.ops._window import per_dim
from packhorse.ops.rules import text

__all__ = ["Phase", "Transposed", "phases", "transposed_of"]


@dataclass(frozen=True)
class Phase:
    """The outputs ``first + stride * j`` (j < extent) along one dimension.

    They read kernel positions ``tap0 + tap_step * t`` (t < taps) at inputs
    ``j + source0 - source_step * t``.
    """

    first: int
    extent: int
    taps: int
    tap0: int
    tap_step: int
    source0: int
    source_step: int

    def source(self, dim: int, tap: Axis) -> Affine:
        """Input index along spatial dimension ``dim``."""
        return affine(f"i{dim + 2}") - affine(tap[0]) * self.source_step + self.source0

    def tap(self, tap: Axis) -> Affine:
        """Kernel index."""
        return affine(tap[0]) * self.tap_step + self.tap0


@dataclass(frozen=True)
class Transposed:
    """Resolved attributes of a ConvTranspose; ``before`` is the padding cropped at the front."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    out: tuple[int, ...]

    def canvas(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Extents that hold every product before cropping, and the output after it."""
        return tuple(
            max((n - 1) * s + (k - 1) * d + 1, b + o)
            for n, s, k, d, b, o in zip(
                spatial, self.strides, self.kernel, self.dilations, self.before, self.out,
                strict=True,
            )
        )  # fmt: skip

    def halo(self, dim: int, choice: Sequence[Phase], extent: int) -> tuple[int, int]:
        """How far the phases read outside the input along one dimension."""
        busy = [p for p in choice if p.taps]
        low = min((p.source0 - p.source_step * (p.taps - 1) for p in busy), default=0)
        high = max((p.extent - 1 + p.source0 for p in busy), default=0)
        return max(0, -low), max(0, high - extent + 1)


def transposed_of(
    label: str, spatial: Sequence[int], kernel: Sequence[int], attr: Callable[[str], Any]
) -> Transposed:
    """Resolve the attributes of ConvTranspose (ONNX ConvTranspose-11).

    Raises
    ------
    ModelError
        Attributes of the wrong length, or an output without elements.
    """
    rank = len(spatial)
    strides = per_dim(label, "strides", attr("strides"), rank, 1)
    dilations = per_dim(label, "dilations", attr("dilations"), rank, 1)
    extra = per_dim(label, "output_padding", attr("output_padding"), rank, 0, least=0)
    flat = per_dim(label, "pads", attr("pads"), 2 * rank, 0, least=0)
    auto, wanted = text(attr("auto_pad")), attr("output_shape")
    full = tuple(
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, s, k, d, e in zip(spatial, strides, kernel, dilations, extra, strict=True)
    )
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(spatial, strides, strict=True)]
    if wanted is not None:
        # some exporters give the whole shape, batch and channels included
        out = per_dim(label, "output_shape", list(wanted)[-rank:], rank, 1)
        total = [max(0, f - o) for f, o in zip(full, out, strict=True)]
        before = tuple(t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total)
    else:
        pads = (0,) * (2 * rank) if auto == "VALID" else flat
        before = pads[:rank]
        out = tuple(f - a - b for f, a, b in zip(full, before, pads[rank:], strict=True))
    if any(o < 1 for o in out):
        raise ModelError(
            f"{label}: pads {list(flat)} leave no output, the uncropped extents are {full}. "
            "Use smaller pads"
        )
    return Transposed(tuple(kernel), strides, dilations, before, out)


def phases(plan: Transposed, dim: int) -> list[Phase]:
    """The phases along one dimension; together they cover every output position once."""
    stride, dilation = plan.strides[dim], plan.dilations[dim]
    before, kernel = plan.before[dim], plan.kernel[dim]
    common = math.gcd(stride, dilation)
    tap_step, source_step = stride // common, dilation // common
    found = []
    for first in range(min(stride, plan.out[dim])):
        extent = -(-(plan.out[dim] - first) // stride)
        position = first + before
        tap0 = next(
            (k for k in range(min(tap_step, kernel)) if (position - k * dilation) % stride == 0),
            kernel,
        )
        taps = -(-(kernel - tap0) // tap_step)
        source0 = (position - tap0 * dilation) // stride
        found.append(Phase(first, extent, taps, tap0, tap_step, source0, source_step))
    return found
