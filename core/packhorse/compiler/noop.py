"""Nodes that do nothing for the types and constants at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from packhorse.graph.ir import Node, TensorType

__all__ = ["is_noop"]

Array = np.ndarray[Any, Any]
Values = Sequence[Array | None]
Rule = Callable[[Node, Values], bool]


def _neutral(number: float, *places: int) -> Rule:
    """Operand at one of ``places`` is a constant full of ``number``."""

    def rule(node: Node, values: Values) -> bool:
        return any(
            i < len(values)
            and (value := values[i]) is not None
            and value.size <= 4096
            and bool(np.all(value == number))
            for i in places
        )

    return rule


def _always(node: Node, values: Values) -> bool:
    return True


def _absent(*places: int) -> Rule:
    """Operands at ``places`` are elided."""

    def rule(node: Node, values: Values) -> bool:
        return all(i >= len(node.inputs) or not node.inputs[i] for i in places)

    return rule


def _single(node: Node, values: Values) -> bool:
    return len(node.inputs) == 1


def _transpose(node: Node, values: Values) -> bool:
    perm = node.attrs.get("perm")
    return perm is not None and list(perm) == sorted(perm)


def _slice(node: Node, values: Values) -> bool:
    steps = values[4] if len(values) > 4 and node.inputs[4] else np.ones(1)
    return steps is not None and bool(np.all(steps > 0))


def _dropout(node: Node, values: Values) -> bool:
    training = values[2] if len(values) > 2 and node.inputs[2] else np.zeros(1)
    return len([n for n in node.outputs if n]) == 1 and training is not None and not training.any()


def _depth(node: Node, values: Values) -> bool:
    return int(node.attrs.get("blocksize", 0)) == 1


_RULES: dict[str, Rule] = {
    "Identity": _always,
    "Dropout": _dropout,
    "Cast": _always,
    "CastLike": _always,
    "Reshape": _always,
    "Flatten": _always,
    "Squeeze": _always,
    "Unsqueeze": _always,
    "Expand": _always,
    "Transpose": _transpose,
    "Slice": _slice,
    "Pad": _neutral(0, 1),
    "Tile": _neutral(1, 1),
    "Concat": _single,
    "Sum": _single,
    "Mean": _single,
    "Max": _single,
    "Min": _single,
    "Clip": _absent(1, 2),
    "Add": _neutral(0, 1),
    "Sub": _neutral(0, 1),
    "Mul": _neutral(1, 1),
    "Div": _neutral(1, 1),
    "Pow": _neutral(1, 1),
    "DepthToSpace": _depth,
    "SpaceToDepth": _depth,
}
"""Operators that may do nothing; the result must have the type of input 0 as well."""


def is_noop(
    node: Node,
    kinds: Sequence[TensorType | None],
    values: Values,
    results: Sequence[TensorType],
) -> bool:
    """True when output 0 is input 0, element for element."""
    rule = _RULES.get(node.op) if not node.domain else None
    if rule is None or not kinds or kinds[0] is None or not node.inputs[0]:
        return False
    return kinds[0] == results[0] and rule(node, values)
