"""The ONNX importer: what it reads, what it refuses, and how it says so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from packhorse import ops  # noqa: E402
from packhorse.compiler.reference import ReferenceExecutable  # noqa: E402
from packhorse.errors import (  # noqa: E402
    ArgumentValueError,
    MissingExtra,
    ModelError,
    ModelFormatError,
    UnsupportedOperator,
)
from packhorse.graph.ir import Graph  # noqa: E402
from packhorse_onnx import import_onnx, plugin  # noqa: E402
from packhorse_onnx.convert import infer_types  # noqa: E402
from packhorse_onnx.functions import expand_schema  # noqa: E402

F = TensorProto.FLOAT


def info(name: str, shape: Any = ("n", 4), kind: int = F) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    weights: dict[str, Any] | None = None,
    opset: int = 21,
    functions: list[Any] | None = None,
    domains: tuple[str, ...] = (),
) -> Any:
    made = [numpy_helper.from_array(np.asarray(v), k) for k, v in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, made)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets, functions=functions or [])


def gemm(weight: Any) -> Any:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
    return model([node], [info("x")], [info("y", ["n", None])], {"w": weight})


def run(graph: Graph, **inputs: Any) -> list[Any]:
    return list(ReferenceExecutable(graph).run(inputs).values())


def base_of(array: Any) -> Any:
    while isinstance(array, np.ndarray):
        array = array.base
    return array


# reading


def test_weights_of_a_file_are_views_of_it(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 8192), np.float32)
    onnx.save(gemm(weight), tmp_path / "m.onnx")
    graph = import_onnx(tmp_path / "m.onnx")
    found = graph.constants["w"]
    np.testing.assert_array_equal(found, weight)
    assert isinstance(base_of(found), memoryview)
    assert not found.flags.writeable
    assert [str(v.type) for v in graph.inputs] == ["float32[n, 4]"]
    assert graph.types["y"].shape == ("n", 8192)


@pytest.mark.parametrize("as_what", ["path", "str", "bytes", "proto"])
def test_sources(tmp_path: Path, as_what: str) -> None:
    proto = gemm(np.eye(4, dtype=np.float32))
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    sources = {"path": path, "str": str(path), "bytes": path.read_bytes(), "proto": proto}
    graph = import_onnx(sources[as_what])
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(run(graph, x=x)[0], x)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("size", [3, 3000])
@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "int64", "int32", "uint8", "bool", "bfloat16"]
)
def test_tensor_encodings(dtype: str, size: int, raw: bool) -> None:
    import ml_dtypes

    wanted = np.arange(size) % 2
    array = wanted.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    values = array.tobytes() if raw else array.tolist()
    tensor = helper.make_tensor("w", kind, [size], values, raw=raw)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])], "g", [], [info("y", [size], kind)], [tensor]
    )
    found = import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    assert found.constants["w"].dtype == array.dtype
    np.testing.assert_array_equal(found.constants["w"].astype(int), wanted)


def test_constant_nodes_of_every_kind_become_constants() -> None:
    kinds: dict[str, Any] = {
        "value_int": 3,
        "value_ints": [1, 2],
        "value_float": 0.5,
        "value_floats": [0.5, 1.5],
        "value": numpy_helper.from_array(np.ones((50, 50), np.float32)),
    }
    nodes = [helper.make_node("Constant", [], [k], **{k: v}) for k, v in kinds.items()]
    nodes += [helper.make_node("Identity", [k], [f"y_{k}"]) for k in kinds]
    dtypes = {k: TensorProto.INT64 if "int" in k else F for k in kinds}
    graph = import_onnx(model(nodes, [], [info(f"y_{k}", None, dtypes[k]) for k in kinds]))
    assert set(graph.constants) == set(kinds)
    assert graph.constants["value_ints"].dtype == np.int64
    assert graph.constants["value_floats"].dtype == np.float32
    assert graph.constants["value_int"].shape == ()


def test_sparse_initializer_is_made_dense() -> None:
    values = numpy_helper.from_array(np.array([5.0, 7.0], np.float32), "w")
    indices = numpy_helper.from_array(np.array([1, 6], np.int64), "i")
    proto = gemm(np.zeros((1, 1), np.float32))
    del proto.graph.initializer[:]
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 2]))
    dense = import_onnx(proto).constants["w"]
    assert dense.tolist() == [[0, 5], [0, 0], [0, 0], [7, 0]]
    proto.graph.sparse_initializer[0].dims[:] = [1 << 30, 1 << 30]
    with pytest.raises(ModelFormatError, match="larger than 1 GiB"):
        import_onnx(proto)


def test_nodes_out_of_order_are_sorted() -> None:
    nodes = [
        helper.make_node("Relu", ["t"], ["y"], name="second"),
        helper.make_node("Neg", ["x"], ["t"], name="first"),
    ]
    graph = import_onnx(model(nodes, [info("x")], [info("y")]))
    assert [n.op for n in graph.nodes] == ["Neg", "Relu"]


def test_sizes_that_mean_any() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = import_onnx(model([node], [info("x", [0, -1, "?", "batch", 3])], [info("y", None)]))
    assert graph.inputs[0].type.shape == ("x.0", "x.1", "x.2", "batch", 3)


def test_bodies_of_if_become_graphs() -> None:
    def body(op: str) -> Any:
        return helper.make_graph([helper.make_node(op, ["x"], ["b"])], op, [], [info("b")])

    node = helper.make_node("If", ["c"], ["y"], then_branch=body("Neg"), else_branch=body("Relu"))
    graph = import_onnx(model([node], [info("x"), info("c", [], TensorProto.BOOL)], [info("y")]))
    assert isinstance(graph.nodes[0].attrs["then_branch"], Graph)
    x = np.array([[-1, 2, -3, 4]], np.float32)
    np.testing.assert_array_equal(run(graph, x=x, c=np.array(True))[0], -x)
    np.testing.assert_array_equal(run(graph, x=x, c=np.array(False))[0], np.maximum(x, 0))


def test_constant_chains_are_folded_at_import() -> None:
    nodes = [
        helper.make_node("Add", ["a", "a"], ["b"]),
        helper.make_node("Mul", ["b", "a"], ["c"]),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    graph = import_onnx(model(nodes, [info("x")], [info("y")], {"a": np.float32([3])}))
    assert [n.op for n in graph.nodes] == ["Add"]
    np.testing.assert_array_equal(graph.constants["c"], [18])


def test_a_bomb_of_zeros_is_not_folded() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["r"], keepdims=0),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    shape = np.array([1 << 20, 1 << 20], np.int64)
    graph = import_onnx(model(nodes, [info("x")], [info("y")], {"s": shape}))
    assert [n.op for n in graph.nodes] == ["ConstantOfShape", "ReduceSum", "Add"]


def test_norms_are_folded_at_import() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["t"]),
        helper.make_node("BatchNormalization", ["t", "one", "one", "one", "one"], ["y"]),
    ]
    weights = {"w": np.ones((2, 3, 1, 1), np.float16), "one": np.ones(2, np.float16)}
    half = TensorProto.FLOAT16
    graph = import_onnx(
        model(nodes, [info("x", ["n", 3, 4, 4], half)], [info("y", None, half)], weights)
    )
    assert graph.count_ops() == {"Conv": 1}
    assert {a.dtype.name for a in graph.constants.values()} == {"float16"}
    found = run(graph, x=np.ones((1, 3, 4, 4), np.float16))[0]
    np.testing.assert_allclose(found, np.full((1, 2, 4, 4), 3), rtol=2e-3)


def test_metadata_and_producer() -> None:
    proto = gemm(np.eye(4, dtype=np.float32))
    proto.producer_name, proto.producer_version = "tool", "1.2"
    helper.set_model_props(proto, {"task": "nothing"})
    assert import_onnx(proto).metadata == {"producer": "tool 1.2", "task": "nothing"}


# versions and functions


def test_old_softmax_keeps_its_meaning() -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
    proto = model([node], [info("x", [2, 3, 4])], [info("y", [2, 3, 4])], opset=11)
    x = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)
    flat = np.exp(x.reshape(2, 12))
    wanted = (flat / flat.sum(1, keepdims=True)).reshape(2, 3, 4)
    np.testing.assert_allclose(run(import_onnx(proto), x=x)[0], wanted, rtol=1e-5)


def test_conversion_with_a_body_that_reads_a_converted_value() -> None:
    body = helper.make_graph([helper.make_node("Neg", ["s"], ["b"])], "b", [], [info("b", None)])
    nodes = [
        helper.make_node("Softmax", ["x"], ["s"], axis=1),
        helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body),
    ]
    proto = model(nodes, [info("x"), info("c", [], TensorProto.BOOL)], [info("y", None)], opset=11)
    x = np.random.default_rng(0).standard_normal((2, 4), np.float32)
    wanted = -np.exp(x) / np.exp(x).sum(1, keepdims=True)
    found = run(import_onnx(proto), x=x, c=np.array(True))[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21, 23])
def test_opsets(opset: int) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["t"]),
        helper.make_node("Relu", ["t"], ["y"]),
    ]
    weight = np.random.default_rng(0).standard_normal((4, 300), np.float32)
    proto = model(nodes, [info("x")], [info("y", ["n", 300])], {"w": weight}, opset)
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(
        run(import_onnx(proto), x=x)[0], np.maximum(x @ weight, 0), rtol=1e-5
    )


@pytest.mark.parametrize("opset", [0, 10_000])
def test_opset_unknown(opset: int) -> None:
    proto = gemm(np.eye(4, dtype=np.float32))
    proto.opset_import[0].version = opset
    with pytest.raises(ModelFormatError, match=rf"opset {opset}.*pip install -U onnx"):
        import_onnx(proto)


def test_scan_of_opset_8_is_refused() -> None:
    body = helper.make_graph([helper.make_node("Neg", ["a"], ["b"])], "b", [info("a")], [info("b")])
    node = helper.make_node("Scan", ["", "x"], ["y"], name="old", num_scan_inputs=1, body=body)
    with pytest.raises(UnsupportedOperator, match=r"'old' \(Scan\) of opset 8 has a batch axis"):
        import_onnx(model([node], [info("x")], [info("y")], opset=8))


def test_converter_failure_names_node_and_operator() -> None:
    nodes = [
        helper.make_node("Softmax", ["x"], ["t"], name="fine"),
        helper.make_node("GlobalLpPool", ["t"], ["y"], name="old"),
    ]
    proto = model(nodes, [info("x", [1, 1, 2, 2])], [info("y", None)], opset=1)
    with pytest.raises(UnsupportedOperator, match=r"opset 1 to 21: no rule for node 'old' \(Gl"):
        import_onnx(proto)


def test_broadcasting_before_opset_7() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["t"]),
        helper.make_node("Mul", ["t", "k"], ["y"], broadcast=1, axis=1),
    ]
    weights = {"k": np.arange(3, dtype=np.float32)}
    proto = model(nodes, [info("x", [2, 3, 4, 4])], [info("y", [2, 3, 4, 4])], weights, opset=6)
    x = np.ones((2, 3, 4, 4), np.float32)
    wanted = x * np.arange(3, dtype=np.float32).reshape(3, 1, 1)
    np.testing.assert_array_equal(run(import_onnx(proto), x=x)[0], wanted)


@pytest.mark.parametrize("shape", [[2, 3], [2, 3, 4], [2, 3, 4, 5]])
def test_slopes_before_opset_7_belong_to_channels(shape: list[int]) -> None:
    node = helper.make_node("PRelu", ["x", "slope"], ["y"])
    slope = np.array([0.1, 0.2, 0.5], np.float32)
    proto = model([node], [info("x", shape)], [info("y", shape)], {"slope": slope}, opset=6)
    x = -np.ones(shape, np.float32)
    wanted = x * slope.reshape(3, *[1] * (len(shape) - 2))
    np.testing.assert_array_equal(run(import_onnx(proto), x=x)[0], wanted)


def test_local_functions_are_inlined() -> None:
    inner = helper.make_function(
        "me", "Scale", ["v"], ["o"],
        [helper.make_node("Constant", [], ["k"]), helper.make_node("Mul", ["v", "k"], ["o"])],
        [helper.make_opsetid("", 21)], ["by"],
    )  # fmt: skip
    reference = inner.node[0].attribute.add()
    reference.name, reference.ref_attr_name = "value_float", "by"
    reference.type = onnx.AttributeProto.FLOAT
    outer = helper.make_function(
        "me", "Twice", ["v"], ["o"],
        [
            helper.make_node("Scale", ["v"], ["t"], domain="me", by=2.0),
            helper.make_node("Scale", ["t"], ["o"], domain="me", by=3.0),
        ],
        [helper.make_opsetid("", 21), helper.make_opsetid("me", 1)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Twice", ["x"], ["t"], domain="me"),
        helper.make_node("Twice", ["t"], ["y"], domain="me"),
    ]
    proto = model(nodes, [info("x")], [info("y")], functions=[inner, outer], domains=("me",))
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(run(import_onnx(proto), x=x)[0], 36 * x)


def test_functions_in_a_circle_are_refused() -> None:
    made = [
        helper.make_function(
            "me", a, ["v"], ["o"], [helper.make_node(b, ["v"], ["o"], domain="me")],
            [helper.make_opsetid("me", 1)],
        )
        for a, b in (("A", "B"), ("B", "A"))
    ]  # fmt: skip
    node = helper.make_node("A", ["x"], ["y"], domain="me")
    with pytest.raises(ModelFormatError, match="circle"):
        import_onnx(model([node], [info("x")], [info("y")], functions=made, domains=("me",)))


def test_functions_that_explode_are_refused() -> None:
    made = []
    for i in range(60):
        calls = [
            helper.make_node(f"F{i + 1}", ["v"], ["t"], domain="me"),
            helper.make_node(f"F{i + 1}", ["t"], ["o"], domain="me"),
        ]
        made.append(
            helper.make_function("me", f"F{i}", ["v"], ["o"], calls, [helper.make_opsetid("me", 1)])
        )
    node = helper.make_node("F0", ["x"], ["y"], domain="me")
    with pytest.raises(ModelFormatError, match="more than 200000"):
        import_onnx(model([node], [info("x")], [info("y")], functions=made, domains=("me",)))


@pytest.mark.parametrize(
    ("op", "attrs"),
    [("LeakyRelu", {}), ("Elu", {"alpha": 0.5}), ("Softmax", {}), ("Gelu", {}), ("HardSwish", {})],
)
def test_schema_bodies_compute_what_the_operator_does(op: str, attrs: dict[str, Any]) -> None:
    proto = model([helper.make_node(op, ["x"], ["y"], **attrs)], [info("x")], [info("y")])
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    wanted = run(import_onnx(proto), x=x)[0]
    primitive = {"Exp", "Mul", "Div", "Sub", "Where", "Less", "Cast", "Constant", "CastLike"}
    for _ in range(8):
        proto, types = infer_types(proto)
        if not expand_schema(proto, lambda d, o: o != op and (o in primitive or _have(o)), types):
            break
    assert op not in {n.op_type for n in proto.graph.node}
    assert len(proto.graph.node) > 1
    np.testing.assert_allclose(run(import_onnx(proto), x=x)[0], wanted, rtol=1e-5, atol=1e-6)


def _have(op: str) -> bool:
    return op in ops.names()


# external data


def external(tmp_path: Path, location: str = "w.bin") -> Path:
    weight = np.random.default_rng(0).standard_normal((4, 1024), np.float32)
    onnx.save(
        gemm(weight), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin",
        size_threshold=0,
    )  # fmt: skip
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = location
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    return tmp_path / "m.onnx"


def test_external_data_is_mapped(tmp_path: Path) -> None:
    found = import_onnx(external(tmp_path)).constants["w"]
    wanted = np.random.default_rng(0).standard_normal((4, 1024), np.float32)
    np.testing.assert_array_equal(found, wanted)


def test_external_data_of_bytes_needs_a_folder(tmp_path: Path) -> None:
    data = external(tmp_path).read_bytes()
    with pytest.raises(ModelFormatError, match="pass folder"):
        import_onnx(data)
    assert import_onnx(data, folder=tmp_path).constants["w"].shape == (4, 1024)


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", "", "."]
)
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(1 << 16))
    with pytest.raises(ModelFormatError, match="not inside the model's folder"):
        import_onnx(external(folder, location))


def test_external_data_behind_a_link_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(1 << 16))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelFormatError, match="not inside the model's folder"):
        import_onnx(external(folder, "link.bin"))


def test_external_data_missing_or_short(tmp_path: Path) -> None:
    path = external(tmp_path)
    whole = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(whole[:100])
    with pytest.raises(ModelFormatError, match="beyond the end"):
        import_onnx(path)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelFormatError, match=r"'w.bin' is missing"):
        import_onnx(path)


def test_model_beyond_two_gigabytes(tmp_path: Path) -> None:
    """Protobuf cannot parse it; the weights are a hole in the file, so nothing is read."""
    size = (1 << 31) + (1 << 20)
    proto = gemm(np.zeros((1, 1), np.uint8))
    tensor = proto.graph.initializer[0]
    tensor.dims[:] = [4, size // 4]
    tensor.ClearField("raw_data")

    def emit(number: int, size: int) -> bytes:
        out = bytearray([number << 3 | 2])
        while size > 127:
            out.append(size & 127 | 128)
            size >>= 7
        return bytes([*out, size])

    head = tensor.SerializeToString() + emit(9, size)
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    wrapped = graph + emit(5, len(head) + size) + head
    path = tmp_path / "big.onnx"
    with path.open("wb") as file:
        file.write(proto.SerializeToString() + emit(7, len(wrapped) + size) + wrapped)
        file.truncate(file.tell() + size)
    assert import_onnx(path, strict=False).constants["w"].nbytes == size


# refusals


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"ir_version: 8\nproducer_name: 'x'\ngraph {\n", "but text"),
        (b"hello, this is not a model at all, it is prose.", "but text"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"PK\x03\x04" + bytes(100), "zip archive"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(100), "TensorFlow Lite"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (bytes(range(256)), "not"),
        (b"\x08\x0a", "holds no graph"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\x7f", "announces"),
    ],
)
def test_not_a_model(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match=says):
        import_onnx(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="does not exist"):
        import_onnx(tmp_path / "nothing.onnx")
    with pytest.raises(ModelFormatError, match="is a directory"):
        import_onnx(tmp_path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_truncated(part: float) -> None:
    data = gemm(np.ones((4, 1000), np.float32)).SerializeToString()
    with pytest.raises(ModelFormatError, match=r"truncated|holds no graph"):
        import_onnx(data[: int(len(data) * part)])


@pytest.mark.parametrize(
    "dims", [[1 << 40, 1 << 20], [-1, 4], [4, 999], [0, 1 << 62], [1] * 70], ids=str
)
@pytest.mark.parametrize("raw", [True, False])
def test_hostile_shapes(dims: list[int], raw: bool) -> None:
    proto = gemm(np.ones((4, 1000), np.float32))
    tensor = proto.graph.initializer[0]
    if not raw:
        tensor.int64_data[:] = [1] * 4000
        tensor.data_type = TensorProto.INT64
        tensor.ClearField("raw_data")
    tensor.dims[:] = dims
    with pytest.raises(ModelFormatError, match="tensor 'w'"):
        import_onnx(proto)


def test_value_made_twice_or_by_nothing() -> None:
    twice = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["y"])]
    with pytest.raises(ModelFormatError, match="'y' is made twice"):
        import_onnx(model(twice, [info("x")], [info("y")]))
    nothing = [helper.make_node("Neg", ["ghost"], ["y"], name="n1")]
    with pytest.raises(ModelFormatError, match=r"'n1' .* reads 'ghost', which nothing makes"):
        import_onnx(model(nothing, [info("x")], [info("y")]))
    with pytest.raises(ModelFormatError, match="output 'z' is made by no node"):
        import_onnx(model([helper.make_node("Neg", ["x"], ["y"])], [info("x")], [info("z")]))
    circle = [helper.make_node("Neg", ["b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
    with pytest.raises(ModelFormatError, match="circle"):
        import_onnx(model(circle, [info("x")], [info("b")]))


def test_unknown_operator_is_named() -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"], name="f", domain="acme")
    proto = model([node], [info("x")], [info("y")], domains=("acme",))
    with pytest.raises(UnsupportedOperator, match=r"acme::Frobnicate \(node 'f'\)"):
        import_onnx(proto)
    assert import_onnx(proto, strict=False).nodes[0].domain == "acme"


def test_newer_attributes_are_not_ignored() -> None:
    if "precision" not in onnx.defs.get_schema("QuantizeLinear").attributes:
        pytest.skip("QuantizeLinear has 'precision' since opset 23, and this onnx is older")
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["y"], precision=TensorProto.FLOAT16)
    proto = model([node], [info("x", [4]), info("s", [])], [info("y", [4], TensorProto.UINT8)])
    with pytest.raises(UnsupportedOperator, match="precision=10 came after opset 21"):
        import_onnx(proto)


def test_sequences_are_refused() -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(F, [2]))
    node = helper.make_node("SequenceLength", ["s"], ["y"])
    proto = model([node], [helper.make_value_info("s", kind)], [info("y", [], TensorProto.INT64)])
    with pytest.raises(UnsupportedOperator, match="'s' is a sequence"):
        import_onnx(proto)


def test_onnx_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    import packhorse_onnx

    with pytest.raises(MissingExtra, match=r"pip install 'packhorse\[onnx\]'"):
        packhorse_onnx.import_onnx("m.onnx")


# the plugin


def test_hooks(tmp_path: Path) -> None:
    assert plugin.packhorse_frontend_info("onnx").suffixes == (".onnx",)
    path = tmp_path / "M.ONNX"
    path.write_bytes(gemm(np.eye(4, dtype=np.float32)).SerializeToString())
    graph = plugin.packhorse_import_model(path, None, {})
    assert graph is not None
    assert graph.count_ops() == {"MatMul": 1}
    assert plugin.packhorse_import_model(path.read_bytes(), "onnx", {"strict": True}) is not None
    assert plugin.packhorse_import_model("m.tflite", None, {}) is None
    assert plugin.packhorse_import_model(path, "tflite", {}) is None
    with pytest.raises(ArgumentValueError, match=r"no option 'strickt'.*did you mean 'strict'"):
        plugin.packhorse_import_model(path, None, {"strickt": True})


def test_every_refusal_is_a_model_error() -> None:
    assert issubclass(ModelFormatError, ModelError)
    assert issubclass(UnsupportedOperator, ModelError)
