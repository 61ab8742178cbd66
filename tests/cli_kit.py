"""Small ONNX models for the tests of the command line."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def write_model(path: Path, shape=("batch", 8), kind=FLOAT) -> Path:
    """``y = softmax(x @ w)``, x of the given shape, w 8x6."""
    weights = helper.make_tensor("w", FLOAT, (8, 6), [0.1 * i for i in range(48)])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="product")]
    nodes += [helper.make_node("Softmax", ["h"], ["y"], name="scores")]
    if kind != FLOAT:
        nodes = [helper.make_node("Cast", ["x0"], ["x"], name="to_float", to=FLOAT), *nodes]
    name = "x" if kind == FLOAT else "x0"
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, kind, shape)],
        [helper.make_tensor_value_info("y", FLOAT, (shape[0], 6))],
        [weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


def write_two_inputs(path: Path) -> Path:
    """``y = Reshape(x, shape)``: a second, integer input that the shapes depend on."""
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "to"], ["y"], name="reshape")],
        "two",
        [
            helper.make_tensor_value_info("x", FLOAT, (2, 4)),
            helper.make_tensor_value_info("to", INT64, (1,)),
        ],
        [helper.make_tensor_value_info("y", FLOAT, ("n",))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path
