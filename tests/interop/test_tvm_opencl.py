"""Models that apache-tvm 0.27 compiles for OpenCL, now and not years ago, on a device of packhorse.

TVM's wheel has no OpenCL runtime: what is expected comes from its build for the processor.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from gpu_kit import opencl
from interop_kit import optional

import packhorse as ph

tvm = optional("tvm")
relax = optional("tvm.relax")
tirx = optional("tvm.tirx")
pytest.importorskip("pyopencl", reason="pyopencl is not installed (extra opencl)")

HOST = {"kind": "llvm", "mcpu": "x86-64"}


def dense(batch):
    """Dense, relu, softmax of a batch: a number, or a symbol."""
    rng = np.random.default_rng(6)
    weights = relax.const(rng.standard_normal((24, 10), np.float32))
    x = relax.Var("x", relax.TensorType((batch, 24), "float32"))
    builder, op = relax.BlockBuilder(), relax.op
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(op.nn.relu(builder.emit(op.matmul(x, weights))))
            z = builder.emit_output(op.nn.softmax(y))
        builder.emit_func_output(z)
    return builder.get()


def compiled(module, folder):
    """The library for OpenCL, and TVM's machine for the processor."""
    target = tvm.target.Target({"kind": "opencl", "host": HOST})
    path = folder / "deploy.so"
    tvm.compile(module, target).export_library(str(path))
    machine = relax.VirtualMachine(tvm.compile(module, tvm.target.Target(HOST)), tvm.cpu())
    return path, lambda x: machine["main"](tvm.runtime.tensor(x)).numpy()


@pytest.mark.parametrize("batch", [3, "n"])
def test_batches(tmp_path, batch):
    opencl()
    symbolic = batch == "n"
    module = dense(tirx.Var("n", "int64") if symbolic else batch)
    path, expected = compiled(module, tmp_path)
    rng = np.random.default_rng(7)
    with ph.load(path) as network:
        assert network.device.name == "opencl:0"
        for size in (1, 5, 1, 130) if symbolic else (3, 3):
            x = rng.standard_normal((size, 24), np.float32)
            np.testing.assert_allclose(network(x), expected(x), rtol=2e-6, atol=1e-7)
