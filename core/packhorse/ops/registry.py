"""The operator table.

An operator is added in one file of this package::

    @operator("Softmax", infer=same_as_first, lower=lower_softmax)
    def softmax(x, *, axis=-1):
        '''NumPy reference (ONNX Softmax-13).'''

The decorated function is the NumPy reference: positional arrays in (``None`` for elided optional
inputs), one array or a tuple out. Its keyword defaults *are* the attribute defaults; ``infer`` and
``lower`` read them from there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator, did_you_mean
from packhorse.graph.ir import Node, TensorType
from packhorse.kernel.lowering import Lowered, Lowering
from packhorse.plugin import default_manager

__all__ = [
    "Inference",
    "NotStatic",
    "Operator",
    "add",
    "define",
    "find",
    "get",
    "names",
    "operator",
    "same_as_first",
]

Array: TypeAlias = np.ndarray[Any, Any]
Reference: TypeAlias = Callable[..., Any]


class NotStatic(ModelError):
    """An output shape depends on values known only when the node runs."""


@dataclass(frozen=True)
class Inference:
    """What a shape rule sees: static input types, and input values where they are known."""

    node: Node
    inputs: tuple[TensorType | None, ...]
    values: tuple[Array | None, ...]
    operator: Operator

    def attr(self, name: str) -> Any:
        """Attribute value, or the default of the reference function's keyword."""
        return self.operator.attr(self.node, name)

    def type(self, i: int) -> TensorType:
        """Type of input ``i``; ModelError when it was elided."""
        found = self.inputs[i] if i < len(self.inputs) else None
        if found is None:
            raise ModelError(f"{self.node.label}: input {i} is missing")
        return found

    def shape(self, i: int) -> tuple[int, ...]:
        """Static shape of input ``i``."""
        return self.type(i).dims

    def value(self, i: int) -> Array:
        """Value of a shape-like input; :class:`NotStatic` when it is not known yet."""
        found = self.values[i] if i < len(self.values) else None
        if found is None:
            raise NotStatic(f"{self.node.label}: input {i} must be known to infer the shape")
        return found

    def has(self, i: int) -> bool:
        """True when optional input ``i`` is given."""
        return i < len(self.inputs) and self.inputs[i] is not None


InferRule: TypeAlias = Callable[[Inference], Sequence[TensorType]]
LowerRule: TypeAlias = Callable[[Lowering], Lowered | tuple[Lowered | None, ...]]


@dataclass(frozen=True)
class Operator:
    """One operator: shape rule, NumPy reference, and its lowering where it has loops.

    ``lower`` may return ``NotImplemented``-like refusal by raising :class:`UnsupportedOperator`
    for forms it does not cover; the node then runs by its reference on the host.
    """

    name: str
    domain: str
    infer: InferRule
    reference: Reference
    lower: LowerRule | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def attr(self, node: Node, name: str) -> Any:
        """Attribute of a node, with the reference's keyword default."""
        if name in node.attrs:
            return node.attrs[name]
        if name in self.defaults:
            return self.defaults[name]
        raise ModelError(f"{node.label} lacks the required attribute '{name}'")

    def run(self, node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        """Call the reference; always a tuple of arrays."""
        attrs = {k: v for k, v in node.attrs.items() if k in self.keywords}
        result = self.reference(*inputs, **attrs)
        outputs = result if isinstance(result, tuple) else (result,)
        return tuple(np.asarray(x) for x in outputs)

    @property
    def keywords(self) -> frozenset[str]:
        """Attributes the reference understands."""
        return _keywords(self.reference)


def _keywords(function: Reference) -> frozenset[str]:
    found = _KEYWORDS.get(function)
    if found is None:
        parameters = inspect.signature(function).parameters.values()
        found = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        _KEYWORDS[function] = found
    return found


_KEYWORDS: dict[Reference, frozenset[str]] = {}
_OPERATORS: dict[tuple[str, str], Operator] = {}


def define(
    name: str,
    reference: Reference,
    *,
    infer: InferRule,
    lower: LowerRule | None = None,
    domain: str = "",
) -> Operator:
    """An operator from its functions; the table does not know it yet.

    Plugins return such from the hook ``packhorse_operators``.
    """
    parameters = inspect.signature(reference).parameters.values()
    defaults = {
        p.name: p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    }
    return Operator(name, domain, infer, reference, lower, defaults)


def add(found: Operator) -> None:
    """Put an operator into the table; ValueError when its name is taken."""
    if _OPERATORS.setdefault((found.domain, found.name), found) is not found:
        name = f"{found.domain}::{found.name}" if found.domain else found.name
        raise ValueError(f"operator '{name}' is registered already")


def operator(
    name: str, *, infer: InferRule, lower: LowerRule | None = None, domain: str = ""
) -> Callable[[Reference], Reference]:
    """Register the decorated NumPy reference as an operator of the IR (ai.onnx opset 21)."""

    def register(reference: Reference) -> Reference:
        add(define(name, reference, infer=infer, lower=lower, domain=domain))
        return reference

    return register


def _ask_plugins() -> None:
    default_manager().extend("packhorse_operators", _add_offered)


def _add_offered(found: object) -> None:
    if not isinstance(found, Operator):
        raise TypeError(f"it gave {type(found).__name__}, not packhorse.ops.Operator")
    add(found)


def find(node: Node) -> Operator | None:
    """The operator of a node, or None when neither packhorse nor a plugin knows it."""
    key = node.domain, node.op
    if key not in _OPERATORS:
        _ask_plugins()
    return _OPERATORS.get(key)


def get(node: Node) -> Operator:
    """The operator of a node.

    Raises
    ------
    UnsupportedOperator
        Names node, operator and domain, with the closest known name.
    """
    found = find(node)
    if found is None:
        known = [n for d, n in _OPERATORS if d == node.domain]
        where = f" of domain '{node.domain}'" if node.domain else ""
        raise UnsupportedOperator(
            f"node {node.label}: operator '{node.op}'{where} is not implemented"
            f"{did_you_mean(node.op, known)}. See 'packhorse inspect' for the whole list"
        )
    return found


def names() -> list[str]:
    """All operator names, those of plugins included, domain-qualified where not ai.onnx."""
    _ask_plugins()
    return sorted(f"{d}::{n}" if d else n for d, n in _OPERATORS)


def same_as_first(ctx: Inference) -> Sequence[TensorType]:
    """Shape rule: one output typed like input 0."""
    return [ctx.type(0)]
