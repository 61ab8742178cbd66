"""Dtypes that a device lacks: those nodes run on the host, the others stay where they were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gpu_kit import opencl
from tests.compiler.harness import graph_of, node, reference, run_build

from packhorse.compiler.gpu_schedule import GpuTarget
from packhorse.kernel.expr import walk
from packhorse.model import Model

F32, F64 = 1, 11
SINGLE = GpuTarget(name="a small GPU", float64=False)
rng = np.random.default_rng(3)


def hosted(graph, target=SINGLE):
    """The nodes run on the host; results are the references', and no kernel has float64."""
    feeds = {
        v.name: np.asarray(rng.standard_normal(v.type.dims) * 4, v.type.dtype) for v in graph.inputs
    }
    found, build, _ = run_build(graph, feeds, refuses=target.refuses)
    for ours, theirs in zip(found, reference(graph, feeds), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    if not target.float64:
        for kernel, _ in build.functions.values():
            assert "float64" not in {n.dtype for s in kernel.stores for n in walk(s.value)}
            assert "float64" not in {b.dtype for b in kernel.buffers.values()}
    return [step.host.op for step in build.steps if step.host is not None]


def test_what_a_target_says():
    assert SINGLE.refuses(["float32", "bool", "int64"]) == ""
    assert SINGLE.refuses(["float32", "float64"]) == "a small GPU has no float64"
    assert GpuTarget().refuses(["float64", "float16", "bfloat16"]) == ""
    assert GpuTarget().refuses(["int4"]) == "opencl has no type for int4"


WIDE = [
    node("Relu", "x", "a"), node("Cast", "a", "b", to=F64), node("Sqrt", "b", "c"),
    node("Cast", "c", "d", to=F32), node("Neg", "d", "y"),
]  # fmt: skip


def test_only_the_nodes_that_need_it_run_on_the_host():
    graph = graph_of(WIDE, {"x": ("float32", (3, 5))}, ["y"])
    assert hosted(graph) == ["Cast", "Sqrt", "Cast"]
    assert hosted(graph, GpuTarget()) == []


def test_a_model_on_a_device_without_it(monkeypatch):
    opencl()
    from packhorse_opencl.plugin import OpenClBackend

    graph = graph_of(WIDE, {"x": ("float32", (3, 5))}, ["y"])
    x = rng.standard_normal((3, 5)).astype(np.float32)
    with OpenClBackend().open(0, {}) as device, Model(graph) as model:
        monkeypatch.setattr(device, "_target", replace(device.target, float64=False))
        ready = model.compile(device)
        (wanted,) = reference(graph, {"x": x})
        np.testing.assert_allclose(ready(x), wanted, rtol=1e-6)
        where = [(row.node.partition("(")[2], row.device) for row in ready.report()]
    host = "host (NumPy reference)"
    assert sorted(where) == [
        ("Cast)", host), ("Neg)", "opencl:0"), ("Relu)", "opencl:0"), ("Sqrt)", host)
    ]  # fmt: skip


def test_a_kernel_that_computes_in_it_is_refused_although_nothing_stored_is():
    graph = graph_of(
        [node("Pow", "n e", "p"), node("Add", "p n", "y")],
        {"n": ("int32", (6,)), "e": ("int32", (6,))}, ["y"],
    )  # fmt: skip
    assert hosted(graph) == ["Pow"]


@pytest.mark.parametrize(
    ("nodes", "outputs", "wanted"),
    [
        ([node("Transpose", "x", "y", perm=[1, 0])], ["y"], ["Transpose"]),
        ([node("Flatten", "x", "y")], ["y"], ["Identity"]),
        ([node("Flatten", "x", "y"), node("Neg", "y", "z")], ["z"], ["Neg"]),
        ([node("Neg", "x", "y"), node("Flatten", "y", "z")], ["y", "z"], ["Neg", "Identity"]),
        ([node("Add", "x w", "y"), node("Cast", "y", "z", to=F32)], ["z"], ["Add", "Cast"]),
    ],
)
def test_views_outputs_and_constants(nodes, outputs, wanted):
    constants = {"w": rng.standard_normal((4, 3))}
    assert hosted(graph_of(nodes, {"x": ("float64", (4, 3))}, outputs, constants)) == wanted


def test_inputs_and_constants_that_are_outputs_too():
    constants = {"w": rng.standard_normal((2, 2))}
    graph = graph_of([node("Relu", "a", "b")], {"a": ("float32", (3,)), "x": ("float64", (2,))},
                     ["x", "b", "w"], constants)  # fmt: skip
    feeds = {"a": np.ones(3, np.float32), "x": rng.standard_normal(2)}
    (x, b, w), build, _ = run_build(graph, feeds, refuses=SINGLE.refuses)
    np.testing.assert_array_equal(x, feeds["x"])
    np.testing.assert_array_equal(w, constants["w"])
    assert b.tolist() == [1, 1, 1]
    assert [step.host.op for step in build.steps if step.host] == ["Identity", "Identity"]


def test_recurrences_that_are_refused():
    weights = {"w": rng.standard_normal((1, 8, 3)), "r": rng.standard_normal((1, 8, 2))}
    graph = graph_of(
        [node("LSTM", "x w r", "y h c", hidden_size=2)], {"x": ("float64", (4, 1, 3))},
        ["y", "h", "c"], weights,
    )  # fmt: skip
    assert hosted(graph) == ["LSTM"]


def test_half_constants_keep_their_dtype_on_the_host_and_as_outputs():
    numbers = {n: np.array(v, np.float16) for n, v in (("a", 1), ("b", 3), ("c", 0.5))}
    nodes = [node("Range", "a b c", "r"), node("Mul", "x r", "y"), node("Range", "a b c", "z")]
    graph = graph_of(nodes, {"x": ("float16", (4,))}, ["y", "z"], numbers)
    assert hosted(graph, GpuTarget()) == []
    seen = []

    def refuses(dtypes):  # nothing at all runs on this device
        seen.extend(dtypes)
        return "it is off"

    feeds = {"x": np.ones(4, np.float16)}
    found, build, program = run_build(graph, feeds, refuses=refuses)
    assert [step.host.op for step in build.steps] == ["Range", "Mul", "Range"]
    assert {e.dtype for e in program.entries} == {"float16"}
    for ours, theirs in zip(found, reference(graph, feeds), strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)
    assert "float32" in seen
