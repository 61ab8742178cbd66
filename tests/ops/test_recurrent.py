"""LSTM, GRU, RNN and DynamicQuantizeLSTM against onnxruntime: rule, reference and lowering."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from oracle import check, infer, lowered, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.ops._recurrence import ACTIVATIONS

Array = np.ndarray[Any, Any]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
T, B, N, H = 4, 3, 5, 6
SIZES = {"LSTM": (4, 2), "GRU": (3, 1), "RNN": (1, 1)}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
UNEVEN = np.array([4, 2, 3], np.int32)


def random(*shape: int, dtype: str = "float32", seed: int = 0) -> Array:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * 0.8).astype(dtype)


def inputs_of(
    op: str, many: int, *, lengths: Array | None = None, peepholes: bool = False, bias: bool = True,
    states: bool = True, dtype: str = "float32",
) -> list[Array | None]:  # fmt: skip
    gates, count = SIZES[op]
    made: list[Array | None] = [
        random(T, B, N, dtype=dtype),
        random(many, gates * H, N, dtype=dtype),
        random(many, gates * H, H, dtype=dtype),
        random(many, 2 * gates * H, dtype=dtype) if bias else None,
        lengths,
    ]
    made += [random(many, B, H, seed=i, dtype=dtype) if states else None for i in range(count)]
    return [*made, random(many, 3 * H, dtype=dtype)] if peepholes else made


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", SIZES)
def test_directions(op: str, direction: str) -> None:
    attrs: dict[str, Any] = {"direction": direction, "hidden_size": H}
    if op == "GRU":
        attrs["linear_before_reset"] = 1
    even = np.full(B, T, np.int32)
    for lengths, constant in ((None, ()), (None, (1, 2, 3)), (even, (1, 2, 3, 4)), (UNEVEN, ())):
        inputs = inputs_of(op, DIRECTIONS[direction], lengths=lengths)
        outputs = 1 + SIZES[op][1]
        lower = lengths is not UNEVEN
        check(op, inputs, attrs, outputs=outputs, constant=constant, lower=lower, **CLOSE)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gru_reset_after(direction: str) -> None:
    inputs = inputs_of("GRU", DIRECTIONS[direction], lengths=UNEVEN)
    attrs = {"direction": direction, "hidden_size": H}
    check("GRU", inputs, attrs, outputs=2, lower=False, **CLOSE)


@pytest.mark.parametrize(
    ("peepholes", "input_forget", "clip"),
    list(itertools.product([False, True], [0, 1], [None, 0.3])),
)
def test_lstm_forms(peepholes: bool, input_forget: int, clip: float | None) -> None:
    attrs: dict[str, Any] = {"hidden_size": H, "input_forget": input_forget}
    if clip:
        attrs["clip"] = clip
    check("LSTM", inputs_of("LSTM", 1, peepholes=peepholes), attrs, outputs=3, **CLOSE)


@pytest.mark.parametrize("op", SIZES)
def test_optional_inputs(op: str) -> None:
    attrs: dict[str, Any] = {"hidden_size": H}
    if op == "GRU":
        attrs["linear_before_reset"] = 1
    full = inputs_of(op, 1, bias=False, states=False)
    check(op, full[:3], attrs, **CLOSE)
    check(op, full, attrs, **CLOSE)


@pytest.mark.parametrize("op", SIZES)
def test_batch_first(op: str) -> None:
    """onnxruntime has no layout 1: compare with layout 0 on turned data."""
    attrs: dict[str, Any] = {"hidden_size": H, "direction": "bidirectional"}
    if op == "GRU":
        attrs["linear_before_reset"] = 1
    inputs = inputs_of(op, 2)
    outputs = 1 + SIZES[op][1]
    plain = reference(node_of(op, inputs, attrs, outputs), inputs)
    turned = [
        np.ascontiguousarray(v.swapaxes(0, 1)) if i in (0, 5, 6) and v is not None else v
        for i, v in enumerate(inputs)
    ]
    want = [plain[0].transpose(2, 0, 1, 3), *(v.swapaxes(0, 1) for v in plain[1:])]
    check(op, turned, {**attrs, "layout": 1}, outputs=outputs, want=want, **CLOSE)


PROPER = {
    "leakyrelu": "LeakyRelu", "thresholdedrelu": "ThresholdedRelu",
    "scaledtanh": "ScaledTanh", "hardsigmoid": "HardSigmoid",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations(name: str) -> None:
    proper = PROPER.get(name, name.title())
    inputs = inputs_of("RNN", 2)
    attrs: dict[str, Any] = {
        "hidden_size": H, "direction": "bidirectional", "activations": [proper, "Tanh"],
    }  # fmt: skip
    count = len(ACTIVATIONS[name].defaults)
    attrs["activation_alpha"] = [0.7][:count]
    attrs["activation_beta"] = [0.3][: count - 1]
    attrs = {k: v for k, v in attrs.items() if v}
    check("RNN", inputs, attrs, outputs=2, **CLOSE)


@pytest.mark.parametrize("op", SIZES)
def test_double_precision(op: str) -> None:
    inputs = inputs_of(op, 1, dtype="float64")
    single = [None if v is None else v.astype(np.float32) for v in inputs]
    attrs: dict[str, Any] = {"hidden_size": H}
    if op == "GRU":
        attrs["linear_before_reset"] = 1
    for found, wanted in zip(
        reference(node_of(op, inputs, attrs), inputs),
        reference(node_of(op, single, attrs), single),
        strict=True,
    ):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_half_precision_lowering() -> None:
    inputs = inputs_of("LSTM", 1, dtype="float16")
    node = node_of("LSTM", inputs, {"hidden_size": H}, 3)
    for found, wanted in zip(lowered(node, inputs), reference(node, inputs), strict=True):
        assert found is not None
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("change", "attrs", "message"),
    [
        ({1: (1, 4 * H, N + 1)}, {}, "W has shape"),
        ({2: (1, 3 * H, H)}, {}, "R has shape"),
        ({3: (1, 4 * H)}, {}, "B has shape"),
        ({5: (1, B + 1, H)}, {}, "initial_h has shape"),
        ({0: (T, B)}, {}, "three dimensions"),
        ({}, {"direction": "backward"}, "direction is 'backward'"),
        ({}, {"hidden_size": 3}, "hidden_size is 3"),
        ({}, {"activations": ["Tanh"]}, "1 activations"),
        ({}, {"direction": "bidirectional"}, "W has shape"),
    ],
)
def test_errors(change: dict[int, tuple[int, ...]], attrs: dict[str, Any], message: str) -> None:
    inputs = inputs_of("LSTM", 1)
    for i, shape in change.items():
        inputs[i] = np.zeros(shape, np.float32)
    with pytest.raises(ModelError, match=message) as caught:
        infer(node_of("LSTM", inputs, attrs), inputs)
    assert "'node' (LSTM)" in str(caught.value)


def test_unknown_activation() -> None:
    inputs = inputs_of("RNN", 1)
    with pytest.raises(UnsupportedOperator, match=r"'Gelu' is not implemented.*relu"):
        infer(node_of("RNN", inputs, {"activations": ["Gelu"]}), inputs)


@pytest.mark.parametrize(
    ("op", "lengths", "constant", "message"),
    [("GRU", None, (), "linear_before_reset"), ("LSTM", UNEVEN, (4,), "different lengths"),
     ("LSTM", np.full(B, T, np.int32), (), "different lengths")],
)  # fmt: skip
def test_forms_left_to_the_reference(
    op: str, lengths: Array | None, constant: tuple[int, ...], message: str
) -> None:
    inputs = inputs_of(op, 1, lengths=lengths)
    with pytest.raises(UnsupportedOperator, match=message):
        lowered(node_of(op, inputs), inputs, constant)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_dynamic_quantize_lstm(direction: str, channels: bool, dtype: str) -> None:
    many = DIRECTIONS[direction]
    rng = np.random.default_rng(3)
    info = np.iinfo(dtype)
    w, r = (
        rng.integers(info.min, info.max, (many, n, 4 * H), endpoint=True).astype(dtype)
        for n in (N, H)
    )
    shape = (many, 4 * H) if channels else (many,)
    scales = [rng.uniform(0.002, 0.004, shape).astype(np.float32) for _ in range(2)]
    # onnxruntime wants symmetric weights where the scale is per channel
    zero = np.full(shape, (info.max + info.min + 1) // 2, dtype)
    full = inputs_of("LSTM", many)
    inputs = [full[0], w, r, *full[3:7], None, scales[0], zero, scales[1], zero]
    attrs = {"direction": direction, "hidden_size": H}
    check(
        "DynamicQuantizeLSTM", inputs, attrs, outputs=3, lower=False, domain="com.microsoft",
        rtol=1e-3, atol=1e-4,
    )  # fmt: skip


def test_dynamic_quantize_lstm_needs_scales() -> None:
    full = inputs_of("LSTM", 1)
    inputs = [full[0], np.zeros((1, N, 4 * H), np.int8), np.zeros((1, H, 4 * H), np.int8)]
    node = node_of("DynamicQuantizeLSTM", inputs)
    node.domain = "com.microsoft"
    with pytest.raises(ModelError, match="scales"):
        reference(node, inputs)
