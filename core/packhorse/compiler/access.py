"""Where loads and stores lie: affine functions of the loops, and what does not fit into those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packhorse.kernel.expr import Affine, Expr, Index, IndexLike, Load, Reduce, walk
from packhorse.kernel.kernel import Buffer, Dim, Kernel, Store

__all__ = ["Access", "View", "access"]


@dataclass(frozen=True)
class Access:
    """Position in elements: ``linear + sum(blocked dims) + sum(step * expression)``."""

    buffer: str
    linear: Affine
    blocked: tuple[tuple[Affine, Dim], ...] = ()
    indirect: tuple[tuple[Expr, Dim], ...] = ()

    @property
    def axes(self) -> frozenset[str]:
        """Loop axes that occur outside indirect expressions."""
        names = {n for n, _ in self.linear.terms}
        return frozenset(names.union(*({n for n, _ in a.terms} for a, _ in self.blocked)))

    def stride(self, axis: str) -> int | None:
        """Elements per step of the axis; None when it is not one fixed number.

        Inside a block of a packed dimension the stride is that of the block.
        """
        total = self.linear.coef(axis)
        for index, dim in self.blocked:
            coef = index.coef(axis)
            if coef == 1:
                total += dim.step
            elif coef:
                return None
        return total


def access(buffer: Buffer, name: str, index: Sequence[IndexLike]) -> Access:
    """The access of a load or a store through its buffer's layout."""
    linear = Affine((), buffer.offset)
    blocked: list[tuple[Affine, Dim]] = []
    indirect: list[tuple[Expr, Dim]] = []
    for item, dim in zip(index, buffer.dims, strict=True):
        if isinstance(item, Index):
            item = item.affine
        if isinstance(item, Expr):
            indirect.append((item, dim))
        elif dim.block:
            blocked.append((item, dim))
        else:
            linear = linear + item * dim.step
    return Access(name, linear, tuple(blocked), tuple(indirect))


class View:
    """A kernel's accesses and dependences, each worked out once."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.extents = kernel.extents
        self._loads: dict[Load, Access] = {}
        self._free: dict[Expr, frozenset[str]] = {}

    def load(self, node: Load) -> Access:
        """Access of a load."""
        found = self._loads.get(node)
        if found is None:
            found = access(self.kernel.buffers[node.buffer], node.buffer, node.index)
            self._loads[node] = found
        return found

    def store(self, store: Store) -> Access:
        """Access of a store."""
        return access(self.kernel.buffers[store.buffer], store.buffer, store.index)

    def free(self, expr: Expr) -> frozenset[str]:
        """Axes the value depends on (those of reductions inside it excluded)."""
        found = self._free.get(expr)
        if found is not None:
            return found
        for node in walk(expr):
            if node in self._free:
                continue
            names: set[str] = set()
            if isinstance(node, Index):
                names.update(n for n, _ in node.affine.terms)
            elif isinstance(node, Load):
                names.update(n for i in node.index if isinstance(i, Affine) for n, _ in i.terms)
            for child in node.children():
                names |= self._free[child]
            if isinstance(node, Reduce):
                names -= {n for n, _ in node.axes}
            self._free[node] = frozenset(names)
        return self._free[expr]
