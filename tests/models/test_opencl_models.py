"""Trained models on an OpenCL device give what onnxruntime gives, every operator by a kernel."""

from __future__ import annotations

import numpy as np
import pytest
from gpu_kit import opencl

import packhorse as ph

pytestmark = pytest.mark.models

MODELS = {
    "magika_standard_v3_3.onnx": {},
    "silero_vad_16k_op15.onnx": {"input": (1, 512), "state": (2, 1, 128)},
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": {"x": (1, 3, 48, 192)},
    "ch_PP-OCRv4_rec_infer.onnx": {"x": (1, 3, 48, 96)},
    "ch_PP-OCRv4_det_infer.onnx": {"x": (1, 3, 64, 64)},
}


def feeds(session, shapes):
    rng, found = np.random.default_rng(0), {}
    for given in session.get_inputs():
        shape = shapes.get(given.name, [d if isinstance(d, int) else 1 for d in given.shape])
        if "float" in given.type:
            found[given.name] = rng.standard_normal(shape, np.float32)
        else:  # bytes of a file, or the sampling rate
            kind = np.int32 if "int32" in given.type else np.int64
            found[given.name] = np.full(shape, 16000 if given.name == "sr" else 7, kind)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_onnxruntime(name, trained):
    opencl()
    ort = pytest.importorskip("onnxruntime")
    path = trained(name)
    session = ort.InferenceSession(str(path))
    inputs = feeds(session, MODELS[name])
    scalars = {n: a for n, a in inputs.items() if a.ndim == 0}
    shapes = {n: a.shape for n, a in inputs.items()}
    with ph.load(path).compile("opencl:0", shapes=shapes, values=scalars) as executable:
        got = executable(**inputs)
        hosts = [row for row in executable.report() if row.device != "opencl:0"]
    assert not hosts
    outputs = got if isinstance(got, tuple) else (got,)
    for ours, theirs in zip(outputs, session.run(None, inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
