"""The NumPy interpreter of graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from packhorse.compiler.reference import ReferenceExecutable
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ModelError,
    UnsupportedOperator,
)
from packhorse.graph.ir import Graph, Node, Shape, TensorType, Value

F32 = np.dtype("float32")


def value(name: str, shape: Shape | None = ("n",), dtype: Any = F32) -> Value:
    return Value(name, TensorType(np.dtype(dtype), shape))


def graph(
    nodes: list[Node],
    inputs: list[Value],
    outputs: list[str],
    constants: dict[str, Any] | None = None,
) -> Graph:
    arrays = {k: np.asarray(v) for k, v in (constants or {}).items()}
    return Graph("g", inputs, [value(o, None) for o in outputs], nodes, arrays)


def test_chain_and_outputs_in_order() -> None:
    nodes = [Node("Add", ["x", "c"], ["t"]), Node("Mul", ["t", "t"], ["y"])]
    found = ReferenceExecutable(graph(nodes, [value("x")], ["y", "t"], {"c": np.float32([1])})).run(
        {"x": np.float32([1, 2])}
    )
    assert list(found) == ["y", "t"]
    np.testing.assert_array_equal(found["y"], [4, 9])


def test_results_are_the_callers_own() -> None:
    constants = {"c": np.zeros(2, np.float32)}
    nodes = [Node("Identity", ["x"], ["y"]), Node("Identity", ["c"], ["z"])]
    run = ReferenceExecutable(graph(nodes, [value("x")], ["y", "z"], constants)).run
    x = np.float32([1, 2])
    found = run({"x": x})
    found["y"][:] = 9
    found["z"][:] = 9
    assert x.tolist() == [1, 2]
    assert run({"x": x})["z"].tolist() == [0, 0]


def test_results_are_not_each_others() -> None:
    nodes = [Node("Neg", ["x"], ["a"]), Node("Identity", ["a"], ["b"])]
    found = ReferenceExecutable(Graph("g", [value("x")], [value("a"), value("b")], nodes)).run(
        {"x": np.ones(2, F32)}
    )
    found["a"][:] = 5
    assert found["b"].tolist() == [-1, -1]


def test_dead_values_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = []
    names = [f"v{i}" for i in range(6)]
    nodes = [Node("Neg", [a], [b]) for a, b in zip(["x", *names], names, strict=False)]
    executable = ReferenceExecutable(graph(nodes, [value("x")], [names[-1]]))
    original = ReferenceExecutable._run_node

    def spy(self: Any, node: Node, env: Any) -> Any:
        alive.append(len(env.maps[0]))
        return original(self, node, env)

    monkeypatch.setattr(ReferenceExecutable, "_run_node", spy)
    executable.run({"x": np.float32([1])})
    assert max(alive) == 1


def test_unaligned_constants() -> None:
    raw = bytearray(1 + 4 * 16)
    array = np.frombuffer(raw, np.float32, 16, offset=1).reshape(4, 4)
    found = ReferenceExecutable(
        graph([Node("MatMul", ["x", "w"], ["y"])], [value("x", (1, 4))], ["y"], {"w": array})
    ).run({"x": np.ones((1, 4), np.float32)})
    assert found["y"].tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("condition", [True, False])
def test_if_sees_outer_values(condition: bool) -> None:
    bodies = {
        "then_branch": graph([Node("Add", ["t", "one"], ["b"])], [], ["b"], {"one": np.float32(1)}),
        "else_branch": graph([Node("Neg", ["t"], ["b"])], [], ["b"]),
    }
    nodes = [Node("Mul", ["x", "x"], ["t"]), Node("If", ["c"], ["y"], bodies)]
    inputs = [value("x"), value("c", (), bool)]
    found = ReferenceExecutable(graph(nodes, inputs, ["y"])).run(
        {"x": np.float32([3]), "c": np.array(condition)}
    )
    assert found["y"].tolist() == ([10] if condition else [-9])


def loop_body() -> Graph:
    nodes = [
        Node("Add", ["acc", "step"], ["next"]),
        Node("Less", ["next", "limit"], ["go"]),
        Node("Identity", ["next"], ["seen"]),
    ]
    inputs = [value("i", (), np.int64), value("go_in", (), bool), value("acc", ())]
    return graph(nodes, inputs, ["go", "next", "seen"])


@pytest.mark.parametrize(("trips", "limit", "wanted"), [(3, 99, [1, 2, 3]), (9, 2, [1, 2])])
def test_loop(trips: int, limit: float, wanted: list[int]) -> None:
    node = Node("Loop", ["m", "", "zero"], ["last", "all"], {"body": loop_body()})
    constants = {"zero": np.float32(0), "step": np.float32(1), "limit": np.float32(limit)}
    found = ReferenceExecutable(
        graph([node], [value("m", (), np.int64)], ["last", "all"], constants)
    ).run({"m": np.array(trips)})
    assert found["all"].tolist() == wanted
    assert found["last"] == wanted[-1]


def test_loop_without_iterations_gives_empty_scans() -> None:
    node = Node("Loop", ["m", "", "zero"], ["last", "all"], {"body": loop_body()})
    constants = {"zero": np.float32(0), "step": np.float32(1), "limit": np.float32(9)}
    found = ReferenceExecutable(
        graph([node], [value("m", (), np.int64)], ["last", "all"], constants)
    ).run({"m": np.array(0)})
    assert found["all"].shape[0] == 0
    assert found["last"] == 0


@pytest.mark.parametrize("backward", [0, 1])
def test_scan(backward: int) -> None:
    body = graph(
        [Node("Add", ["sum", "part"], ["next"]), Node("Identity", ["next"], ["out"])],
        [value("sum", ()), value("part", ())],
        ["next", "out"],
    )
    attrs = {"body": body, "num_scan_inputs": 1, "scan_input_directions": [backward]}
    node = Node("Scan", ["zero", "x"], ["total", "sums"], attrs)
    found = ReferenceExecutable(
        graph([node], [value("x")], ["total", "sums"], {"zero": np.float32(0)})
    ).run({"x": np.float32([1, 2, 4])})
    assert found["total"] == 7
    assert found["sums"].tolist() == ([4, 6, 7] if backward else [1, 3, 7])


# errors


@pytest.fixture
def neg() -> ReferenceExecutable:
    return ReferenceExecutable(
        graph([Node("Neg", ["image"], ["y"])], [value("image", ("n", 3))], ["y"])
    )


def test_inputs_are_checked(neg: ReferenceExecutable) -> None:
    good = np.zeros((2, 3), np.float32)
    with pytest.raises(ArgumentValueError, match=r"no input 'imgae' \(did you mean 'image'"):
        neg.run({"imgae": good})
    with pytest.raises(ArgumentValueError, match="missing: image"):
        neg.run({})
    with pytest.raises(ArgumentTypeError, match="must be float32, got float64"):
        neg.run({"image": good.astype(float)})
    with pytest.raises(ArgumentValueError, match=r"must have shape \(n, 3\), got \(2, 4\)"):
        neg.run({"image": np.zeros((2, 4), np.float32)})
    with pytest.raises(ArgumentValueError, match=r"got \(3,\)"):
        neg.run({"image": np.zeros(3, np.float32)})


def test_unknown_operator_is_refused_before_running() -> None:
    with pytest.raises(UnsupportedOperator, match="'y' \\(Frobnicate\\)"):
        ReferenceExecutable(graph([Node("Frobnicate", ["x"], ["y"])], [value("x")], ["y"]))


def test_failing_node_is_named() -> None:
    node = Node("MatMul", ["x", "x"], ["y"], name="mm")
    executable = ReferenceExecutable(graph([node], [value("x", ("n", "m"))], ["y"]))
    with pytest.raises(ModelError, match=r"'mm' \(MatMul\)"):
        executable.run({"x": np.zeros((2, 3), np.float32)})


def test_infinities_do_not_warn() -> None:
    executable = ReferenceExecutable(graph([Node("Div", ["x", "x"], ["y"])], [value("x")], ["y"]))
    assert np.isnan(executable.run({"x": np.float32([0])})["y"][0])
