"""Which values stay lazy, and whether a fused expression is still worth computing that way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from packhorse.compiler.operands import is_view
from packhorse.graph.ir import Graph, Node
from packhorse.kernel.expr import Axis, Call, Expr, Load, Reduce, free_axes, walk
from packhorse.kernel.lowering import Lazy

__all__ = ["FUSABLE", "Regions", "contractions", "is_contraction", "too_costly", "wasteful"]

FUSABLE = frozenset(
    "Abs Add And BatchNormalization Cast CastLike Ceil Clip Cos Div Equal Elu Erf Exp Expand "
    "Flatten Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity LeakyRelu Less "
    "LessOrEqual Log Max Mean Min Mod Mul Neg Not Or PRelu Pow ReduceMean ReduceSum Reciprocal "
    "Relu Reshape Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Squeeze Sub Sum Tanh "
    "ThresholdedRelu Transpose Unsqueeze Where Xor ReduceMax ReduceMin ReduceSumSquare "
    "IsNaN".split()
)
"""Operators that read each input element about once and may sit inside a fused region."""

_HEAVY = frozenset(["exp", "log", "erf", "tanh", "sigmoid", "pow", "sin", "cos"])
_MAX_NODES, _MAX_LOADS = 160, 20


class Regions:
    """Finds values that several nodes read but that one fused kernel can hold.

    ``x * sigmoid(x)``, gelu, hard-swish and a decomposed LayerNorm read a value twice; all
    readers meet again in a single value. Such a value stays lazy and is computed once inside
    the kernel, because equal subexpressions are.
    """

    LIMIT = 16

    def __init__(self, graph: Graph) -> None:
        self.consumers: Mapping[str, list[Node]] = graph.consumers()
        self.outputs = {value.name for value in graph.outputs}
        self.position = {id(node): i for i, node in enumerate(graph.nodes)}
        self._maker = {o: i for i, node in enumerate(graph.nodes) for o in node.outputs}

    def made_at(self, name: str) -> int:
        """Position of the node that computes a value; -1 for inputs and constants."""
        return self._maker.get(name, -1)

    def converges(self, name: str) -> bool:
        """True when every path from ``name`` meets in one later value inside a small region."""
        members: dict[int, Node] = {}
        open_values = {name}
        while len(members) < self.LIMIT:
            readers = {id(n): n for v in open_values for n in self.consumers.get(v, ())}
            pending = [n for k, n in readers.items() if k not in members]
            if not pending:
                return False
            node = min(pending, key=lambda n: self.position[id(n)])
            if node.op not in FUSABLE or node.domain or any(o in self.outputs for o in open_values):
                return False
            members[id(node)] = node
            open_values.update(o for o in node.outputs if o)
            open_values = {
                v for v in open_values
                if any(id(n) not in members for n in self.consumers.get(v, ()))
                or v in self.outputs or not self.consumers.get(v)
            }  # fmt: skip
            if len(open_values) == 1 and open_values <= set(node.outputs):
                return True
        return False

    def stays_lazy(self, name: str, value: Lazy) -> bool:
        """Decide for a value that was just lowered."""
        if name in self.outputs or _too_large(value):
            return False
        readers = self.consumers.get(name, ())
        if len(readers) <= 1 or is_view(value):
            return True
        return self.converges(name)


def _too_large(value: Lazy) -> bool:
    nodes = list(walk(value.value))
    return len(nodes) > _MAX_NODES or sum(isinstance(n, Load) for n in nodes) > _MAX_LOADS


def wasteful(expr: Expr, axes: Sequence[tuple[str, int]]) -> bool:
    """True when fusing made something be computed over and over.

    ``axes`` are the output loops, outermost first. A reduction or a transcendental is computed
    at the level of the innermost loop it depends on; if that runs more than twice as often as
    the value has elements, it should have been put into memory first. A reduction that depends
    on the bound axes of another one around it cannot be nested at all.
    """
    return any(_repeats(expr, list(axes)))


def _repeats(expr: Expr, scope: list[tuple[str, int]]) -> list[bool]:
    found: list[bool] = []
    seen: set[Expr] = set()

    def level(names: frozenset[str]) -> int:
        return max((i + 1 for i, (n, _) in enumerate(scope) if n in names), default=0)

    def go(node: Expr) -> None:
        if node in seen:
            return
        seen.add(node)
        if isinstance(node, Reduce):
            names = free_axes(node)
            bound = {n for n, _ in node.axes}
            inner = [n for n in walk(node.body) if isinstance(n, Reduce)]
            if any(free_axes(n) & bound for n in inner):
                found.append(True)
                return
            depth = level(names)
            wide = any(e > 1 for _, e in scope[depth:])
            found.append(_excess(scope[:depth], names) or (wide and is_contraction(node)))
            found.extend(_repeats(node.body, [*scope[:depth], *node.axes]))
            return
        if isinstance(node, Call) and node.op in _HEAVY:
            names = free_axes(node)
            found.append(_excess(scope[: level(names)], names))
        for child in node.children():
            go(child)

    go(expr)
    return found


def is_contraction(node: Reduce) -> bool:
    """A sum of products of two buffers: fast only when its own outputs are the vector lanes."""
    body = node.body
    return (
        isinstance(body, Call)
        and body.op == "mul"
        and len({a.buffer for a in body.args if isinstance(a, Load)}) == 2
    )


def _excess(loops: Sequence[tuple[str, int]], names: frozenset[str]) -> bool:
    runs = prod(e for _, e in loops)
    needed = prod(e for n, e in loops if n in names)
    return runs > 2 * needed


def contractions(value: Lazy) -> frozenset[tuple[Axis, ...]]:
    """Loops of the convolutions or matrix products still pending in a value."""
    return frozenset(
        n.axes for n in walk(value.value) if isinstance(n, Reduce) and is_contraction(n)
    )


def too_costly(value: Lazy) -> bool:
    """True when inlining the value into a costlier place should be avoided first: it holds a
    reduction or a transcendental."""
    return any(
        isinstance(n, Reduce) or (isinstance(n, Call) and n.op in _HEAVY) for n in walk(value.value)
    )
