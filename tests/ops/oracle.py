"""Judging one operator: onnxruntime (or ONNX's reference evaluator) against ours.

``check("Op", inputs, attrs)`` runs the rule, the NumPy reference and, where there is one, the
lowering through the kernel interpreter, and compares all of them with the oracle.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from naive import NaiveLowering
from onnx import helper, numpy_helper

from packhorse.graph.ir import Graph, Node, TensorType
from packhorse.kernel.layout import numpy_dtype
from packhorse.ops import Inference, get

Array = np.ndarray[Any, Any]
OPSET, IR_VERSION = 21, 10
onnxruntime.set_default_logger_severity(4)


def node_of(
    op: str,
    inputs: Sequence[Array | None],
    attrs: Mapping[str, Any] | None = None,
    outputs: int = 1,
) -> Node:
    """The IR node of one application; elided inputs are None."""
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
    return Node(op, names, [f"y{i}" for i in range(outputs)], dict(attrs or {}), name="node")


def infer(
    node: Node, inputs: Sequence[Array | None], known: Sequence[int] | None = None
) -> list[TensorType]:
    """Output types by the shape rule; ``known`` inputs have values (default: all)."""
    types = tuple(None if x is None else TensorType(x.dtype, x.shape) for x in inputs)
    values = tuple(x if known is None or i in known else None for i, x in enumerate(inputs))
    entry = get(node)
    return list(entry.infer(Inference(node, types, values, entry)))


def reference(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    """Our NumPy reference."""
    return get(node).run(node, inputs)


def lowered(
    node: Node, inputs: Sequence[Array | None], constant: Sequence[int] = ()
) -> tuple[Array | None, ...]:
    """The node's lowering, run by the kernel interpreter; inputs in ``constant`` are known."""
    entry = get(node)
    assert entry.lower is not None, f"{node.op} has no lowering"
    types = [(t.dims, t.dtype.name) for t in infer(node, inputs)]
    ctx = NaiveLowering(node, inputs, types, set(constant))
    result = entry.lower(ctx)
    results = result if isinstance(result, tuple) else (result,)
    return tuple(None if r is None else ctx.materialise(r) for r in results)


def onnx_model(node: Node, inputs: Sequence[Array | None]) -> onnx.ModelProto:
    """A one-node ONNX model with those inputs."""
    attrs = {k: _attribute(v) for k, v in node.attrs.items()}
    proto = helper.make_node(node.op, node.inputs, node.outputs, domain=node.domain, **attrs)
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), list(x.shape))
        for name, x in zip(node.inputs, inputs, strict=True)
        if x is not None
    ]
    made = [onnx.ValueInfoProto(name=name) for name in node.outputs]
    graph = helper.make_graph([proto], "one", given, made)
    opsets = [helper.make_opsetid("", OPSET)]
    if node.domain:
        opsets.append(helper.make_opsetid(node.domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def _attribute(value: Any) -> Any:
    if isinstance(value, Graph):
        raise TypeError("graph attributes are not supported by this helper")
    return numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value


def ort(node: Node, inputs: Sequence[Array | None]) -> list[Array]:
    """Outputs by onnxruntime, one thread, no optimisation."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = onnx_model(node, inputs).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {n: x for n, x in zip(node.inputs, inputs, strict=True) if x is not None}
    return [np.asarray(y) for y in session.run(None, feed)]


def evaluator(node: Node, inputs: Sequence[Array | None]) -> list[Array]:
    """Outputs by ONNX's own reference evaluator, for what onnxruntime has no kernel."""
    from onnx.reference import ReferenceEvaluator

    feed = {n: x for n, x in zip(node.inputs, inputs, strict=True) if x is not None}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        results = ReferenceEvaluator(onnx_model(node, inputs)).run(None, feed)
    return [np.asarray(y) for y in results]


def expected(node: Node, inputs: Sequence[Array | None]) -> list[Array]:
    """onnxruntime's answer, or the evaluator's where onnxruntime lacks the kernel or dtype."""
    if any(x is not None and x.dtype.name == "bfloat16" for x in inputs):
        return evaluator(node, inputs)
    try:
        return ort(node, inputs)
    except (onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented,
            onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph):  # fmt: skip
        return evaluator(node, inputs)


def close(found: Array, wanted: Array, rtol: float, atol: float, what: str) -> None:
    """Equal shape and dtype; floats within tolerance, everything else exactly."""
    assert found.shape == wanted.shape, f"{what}: shape {found.shape}, wanted {wanted.shape}"
    assert found.dtype == wanted.dtype, f"{what}: dtype {found.dtype}, wanted {wanted.dtype}"
    if wanted.dtype.name.startswith(("float", "bfloat")):
        if wanted.dtype.name in ("float16", "bfloat16"):
            rtol, atol = max(rtol, 2**-7 if wanted.dtype.name == "bfloat16" else 2e-3), 1e-3
        np.testing.assert_allclose(
            found.astype(np.float64), wanted.astype(np.float64), rtol, atol, err_msg=what
        )
    else:
        np.testing.assert_array_equal(found, wanted, err_msg=what)


def check(
    op: str,
    inputs: Sequence[Array | None],
    attrs: Mapping[str, Any] | None = None,
    *,
    outputs: int = 1,
    constant: Sequence[int] | None = None,
    lower: bool = True,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    want: Sequence[Array] | None = None,
    domain: str = "",
    oracle: Callable[..., list[Array]] = expected,
) -> None:
    """Compare rule, reference and lowering with the oracle (or with ``want``).

    ``constant``: inputs known when lowering; default: integer and bool inputs of at most 16
    elements other than the first. The lowering is also run with *every* input known.
    """
    arrays = [None if x is None else np.asarray(x) for x in inputs]
    node = node_of(op, arrays, attrs, outputs)
    node.domain = domain
    wanted = list(oracle(node, arrays) if want is None else want)
    for i, (kind, y) in enumerate(zip(infer(node, arrays), wanted, strict=True)):
        assert kind.shape == y.shape, f"{op} output {i}: inferred {kind}, wanted {y.shape}"
        assert kind.dtype == y.dtype, f"{op} output {i}: inferred {kind}, wanted {y.dtype}"
    for i, (found, y) in enumerate(zip(reference(node, arrays), wanted, strict=False)):
        close(found, y, rtol, atol, f"{op} reference, output {i}")
    if not lower:
        return
    some = [
        i for i, x in enumerate(arrays)
        if i and x is not None and x.dtype.kind in "iub" and x.size <= 16
    ] if constant is None else constant  # fmt: skip
    for choice in (some, range(len(arrays))):
        made = lowered(node, arrays, choice)
        for i, (got, y) in enumerate(zip(made, wanted, strict=True)):
            if got is not None:
                close(got, y, rtol, atol, f"{op} lowered, known {list(choice)}, output {i}")


__all__ = ["check", "infer", "lowered", "node_of", "numpy_dtype", "reference"]
