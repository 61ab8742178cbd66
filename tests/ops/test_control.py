"""If: types of its branches, and folding of branches that capture nothing."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import infer, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import Graph, Node, TensorType, Value
from packhorse.ops import NotStatic
from packhorse.ops.control import run_body

YES, NO = np.array(True), np.array([False])


def branch(value: np.ndarray, *, capture: str = "c", name: str = "branch") -> Graph:
    kind = TensorType(value.dtype, value.shape)
    nodes = [Node("Neg", [capture], ["y"])]
    return Graph(name, [], [Value("y", kind)], nodes, {"c": value})


ONE, TWO = branch(np.float32([1, 2])), branch(np.float32([1, 2, 3]))


@pytest.mark.parametrize(("condition", "count"), [(YES, 2), (NO, 3)])
def test_known_condition(condition: np.ndarray, count: int) -> None:
    node = node_of("If", [condition], {"then_branch": ONE, "else_branch": TWO})
    assert [t.shape for t in infer(node, [condition])] == [(count,)]
    assert reference(node, [condition])[0].shape == (count,)


def test_unknown_condition_needs_equal_branches() -> None:
    same = node_of("If", [YES], {"then_branch": ONE, "else_branch": ONE})
    assert [t.shape for t in infer(same, [YES], known=[])] == [(2,)]
    other = node_of("If", [YES], {"then_branch": ONE, "else_branch": TWO})
    with pytest.raises(NotStatic, match="the condition must be known"):
        infer(other, [YES], known=[])


def test_types_come_from_constants_or_the_body() -> None:
    body = Graph(
        "body", [], [Value("c", TensorType(np.dtype("f4"), None)),
                     Value("t", TensorType(np.dtype("f4"), ("n",)))],
        [], {"c": np.zeros((2, 3), np.float32)}, {"t": TensorType(np.dtype("f4"), (5,))},
    )  # fmt: skip
    node = node_of("If", [YES], {"then_branch": body, "else_branch": body})
    assert [t.shape for t in infer(node, [YES])] == [(2, 3), (5,)]
    body.types.clear()
    with pytest.raises(NotStatic, match="output 't' of body 'body'"):
        infer(node, [YES])


def test_nested_bodies_see_the_values_outside() -> None:
    inner = branch(np.float32([0]), capture="outer")
    node = Node("If", ["flag"], ["y"], {"then_branch": inner, "else_branch": inner})
    body = Graph("outermost", [], inner.outputs, [node], {"flag": YES})
    (found,) = run_body(body, {"outer": np.float32([4])})
    assert found.tolist() == [-4]
    with pytest.raises(UnsupportedOperator, match="'branch' reads 'outer' of the enclosing graph"):
        run_body(body)


def test_wrong_conditions() -> None:
    attrs = {"then_branch": ONE, "else_branch": TWO}
    for condition, message in (
        (np.array(1), "must be bool"),
        (np.array([True] * 2), "one element"),
    ):
        with pytest.raises(ModelError, match=message):
            infer(node_of("If", [condition], attrs), [condition])
