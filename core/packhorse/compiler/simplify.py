"""Rewrites of static graphs: dead code, batch norms and paddings into convolutions, views.

Each pass is a walk in topological order that changes nodes of its own copy of the graph. A value
may be rewritten only when one node reads it and it is not an output of the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from packhorse.graph.ir import Graph, Node, TensorType, node_reads, subgraphs

__all__ = ["fold_norms", "remove_dead", "simplify"]

Array = np.ndarray[Any, Any]

VARIADIC_OUTPUTS = frozenset({"If", "Loop", "Scan", "Split"})
"""How many outputs these have carries meaning; elsewhere unread trailing outputs are cut off."""


def remove_dead(graph: Graph) -> Graph:
    """The graph without nodes, constants and optional outputs that nothing reads."""
    needed = {value.name for value in graph.outputs}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if needed.isdisjoint(node.outputs):
            continue
        outputs = [name if name in needed else "" for name in node.outputs]
        while not outputs[-1] and node.op not in VARIADIC_OUTPUTS:
            outputs.pop()
        kept.append(Node(node.op, list(node.inputs), outputs, node.attrs, node.name, node.domain))
        needed.update(node_reads(node))
    needed.update(value.name for value in graph.inputs)
    return Graph(
        graph.name,
        graph.inputs,
        graph.outputs,
        kept[::-1],
        {k: v for k, v in graph.constants.items() if k in needed},
        {k: v for k, v in graph.types.items() if k in needed},
        graph.metadata,
    )


def fold_norms(graph: Graph) -> Graph:
    """Fold batch norms and constants per channel into convolutions, in bodies too.

    Needs no shapes, so frontends do it once: all specialisations of a model then share weights.
    """
    work = _Work(remove_dead(graph))
    work.walk(_AFFINE)
    for node in work.graph.nodes:
        node.attrs = {
            k: fold_norms(v) if isinstance(v, Graph) else v for k, v in node.attrs.items()
        }
    return remove_dead(work.graph)


def simplify(graph: Graph) -> Graph:
    """Apply every pass to a static graph; returns a new one, computing the same up to rounding."""
    work = _Work(remove_dead(graph))
    passes: tuple[Mapping[str, Rule], ...] = (
        {"Conv": _fold_pad, "AveragePool": _fold_pad},
        _AFFINE,
        dict.fromkeys(("Mul", "Div"), _merge_scale),
        dict.fromkeys(RESHAPES, _rows_in_shape),
        dict.fromkeys(RESHAPES, _merge_reshape),
        {"Transpose": _merge_transpose},
    )
    for rules in passes:
        work.walk(rules)
    return remove_dead(work.graph)


Rule = Callable[["_Work", Node], bool]


class _Work:
    """A graph being rewritten, with who makes each value and how often it is read."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.outputs = {value.name for value in graph.outputs}
        self.taken = set(graph.types) | set(graph.constants)
        self.taken.update(name for node in graph.nodes for name in node.outputs)

    def walk(self, rules: Mapping[str, Rule]) -> None:
        """Offer each node to the rule of its operator; a rule that returns True consumed it."""
        self.makers: dict[str, Node] = {}
        self.uses = Counter(name for node in self.graph.nodes for name in node_reads(node))
        kept = []
        for node in self.graph.nodes:
            rule = None if node.domain or subgraphs(node) else rules.get(node.op)
            with np.errstate(all="ignore"):  # weights may hold anything
                consumed = rule is not None and rule(self, node)
            if not consumed:
                kept.append(node)
                self.makers.update((name, node) for name in node.outputs if name)
        self.graph.nodes = kept

    def constant(self, node: Node, i: int) -> Array | None:
        """Input ``i`` when it is given and constant."""
        name = node.inputs[i] if i < len(node.inputs) else ""
        return self.graph.constants.get(name)

    def only_reader(self, name: str) -> Node | None:
        """The node that makes ``name``, when the caller is the only one to read it."""
        free = self.uses[name] == 1 and name not in self.outputs
        return self.makers.get(name) if free else None

    def add(self, hint: str, array: Array) -> str:
        """Store a new constant."""
        name, i = hint, 1
        while name in self.taken:
            name, i = f"{hint}.{i}", i + 1
        self.taken.add(name)
        array.flags.writeable = False
        self.graph.constants[name] = array
        self.graph.types[name] = TensorType(array.dtype, tuple(array.shape))
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        """Static shape of a value."""
        return self.graph.types[name].dims


def _fold_pad(work: _Work, node: Node) -> bool:
    """Pad with zeros before a convolution or average pool becomes its own padding."""
    pad = work.only_reader(node.inputs[0])
    if pad is None or pad.op != "Pad" or pad.domain or node.attrs.get("ceil_mode"):
        return False
    rank = len(work.shape(pad.inputs[0]))
    found = _zero_pads(work, pad, rank)
    if found is None or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    before, after = found[:rank], found[rank:]
    if min(found) < 0 or any(before[:2]) or any(after[:2]):
        return False
    own = node.attrs.get("pads") or [0] * (2 * (rank - 2))
    pads = [int(a + b) for a, b in zip(own, before[2:] + after[2:], strict=True)]
    attrs = {**node.attrs, "pads": pads, "auto_pad": "NOTSET"}
    if node.op == "AveragePool":
        kernel = node.attrs["kernel_shape"]
        counted = node.attrs.get("count_include_pad", 0) or not any(own)
        if not counted or any(p >= k for p, k in zip(pads, [*kernel, *kernel], strict=True)):
            return False
        attrs["count_include_pad"] = 1  # the zeros of Pad were counted
    node.attrs = attrs
    node.inputs[0] = pad.inputs[0]
    return False  # the node stays; Pad is dead now


def _zero_pads(work: _Work, pad: Node, rank: int) -> list[int] | None:
    """``pads`` of a Pad for all axes, when it is constant and pads with zeros."""
    if pad.attrs.get("mode", "constant") != "constant":
        return None
    pads, value, axes = (work.constant(pad, i) for i in (1, 2, 3))
    given = [len(pad.inputs) > i and bool(pad.inputs[i]) for i in (2, 3)]
    if pads is None or (given[0] and value is None) or (given[1] and axes is None):
        return None
    if value is not None and np.any(value != 0):
        return None
    places = list(range(rank)) if axes is None else [int(a) % rank for a in axes.reshape(-1)]
    full = [0] * (2 * rank)
    for i, axis in enumerate(places):
        full[axis] = int(pads[i])
        full[rank + axis] = int(pads[len(places) + i])
    return full


def _fold_affine(work: _Work, node: Node) -> bool:
    """BatchNormalization, or a product or sum with a constant per channel, after a convolution."""
    place = 1 if node.inputs[0] in work.graph.constants else 0
    if node.op == "Div" and place == 1:
        return False
    value = node.inputs[place]
    conv = work.only_reader(value)
    if conv is None or conv.op not in ("Conv", "ConvTranspose") or conv.domain:
        return False
    weight, bias = work.constant(conv, 1), work.constant(conv, 2)
    if weight is None or (bias is None and len(conv.inputs) > 2 and conv.inputs[2]):
        return False
    if weight.dtype.kind in "iub" or weight.ndim < 3:
        return False
    groups = int(conv.attrs.get("group", 1))
    channels = weight.shape[0] if conv.op == "Conv" else weight.shape[1] * groups
    affine = _affine(work, node, place, channels, weight.ndim)
    if affine is None:
        return False
    scale, shift = affine
    old = np.zeros(channels) if bias is None else bias.astype(np.float64)
    name = node.name or node.outputs[0]
    if np.any(scale != 1):
        wide = np.float64 if weight.dtype == np.float64 else np.float32
        scaled = _scale_weight(conv, weight, scale.astype(wide))
        conv.inputs[1] = work.add(f"{name}/weight", scaled.astype(weight.dtype, copy=False))
    biased = (old * scale + shift).astype(weight.dtype)
    conv.inputs[2:] = [work.add(f"{name}/bias", biased)]
    conv.outputs = list(node.outputs)
    work.makers[node.outputs[0]] = conv
    return True


_AFFINE: Mapping[str, Rule] = dict.fromkeys(
    ("BatchNormalization", "Mul", "Div", "Add", "Sub"), _fold_affine
)


def _affine(
    work: _Work, node: Node, place: int, channels: int, rank: int
) -> tuple[Array, Array] | None:
    """(scale, shift) per channel, float64, of a node applied to its input ``place``."""
    if node.op == "BatchNormalization":
        given = [work.constant(node, i) for i in range(1, 5)]
        if node.attrs.get("training_mode") or any(x is None for x in given):
            return None
        gain, shift, mean, var = (np.asarray(x, np.float64) for x in given)
        gain = gain / np.sqrt(var + node.attrs.get("epsilon", 1e-5))
        return gain, shift - mean * gain
    found = work.constant(node, 1 - place)
    operand = None if found is None else _per_channel(found, channels, rank)
    if operand is None:
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op in ("Mul", "Div"):
        return (operand if node.op == "Mul" else 1 / operand), zero
    if node.op == "Add":
        return one, operand
    return (-one, operand) if place else (one, -operand)


def _per_channel(array: Array, channels: int, rank: int) -> Array | None:
    """A broadcastable constant as one float64 per channel, or None when it varies otherwise."""
    if array.size == 1 and array.ndim <= rank:
        return np.full(channels, float(array.reshape(-1)[0]))
    shape = (1,) * (rank - array.ndim) + array.shape
    if len(shape) != rank or array.size != channels or shape[1] != channels:
        return None
    return array.reshape(-1).astype(np.float64)


def _scale_weight(conv: Node, weight: Array, scale: Array) -> Array:
    if conv.op == "Conv":  # (out, in/group, ...)
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    groups = int(conv.attrs.get("group", 1))  # ConvTranspose: (in, out/group, ...)
    split = weight.reshape(groups, -1, *weight.shape[1:])
    factor = scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    return (split * factor).reshape(weight.shape)


def _merge_scale(work: _Work, node: Node) -> bool:
    """Division by a scalar is multiplication; products with scalars are one product."""
    place, scale = _scalar(work, node)
    if scale is None or (node.op == "Div" and place == 1):
        return False
    value = node.inputs[place]
    dtype = work.graph.types[value].dtype
    factor = float(scale.reshape(-1)[0])
    if node.op == "Div":
        factor = 1 / factor if factor else np.inf
    before = work.only_reader(value)
    if before is not None and before.op == "Mul" and not before.domain:
        inner, other = _scalar(work, before)
        if other is not None:
            factor, value = factor * float(other.reshape(-1)[0]), before.inputs[inner]
    elif node.op == "Mul":
        return False
    made = np.array(factor).astype(dtype)
    if not np.isfinite(np.float64(made)) or not made:
        return False
    node.op, node.inputs = "Mul", [value, work.add(f"{node.outputs[0]}/scale", made)]
    return False


def _scalar(work: _Work, node: Node) -> tuple[int, Array | None]:
    """(place of the value, the scalar constant it is combined with) of a float Mul or Div."""
    place = 1 if node.inputs[0] in work.graph.constants else 0
    found = work.constant(node, 1 - place)
    kind = work.graph.types[node.inputs[place]]
    if found is None or found.size != 1 or kind != work.graph.types[node.outputs[0]]:
        return place, None
    return place, None if kind.dtype.kind in "iubO" else found


RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def _rows_in_shape(work: _Work, node: Node) -> bool:
    """Reshape, Softmax over the last axis, reshape back: Softmax in the first shape.

    The opset converter writes Softmax of opset 12 and before like this.
    """
    rows = work.only_reader(node.inputs[0])
    if rows is None or rows.op not in ("Softmax", "LogSoftmax") or rows.domain:
        return False
    first = work.makers.get(rows.inputs[0])
    if first is None or first.op not in RESHAPES or first.domain:
        return False
    before, flat = work.shape(first.inputs[0]), work.shape(rows.inputs[0])
    last = int(rows.attrs.get("axis", -1)) in (-1, len(flat) - 1)
    if not last or before != work.shape(node.outputs[0]) or before[-1:] != flat[-1:]:
        return False
    node.op, node.inputs, node.attrs = rows.op, [first.inputs[0]], {"axis": -1}
    return False


def _merge_reshape(work: _Work, node: Node) -> bool:
    """A reshape of a reshape is one reshape."""
    first = work.makers.get(node.inputs[0])
    if first is None or first.op not in RESHAPES or first.domain:
        return False
    shape = np.array(work.shape(node.outputs[0]), np.int64)
    node.op = "Reshape"
    node.inputs = [first.inputs[0], work.add(f"{node.outputs[0]}/shape", shape)]
    node.attrs = {"allowzero": 1}
    return False


def _merge_transpose(work: _Work, node: Node) -> bool:
    """A transpose of a transpose is one transpose, or nothing."""
    first = work.makers.get(node.inputs[0])
    if first is None or first.op != "Transpose" or first.domain:
        return False
    rank = len(work.shape(node.inputs[0]))
    inner, outer = (n.attrs.get("perm") or list(range(rank))[::-1] for n in (first, node))
    perm = [int(inner[axis]) for axis in outer]
    node.inputs, node.attrs = [first.inputs[0]], {"perm": perm}
    if perm != sorted(perm) or node.outputs[0] in work.outputs:
        return False
    for other in work.graph.nodes:
        other.inputs = [node.inputs[0] if n == node.outputs[0] else n for n in other.inputs]
    return True
