"""Sequences of tensors in ONNX models: taken apart where their lengths are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

from packhorse.compiler.reference import ReferenceExecutable  # noqa: E402
from packhorse.errors import UnsupportedOperator  # noqa: E402
from packhorse_onnx import import_onnx  # noqa: E402

F = TensorProto.FLOAT
X = np.arange(24, dtype=np.float32).reshape(4, 6)


def model(*nodes: Any, inputs: Any = ("x",), outputs: Any = ("y",), **constants: Any) -> Any:
    """A model of (op, inputs, outputs, attributes); every input is float [4, 6]."""
    made = [helper.make_node(op, i.split(), o.split(), **attrs) for op, i, o, attrs in nodes]
    given = [helper.make_tensor_value_info(n, F, [4, 6]) for n in inputs]
    wanted = [onnx.ValueInfoProto(name=n) for n in outputs]
    tensors = [
        onnx.numpy_helper.from_array(np.asarray(v, np.int64), n) for n, v in constants.items()
    ]
    graph = helper.make_graph(made, "g", given, wanted, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(proto: Any, **feeds: Any) -> list[Any]:
    graph = import_onnx(proto)
    assert not any("Sequence" in node.op for node in graph.nodes)
    return list(ReferenceExecutable(graph).run(feeds).values())


@pytest.mark.parametrize(
    ("attrs", "want"),
    [
        ({"axis": 1}, np.concatenate([X, -X], 1)),
        ({"axis": -2}, np.concatenate([X, -X], 0)),
        ({"axis": 0, "new_axis": 1}, np.stack([X, -X], 0)),
        ({"axis": -1, "new_axis": 1}, np.stack([X, -X], -1)),
    ],
)
def test_a_list_that_is_joined(attrs: dict[str, int], want: Any) -> None:
    nodes = [
        ("Neg", "x", "n", {}),
        ("SequenceConstruct", "x n", "s", {}),
        ("Identity", "s", "t", {}),
        ("ConcatFromSequence", "t", "y", attrs),
    ]
    np.testing.assert_array_equal(run(model(*nodes), x=X)[0], want)


@pytest.mark.parametrize(
    ("insert", "erase", "want"),
    [(0, 1, [2, 1]), (1, 0, [2, 1]), (2, 0, [1, 2]), (-1, -1, [0, 2]), (-2, -3, [0, 1])],
)
def test_items_come_and_go(insert: int, erase: int, want: list[int]) -> None:
    """A list [0, 1] gets 2 at one place and loses the item at another; positions are ONNX's."""
    nodes = [
        ("Sub", "x x", "zero", {}), ("Cos", "zero", "one", {}), ("Add", "one one", "two", {}),
        ("SequenceEmpty", "", "e", {}), ("SequenceInsert", "e zero", "a", {}),
        ("SequenceInsert", "a one", "b", {}), ("SequenceInsert", "b two at", "c", {}),
        ("SequenceErase", "c out", "d", {}), ("SequenceAt", "d first", "y0", {}),
        ("SequenceAt", "d last", "y1", {}), ("SequenceLength", "d", "n", {}),
    ]  # fmt: skip
    proto = model(*nodes, outputs=("y0", "y1", "n"), at=insert, out=erase, first=0, last=-1)
    items = [0, 1]
    items.insert(insert if insert >= 0 else insert + 2, 2)
    del items[erase]
    found = run(proto, x=X)
    assert [int(y.flat[0]) for y in found[:2]] == items
    assert int(found[2]) == 2
    assert items == want


@pytest.mark.parametrize(
    ("split", "attrs", "want"),
    [
        (None, {"axis": 1}, [X[:, i : i + 1] for i in range(6)]),
        (None, {"axis": 0, "keepdims": 0}, list(X)),
        (4, {"axis": 1}, [X[:, :4], X[:, 4:]]),
        (2, {"axis": -2, "keepdims": 0}, [X[:2], X[2:]]),
        ([1, 3], {}, [X[:1], X[1:]]),
    ],
)
def test_parts(split: Any, attrs: dict[str, int], want: list[Any]) -> None:
    constants = {} if split is None else {"split": split}
    given = "x" if split is None else "x split"
    nodes = [("SplitToSequence", given, "s", attrs), ("SequenceLength", "s", "n", {})]
    places = {f"p{i}": i for i in range(len(want))}
    nodes += [("SequenceAt", f"s {p}", f"y{i}", {}) for p, i in places.items()]
    names = [f"y{i}" for i in range(len(want))]
    found = run(model(*nodes, outputs=("n", *names), **constants, **places), x=X)
    assert int(found[0]) == len(want)
    for ours, theirs in zip(found[1:], want, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        # a position that is computed, one outside the list, nothing to join, parts of unknown size
        ([("SequenceConstruct", "x x", "s", {}), ("Size", "x", "k", {}),
          ("SequenceAt", "s k", "y", {})], {}),
        ([("SequenceConstruct", "x x", "s", {}), ("SequenceAt", "s k", "y", {})], {"k": 2}),
        ([("SequenceEmpty", "", "s", {}), ("ConcatFromSequence", "s", "y", {"axis": 0})], {}),
        ([("Size", "x", "k", {}), ("SplitToSequence", "x k", "s", {}),
          ("SequenceLength", "s", "y", {})], {}),
        ([("SplitToSequence", "x k", "s", {}), ("SequenceLength", "s", "y", {})], {"k": 0}),
    ],
)  # fmt: skip
def test_lengths_that_are_not_known(nodes: Any, constants: dict[str, int]) -> None:
    with pytest.raises(UnsupportedOperator, match="Sequence"):
        import_onnx(model(*nodes, **constants))
