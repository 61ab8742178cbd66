"""Random-weight models for the benchmarks and tests, built with ``onnx.helper``.

    python benchmarks/models.py [NAME ...]

Architectures are the published ones (ResNet-18/50, MobileNet-v2, SqueezeNet 1.1, a MiniLM-shaped
encoder, an MLP, an LSTM) in the operators that PyTorch's exporter writes; weights are drawn with
He variance and batch-norm statistics near one, so activations neither vanish nor explode.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IR_VERSION = 10
OPSET = 17
Dims = Sequence[int | str]
LOGITS: Dims = ["batch", 1000]
IMAGE: tuple[str, str, Dims] = ("x", "float32", ["batch", 3, 224, 224])


class Net:
    """Appends nodes and initializers; every method returns the name of the value it made."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(seed)

    def const(self, array: Any, dtype: str | None = None) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> str:
        values = self.rng.standard_normal(shape, np.float32) * np.float32(std)
        return self.const(values + np.float32(mean))

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attrs: Any) -> str:
        made = [
            f"{kind.lower()}_{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)
        ]
        self.nodes.append(
            helper.make_node(kind, list(inputs), made, name=f"/{kind}_{len(self.nodes)}", **attrs)
        )
        return made[0]

    def conv(
        self, x: str, cin: int, cout: int, k: int, *, s: int = 1, p: int = 0, g: int = 1,
        bias: bool = False,
    ) -> str:  # fmt: skip
        std = (2.0 / (cin // g * k * k)) ** 0.5
        extra = [self.normal(cout, std=0.05)] if bias else []
        weight = self.normal(cout, cin // g, k, k, std=std)
        return self.op(
            "Conv", x, weight, *extra, kernel_shape=[k, k], strides=[s, s], pads=[p] * 4, group=g
        )

    def bn(self, x: str, c: int, gain: float = 1.0) -> str:
        spread = self.rng.uniform(0.8, 1.25, c).astype(np.float32)
        return self.op(
            "BatchNormalization", x, self.normal(c, std=0.05, mean=gain), self.normal(c, std=0.1),
            self.normal(c, std=0.1), self.const(spread), epsilon=1e-5,
        )  # fmt: skip

    def linear(self, x: str, cin: int, cout: int, gain: float = 1.0) -> str:
        """A fully connected layer on a 2-D value, as Gemm."""
        weight = self.normal(cout, cin, std=gain / cin**0.5)
        return self.op("Gemm", x, weight, self.normal(cout, std=0.02), transB=1)

    def project(self, x: str, cin: int, cout: int) -> str:
        """A fully connected layer on the last axis, as MatMul and Add."""
        product = self.op("MatMul", x, self.normal(cin, cout, std=cin**-0.5))
        return self.op("Add", self.normal(cout, std=0.02), product)

    def norm(self, x: str, c: int) -> str:
        scale, shift = self.normal(c, std=0.05, mean=1.0), self.normal(c, std=0.05)
        return self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-12)

    def model(
        self, name: str, inputs: Sequence[tuple[str, str, Dims]],
        outputs: Sequence[tuple[str, Dims]], opset: int = OPSET,
    ) -> onnx.ModelProto:  # fmt: skip
        kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(n, kinds[d], s) for n, d, s in inputs],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs],
            self.weights,
        )
        return helper.make_model(
            graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", opset)]
        )


def _resnet(name: str, seed: int, blocks: Sequence[int], bottleneck: bool) -> onnx.ModelProto:
    net, width = Net(seed), 64
    x = net.op("Relu", net.bn(net.conv("x", 3, 64, 7, s=2, p=3), 64))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    grow = 4 if bottleneck else 1
    for stage, count in enumerate(blocks):
        mid = 64 << stage
        for i in range(count):
            s = 2 if stage and not i else 1
            if bottleneck:
                y = net.op("Relu", net.bn(net.conv(x, width, mid, 1), mid))
                y = net.op("Relu", net.bn(net.conv(y, mid, mid, 3, s=s, p=1), mid))
                y = net.bn(net.conv(y, mid, mid * 4, 1), mid * 4, 0.4)
            else:
                y = net.op("Relu", net.bn(net.conv(x, width, mid, 3, s=s, p=1), mid))
                y = net.bn(net.conv(y, mid, mid, 3, p=1), mid, 0.4)
            if s != 1 or width != mid * grow:
                x = net.bn(net.conv(x, width, mid * grow, 1, s=s), mid * grow, 0.6)
            width = mid * grow
            x = net.op("Relu", net.op("Add", y, x))
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    return net.model(name, [IMAGE], [(net.linear(x, width, 1000), LOGITS)])


def resnet18() -> onnx.ModelProto:
    """ResNet-18, 3.63 GFLOP at batch 1."""
    return _resnet("resnet18", 18, (2, 2, 2, 2), bottleneck=False)


def resnet50() -> onnx.ModelProto:
    """ResNet-50 v1.5 (stride in the 3x3), 8.18 GFLOP at batch 1."""
    return _resnet("resnet50", 50, (3, 4, 6, 3), bottleneck=True)


def mobilenet_v2() -> onnx.ModelProto:
    """MobileNet-v2, width 1.0, 0.60 GFLOP at batch 1."""
    net = Net(2)
    low, high = net.const(0.0, "float32"), net.const(6.0, "float32")

    def relu6(x: str) -> str:
        return net.op("Clip", x, low, high)

    x, width = relu6(net.bn(net.conv("x", 3, 32, 3, s=2, p=1), 32)), 32
    rows = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)]
    for t, c, n, stride in [*rows, (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]:
        for i in range(n):
            s, mid, y = (1 if i else stride), width * t, x
            if t > 1:
                y = relu6(net.bn(net.conv(y, width, mid, 1), mid))
            y = relu6(net.bn(net.conv(y, mid, mid, 3, s=s, p=1, g=mid), mid))
            y = net.bn(net.conv(y, mid, c, 1), c, 0.7)
            x = net.op("Add", x, y) if s == 1 and width == c else y
            width = c
    x = relu6(net.bn(net.conv(x, width, 1280, 1), 1280))
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    return net.model("mobilenet_v2", [IMAGE], [(net.linear(x, 1280, 1000), LOGITS)])


def squeezenet1_1() -> onnx.ModelProto:
    """SqueezeNet 1.1, 0.70 GFLOP at batch 1."""
    net = Net(11)

    def conv(x: str, cin: int, cout: int, k: int, s: int = 1, p: int = 0) -> str:
        return net.op("Relu", net.conv(x, cin, cout, k, s=s, p=p, bias=True))

    def pool(x: str) -> str:
        return net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)

    x, width = pool(conv("x", 3, 64, 3, 2)), 64
    fires = [(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)]
    for i, (small, wide) in enumerate(fires):
        squeezed = conv(x, width, small, 1)
        both = conv(squeezed, small, wide, 1), conv(squeezed, small, wide, 3, p=1)
        x, width = net.op("Concat", *both, axis=1), 2 * wide
        x = pool(x) if i in (1, 3) else x
    x = net.op("GlobalAveragePool", conv(x, width, 1000, 1))
    return net.model("squeezenet1_1", [IMAGE], [(net.op("Flatten", x), LOGITS)])


def _attention(net: Net, x: str, mask: str, batch: str, seq: str, hidden: int, heads: int) -> str:
    """Multi-head self-attention, decomposed as PyTorch exports it."""
    split = net.op(
        "Concat", batch, seq, net.const([heads], "int64"), net.const([hidden // heads], "int64"),
        axis=0,
    )  # fmt: skip
    q, k, v = (net.op("Reshape", net.project(x, hidden, hidden), split) for _ in range(3))
    q = net.op("Transpose", q, perm=[0, 2, 1, 3])
    k = net.op("Transpose", k, perm=[0, 2, 3, 1])
    v = net.op("Transpose", v, perm=[0, 2, 1, 3])
    root = net.const(np.sqrt(hidden // heads), "float32")
    scores = net.op("Div", net.op("MatMul", q, k), root)
    weights = net.op("Softmax", net.op("Add", scores, mask), axis=-1)
    y = net.op("Transpose", net.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    merged = net.op("Concat", batch, seq, net.const([hidden], "int64"), axis=0)
    return net.project(net.op("Reshape", y, merged), hidden, hidden)


def _gelu(net: Net, x: str) -> str:
    erf = net.op("Erf", net.op("Div", x, net.const(2**0.5, "float32")))
    return net.op(
        "Mul", net.op("Mul", x, net.op("Add", erf, net.const(1.0, "float32"))),
        net.const(0.5, "float32"),
    )  # fmt: skip


def minilm_l6() -> onnx.ModelProto:
    """6-layer encoder of MiniLM-L6's shape: batch and sequence symbolic, at most 512 tokens."""
    net, hidden, ff = Net(6), 384, 1536
    ids = ["batch", "seq"]
    shape, zero = net.op("Shape", "input_ids"), net.const(0, "int64")
    first = net.const([0], "int64")
    batch = net.op("Unsqueeze", net.op("Gather", shape, zero, axis=0), first)
    seq = net.op("Unsqueeze", net.op("Gather", shape, net.const(1, "int64"), axis=0), first)
    positions = net.op(
        "Slice", net.const(np.arange(512)[None], "int64"), first, seq, net.const([1], "int64")
    )
    words = net.op("Gather", net.normal(30522, hidden, std=0.5), "input_ids", axis=0)
    kinds = net.op("Gather", net.normal(2, hidden, std=0.2), "token_type_ids", axis=0)
    places = net.op("Gather", net.normal(512, hidden, std=0.3), positions, axis=0)
    x = net.norm(net.op("Add", net.op("Add", words, kinds), places), hidden)
    wide = net.op("Unsqueeze", "attention_mask", net.const([1, 2], "int64"))
    kept = net.op("Cast", wide, to=TensorProto.FLOAT)
    hole = net.op("Sub", net.const(1.0, "float32"), kept)
    mask = net.op("Mul", hole, net.const(np.finfo(np.float32).min, "float32"))
    for _ in range(6):
        x = net.norm(net.op("Add", _attention(net, x, mask, batch, seq, hidden, 12), x), hidden)
        y = net.project(_gelu(net, net.project(x, hidden, ff)), ff, hidden)
        x = net.norm(net.op("Add", y, x), hidden)
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [(name, "int64", ids) for name in names]
    return net.model("minilm_l6", inputs, [(x, ["batch", "seq", hidden])])


def mlp3() -> onnx.ModelProto:
    """Three fully connected layers, 784-512-256-10."""
    net, x = Net(3), "x"
    for cin, cout in ((784, 512), (512, 256)):
        x = net.op("Relu", net.linear(x, cin, cout, 2**0.5))
    x = net.linear(x, 256, 10)
    return net.model("mlp3", [("x", "float32", ["batch", 784])], [(x, ["batch", 10])])


def lstm() -> onnx.ModelProto:
    """One LSTM layer: 32 steps, input 128, hidden 256, batch symbolic."""
    net, cin, hidden = Net(4), 128, 256
    weights = [
        net.normal(1, 4 * hidden, n, std=s * n**-0.5) for n, s in ((cin, 1.0), (hidden, 0.7))
    ]
    y = net.op("LSTM", "x", *weights, net.normal(1, 8 * hidden, std=0.05), hidden_size=hidden)
    y = net.op("Squeeze", y, net.const([1], "int64"))
    return net.model("lstm", [("x", "float32", [32, "batch", cin])], [(y, [32, "batch", hidden])])


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f for f in (resnet18, resnet50, mobilenet_v2, squeezenet1_1, minilm_l6, mlp3, lstm)
}


def build(name: str, directory: Path | None = None) -> Path:
    """Path of the model as an ONNX file, made on first use.

    ``directory`` defaults to ``random/`` under the models directory of ``fetch_models``.
    """
    if directory is None:
        from fetch_models import models_dir  # type: ignore[import-not-found, unused-ignore]

        directory = models_dir() / "random"
    path = directory / f"{name}.onnx"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        model = MODELS[name]()
        onnx.checker.check_model(model)
        part = path.with_suffix(".part")
        part.write_bytes(model.SerializeToString())
        part.replace(path)
    return path


def feeds(name: str, batch: int = 1, seq: int = 128, seed: int = 0) -> dict[str, Any]:
    """Inputs for a model of :data:`MODELS`."""
    rng = np.random.default_rng(seed)
    if name == "minilm_l6":
        mask = np.ones((batch, seq), np.int64)
        mask[:, seq - seq // 8 :] = 0
        ids = rng.integers(0, 30522, (batch, seq))
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    shape = {"mlp3": (batch, 784), "lstm": (32, batch, 128)}.get(name, (batch, 3, 224, 224))
    return {"x": rng.standard_normal(shape, np.float32)}


if __name__ == "__main__":
    for wanted in sys.argv[1:] or MODELS:
        print(build(wanted))
