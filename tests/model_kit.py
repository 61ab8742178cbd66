"""Small models and the devices to run them on, for tests of the public interface."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from packhorse.graph.ir import Graph, Node, TensorType, Value
from packhorse.model import Model

LLVM = "llvm-cpu?threads=1"
NEEDS_LLVM = pytest.mark.skipif(
    importlib.util.find_spec("llvmlite") is None, reason="the extra [llvm-cpu] is not installed"
)
NEEDS_ONNX = pytest.mark.skipif(
    importlib.util.find_spec("onnx") is None, reason="the extra [onnx] is not installed"
)
DEVICES = ("cpu", pytest.param(LLVM, marks=NEEDS_LLVM))
"""For ``parametrize("device", DEVICES)``: the references, and compiled."""

F32 = np.dtype(np.float32)


def value(name, dims, dtype=F32):
    """A graph input or output."""
    return Value(name, TensorType(np.dtype(dtype), dims))


def weights():
    """Weight (4, 3) and bias (3,) of :func:`linear`."""
    rng = np.random.default_rng(7)
    return rng.standard_normal((4, 3), np.float32), rng.standard_normal(3, np.float32)


def linear(batch="n"):
    """y = relu(x @ w + b) of x (batch, 4)."""
    w, b = weights()
    nodes = [
        Node("MatMul", ["x", "w"], ["xw"], name="product"),
        Node("Add", ["xw", "b"], ["sum"], name="bias"),
        Node("Relu", ["sum"], ["y"], name="relu"),
    ]
    outputs = [value("y", (batch, 3))]
    return Model(Graph("linear", [value("x", (batch, 4))], outputs, nodes, {"w": w, "b": b}))


def linear_of(x):
    """What :func:`linear` computes."""
    w, b = weights()
    return np.maximum(x @ w + b, 0)


def pair(batch="n"):
    """Two inputs of the same batch, two outputs: a + b and a * b."""
    nodes = [
        Node("Add", ["left", "right"], ["sum"], name="add"),
        Node("Mul", ["left", "right"], ["product"], name="mul"),
    ]
    inputs = [value(n, (batch, 3)) for n in ("left", "right")]
    outputs = [value(n, (batch, 3)) for n in ("sum", "product")]
    return Model(Graph("pair", inputs, outputs, nodes, {}))


def batch_of(rows, seed=0):
    """An input of :func:`linear`."""
    return np.random.default_rng(seed).standard_normal((rows, 4), np.float32)


def save_onnx(path, op="Relu", domain="", inputs=(("x", (2, 3)),), **attrs):
    """An ONNX file of one node (needs onnx); returns the path."""
    import onnx
    from onnx import TensorProto, helper

    def info(name, dims):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    node = helper.make_node(op, [n for n, _ in inputs], ["y"], name="only", domain=domain, **attrs)
    graph = helper.make_graph(
        [node], "one", [info(n, d) for n, d in inputs], [info("y", inputs[0][1])]
    )
    opsets = [helper.make_opsetid("", 17)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=opsets), path)
    return Path(path)


def run_python(code, *args, without=(), env=None):
    """Run code in a fresh interpreter in which the modules ``without`` cannot be imported.

    Warnings are errors there too. Returns what it printed; fails the test if it failed.
    """
    lines = ["import sys", *(f"sys.modules[{name!r}] = None" for name in without)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(lines) + "\n" + dedent(code), *args],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
