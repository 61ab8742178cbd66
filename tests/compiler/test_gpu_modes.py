"""What each kind of operator gets from a GPU's scheduler, and that its numbers are right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gpu_kit import check, opencl
from gpu_offline import SM_90, model_kernels

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")

F32, I64 = 1, 7  # TensorProto's numbers


def lowered(
    op: str, inputs: dict[str, Any], constants: dict[str, Any] | None = None, **attrs: Any
) -> list[Any]:
    """Kernels of one operator as an NVIDIA GPU would get them."""
    from onnx import helper, numpy_helper

    given = {name: np.asarray(a) for name, a in (constants or {}).items()}
    names = [*inputs, *given]
    outputs = ["y", "n"] if op == "TopK" else ["y"]
    kinds = {"int64": I64, "float32": F32}
    graph = helper.make_graph(
        [helper.make_node(op, names, outputs, **attrs)], "g",
        [helper.make_tensor_value_info(n, kinds[str(a.dtype)], a.shape) for n, a in inputs.items()],
        [helper.make_tensor_value_info(n, I64 if op in ("ArgMax",) or n == "n" else F32, None)
         for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in given.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model_kernels(model.SerializeToString(), inputs, SM_90)


def f(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def weights(*shape: int) -> dict[str, Any]:
    return {"w": f(*shape)}


SIZES = np.array([1, 16, 56, 56])
CASES: dict[str, tuple[str, list[Any]]] = {
    "depthwise": (
        "points", ["Conv", {"x": f(1, 32, 30, 30)}, weights(32, 1, 3, 3), {"group": 32}]),
    "convolution": (
        "tiles", ["Conv", {"x": f(1, 16, 30, 30)}, weights(32, 16, 3, 3), {}]),
    "few channels out": (
        "points", ["Conv", {"x": f(1, 3, 140, 140)}, weights(4, 3, 3, 3), {}]),
    "grouped": ("points", ["Conv", {"x": f(1, 16, 90, 90)}, weights(16, 4, 3, 3), {"group": 4}]),
    "max pool": ("points", ["MaxPool", {"x": f(1, 16, 30, 30)}, {}, {"kernel_shape": [3, 3]}]),
    "global pool": ("rows", ["GlobalAveragePool", {"x": f(1, 32, 14, 14)}, {}, {}]),
    "resize": ("points", [
        "Resize", {"x": f(1, 16, 28, 28)}, {"r": np.zeros(0, np.float32),
        "c": np.zeros(0, np.float32), "s": SIZES}, {"mode": "linear"}]),
    "gather rows": ("points", [
        "Gather", {"i": np.array([3, 0, 9])}, {}, {"table": f(10, 64)}]),
    "scatter": ("points", [
        "ScatterElements", {"x": f(6, 8), "i": np.array([[0, 3], [2, 1]]), "u": f(2, 2)}, {}, {}]),
    "argmax long": ("rows", ["ArgMax", {"x": f(4, 1000)}, {}, {"axis": 1}]),
    "argmax across": ("rows", ["ArgMax", {"x": f(200, 64)}, {}, {"axis": 0}]),
    "softmax short": ("rows", ["Softmax", {"x": f(192, 16)}, {}, {}]),
    "softmax long": ("rows", ["Softmax", {"x": f(2, 5000)}, {}, {}]),
    "softmax across": ("rows", ["Softmax", {"x": f(3, 40, 32)}, {}, {"axis": 1}]),
    "layer norm": (
        "rows", ["LayerNormalization", {"x": f(17, 384)}, {"s": f(384), "b": f(384)}, {}]),
    "batch of products": ("tiles", ["MatMul", {"q": f(4, 32, 16), "k": f(4, 16, 32)}, {}, {}]),
    "matrix by vector": ("rows", ["Gemm", {"x": f(1, 256)}, weights(100, 256), {"transB": 1}]),
    "vector by matrix": ("rows", ["MatMul", {"x": f(1, 256)}, weights(256, 96), {}]),
    "sum of everything": ("rows", ["ReduceSum", {"x": f(40, 1000)}, {}, {"keepdims": 0}]),
    "mean of rows": ("rows", ["ReduceMean", {"x": f(300, 64)}, {"a": np.array([1])}, {}]),
}  # fmt: skip


def kernels_of(name: str) -> list[Any]:
    op, inputs, constants, attrs = CASES[name][1]
    if name == "gather rows":
        return lowered(op, {"t": attrs["table"], **inputs})
    return lowered(op, inputs, constants, **attrs)


def main_kernel(found: list[Any]) -> tuple[Any, Any]:
    """The kernel that does the work: most terms times points."""

    def work(entry: Any) -> int:
        return int(np.prod(list(entry[1].extents.values()), dtype=np.int64))

    _, kernel, plan = max(found, key=work)
    return kernel, plan


@pytest.mark.parametrize("name", CASES)
def test_the_mode_chosen(name):
    kernel, plan = main_kernel(kernels_of(name))
    assert plan.mode == CASES[name][0], f"{kernel}\n{plan}"
    total, group = plan.launch(kernel)
    assert total % group == 0
    assert 1 <= group <= SM_90.max_group


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_of_a_gpus_schedules(name):
    """Vectors included, which the schedules of a CPU's driver do without."""
    device = opencl()
    for _, kernel, plan in kernels_of(name):
        if plan.group > device.target.max_group:
            plan = replace(plan, group=device.target.max_group, many=1)
        if not kernel_is_indexed(kernel):
            check(kernel, plan, tol=1e-4)


def kernel_is_indexed(kernel: Any) -> bool:
    """Whether random integers would not do as its inputs: they say where to read or write."""
    return any(b.dtype == "int64" and n not in kernel.outputs for n, b in kernel.buffers.items())


def test_no_work_item_does_a_long_sum_alone():
    """Of the cases above, no kernel with few outputs leaves 100 terms or more to one item."""
    for name in CASES:
        for _, kernel, plan in kernels_of(name):
            reduced = [e for n, e in kernel.extents.items() if n not in dict(kernel.axes)]
            few = np.prod([e for _, e in kernel.axes], dtype=np.int64) < 4096
            assert not (plan.mode == "points" and few and np.prod(reduced) >= 100), name


def test_a_sum_of_everything_takes_the_largest_group():
    _, plan = main_kernel(kernels_of("sum of everything"))
    assert (plan.group, plan.share, plan.lanes) == (1024, 1024, 4)


def test_rows_that_lie_across_are_neighbouring_items():
    for name in ("softmax across", "argmax across", "vector by matrix"):
        _, plan = main_kernel(kernels_of(name))
        assert plan.across, name
        assert plan.many == 32
    for name in ("softmax long", "layer norm", "matrix by vector", "mean of rows"):
        assert not main_kernel(kernels_of(name))[1].across, name


def test_short_rows_share_a_group():
    _, plan = main_kernel(kernels_of("softmax short"))
    assert (plan.share, plan.many) == (4, 16)


def test_a_batch_of_recurrences_takes_a_group_each():
    found = lowered("LSTM", {"x": f(5, 3, 16)}, {"w": f(1, 128, 16), "r": f(1, 128, 32)},
                    hidden_size=32)  # fmt: skip
    kernel, plan = next((k, p) for _, k, p in found if p.mode == "steps")
    assert plan.launch(kernel)[0] == 3 * plan.group
    assert (plan.many, plan.share) == (32, 2)
    check(kernel, plan, tol=1e-4)
