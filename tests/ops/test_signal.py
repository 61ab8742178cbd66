"""DFT, STFT and MelWeightMatrix against onnxruntime and ONNX's evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import check, evaluator, infer, lowered, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.ops import NotStatic
from packhorse.ops.signal import MAX_TABLE

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


def signal(*shape: int, dtype: str = "float32") -> np.ndarray[Any, Any]:
    return np.random.default_rng(shape).standard_normal(shape).astype(dtype)


def points(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Numbers whose parts lie in the last dimension, as NumPy has them."""
    return x[..., 0].astype(complex) + (1j * x[..., 1] if x.shape[-1] == 2 else 0)


def parts(x: np.ndarray[Any, Any], dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.stack([x.real, x.imag], -1).astype(dtype)


@pytest.mark.parametrize("shape", [(2, 7, 1), (2, 8, 2), (3, 5, 4, 2), (6, 1)])
@pytest.mark.parametrize("inverse", [0, 1])
@pytest.mark.parametrize("length", [None, 5, 12])
def test_dft(shape: Any, inverse: int, length: int | None) -> None:
    x = signal(*shape)
    function = np.fft.ifft if inverse else np.fft.fft
    for axis in range(len(shape) - 1):
        want = [parts(function(points(x), length, axis))]
        inputs = [x, None if length is None else np.array(length), np.array(axis - len(shape))]
        check("DFT", inputs, {"inverse": inverse}, want=want, constant=[1, 2], **CLOSE)


def test_dft_by_default_is_along_the_last_signal_axis() -> None:
    x = signal(2, 3, 6, 2)
    check("DFT", [x], oracle=evaluator, **CLOSE)
    check("DFT", [x[..., :1]], {"onesided": 1}, oracle=evaluator, **CLOSE)


@pytest.mark.parametrize("extent", [6, 7])
@pytest.mark.parametrize("length", [None, 4, 5, 12])
def test_onesided(extent: int, length: int | None) -> None:
    x = signal(2, extent, 3, 1)
    given = None if length is None else np.array(length)
    want = parts(np.fft.rfft(x[..., 0].astype(float), length, 1))
    inputs = [x, given, np.array(1)]
    check("DFT", inputs, {"onesided": 1}, want=[want], constant=[1, 2], **CLOSE)
    half = signal(2, extent, 3, 2)
    back = np.fft.irfft(points(half), length, 1)[..., None].astype(np.float32)
    attrs = {"onesided": 1, "inverse": 1}
    check("DFT", [half, *inputs[1:]], attrs, want=[back], constant=[1, 2], **CLOSE)


def test_dft_of_other_floats() -> None:
    x = signal(2, 8, 2, dtype="float64")
    check("DFT", [x], want=[parts(np.fft.fft(points(x), axis=1), np.float64)])
    half = x.astype(np.float16)
    check("DFT", [half], want=[parts(np.fft.fft(points(half), axis=1), np.float16)], atol=1e-2)


def test_long_transforms_stay_on_the_host() -> None:
    x = signal(1, 5000, 2)
    assert MAX_TABLE < 4 * 5000**2
    with pytest.raises(UnsupportedOperator, match="5000 points is not compiled"):
        lowered(node_of("DFT", [x]), [x])


@pytest.mark.parametrize(
    ("arrays", "attrs", "message"),
    [
        ([signal(4, 3)], {}, "holds 3 numbers, expected 1"),
        ([signal(4)], {}, r"axis -2 is outside"),
        ([signal(4, 2), None, np.array(1)], {}, "not the last"),
        ([signal(4, 2)], {"onesided": 1}, "onesided needs real numbers, found 2"),
        ([signal(4, 1)], {"onesided": 1, "inverse": 1}, "needs complex numbers, found 1"),
        ([signal(4, 1), np.array(0)], {}, "a transform of 0 points"),
        ([signal(1, 2)], {"onesided": 1, "inverse": 1}, "a transform of 0 points"),
    ],
)
def test_dft_errors(arrays: list[Any], attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        infer(node_of("DFT", arrays, attrs), arrays)


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize(("length", "step", "frame"), [(40, 4, 16), (33, 7, 9), (12, 1, 12)])
def test_stft(onesided: int, window: bool, length: int, step: int, frame: int) -> None:
    x = signal(2, length, 1)
    shape = np.hanning(frame).astype(np.float32) if window else None
    inputs = [x, np.array(step), shape, np.array(frame)]
    for constant in ([1, 3], [1, 2, 3]):
        attrs = {"onesided": onesided}
        check("STFT", inputs, attrs, constant=constant, oracle=evaluator, **CLOSE)


def test_stft_of_complex_signals_and_defaults() -> None:
    x = signal(1, 20, 2)
    frames = np.stack([points(x)[:, s : s + 8] for s in (0, 6, 12)], 1)
    want = [parts(np.fft.fft(frames))]
    inputs = [x, np.array(6), None, np.array(8)]
    check("STFT", inputs, {"onesided": 0}, want=want, constant=[1, 3], **CLOSE)
    check("STFT", [x, np.array(6), np.ones(8, np.float32)], {"onesided": 0}, want=want, **CLOSE)
    whole = [parts(np.fft.fft(points(x)))[:, None]]
    check("STFT", [x, np.array(6)], {"onesided": 0}, want=whole, **CLOSE)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([signal(2, 9), np.array(1)], r"expected \(batch, length, 1 or 2\)"),
        ([signal(1, 9, 1), np.array(0)], "the step must be positive"),
        ([signal(1, 9, 1), np.array(2), None, np.array(10)], "a frame not longer"),
        ([signal(1, 9, 1), np.array(2), signal(4), np.array(5)], r"shape \(4,\), expected \(5,\)"),
        ([signal(1, 9, 2), np.array(2)], "onesided needs real"),
    ],
)
def test_stft_errors(arrays: list[Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        infer(node_of("STFT", arrays), arrays)


def test_frames_must_be_known() -> None:
    arrays = [signal(1, 9, 1), np.array(2)]
    with pytest.raises(NotStatic):
        infer(node_of("STFT", arrays), arrays, known=[])
    with pytest.raises(UnsupportedOperator, match=r"frame_step \(input 1\) is not known"):
        lowered(node_of("STFT", arrays), arrays)


def scalars(*values: float) -> list[np.ndarray[Any, Any]]:
    kinds = (np.int64, np.int64, np.int64, np.float32, np.float32)
    return [np.array(v, kind) for v, kind in zip(values, kinds, strict=True)]


@pytest.mark.parametrize("given", [(8, 16, 8192, 0, 4096), (40, 512, 16000, 125, 7500)])
def test_mel_weight_matrix(given: tuple[float, ...]) -> None:
    check("MelWeightMatrix", scalars(*given), lower=False, oracle=evaluator)
    check("MelWeightMatrix", scalars(*given), {"output_datatype": 11}, lower=False,
          oracle=evaluator)  # fmt: skip


def test_mel_errors() -> None:
    for given, message in (
        ((8, 16, 8192, 0, 9000), "Choose edges between 0 and half the sample rate"),
        ((0, 16, 8192, 0, 4096), "all must be positive"),
    ):
        with pytest.raises(ModelError, match=message):
            reference(node_of("MelWeightMatrix", scalars(*given)), scalars(*given))
