"""One call of an operator's ``lower``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from packhorse.compiler.operands import StoredOperand
from packhorse.graph.ir import Node, TensorType
from packhorse.kernel.expr import Affine, Axis, Expr, cast
from packhorse.kernel.kernel import Store, contiguous
from packhorse.kernel.lowering import Lowering, Operand
from packhorse.ops import registry

if TYPE_CHECKING:
    from packhorse.compiler.build import Builder

__all__ = ["Context"]

Array = np.ndarray[Any, Any]


class Context(Lowering):
    """What ``lower`` sees of a node, on top of the builder."""

    def __init__(self, builder: Builder, node: Node, operator: registry.Operator) -> None:
        self.builder, self.node, self.operator = builder, node, operator
        self.inputs = tuple(builder.operand(name) for name in node.inputs)
        self.output_types = tuple((t.dims, str(t.dtype)) for t in self._types())

    def _types(self) -> Sequence[TensorType]:
        """Types of all outputs; elided ones are inferred, the graph does not list them."""
        graph, node = self.builder.graph, self.node
        if all(node.outputs):
            return [graph.type_of(o) for o in node.outputs]
        seen = registry.Inference(
            node,
            tuple(graph.type_of(i) if i else None for i in node.inputs),
            tuple(graph.constants.get(i) for i in node.inputs),
            self.operator,
        )
        return self.operator.infer(seen)[: len(node.outputs)]

    def attr(self, name: str) -> Any:
        return self.operator.attr(self.node, name)

    def axis(self, extent: int) -> Axis:
        return self.builder.axis(extent)

    def constant(self, array: Array) -> Operand:
        return self.builder.constant(array)

    def buffer(self, shape: Sequence[int], dtype: str) -> Operand:
        name = self.builder.fresh(f"{self.node.outputs[0]}.work")
        place = self.builder.root(name, contiguous(shape, dtype))
        return StoredOperand(self.builder, place, dtype)

    def kernel(
        self,
        axes: Sequence[Axis],
        stores: Sequence[tuple[Operand, Sequence[Affine], Expr]],
        sequential: Sequence[str] = (),
    ) -> None:
        written = []
        for operand, index, value in stores:
            assert isinstance(operand, StoredOperand)
            written.append(Store(operand.where.name, tuple(index), cast(value, operand.dtype)))
        self.builder.emit(axes, written, sequential)
