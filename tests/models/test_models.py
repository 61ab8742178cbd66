"""Whole models against onnxruntime, on every way packhorse has to run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from packhorse.compiler.reference import ReferenceExecutable
from packhorse.compiler.specialize import shape_operands, specialize
from packhorse.graph.ir import TensorType
from packhorse_onnx import import_onnx

pytestmark = pytest.mark.models

DEVICES = ("reference", "specialized", "cpu", "llvm-cpu")
LOADED: dict[Path, Any] = {}


def run(path: Path, inputs: dict[str, Any], device: str) -> dict[str, Any]:
    """Outputs by name. The first two are the importer with and without specialisation."""
    if device in ("reference", "specialized"):
        graph = import_onnx(path)
        if device == "specialized":
            types = {k: TensorType(v.dtype, v.shape) for k, v in inputs.items()}
            values = {k: inputs[k] for k in shape_operands(graph)}
            graph = specialize(graph, types, values)
            assert all(t.is_static for t in graph.types.values())
        return ReferenceExecutable(graph).run(inputs)
    import packhorse

    if device == "llvm-cpu":
        pytest.importorskip("llvmlite")
    if path not in LOADED:
        LOADED.clear()  # one model's weights at a time
        LOADED[path] = packhorse.load(path)
    model = LOADED[path]
    found = model(**inputs, device=device)
    outputs = found if isinstance(found, tuple) else (found,)
    return dict(zip(model.outputs, outputs, strict=True))


def compare(path: Path, inputs: dict[str, Any], device: str, oracle: Any) -> None:
    wanted = oracle(path, inputs)
    found = run(path, inputs, device)
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-4, err_msg=name)


def page(height: int, width: int) -> Any:
    """A page with dark bars like lines of text, normalised as PP-OCR does."""
    rng = np.random.default_rng(height * width)
    image = np.full((1, 3, height, width), 0.9, np.float32)
    for top in range(6, height - 8, 16):
        for left in range(4, width - 12, 12):
            size = int(rng.integers(4, 10))
            image[:, :, top : top + 8, left : left + size] = 0.1
    return (image + rng.normal(0, 0.01, image.shape).astype(np.float32) - 0.5) / 0.5


def noise(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def speech(batch: int, samples: int) -> Any:
    """A vowel-like sum of harmonics."""
    time = np.arange(samples) / 16000
    tone = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 12))
    return np.repeat((0.1 * tone).astype(np.float32)[None], batch, 0)


def source_code(batch: int) -> Any:
    """The first bytes of this file and padding, as Magika feeds them."""
    data = np.frombuffer(Path(__file__).read_bytes()[:1500], np.uint8).astype(np.int32)
    row = np.concatenate([data, np.full(2048 - len(data), 256, np.int32)])
    return np.repeat(row[None], batch, 0)


def vad(samples: int, batch: int, rate: int | None) -> dict[str, Any]:
    inputs = {"input": speech(batch, samples), "state": 0.1 * noise(2, batch, 128)}
    return inputs if rate is None else {**inputs, "sr": np.array(rate, np.int64)}


DET, REC, CLS = (
    f"{name}.onnx"
    for name in (
        "ch_PP-OCRv4_det_infer",
        "ch_PP-OCRv4_rec_infer",
        "ch_ppocr_mobile_v2.0_cls_infer",
    )
)
TRAINED = [
    pytest.param(DET, {"x": page(96, 128)}, id="det-96x128"),
    pytest.param(DET, {"x": page(64, 160)}, id="det-64x160"),
    pytest.param(DET, {"x": noise(1, 3, 64, 64)}, id="det-noise"),
    pytest.param(REC, {"x": page(48, 96)}, id="rec-96"),
    pytest.param(REC, {"x": page(48, 200)}, id="rec-200"),
    pytest.param(CLS, {"x": page(48, 192)}, id="cls"),
    pytest.param(CLS, {"x": noise(2, 3, 48, 192)}, id="cls-batch"),
    pytest.param("magika_standard_v3_3.onnx", {"bytes": source_code(1)}, id="magika"),
    pytest.param("magika_standard_v3_3.onnx", {"bytes": source_code(3)}, id="magika-batch"),
    pytest.param("silero_vad.onnx", vad(576, 1, 16000), id="silero-16k"),
    pytest.param("silero_vad.onnx", vad(288, 2, 8000), id="silero-8k"),
    pytest.param("silero_vad_16k_op15.onnx", vad(576, 2, 16000), id="silero-op15"),
    pytest.param("silero_vad_half.onnx", vad(576, 1, None), id="silero-half"),
    pytest.param("silero_vad_op18_ifless.onnx", vad(576, 1, 16000), id="silero-op18"),
    pytest.param("silero_vad_op18_ifless.onnx", vad(288, 1, 8000), id="silero-op18-8k"),
    pytest.param("silero_vad_openvino_16k.onnx", vad(576, 1, None), id="silero-openvino"),
    pytest.param(
        "silero_vad_16k_sequence.onnx",
        {"input": speech(4, 576), "h": noise(1, 1, 128), "c": noise(1, 1, 128)},
        id="silero-sequence",
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "inputs"), TRAINED)
def test_trained(name: str, inputs: dict[str, Any], device: str, trained: Any, oracle: Any) -> None:
    compare(trained(name), inputs, device, oracle)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "batch", "seq"),
    [
        ("resnet18", 1, 0),
        ("resnet50", 1, 0),
        ("mobilenet_v2", 1, 0),
        ("mobilenet_v2", 2, 0),
        ("squeezenet1_1", 1, 0),
        ("minilm_l6", 1, 32),
        ("minilm_l6", 2, 17),
        ("mlp3", 1, 0),
        ("mlp3", 64, 0),
        ("lstm", 1, 0),
        ("lstm", 3, 0),
    ],
)
def test_random_weights(
    name: str, batch: int, seq: int, device: str, untrained: Any, feeds: Any, oracle: Any
) -> None:
    compare(untrained(name), feeds(name, batch, seq), device, oracle)
