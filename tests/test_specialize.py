"""Specialisation: static shapes, folding, inlining, and that nothing changes in value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from packhorse.compiler.fold import fold_constants
from packhorse.compiler.reference import ReferenceExecutable
from packhorse.compiler.simplify import fold_norms
from packhorse.compiler.specialize import NotStatic, shape_operands, specialize
from packhorse.errors import ArgumentTypeError, ArgumentValueError, ModelError
from packhorse.graph.ir import Graph, Node, Shape, TensorType, Value

RNG = np.random.default_rng(0)


def value(name: str, shape: Shape | None, dtype: Any = "float32") -> Value:
    return Value(name, TensorType(np.dtype(dtype), shape))


def graph(
    nodes: list[Node],
    inputs: list[Value],
    outputs: list[str],
    constants: dict[str, Any] | None = None,
) -> Graph:
    arrays = {k: np.asarray(v) for k, v in (constants or {}).items()}
    return Graph("g", inputs, [value(o, None) for o in outputs], nodes, arrays)


def static(model: Graph, values: tuple[str, ...] = (), **feeds: Any) -> Graph:
    """Specialise for the feeds and check that types and results agree with the original."""
    types = {k: TensorType(v.dtype, v.shape) for k, v in feeds.items()}
    made = specialize(model, types, {k: feeds[k] for k in values})
    wanted = ReferenceExecutable(model).run(feeds)
    found = ReferenceExecutable(made).run(feeds)
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert made.types[name] == TensorType(array.dtype, array.shape)
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)
    return made


def x_of(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def ops_of(made: Graph) -> list[str]:
    return [node.op for node in made.nodes]


# folding


def test_shape_chain_becomes_a_constant() -> None:
    nodes = [
        Node("Shape", ["x"], ["s"]),
        Node("Gather", ["s", "zero"], ["n"]),
        Node("Unsqueeze", ["n", "axes"], ["n1"]),
        Node("Concat", ["n1", "minus"], ["target"], {"axis": 0}),
        Node("Reshape", ["x", "target"], ["t"]),
        Node("Relu", ["t"], ["y"]),
    ]
    constants = {"zero": np.int64(0), "axes": np.int64([0]), "minus": np.int64([-1])}
    model = graph(nodes, [value("x", ("n", 3, 4))], ["y"], constants)
    made = static(model, x=x_of(2, 3, 4))
    assert ops_of(made) == ["Reshape", "Relu"]
    assert made.types["y"].dims == (2, 12)
    assert set(made.constants) == {made.nodes[0].inputs[1]}


def test_values_of_inputs_are_built_in() -> None:
    model = graph(
        [Node("Reshape", ["x", "s"], ["y"])],
        [value("x", ("n",)), value("s", (2,), "int64")],
        ["y"],
    )
    made = static(model, ("s",), x=x_of(6), s=np.int64([2, -1]))
    assert made.types["y"].dims == (2, 3)
    assert [v.name for v in made.inputs] == ["x", "s"]
    assert "s" not in made.nodes[0].inputs
    with pytest.raises(NotStatic, match=r"'y' \(Reshape\)"):
        specialize(model, {v.name: TensorType(v.type.dtype, (2,)) for v in model.inputs})


def test_large_results_are_not_folded() -> None:
    nodes = [Node("Expand", ["one", "s"], ["big"]), Node("Add", ["x", "big"], ["y"])]
    constants = {"one": np.float32([1]), "s": np.int64([300, 300])}
    made = static(graph(nodes, [value("x", (300, 300))], ["y"], constants), x=x_of(300, 300))
    assert ops_of(made) == ["Expand", "Add"]


def test_fold_constants_keeps_symbolic_graphs_whole() -> None:
    nodes = [Node("Neg", ["c"], ["d"]), Node("Add", ["x", "d"], ["y"]), Node("Neg", ["c"], ["z"])]
    made = fold_constants(graph(nodes, [value("x", ("n",))], ["y", "z"], {"c": np.float32([2])}))
    assert ops_of(made) == ["Add", "Neg"]
    assert made.constants["d"].tolist() == [-2]


# control flow


def branches(**constants: Any) -> dict[str, Any]:
    then = graph([Node("Add", ["t", "k"], ["b"])], [], ["b"], {"k": np.float32([5])})
    other = graph([Node("Neg", ["t"], ["k"]), Node("Neg", ["k"], ["b"])], [], ["b"])
    return {"then_branch": then, "else_branch": other}


@pytest.mark.parametrize("rate", [8000, 16000])
def test_if_with_known_condition_is_inlined(rate: int) -> None:
    nodes = [
        Node("Equal", ["sr", "fast"], ["c"]),
        Node("Relu", ["x"], ["t"]),
        Node("If", ["c"], ["u"], branches(), "first"),
        Node("If", ["c"], ["v"], branches(), "second"),
        Node("Add", ["u", "v"], ["y"]),
    ]
    inputs = [value("x", ("n",)), value("sr", (), "int64")]
    model = graph(nodes, inputs, ["y"], {"fast": np.int64(16000), "k": np.float32([7])})
    assert shape_operands(model) == {"sr"}
    made = static(model, ("sr",), x=x_of(4), sr=np.array(rate))
    assert "If" not in ops_of(made)
    with pytest.raises(NotStatic, match=r"'first' \(If\).*condition depends on data"):
        specialize(model, {"x": TensorType(np.dtype("float32"), (4,)), "sr": inputs[1].type})


def test_nested_if() -> None:
    inner = Node("If", ["c"], ["b"], branches(), "inner")
    attrs = {"then_branch": graph([inner], [], ["b"]), "else_branch": graph([inner], [], ["b"])}
    nodes = [Node("Relu", ["x"], ["t"]), Node("If", ["c"], ["y"], attrs, "outer")]
    made = static(
        graph(nodes, [value("x", ("n",)), value("c", (), bool)], ["y"]),
        ("c",),
        x=x_of(3),
        c=np.array(True),
    )
    assert ops_of(made) == ["Relu", "Add"]


def test_branch_that_is_an_outer_value() -> None:
    attrs = {"then_branch": graph([], [], ["x"]), "else_branch": graph([], [], ["x"])}
    made = static(
        graph([Node("If", ["c"], ["y"], attrs)], [value("x", (2,))], ["y"], {"c": np.array(True)}),
        x=x_of(2),
    )
    assert ops_of(made) == ["Identity"]


def test_loops_are_not_static() -> None:
    body = graph([], [value("i", (), "int64"), value("c", (), bool)], ["c"])
    node = Node("Loop", ["m", ""], ["y"], {"body": body}, "rounds")
    model = graph([node], [value("m", (), "int64")], ["y"])
    with pytest.raises(NotStatic, match="'rounds'"):
        specialize(model, {"m": model.inputs[0].type})


def test_data_dependent_shapes_are_not_static() -> None:
    model = graph([Node("NonZero", ["x"], ["y"], name="nz")], [value("x", (4,))], ["y"])
    with pytest.raises(NotStatic, match="'nz'"):
        specialize(model, {"x": model.inputs[0].type})


def test_dead_branches_may_be_anything() -> None:
    nodes = [Node("NonZero", ["x"], ["unused"]), Node("Neg", ["x"], ["y"])]
    assert ops_of(static(graph(nodes, [value("x", (4,))], ["y"]), x=x_of(4))) == ["Neg"]


# outputs and no-ops


def test_outputs_keep_their_names() -> None:
    nodes = [
        Node("Relu", ["x"], ["t"]),
        Node("Identity", ["t"], ["a"]),
        Node("Identity", ["t"], ["b"]),
        Node("Identity", ["x"], ["c"]),
        Node("Shape", ["x"], ["d"]),
        Node("Cast", ["d"], ["e"], {"to": 1}),
    ]
    model = graph(nodes, [value("x", ("n", 2))], ["a", "b", "c", "d", "e"])
    made = static(model, x=x_of(3, 2))
    makers = {name for node in made.nodes for name in node.outputs}
    assert {"a", "b", "c", "d", "e"} <= makers
    assert ops_of(made).count("Relu") == 1
    assert not set(made.constants) & {"a", "b", "c", "d", "e"}


NOOPS = [
    ("Dropout", [], {}),
    ("Cast", [], {"to": 1}),
    ("Reshape", [np.int64([0, -1])], {}),
    ("Expand", [np.int64([1, 4])], {}),
    ("Transpose", [], {"perm": [0, 1]}),
    ("Slice", [np.int64([0]), np.int64([9]), np.int64([1])], {}),
    ("Tile", [np.int64([1, 1])], {}),
    ("Pad", [np.int64([0, 0, 0, 0])], {}),
    ("Concat", [], {"axis": 0}),
    ("Add", [np.float32(0)], {}),
    ("Sub", [np.float32([0, 0, 0, 0])], {}),
    ("Mul", [np.float32(1)], {}),
    ("Div", [np.float32([[1]])], {}),
    ("Pow", [np.float32(1)], {}),
    ("Sum", [], {}),
    ("Clip", [], {}),
]


@pytest.mark.parametrize(("op", "extra", "attrs"), NOOPS, ids=[n[0] for n in NOOPS])
def test_noops_disappear(op: str, extra: list[Any], attrs: dict[str, Any]) -> None:
    constants = {f"c{i}": array for i, array in enumerate(extra)}
    nodes = [Node(op, ["x", *constants], ["t"], attrs), Node("Neg", ["t"], ["y"])]
    made = static(graph(nodes, [value("x", ("n", 4))], ["y"], constants), x=x_of(3, 4))
    assert ops_of(made) == ["Neg"]


NOT_NOOPS = [
    ("Slice", [np.int64([-1]), np.int64([-9]), np.int64([0]), np.int64([-1])], {}),
    ("Add", [np.zeros((2, 3, 4), np.float32)], {}),
    ("Transpose", [], {"perm": [1, 0]}),
    ("Cast", [], {"to": 11}),
]


@pytest.mark.parametrize(("op", "extra", "attrs"), NOT_NOOPS, ids=[n[0] for n in NOT_NOOPS])
def test_what_does_something_stays(op: str, extra: list[Any], attrs: dict[str, Any]) -> None:
    constants = {f"c{i}": array for i, array in enumerate(extra)}
    nodes = [Node(op, ["x", *constants], ["t"], attrs), Node("Neg", ["t"], ["y"])]
    made = static(graph(nodes, [value("x", ("n", 4))], ["y"], constants), x=x_of(3, 4))
    assert op in ops_of(made)


# convolutions


CONV = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}


def after_conv(
    op: str, nodes: list[Node], constants: dict[str, Any], bias: bool, group: int
) -> Graph:
    transposed = op == "ConvTranspose"
    weight = x_of(4, 6 // group, 3, 3) if transposed else x_of(6, 4 // group, 3, 3)
    constants = {**constants, "w": weight, **({"b": x_of(6)} if bias else {})}
    conv = Node(op, ["x", "w", *(["b"] if bias else [])], ["t"], {**CONV, "group": group})
    return graph([conv, *nodes], [value("x", ("n", 4, 5, 5))], ["y"], constants)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 2])
def test_batch_norm_folds_into_convolution(op: str, bias: bool, group: int) -> None:
    constants = {k: x_of(6) for k in ("g", "s", "m")} | {"v": np.abs(x_of(6)) + 0.5}
    bn = Node("BatchNormalization", ["t", "g", "s", "m", "v"], ["y"], {"epsilon": 1e-3})
    made = static(after_conv(op, [bn], constants, bias, group), x=x_of(2, 4, 5, 5))
    assert ops_of(made) == [op]
    assert made.nodes[0].outputs == ["y"]


def test_products_and_sums_per_channel_fold_into_convolution() -> None:
    shape = (6, 1, 1)
    constants = {k: x_of(*shape) for k in ("a", "b2", "c", "d")} | {"one": np.float32(3)}
    nodes = [
        Node("Mul", ["a", "t"], ["t1"]),
        Node("Add", ["t1", "b2"], ["t2"]),
        Node("Sub", ["c", "t2"], ["t3"]),
        Node("Sub", ["t3", "d"], ["t4"]),
        Node("Div", ["t4", "one"], ["y"]),
    ]
    made = static(after_conv("Conv", nodes, constants, True, 1), x=x_of(2, 4, 5, 5))
    assert ops_of(made) == ["Conv"]


@pytest.mark.parametrize("shape", [(5, 5), (2, 6, 5, 5), (1, 2, 6, 5, 5)])
def test_other_constants_do_not_fold(shape: tuple[int, ...]) -> None:
    made = static(
        after_conv("Conv", [Node("Mul", ["t", "k"], ["y"])], {"k": x_of(*shape)}, True, 1),
        x=x_of(2, 4, 5, 5),
    )
    assert ops_of(made) == ["Conv", "Mul"]


def test_a_convolution_read_twice_is_left_alone() -> None:
    nodes = [Node("Mul", ["t", "k"], ["u"]), Node("Add", ["t", "u"], ["y"])]
    made = static(after_conv("Conv", nodes, {"k": np.float32(2)}, True, 1), x=x_of(2, 4, 5, 5))
    assert ops_of(made) == ["Conv", "Mul", "Add"]


def padded(op: str, pads: list[int], attrs: dict[str, Any], extra: dict[str, Any]) -> Graph:
    constants = {"p": np.int64(pads), **extra}
    weight = ["w"] if "w" in extra else []
    fill = ["v"] if "v" in extra else []
    nodes = [
        Node("Pad", ["x", "p", *fill], ["t"]),
        Node(op, ["t", *weight], ["y"], attrs),
    ]
    return graph(nodes, [value("x", ("n", 4, 7, 7))], ["y"], constants)


PADS = [0, 0, 1, 2, 0, 0, 3, 1]
POOL = {"kernel_shape": [4, 4], "strides": [2, 2]}


@pytest.mark.parametrize(
    ("op", "pads", "attrs", "extra", "wanted"),
    [
        ("Conv", PADS, {}, {"w": x_of(2, 4, 3, 3)}, ["Conv"]),
        ("Conv", PADS, {"pads": [1, 0, 0, 1]}, {"w": x_of(2, 4, 3, 3)}, ["Conv"]),
        ("Conv", PADS, {}, {"w": x_of(2, 4, 3, 3), "v": np.float32(0)}, ["Conv"]),
        ("Conv", PADS, {}, {"w": x_of(2, 4, 3, 3), "v": np.float32(1)}, ["Pad", "Conv"]),
        ("Conv", [0, 0, -1, 0, 0, 0, 1, 0], {}, {"w": x_of(2, 4, 3, 3)}, ["Pad", "Conv"]),
        ("Conv", [0, 1, 0, 0, 0, 0, 0, 0], {}, {"w": x_of(2, 5, 3, 3)}, ["Pad", "Conv"]),
        ("AveragePool", PADS, POOL, {}, ["AveragePool"]),
        ("AveragePool", [2 * p for p in PADS], POOL, {}, ["Pad", "AveragePool"]),
        ("AveragePool", PADS, {**POOL, "pads": [1, 1, 1, 1]}, {}, ["Pad", "AveragePool"]),
        ("MaxPool", PADS, POOL, {}, ["Pad", "MaxPool"]),
    ],
)
def test_zero_padding_folds(
    op: str, pads: list[int], attrs: dict[str, Any], extra: dict[str, Any], wanted: list[str]
) -> None:
    assert ops_of(static(padded(op, pads, attrs, extra), x=x_of(1, 4, 7, 7))) == wanted


# views and scalars


def test_views_are_merged() -> None:
    nodes = [
        Node("Reshape", ["x", "s"], ["a"]),
        Node("Unsqueeze", ["a", "one"], ["b"]),
        Node("Flatten", ["b"], ["c"]),
        Node("Transpose", ["c"], ["d"]),
        Node("Transpose", ["d"], ["e"]),
        Node("Neg", ["e"], ["y"]),
    ]
    constants = {"s": np.int64([4, 6]), "one": np.int64([1])}
    made = static(graph(nodes, [value("x", (2, 3, 4))], ["y"], constants), x=x_of(2, 3, 4))
    assert ops_of(made) == ["Reshape", "Neg"]


def test_softmax_between_reshapes() -> None:
    nodes = [
        Node("Flatten", ["x"], ["a"], {"axis": 2}),
        Node("Softmax", ["a"], ["b"], {"axis": 1}),
        Node("Reshape", ["b", "s"], ["y"]),
    ]
    made = static(
        graph(nodes, [value("x", (2, 3, 4))], ["y"], {"s": np.int64([2, 3, 4])}), x=x_of(2, 3, 4)
    )
    assert ops_of(made) == ["Softmax"]


def test_scalar_products_are_merged() -> None:
    nodes = [
        Node("Div", ["x", "six"], ["a"]),
        Node("Mul", ["two", "a"], ["b"]),
        Node("Div", ["b", "zero"], ["y"]),
    ]
    constants = {k: np.float32(v) for k, v in (("six", 6), ("two", [2]), ("zero", 0))}
    model = graph(nodes, [value("x", ("n",))], ["y"], constants)
    assert ops_of(static(model, x=np.float32([1, -2, 3]))) == ["Mul", "Div"]


def test_integer_division_is_not_multiplication() -> None:
    model = graph(
        [Node("Div", ["x", "k"], ["y"])], [value("x", (3,), "int64")], ["y"], {"k": np.int64(2)}
    )
    assert ops_of(static(model, x=np.int64([3, 4, 5]))) == ["Div"]


# which inputs matter by value


def test_shape_operands() -> None:
    nodes = [
        Node("Add", ["n", "k"], ["n1"]),
        Node("Expand", ["x", "n1"], ["a"]),
        Node("Gather", ["a", "ids"], ["b"]),
        Node("Resize", ["b", "", "scales"], ["c"]),
        Node("Shape", ["mask"], ["m"]),
        Node("Reshape", ["c", "m"], ["d"]),
        Node("Cast", ["x"], ["xi"], {"to": 7}),
        Node("Tile", ["d", "xi"], ["e"]),
        Node("Reshape", ["e", "long"], ["f"]),
    ]
    inputs = [
        value("n", (2,), "int64"),
        value("x", (2,)),
        value("ids", ("k",), "int64"),
        value("scales", (4,)),
        value("mask", (3,), "int64"),
        value("long", (100,), "int64"),
    ]
    model = graph(nodes, inputs, ["f"], {"k": np.int64(1)})
    assert shape_operands(model) == {"n", "scales"}


def test_shape_operands_inside_bodies() -> None:
    body = graph([Node("Reshape", ["x", "s"], ["b"])], [], ["b"])
    node = Node("If", ["c"], ["y"], {"then_branch": body, "else_branch": body})
    inputs = [value("x", ("n",)), value("s", ("r",), "int64"), value("c", (), bool)]
    assert shape_operands(graph([node], inputs, ["y"])) == {"s", "c"}


# errors


def test_types_are_checked() -> None:
    model = graph([Node("Neg", ["x"], ["y"])], [value("x", ("n", 4))], ["y"])
    f32 = np.dtype("float32")
    with pytest.raises(ArgumentValueError, match="type of input 'x' is missing"):
        specialize(model, {})
    with pytest.raises(ArgumentTypeError, match="must be float32, got float64"):
        specialize(model, {"x": TensorType(np.dtype("float64"), (2, 4))})
    with pytest.raises(ArgumentValueError, match=r"must be float32\[n, 4\], got float32\[2, 5\]"):
        specialize(model, {"x": TensorType(f32, (2, 5))})
    with pytest.raises(ArgumentValueError, match="value given for input 'x'"):
        specialize(model, {"x": TensorType(f32, (2, 4))}, {"x": np.zeros((3, 4), np.float32)})
    with pytest.raises(ModelError, match="not static"):
        specialize(model, {"x": TensorType(f32, ("n", 4))})


def test_contradictions_name_the_node() -> None:
    nodes = [Node("MatMul", ["x", "w"], ["y"], name="mm")]
    model = graph(nodes, [value("x", ("n", "k"))], ["y"], {"w": x_of(3, 3)})
    with pytest.raises(ModelError, match="'mm'"):
        specialize(model, {"x": TensorType(np.dtype("float32"), (2, 5))})


def test_the_given_graph_is_not_changed() -> None:
    constants = {k: np.ones(6, np.float32) for k in ("g", "s", "m", "v")}
    bn = Node("BatchNormalization", ["t", "g", "s", "m", "v"], ["y"])
    model = after_conv("Conv", [bn], constants, True, 1)
    before = [(n.op, list(n.inputs), list(n.outputs), dict(n.attrs)) for n in model.nodes]
    names = set(model.constants)
    static(model, x=x_of(1, 4, 5, 5))
    assert [(n.op, n.inputs, n.outputs, n.attrs) for n in model.nodes] == before
    assert set(model.constants) == names


def test_specialisations_share_folded_weights() -> None:
    constants = {k: np.full(6, 2, np.float32) for k in ("g", "s", "m", "v")}
    bn = Node("BatchNormalization", ["t", "g", "s", "m", "v"], ["y"])
    folded = fold_norms(after_conv("Conv", [bn], constants, True, 1))
    assert ops_of(folded) == ["Conv"]
    small, large = (static(folded, x=x_of(n, 4, 5, 5)) for n in (1, 3))
    name = small.nodes[0].inputs[1]
    assert small.constants[name] is large.constants[name]


def test_norms_fold_in_bodies() -> None:
    constants = {k: np.full(6, 2, np.float32) for k in ("g", "s", "m", "v")}
    bn = Node("BatchNormalization", ["t", "g", "s", "m", "v"], ["y"])
    net = after_conv("Conv", [bn], constants, False, 1)
    body = Graph("body", [], net.outputs, net.nodes, net.constants)
    node = Node("If", ["c"], ["z"], {"then_branch": body, "else_branch": body})
    inputs = [*net.inputs, value("c", (), bool)]
    model = graph([node], inputs, ["z"])
    folded = fold_norms(model)
    assert ops_of(folded.nodes[0].attrs["then_branch"]) == ["Conv"]
    feeds = {"x": x_of(2, 4, 5, 5), "c": np.array(True)}
    found, wanted = (ReferenceExecutable(m).run(feeds)["z"] for m in (folded, model))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert ops_of(model.nodes[0].attrs["then_branch"]) == ["Conv", "BatchNormalization"]
