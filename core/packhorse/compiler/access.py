"""Where loads and stores lie: affine functions of the loops, after trivial axes are dropped and
axes that walk memory together are fused into one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from packhorse.kernel.expr import Affine, Axis, Expr, Index, IndexLike, Load, Reduce, affine, walk
from packhorse.kernel.kernel import Buffer, Dim, Kernel, Store

__all__ = ["Access", "Fusion", "View", "access", "find_fusion"]

Fusion = tuple[tuple[str, ...], ...]
"""Groups of axes run as one loop, outermost first; the group is called by its last name."""


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
    """A kernel as the lowering sees it: loop axes, stores and accesses under a fusion."""

    def __init__(self, kernel: Kernel, fuse: Fusion = ()) -> None:
        self.kernel = kernel
        self.fuse = fuse
        extents = kernel.extents
        self.trivial = {n for n, e in extents.items() if e == 1}
        self.leader = {n: group[-1] for group in fuse for n in group}
        self.extents = {n: e for n, e in extents.items() if n not in self.trivial}
        for group in fuse:
            for name in group[:-1]:
                self.extents[group[-1]] *= self.extents.pop(name)
        self.axes = self.loops(kernel.axes)
        self._loads: dict[Load, Access] = {}
        self._free: dict[Expr, frozenset[str]] = {}

    def loops(self, axes: Iterable[Axis]) -> tuple[Axis, ...]:
        """Loop axes for declared axes: trivial ones dropped, groups by their last member."""
        names = [n for n, _ in axes if n in self.extents]
        return tuple((n, self.extents[n]) for n in names)

    def affine(self, value: Affine) -> Affine:
        """An affine function in terms of the loops."""
        if not self.trivial and not self.fuse:
            return value
        return Affine(
            tuple((n, c) for n, c in value.terms if n in self.extents), value.const
        )  # members of a group but the last are implied by its coefficient

    def load(self, node: Load) -> Access:
        """Access of a load."""
        found = self._loads.get(node)
        if found is None:
            raw = access(self.kernel.buffers[node.buffer], node.buffer, node.index)
            found = self._loads[node] = self._viewed(raw)
        return found

    def store(self, store: Store) -> Access:
        """Access of a store."""
        return self._viewed(access(self.kernel.buffers[store.buffer], store.buffer, store.index))

    def _viewed(self, raw: Access) -> Access:
        blocked = tuple((self.affine(a), d) for a, d in raw.blocked)
        return Access(raw.buffer, self.affine(raw.linear), blocked, raw.indirect)

    def free(self, expr: Expr) -> frozenset[str]:
        """Loop axes the value depends on."""
        found = self._free.get(expr)
        if found is not None:
            return found
        for node in walk(expr):
            if node in self._free:
                continue
            names: set[str] = set()
            if isinstance(node, Index):
                names.update(n for n, _ in self.affine(node.affine).terms)
            elif isinstance(node, Load):
                names.update(self.load(node).axes)
            for child in node.children():
                names |= self._free[child]
            if isinstance(node, Reduce):
                names -= {n for n, _ in node.axes}
            self._free[node] = frozenset(names)
        return self._free[expr]


def find_fusion(kernel: Kernel) -> Fusion:
    """Groups of axes that every access walks as if they were one.

    Axes ``a, b`` fuse when each access steps ``extent(b)`` times as far along ``a`` as along
    ``b``. Constants count too: packing keeps those that use a fused axis as they are.
    """
    extents = kernel.extents
    raw: list[Access] = []
    pinned: set[str] = set(kernel.sequential)
    for store in kernel.stores:
        raw.append(access(kernel.buffers[store.buffer], store.buffer, store.index))
        for node in walk(store.value):
            if isinstance(node, Load):
                raw.append(access(kernel.buffers[node.buffer], node.buffer, node.index))
            elif isinstance(node, Index):
                pinned.update(n for n, _ in node.affine.terms)
    for item in raw:
        for index, _ in item.blocked:
            pinned.update(n for n, _ in index.terms)
    out = [n for n, e in kernel.axes if e > 1 and n not in pinned]
    out.sort(key=lambda n: -abs(raw[0].linear.coef(n)))
    groups = _chains(out, extents, raw)
    for axes in dict.fromkeys(_reduce_axes(kernel)):
        inner = [n for n, e in axes if e > 1 and n not in pinned]
        groups += _chains(inner, extents, raw, adjacent=axes)
    return tuple(groups)


def _reduce_axes(kernel: Kernel) -> Iterable[tuple[Axis, ...]]:
    for store in kernel.stores:
        for node in walk(store.value):
            if isinstance(node, Reduce):
                yield node.axes


def _chains(
    names: Sequence[str],
    extents: Mapping[str, int],
    accesses: Sequence[Access],
    adjacent: tuple[Axis, ...] | None = None,
) -> list[tuple[str, ...]]:
    """Maximal runs of neighbouring axes that fuse."""
    if adjacent is not None:  # reduce axes keep their order; only true neighbours fuse
        order = [n for n, e in adjacent if e > 1]
        if [n for n in order if n in names] != order:
            return []
    groups: list[list[str]] = []
    for name in names:
        if groups and _together(groups[-1][-1], name, extents, accesses):
            groups[-1].append(name)
        else:
            groups.append([name])
    return [tuple(g) for g in groups if len(g) > 1]


def _together(
    a: str, b: str, extents: Mapping[str, int], accesses: Sequence[Access]
) -> bool:
    return all(x.linear.coef(a) == x.linear.coef(b) * extents[b] for x in accesses)


def axis_of(value: IndexLike) -> str | None:
    """The axis when the index is just that axis."""
    if isinstance(value, Affine) and value == affine(value.terms[0][0] if value.terms else 0):
        return value.terms[0][0] if value.terms else None
    return None
