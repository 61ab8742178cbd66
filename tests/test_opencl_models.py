"""Networks of the benchmarks on an OpenCL device, small enough for every run of the tests.

Images are 64 pixels wide instead of 224, which a CPU's OpenCL driver would take minutes for; the
full sizes and the trained models are in ``tests/models/test_opencl_models.py``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from gpu_kit import opencl

import packhorse as ph

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

SIZE = 64
SHAPES = {
    "squeezenet1_1": {"x": (1, 3, SIZE, SIZE)},
    "mobilenet_v2": {"x": (1, 3, SIZE, SIZE)},
    "mlp3": {"x": (3, 784)},
    "lstm": {"x": (32, 2, 128)},
}


def network(name):
    """A model with random weights; images of any size."""
    path = Path(__file__).parent.parent / "benchmarks" / "models.py"
    spec = importlib.util.spec_from_file_location("benchmark_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.MODELS[name]()
    for given in model.graph.input:
        for i, dim in enumerate(given.type.tensor_type.shape.dim):
            if dim.dim_value == 224:
                dim.dim_param = f"side{i}"
    return model.SerializeToString()


@pytest.mark.parametrize("name", SHAPES)
def test_equal_to_onnxruntime(name, tmp_path):
    opencl()
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(network(name))
    rng = np.random.default_rng(0)
    feeds = {n: rng.standard_normal(shape, np.float32) for n, shape in SHAPES[name].items()}
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, feeds)
    with ph.load(path).compile("opencl:0", shapes=SHAPES[name]) as executable:
        found = executable(**feeds)
        assert {row.device for row in executable.report()} == {"opencl:0"}
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
