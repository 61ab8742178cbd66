"""Models beyond 2 GiB, weights in a file beside them: mapped, not read, not copied.

The file is sparse: it declares gigabytes and holds two pages.
"""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
from onnx import TensorProto, helper

import packhorse as ph

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")

ROWS, COLUMNS = 640 * 1024, 1024
NBYTES = ROWS * COLUMNS * 4
LIMIT = 256 << 20


def private_bytes() -> int:
    """Memory of this process that is no mapped file."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition("RssAnon:")[2].split()[0])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """``y = MatMul(Gather(table, ids), w)`` with a table of 2.5 GiB."""
    folder = tmp_path_factory.mktemp("large")
    table = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[ROWS, COLUMNS])
    table.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": "0", "length": str(NBYTES)}.items():
        table.external_data.add(key=key, value=value)
    with open(folder / "w.bin", "wb") as file:
        file.truncate(NBYTES)
        file.seek((ROWS - 1) * COLUMNS * 4)
        file.write(np.ones(COLUMNS, np.float32).tobytes())
    weights = helper.make_tensor("w", TensorProto.FLOAT, (COLUMNS, 8), np.full(COLUMNS * 8, 0.5))
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="embedding"),
        helper.make_node("MatMul", ["rows", "w"], ["y"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ("n",))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 8))],
        [table, weights],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    (folder / "large.onnx").write_bytes(proto.SerializeToString())
    return folder / "large.onnx"


@pytest.mark.parametrize("device", ["cpu", "llvm-cpu"])
def test_a_model_of_more_than_2_gib_is_not_copied(model, device):
    if device == "llvm-cpu":
        pytest.importorskip("llvmlite")
    before = private_bytes()
    with ph.load(model) as loaded:
        assert sum(math.prod(a.shape) * 4 for a in loaded.graph.constants.values()) > 2 << 30
        y = loaded(np.array([ROWS - 1, 0]), device=device)
        np.testing.assert_allclose(y, np.repeat([[COLUMNS / 2], [0]], 8, axis=1))
        assert private_bytes() - before < LIMIT
