"""Fourier transforms (DFT, STFT) and MelWeightMatrix.

The references are fast transforms. Kernels multiply with a matrix of roots of unity that is
made when compiling: faster than a fast transform on small lengths, and at once fused, tiled and
vectorised like every product. Longer ones run on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Affine, Expr, Reduce, affine
from packhorse.kernel.lowering import Lowered, Lowering, Operand, axes_of, compute_dtype, lazy
from packhorse.ops._window import narrow, wide
from packhorse.ops.registry import Array, Inference, operator
from packhorse.ops.rules import compiled, dtype_of_onnx, known, labelled, normal_axis, whole

__all__ = ["MAX_TABLE", "dft", "mel_weight_matrix", "stft"]

MAX_TABLE = 20_000_000
"""Most elements of a matrix of roots: complex transforms of 2,236, one-sided ones of 4,400."""


@dataclass(frozen=True)
class Transform:
    """One transform of ``length`` points from ``taken`` (..., parts) to ``made`` (..., results).

    ``parts`` and ``results`` are 1 for real numbers and 2 for complex ones.
    """

    length: int
    inverse: bool
    onesided: bool
    taken: int
    parts: int

    @classmethod
    def of(cls, extent: int, parts: int, length: int | None, inverse: Any, onesided: Any) -> Any:
        """Check the arguments; ModelError says what does not fit."""
        back = bool(inverse) and bool(onesided)
        if parts not in (1, 2):
            raise ModelError(
                f"the last dimension holds {parts} numbers, expected 1 (real) or 2 (complex)"
            )
        if onesided and parts != (2 if back else 1):
            kind = "an inverse onesided transform needs complex" if back else "onesided needs real"
            raise ModelError(f"{kind} numbers, found {parts} in the last dimension")
        if length is None:
            length = 2 * (extent - 1) if back else extent
        if length < 1:
            raise ModelError(f"a transform of {length} points; it needs 1 or more")
        needed = length // 2 + 1 if back else length
        return cls(length, bool(inverse), bool(onesided), min(extent, needed), parts)

    @property
    def back(self) -> bool:
        """From half a spectrum to a real signal."""
        return self.inverse and self.onesided

    @property
    def made(self) -> int:
        """Points of the result."""
        return self.length // 2 + 1 if self.onesided and not self.inverse else self.length

    @property
    def results(self) -> int:
        """Numbers per point of the result."""
        return 1 if self.back else 2

    def run(self, x: Array, axis: int) -> Array:
        """Transform (..., parts) along an axis, in the precision of ``x``."""
        points = x[..., 0]
        if self.parts == 2:
            points = points.astype(np.result_type(x.dtype, np.complex64))
            points.imag = x[..., 1]
        if self.back:
            return np.fft.irfft(points, self.length, axis)[..., None]
        function = np.fft.rfft if self.onesided else np.fft.ifft if self.inverse else np.fft.fft
        found = function(points, self.length, axis)
        return np.stack([found.real, found.imag], axis=-1)

    def table(self) -> Array:
        """The matrix of the transform: (taken, parts, made, results), float64."""
        count = self.taken * self.parts * self.made * self.results
        if count > MAX_TABLE:
            raise UnsupportedOperator(
                f"a transform of {self.length} points is not compiled: its matrix would have "
                f"{count} elements"
            )
        unit = np.eye(self.taken * self.parts).reshape(-1, self.taken, self.parts)
        return self.run(unit, 1).reshape(self.taken, self.parts, self.made, self.results)


# DFT


def _axis(axis: Array | None, rank: int) -> int:
    """The transformed dimension: any but the last."""
    listed = [-2] if axis is None else whole(axis, "axis")
    found = normal_axis(listed[0], rank)
    if rank < 2 or len(listed) != 1 or found == rank - 1:
        raise ModelError(
            f"axis {listed} of data of rank {rank}: it must name one dimension and not the last, "
            "which holds the parts of complex numbers"
        )
    return found


def _scalar(value: Array | None, what: str) -> int | None:
    if value is None or not value.size:
        return None
    return whole(value, what)[0]


def _dft(
    shape: Sequence[int], length: Array | None, axis: Array | None, attr: Callable[[str], Any]
) -> tuple[int, Transform]:
    d = _axis(axis, len(shape))
    count = _scalar(length, "dft_length")
    plan = Transform.of(shape[d], shape[-1], count, attr("inverse"), attr("onesided"))
    return d, plan


@labelled
def infer_dft(ctx: Inference) -> list[TensorType]:
    """Shape rule of DFT; length and axis must be known."""
    x = ctx.shape(0)
    length, axis = (ctx.value(i) if ctx.has(i) else None for i in (1, 2))
    d, plan = _dft(x, length, axis, ctx.attr)
    shape = (*x[:d], plan.made, *x[d + 1 : -1], plan.results)
    return [TensorType(ctx.type(0).dtype, shape)]


@compiled
def _lower_dft(ctx: Lowering) -> Lowered:
    """As a product with the matrix; along the last but one dimension as one plain product."""
    x = ctx[0]
    length, axis = (known(ctx, i, "a scalar of DFT") if ctx.has(i) else None for i in (1, 2))
    d, plan = _dft(x.shape, length, axis, ctx.attr)
    table = plan.table().astype(compute_dtype(x.dtype))
    if d == len(x.shape) - 2:
        rows = math.prod(x.shape[:d])
        flat = x.reshape((rows, x.shape[d] * plan.parts)).stored()
        return _product(ctx, plan, table, rows, lambda row, k: flat.at([row, k]))
    source, out = x.stored(), axes_of(len(x.shape))
    bound = ctx.axis(plan.taken), ctx.axis(plan.parts)
    t, part = (affine(name) for name, _ in bound)
    value = source.at([*out[:d], t, *out[d + 1 : -1], part])
    factor = ctx.constant(table).at([t, part, out[d], out[-1]])
    return lazy(ctx, Reduce("sum", bound, value * factor, value.dtype))


def _product(
    ctx: Lowering,
    plan: Transform,
    table: Array,
    rows: int,
    element: Callable[[Affine, Affine], Expr],
) -> Operand:
    """``element(row, k)`` times the matrix: a product of two matrices, reshaped to the output."""
    shape, dtype = ctx.output_types[0]
    matrix = table.reshape(plan.taken * plan.parts, plan.made * plan.results)
    row, column = axes_of(2)
    axis = ctx.axis(matrix.shape[0])
    k = affine(axis[0])
    data = element(row, k)
    value = Reduce("sum", (axis,), data * ctx.constant(matrix).at([k, column]), data.dtype)
    made = ctx.buffer((rows, matrix.shape[1]), dtype)
    ctx.kernel([("i0", rows), ("i1", matrix.shape[1])], [(made, [row, column], value)])
    return made.reshape(shape)


@operator("DFT", infer=infer_dft, lower=_lower_dft)
def dft(
    x: Array,
    dft_length: Array | None = None,
    axis: Array | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Array:
    """Discrete Fourier transform along one dimension (ONNX DFT-20).

    Parameters
    ----------
    x : float array (..., 1) of real or (..., 2) of complex numbers
    dft_length : integer, optional
        Points of the transform: the signal is cut, or zeros are added. Default: what is there;
        ``2 * (extent - 1)`` with ``inverse`` and ``onesided``.
    axis : integer, optional; default -2
    inverse, onesided : int
        ``onesided`` gives the ``length // 2 + 1`` first points of a real signal's spectrum, or
        with ``inverse`` a real signal from those.

    Returns
    -------
    float array (..., 2), or (..., 1) with ``inverse`` and ``onesided``

    Raises
    ------
    ModelError
        Shapes and attributes that do not fit.
    """
    d, plan = _dft(x.shape, dft_length, axis, locals().__getitem__)
    return narrow(plan.run(wide(x), d), x.dtype)


# STFT


def _stft(
    signal: Sequence[int], step: Array, window: Sequence[int] | None, length: Array | None, one: Any
) -> tuple[int, int, Transform]:
    """Step, number of frames and the transform of each."""
    stride, frame = _scalar(step, "frame_step"), _scalar(length, "frame_length")
    if len(signal) != 3:
        raise ModelError(f"a signal of shape {tuple(signal)}, expected (batch, length, 1 or 2)")
    if frame is None:
        frame = signal[1] if window is None else window[0]
    if window is not None and tuple(window) != (frame,):
        raise ModelError(f"the window has shape {tuple(window)}, expected ({frame},)")
    if not stride or stride < 1 or not 1 <= frame <= signal[1]:
        raise ModelError(
            f"frames of {frame} every {stride} elements of a signal of {signal[1]}: the step must "
            "be positive, a frame not longer than the signal"
        )
    plan = Transform.of(frame, signal[2], frame, False, one)
    return stride, (signal[1] - frame) // stride + 1, plan


@labelled
def infer_stft(ctx: Inference) -> list[TensorType]:
    """Shape rule of STFT; step and length of the frames must be known."""
    x = ctx.shape(0)
    window = ctx.shape(2) if ctx.has(2) else None
    length = ctx.value(3) if ctx.has(3) else None
    _, frames, plan = _stft(x, ctx.value(1), window, length, ctx.attr("onesided"))
    return [TensorType(ctx.type(0).dtype, (x[0], frames, plan.made, plan.results))]


@compiled
def _lower_stft(ctx: Lowering) -> Lowered:
    """One product: overlapping frames are rows that begin ``step`` elements after each other."""
    x, window = ctx[0], ctx[2] if ctx.has(2) else None
    length = known(ctx, 3, "frame_length") if ctx.has(3) else None
    step, _, plan = _stft(
        x.shape,
        known(ctx, 1, "frame_step"),
        None if window is None else window.shape,
        length,
        ctx.attr("onesided"),
    )
    table = plan.table()
    if window is not None and window.constant is not None:
        table = table * window.constant.astype(np.float64)[:, None, None, None]
        window = None
    table = table.astype(compute_dtype(x.dtype))
    flat = x.reshape((x.shape[0], x.shape[1] * plan.parts)).stored()
    image, frame, point, result = axes_of(4)
    bound = ctx.axis(plan.taken), ctx.axis(plan.parts)
    t, part = (affine(name) for name, _ in bound)
    value = flat.at([image, (frame * step + t) * plan.parts + part])
    factor = ctx.constant(table).at([t, part, point, result])
    if window is not None:
        factor = factor * window.at([t])
    return lazy(ctx, Reduce("sum", bound, value * factor, value.dtype))


@operator("STFT", infer=infer_stft, lower=_lower_stft)
def stft(
    signal: Array,
    frame_step: Array,
    window: Array | None = None,
    frame_length: Array | None = None,
    *,
    onesided: int = 1,
) -> Array:
    """Fourier transforms of overlapping frames of a signal (ONNX STFT-17).

    Parameters
    ----------
    signal : float array (batch, length, 1) of real or (batch, length, 2) of complex numbers
    frame_step : integer
        Elements from the beginning of a frame to that of the next.
    window : float array (frame,), optional
        Factors of the elements of a frame.
    frame_length : integer, optional
        Default: that of the window, or of the signal.

    Returns
    -------
    float array (batch, frames, points, 2)
        ``frame // 2 + 1`` points with ``onesided``, else ``frame``.

    Raises
    ------
    ModelError
        Shapes that do not fit; ``onesided`` of a complex signal.
    """
    shape = None if window is None else window.shape
    step, frames, plan = _stft(signal.shape, frame_step, shape, frame_length, onesided)
    where = np.arange(frames)[:, None] * step + np.arange(plan.length)
    rows = wide(signal)[:, where]
    if window is not None:
        rows = rows * wide(window)[:, None]
    return narrow(plan.run(rows, 2), signal.dtype)


# MelWeightMatrix: made of scalars, so it is a constant of the compiled form


def _mel(count: Array, length: Array, rate: Array, low: Array, high: Array) -> Array:
    bands, points, samples = (int(np.asarray(v).reshape(())) for v in (count, length, rate))
    if bands < 1 or points < 1 or samples < 1:
        raise ModelError(
            f"{bands} bands of a transform of {points} points at {samples} samples per second: "
            "all must be positive"
        )
    edges = (float(np.asarray(v).reshape(())) for v in (low, high))
    first, last = (2595 * math.log10(1 + hertz / 700) for hertz in edges)
    mels = first + np.arange(bands + 2) * ((last - first) / (bands + 2))
    hertz = 700 * (10 ** (mels / 2595) - 1)
    bins = np.floor((points + 1) * hertz / samples).astype(np.int64)
    if bins.min() < 0 or bins.max() > points // 2:
        raise ModelError(
            f"the bands reach from point {bins.min()} to {bins.max()} of a spectrum of "
            f"{points // 2 + 1}. Choose edges between 0 and half the sample rate"
        )
    place = np.arange(points // 2 + 1)[:, None]
    left, centre, right = bins[:-2], bins[1:-1], bins[2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        rising = np.where(left == centre, 1.0, (place - left) / (centre - left))
        falling = (right - place) / (right - centre)
    rise = (place >= left) & (place <= centre)
    fall = (place >= centre) & (place < right)
    return np.where(fall, falling, np.where(rise, rising, 0.0))


@labelled
def infer_mel(ctx: Inference) -> list[TensorType]:
    """Shape rule of MelWeightMatrix; bands and points must be known."""
    bands, points = (int(ctx.value(i).reshape(())) for i in (0, 1))
    kind = dtype_of_onnx(ctx.attr("output_datatype"))
    return [TensorType(kind, (points // 2 + 1, bands))]


@operator("MelWeightMatrix", infer=infer_mel)
def mel_weight_matrix(
    num_mel_bins: Array,
    dft_length: Array,
    sample_rate: Array,
    lower_edge_hertz: Array,
    upper_edge_hertz: Array,
    *,
    output_datatype: int = 1,
) -> Array:
    """Triangles that weigh a spectrum into mel bands (ONNX MelWeightMatrix-17).

    Returns
    -------
    array (dft_length // 2 + 1, num_mel_bins) of the ONNX data type ``output_datatype``

    Raises
    ------
    ModelError
        Bands outside the spectrum.
    """
    given = (num_mel_bins, dft_length, sample_rate, lower_edge_hertz, upper_edge_hertz)
    return _mel(*given).astype(dtype_of_onnx(output_datatype))
