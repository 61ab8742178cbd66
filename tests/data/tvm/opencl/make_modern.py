# ruff: noqa
# mypy: ignore-errors
"""Makes the folder modern/ with apache-tvm 0.27: python make_modern.py FOLDER.

The wheel compiles for OpenCL but cannot run it: what is expected was computed by its llvm build
of the same functions.
"""

import sys
from pathlib import Path

import numpy as np
import tvm
from tvm import relax

from tvm.script import ir as I
from tvm.script import tirx as T

HOST = {"kind": "llvm", "mcpu": "x86-64"}
TARGET = tvm.target.Target({"kind": "opencl", "host": HOST})


@I.ir_module
class Functions:
    @T.prim_func
    def myadd(a: T.handle, b: T.handle, c: T.handle):
        T.func_attr({"global_symbol": "myadd"})
        n = T.int64()
        A = T.match_buffer(a, (n,), "float32")
        B = T.match_buffer(b, (n,), "float32")
        C = T.match_buffer(c, (n,), "float32")
        for bx in T.thread_binding((n + 63) // 64, thread="blockIdx.x"):
            for tx in T.thread_binding(64, thread="threadIdx.x"):
                if bx * 64 + tx < n:
                    C[bx * 64 + tx] = A[bx * 64 + tx] + B[bx * 64 + tx]


def network(rng):
    """Convolution + bias + relu, pooling, dense + bias, softmax; outputs: softmax and logits."""

    def weight(*shape):
        return relax.const((rng.standard_normal(shape) * 0.2).astype("float32"))

    bb = relax.BlockBuilder()
    data = relax.Var("data", relax.TensorType((1, 3, 32, 32), "float32"))
    op = relax.op
    with bb.function("main", [data]):
        with bb.dataflow():
            y = bb.emit(op.nn.conv2d(data, weight(4, 3, 3, 3), padding=(1, 1)))
            y = bb.emit(op.nn.relu(bb.emit(op.add(y, weight(1, 4, 1, 1)))))
            y = bb.emit(op.nn.max_pool2d(y, (4, 4), (4, 4)))
            y = bb.emit(op.reshape(y, (1, 256)))
            logits = bb.emit(op.add(bb.emit(op.matmul(y, weight(256, 10))), weight(10)))
            out = bb.emit_output(relax.Tuple([bb.emit(op.nn.softmax(logits)), logits]))
        bb.emit_func_output(out)
    return bb.get(), rng.standard_normal((1, 3, 32, 32)).astype("float32")


def main(folder):
    folder.mkdir(exist_ok=True)
    tvm.compile(Functions, TARGET).export_library(str(folder / "myadd.so"), options=["-s"])
    module, image = network(np.random.default_rng(4))
    built = tvm.compile(module, tvm.target.Target(HOST))
    vm = relax.VirtualMachine(built, tvm.cpu())
    np.save(folder / "in_data.npy", image)
    for i, out in enumerate(vm["main"](tvm.runtime.tensor(image))):
        np.save(folder / f"out_{i}.npy", out.numpy())
    built = tvm.compile(module, TARGET)
    built.export_library(str(folder / "relax.so"), options=["-s"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
