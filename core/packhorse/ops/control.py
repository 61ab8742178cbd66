"""Control flow. The graph interpreter runs bodies; what is here lets the compiler fold them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import Graph, TensorType
from packhorse.ops.registry import Inference, NotStatic, get, operator
from packhorse.ops.rules import Array, labelled

__all__ = ["if_", "run_body"]


def _output_types(body: Graph) -> list[TensorType]:
    """Types of a body's outputs; NotStatic while a dimension is unknown."""
    found = []
    for output in body.outputs:
        constant = body.constants.get(output.name)
        if constant is not None:
            found.append(TensorType(constant.dtype, constant.shape))
        elif output.type.is_static:
            found.append(output.type)
        else:
            known = body.types.get(output.name)
            if known is None or not known.is_static:
                raise NotStatic(f"output '{output.name}' of body '{body.name}' is {output.type}")
            found.append(known)
    return found


def _truth(condition: Array) -> bool:
    if np.size(condition) != 1:
        raise ModelError(f"the condition must hold one element, found shape {np.shape(condition)}")
    return bool(np.asarray(condition).reshape(()))


@labelled
def _if_rule(ctx: Inference) -> Sequence[TensorType]:
    if ctx.type(0).dtype != np.bool_:
        raise ModelError(f"the condition must be bool, found {ctx.type(0).dtype}")
    branches = {name: ctx.attr(name) for name in ("then_branch", "else_branch")}
    condition = ctx.values[0]
    if condition is not None:
        return _output_types(branches["then_branch" if _truth(condition) else "else_branch"])
    then, other = map(_output_types, branches.values())
    if then != other:
        raise NotStatic("the branches differ in type, so the condition must be known")
    return then


def run_body(body: Graph, outer: dict[str, Array] | None = None) -> tuple[Array, ...]:
    """Run a body without inputs by the NumPy references.

    Parameters
    ----------
    body : Graph
        A branch of If.
    outer : mapping, optional
        Values of the enclosing graph that the body may read.

    Raises
    ------
    UnsupportedOperator
        The body reads a value that is neither its own nor in ``outer``.
    """
    values: dict[str, Array] = {**(outer or {}), **body.constants}

    def read(name: str) -> Array:
        if name not in values:
            raise UnsupportedOperator(
                f"body '{body.name}' reads '{name}' of the enclosing graph, which is not known here"
            )
        return values[name]

    for node in body.nodes:
        inputs = [read(name) if name else None for name in node.inputs]
        if node.op == "If" and not node.domain:
            branch = node.attrs["then_branch" if _truth(read(node.inputs[0])) else "else_branch"]
            results = run_body(branch, values)
        else:
            results = get(node).run(node, inputs)
        values.update((n, y) for n, y in zip(node.outputs, results, strict=False) if n)
    return tuple(read(output.name) for output in body.outputs)


@operator("If", infer=_if_rule)
def if_(condition: Array, *, then_branch: Graph, else_branch: Graph) -> tuple[Array, ...]:
    """The outputs of one of two bodies (ONNX If-21), for bodies that capture nothing.

    Raises
    ------
    UnsupportedOperator
        The chosen body reads values of the enclosing graph: only the interpreter has them.
    """
    return run_body(then_branch if _truth(condition) else else_branch)
