"""Random small networks: what is fused, viewed and laid out must not change what comes out.

Each graph is a chain of shape changes, reductions and arithmetic with several outputs, run by the
references and by compiled kernels on the same random inputs.
"""

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("llvmlite")
from gpu_kit import opencl
from onnx import TensorProto, helper, numpy_helper

from packhorse.model import Model
from packhorse_onnx.importer import import_onnx

COUNT = 24
FOUND = (326, 364, 667, 871)  # products over nothing, whose sources no kernel writes


class Sketch:
    """Grows a graph node by node; shapes are tracked so that every node is valid."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.nodes, self.constants = [], []
        self.batch = int(self.random.choice([0, 1, 2, 3], p=[0.1, 0.3, 0.3, 0.3]))
        rank = int(self.random.integers(1, 4))
        shape = (self.batch, *(int(n) for n in self.random.integers(1, 7, rank)))
        self.input = shape
        self.values = {"x": shape}
        self.last = "x"

    def constant(self, array):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op, inputs, shape, **attributes):
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n_{name}", **attributes))
        self.values[name] = tuple(int(n) for n in shape)
        self.last = name

    def grow(self):
        pick = self.random.choice(sorted(STEPS))
        STEPS[pick](self, self.last, self.values[self.last])
        if self.random.random() < 0.15:  # go on from something older
            self.last = str(self.random.choice(list(self.values)))

    def weights(self, *shape):
        return self.constant(self.random.standard_normal(shape).astype(np.float32))


def unary(s, x, shape):
    s.node(str(s.random.choice(["Relu", "Tanh", "Sigmoid", "Neg", "Abs"])), [x], shape)


def binary(s, x, shape):
    same = [name for name, other in s.values.items() if other == shape]
    other = str(s.random.choice(same)) if s.random.random() < 0.6 else s.weights(*shape[1:])
    s.node(str(s.random.choice(["Add", "Mul", "Sub", "Max"])), [x, other], shape)


def transpose(s, x, shape):
    if not shape:
        return
    perm = [int(d) for d in s.random.permutation(len(shape))]
    s.node("Transpose", [x], [shape[d] for d in perm], perm=perm)


def reshape(s, x, shape):
    flat = list(shape)
    while len(flat) > 1 and s.random.random() < 0.7:  # merge neighbours
        d = int(s.random.integers(len(flat) - 1))
        flat[d : d + 2] = [flat[d] * flat[d + 1]]
    for d in range(len(flat) - 1, -1, -1):  # split even ones
        if flat[d] and flat[d] % 2 == 0 and s.random.random() < 0.4:
            flat[d : d + 1] = [2, flat[d] // 2]
    s.node("Reshape", [x, s.constant(np.array(flat, np.int64))], flat, allowzero=1)


def reduce(s, x, shape):
    if not shape:
        return
    axis = int(s.random.integers(len(shape)))
    if shape[axis] == 0:
        return
    keep = int(s.random.integers(2))
    rest = list(shape)
    rest[axis : axis + 1] = [1] if keep else []
    op = str(s.random.choice(["ReduceSum", "ReduceMax", "ReduceMean"]))
    s.node(op, [x, s.constant(np.array([axis], np.int64))], rest, keepdims=keep)


def softmax(s, x, shape):
    axis = int(s.random.integers(len(shape))) if shape else 0
    if shape and shape[axis]:
        s.node("Softmax", [x], shape, axis=axis)


def matmul(s, x, shape):
    if len(shape) >= 2:
        n = int(s.random.integers(1, 9))
        s.node("MatMul", [x, s.weights(shape[-1], n)], [*shape[:-1], n])


def concat(s, x, shape):
    if shape:
        axis = int(s.random.integers(len(shape)))
        same = [name for name, other in s.values.items() if other == shape]
        twice = list(shape)
        twice[axis] *= 2
        s.node("Concat", [x, str(s.random.choice(same))], twice, axis=axis)


def cut(s, x, shape):
    axis = int(s.random.integers(len(shape))) if shape else 0
    if not shape or shape[axis] < 2:
        return
    start, step = int(s.random.integers(0, 2)), int(s.random.choice([1, 1, 2, -1]))
    first, stop = (shape[axis] - 1, -(2**40)) if step < 0 else (start, shape[axis])
    rest = list(shape)
    rest[axis] = len(range(*slice(first, None if step < 0 else stop, step).indices(shape[axis])))
    bounds = [s.constant(np.array([v], np.int64)) for v in (first, stop, axis, step)]
    s.node("Slice", [x, *bounds], rest)


def pad(s, x, shape):
    before, after = (s.random.integers(0, 2, len(shape)) for _ in range(2))
    if shape and 0 not in shape:
        widths = s.constant(np.concatenate([before, after]).astype(np.int64))
        s.node("Pad", [x, widths], np.array(shape) + before + after)


def conv(s, x, shape):
    if len(shape) == 4 and min(shape[2:]) >= 1 and shape[1]:
        n = int(s.random.integers(1, 9))
        s.node("Conv", [x, s.weights(n, shape[1], 3, 3)], [shape[0], n, *shape[2:]], pads=[1] * 4)


STEPS = {f.__name__: f for f in (unary, binary, transpose, reshape, reduce, softmax, matmul,
                                 concat, cut, pad, conv)}  # fmt: skip


def make(seed):
    sketch = Sketch(seed)
    while len(sketch.nodes) < 3 + seed % 8:
        sketch.grow()
    made = list(sketch.values)[1:]
    chosen = [made[-1], *(n for n in made[:-1] if sketch.random.random() < 0.3)]
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        sketch.nodes,
        f"random{seed}",
        [helper.make_tensor_value_info("x", kind, ["n", *sketch.input[1:]])],
        [helper.make_tensor_value_info(name, kind, None) for name in chosen],
        sketch.constants,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    x = sketch.random.standard_normal(sketch.input).astype(np.float32)
    return proto, x, [sketch.values[name] for name in chosen]


def compare(seed, device="llvm-cpu"):
    proto, x, shapes = make(seed)
    with Model(import_onnx(proto.SerializeToString())) as model:
        expected, found = (model(x, device=d) for d in ("cpu", device))
    if len(shapes) == 1:
        expected, found = (expected,), (found,)
    for shape, wanted, got in zip(shapes, expected, found, strict=True):
        assert wanted.shape == got.shape == shape
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("seed", [*range(COUNT), *FOUND])
def test_compiled_as_computed(seed):
    compare(seed)


@pytest.mark.parametrize("seed", range(6))
def test_as_computed_on_opencl(seed):
    opencl()
    compare(seed, "opencl:0")


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(COUNT, 1000))
def test_many_compiled_as_computed(seed):
    compare(seed)
