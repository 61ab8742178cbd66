# ruff: noqa
# mypy: ignore-errors
"""Makes the folder legacy/ with TVM 0.16 (the fork's wheel that tox -e tvm-legacy uses).

python make_legacy.py FOLDER. The fork cannot run OpenCL itself: what is expected was computed by
its llvm build of the same functions.
"""

import os
import sys
from pathlib import Path

os.environ["TOPHUB_LOCATION"] = "NONE"  # tuned schedules would be fetched

import numpy as np
import tvm
from tvm import relay, te
from tvm.contrib import graph_executor

HOST = tvm.target.Target("llvm -mtriple=x86_64-linux-gnu -mcpu=x86-64")
TARGET = tvm.target.Target("opencl", host=HOST)


def myadd():
    """C[i] = A[i] + B[i] for any length: work-groups of 64, the last one guarded."""
    n = te.var("n")
    A, B = (te.placeholder((n,), name=name) for name in "AB")
    C = te.compute((n,), lambda i: A[i] + B[i], name="C")
    s = te.create_schedule(C.op)
    bx, tx = s[C].split(C.op.axis[0], factor=64)
    s[C].bind(bx, te.thread_axis("blockIdx.x"))
    s[C].bind(tx, te.thread_axis("threadIdx.x"))
    return s, [A, B, C]


def matmul(m=48, n=32, k=40):
    """C = A @ B: two-dimensional grid and groups, tiles of both factors in local memory."""
    A, B = te.placeholder((m, k), name="A"), te.placeholder((k, n), name="B")
    r = te.reduce_axis((0, k), name="r")
    C = te.compute((m, n), lambda i, j: te.sum(A[i, r] * B[r, j], axis=r), name="C")
    s = te.create_schedule(C.op)
    AA, BB = s.cache_read(A, "shared", [C]), s.cache_read(B, "shared", [C])
    CC = s.cache_write(C, "local")
    by, ty = s[C].split(C.op.axis[0], factor=8)
    bx, tx = s[C].split(C.op.axis[1], factor=8)
    s[C].reorder(by, bx, ty, tx)
    threads = [te.thread_axis((0, 8), name) for name in ("threadIdx.y", "threadIdx.x")]
    s[C].bind(by, te.thread_axis("blockIdx.y"))
    s[C].bind(bx, te.thread_axis("blockIdx.x"))
    s[C].bind(ty, threads[0])
    s[C].bind(tx, threads[1])
    s[CC].compute_at(s[C], tx)
    ro, _ = s[CC].split(s[CC].op.reduce_axis[0], factor=8)
    for tile in (AA, BB):
        s[tile].compute_at(s[CC], ro)
        y, x = s[tile].op.axis
        s[tile].bind(s[tile].split(y, nparts=8)[0], threads[0])
        s[tile].bind(s[tile].split(x, nparts=8)[0], threads[1])
    return s, [A, B, C]


def scale():
    """Y[i] = X[i] * f + g with f a float64 and g an int32 argument, through a buffer of the device."""
    n, f, g = te.var("n"), te.var("f", "float64"), te.var("g", "int32")
    X = te.placeholder((n,), name="X")
    T = te.compute((n,), lambda i: X[i] * f.astype("float32"), name="T")
    Y = te.compute((n,), lambda i: T[i] + g.astype("float32"), name="Y")
    s = te.create_schedule(Y.op)
    for stage in (T, Y):
        bx, tx = s[stage].split(stage.op.axis[0], factor=32)
        s[stage].bind(bx, te.thread_axis("blockIdx.x"))
        s[stage].bind(tx, te.thread_axis("threadIdx.x"))
    return s, [X, f, g, Y]


def network(rng):
    """Convolution + bias + relu, pooling, dense + bias, softmax; outputs: softmax and logits."""
    data = relay.var("data", shape=(1, 3, 32, 32))
    w, b = relay.var("conv_w", shape=(4, 3, 3, 3)), relay.var("conv_b", shape=(4,))
    d, e = relay.var("fc_w", shape=(10, 256)), relay.var("fc_b", shape=(10,))
    y = relay.nn.conv2d(data, w, padding=(1, 1), channels=4, kernel_size=(3, 3))
    y = relay.nn.max_pool2d(relay.nn.relu(relay.nn.bias_add(y, b)), (4, 4), (4, 4))
    logits = relay.nn.bias_add(relay.nn.dense(relay.nn.batch_flatten(y), d), e)
    out = relay.Tuple([relay.nn.softmax(logits), logits])
    shapes = {"conv_w": (4, 3, 3, 3), "conv_b": (4,), "fc_w": (10, 256), "fc_b": (10,)}
    params = {k: (rng.standard_normal(s) * 0.2).astype("float32") for k, s in shapes.items()}
    module = tvm.IRModule.from_expr(relay.Function([data, w, b, d, e], out))
    return module, params, rng.standard_normal((1, 3, 32, 32)).astype("float32")


def main(folder):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(4)
    for name, (s, args) in {"myadd": myadd(), "matmul": matmul(), "scale": scale()}.items():
        built = tvm.build(s, args, TARGET, name=name)
        built.export_library(str(folder / f"{name}.so"))
        built.imported_modules[0].save(str(folder / f"{name}.cl"))
    module, params, image = network(rng)
    results = {}
    for target in (HOST, TARGET):
        with tvm.transform.PassContext(opt_level=3):
            results[target] = relay.build(module, target=target, params=params)
    graph = graph_executor.GraphModule(results[HOST]["default"](tvm.cpu()))
    graph.run(data=image)
    np.save(folder / "in_data.npy", image)
    for i in range(2):
        np.save(folder / f"out_{i}.npy", graph.get_output(i).numpy())
    built = results[TARGET]
    (folder / "deploy.json").write_text(built.get_graph_json())
    (folder / "deploy.params").write_bytes(relay.save_param_dict(built.get_params()))
    built.get_lib().export_library(str(folder / "deploy.so"))
    built.export_library(str(folder / "deploy_factory.so"))
    for file in folder.glob("*.so"):
        file.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
