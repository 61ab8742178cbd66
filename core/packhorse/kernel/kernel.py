"""A Kernel: one fused loop nest, declared and not programmed.

A kernel says *what* each element of its outputs is, as an expression over named axes; the
schedule (``packhorse.compiler.schedule``) says in which order, with which tiles, vectors and
threads. The same kernel is lowered to LLVM IR, to the C family and to the NumPy interpreter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from packhorse.kernel.expr import (
    Affine,
    Axis,
    Call,
    Const,
    Expr,
    Index,
    IndexLike,
    Load,
    Reduce,
    rewrite,
    walk,
)

__all__ = ["Buffer", "Dim", "Kernel", "Store", "contiguous"]


@dataclass(frozen=True)
class Dim:
    """Where a step along one logical dimension leads, in elements.

    Plain: ``offset = i * step``. Blocked (``block > 0``, packed weights):
    ``offset = (i // block) * block_step + (i % block) * step``.
    """

    step: int
    block: int = 0
    block_step: int = 0


@dataclass(frozen=True)
class Buffer:
    """Memory a kernel reads or writes: logical shape, dtype and where elements lie.

    ``offset`` is the position of logical index (0, ..., 0) in elements; indices may be negative
    or run past ``shape`` as far as the halo reaches. ``size`` counts all elements, halo and
    padding included.
    """

    shape: tuple[int, ...]
    dtype: str
    dims: tuple[Dim, ...]
    offset: int
    size: int
    constant: bool = False


def contiguous(
    shape: Sequence[int],
    dtype: str,
    order: Sequence[int] | None = None,
    halo: Sequence[tuple[int, int]] | None = None,
    constant: bool = False,
) -> Buffer:
    """A dense buffer whose dimensions lie in ``order`` (outermost first; default: as written),
    each extended by ``halo[d] = (before, after)`` elements of border."""
    rank = len(shape)
    order = list(range(rank)) if order is None else list(order)
    pads = [(0, 0)] * rank if halo is None else list(halo)
    steps, step = [0] * rank, 1
    for d in reversed(order):
        steps[d] = step
        step *= shape[d] + sum(pads[d])
    offset = sum(steps[d] * pads[d][0] for d in range(rank))
    return Buffer(tuple(shape), dtype, tuple(Dim(s) for s in steps), offset, step, constant)


@dataclass(frozen=True)
class Store:
    """``buffer[index] = value`` at every point of the kernel's axes it depends on."""

    buffer: str
    index: tuple[Affine, ...]
    value: Expr


@dataclass(frozen=True)
class Kernel:
    """One fused loop nest.

    Parameters
    ----------
    name : str
        For reports and symbols; not part of the identity.
    axes : tuple of (name, extent)
        Output axes, outermost first as declared (the schedule may reorder them).
    stores : tuple of Store
        What is written. All stores share the axes.
    buffers : mapping of str to Buffer
        Every buffer named by a load or a store. Argument order of the compiled function:
        :attr:`arguments`.
    sequential : tuple of axis names
        Axes that carry a dependence through memory (the time axis of an LSTM): they stay
        outermost, in order, and are neither tiled nor split over threads.
    """

    name: str
    axes: tuple[Axis, ...]
    stores: tuple[Store, ...]
    buffers: Mapping[str, Buffer] = field(hash=False)
    sequential: tuple[str, ...] = ()

    @cached_property
    def extents(self) -> dict[str, int]:
        """Extent of every axis, reduce axes included."""
        found = dict(self.axes)
        for store in self.stores:
            for node in walk(store.value):
                if isinstance(node, Reduce):
                    found.update(node.axes)
        return found

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """Buffer names in argument order: those loaded (first use first), then those stored."""
        names: dict[str, None] = {}
        written = {store.buffer for store in self.stores}
        for store in self.stores:
            for node in walk(store.value):
                if isinstance(node, Load) and node.buffer not in written:
                    names.setdefault(node.buffer)
        for store in self.stores:
            names.setdefault(store.buffer)
        return tuple(names)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the written buffers; they come last in :attr:`arguments`."""
        return tuple(dict.fromkeys(store.buffer for store in self.stores))

    def canonical(self) -> tuple[Kernel, dict[str, str]]:
        """The same kernel with axes and buffers renamed by position.

        Returns the kernel and the map from canonical to original buffer names. Two kernels that
        differ only in names become equal, and so share one compiled function.
        """
        buffers = {name: f"b{i}" for i, name in enumerate(self.arguments)}
        axes = {name: f"a{i}" for i, name in enumerate(self.extents)}

        def rename(value: IndexLike) -> IndexLike:
            if isinstance(value, Affine):
                return Affine(tuple(sorted((axes[n], c) for n, c in value.terms)), value.const)
            return rewrite(value, visit)

        def visit(node: Expr) -> Expr | None:
            if isinstance(node, Index):
                moved = rename(node.affine)
                return Index(moved) if isinstance(moved, Affine) else moved
            if isinstance(node, Load):
                when = None if node.when is None else rewrite(node.when, visit)
                index = tuple(rename(i) for i in node.index)
                return Load(buffers[node.buffer], index, node.dtype, when)
            if isinstance(node, Reduce):
                bound = tuple((axes[n], e) for n, e in node.axes)
                return Reduce(node.combine, bound, rewrite(node.body, visit), node.dtype)
            return None

        stores = tuple(
            Store(
                buffers[s.buffer],
                tuple(i for i in map(rename, s.index) if isinstance(i, Affine)),
                rewrite(s.value, visit),
            )
            for s in self.stores
        )
        kernel = replace(
            self,
            axes=tuple((axes[n], e) for n, e in self.axes),
            stores=stores,
            buffers={buffers[n]: self.buffers[n] for n in self.arguments},
            sequential=tuple(axes[n] for n in self.sequential),
        )
        return kernel, {new: old for old, new in buffers.items()}

    @cached_property
    def digest(self) -> str:
        """Hex digest of everything but the name: the identity used by caches."""
        lines = [repr((self.axes, sorted(self.buffers.items()), self.sequential))]
        number: dict[Expr, int] = {}
        for store in self.stores:
            for node in walk(store.value):  # children first: each line names them by number
                if node not in number:
                    number[node] = len(number)
                    lines.append(_line(node, number))
            lines.append(f"{store.buffer}{store.index} = {number[store.value]}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]

    def __str__(self) -> str:
        loops = ", ".join(f"{n}<{e}" for n, e in self.axes)
        body = "; ".join(
            f"{s.buffer}[{', '.join(map(str, s.index))}] = {show(s.value)}" for s in self.stores
        )
        return f"{self.name}({loops}): {body}"


def _line(node: Expr, number: Mapping[Expr, int]) -> str:
    """One node with its children as numbers, so shared nodes are written once."""
    if isinstance(node, Load):
        index = [i if isinstance(i, Affine) else number[i] for i in node.index]
        guard = None if node.when is None else number[node.when]
        return f"load {node.buffer} {index} {node.dtype} {guard}"
    parts = [number[child] for child in node.children()]
    if isinstance(node, Call):
        return f"{node.op} {parts} {node.dtype}"
    if isinstance(node, Reduce):
        return f"{node.combine} {node.axes} {parts} {node.dtype}"
    return repr(node)


def show(expr: Expr) -> str:
    """Readable one-line text of an expression."""
    if isinstance(expr, Const):
        return str(expr.value)
    if isinstance(expr, Index):
        return f"({expr.affine})"
    if isinstance(expr, Load):
        inner = ", ".join(str(i) if isinstance(i, Affine) else show(i) for i in expr.index)
        return f"{expr.buffer}[{inner}]"
    if isinstance(expr, Call):
        name = f"{expr.op}<{expr.dtype}>" if expr.op.endswith("cast") else expr.op
        return f"{name}({', '.join(show(a) for a in expr.args)})"
    if isinstance(expr, Reduce):
        return f"{expr.combine}<{', '.join(n for n, _ in expr.axes)}>({show(expr.body)})"
    raise TypeError(f"not an expression node: {expr!r}")
