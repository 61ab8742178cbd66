"""Normalising a kernel's loops: drop unit axes, merge axes that run on in every access.

A 1x1 convolution over [H, W] becomes a matrix product over H*W rows, an elementwise kernel over
[N, H, W, C] one long loop. Fewer, longer loops mean fuller tiles and more shared kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace

from packhorse.kernel.expr import (
    Affine,
    Axis,
    Expr,
    Index,
    Load,
    Reduce,
    affine,
    rewrite,
    substitute,
    walk,
)
from packhorse.kernel.kernel import Buffer, Dim, Kernel, Store

__all__ = ["collapse"]


def collapse(kernel: Kernel) -> Kernel:
    """The same computation with flat addresses, no unit axes and as few axes as possible."""
    return _merge_axes(_drop_unit_axes(_flatten_addresses(kernel)))


def _flatten_addresses(kernel: Kernel) -> Kernel:
    """Replace logical indices of plainly strided buffers by one element offset."""
    gathered = {
        load.buffer for load in _loads(kernel) if any(not isinstance(i, Affine) for i in load.index)
    }
    flat = {
        name: buffer
        for name, buffer in kernel.buffers.items()
        if name not in gathered and not buffer.constant and not any(d.block for d in buffer.dims)
    }

    def offset(name: str, index: tuple[Affine, ...]) -> tuple[Affine, ...]:
        total = Affine()
        for i, dim in zip(index, flat[name].dims, strict=True):
            total = total + i * dim.step
        return (total,)

    def visit(node: Expr) -> Expr | None:
        if isinstance(node, Load) and node.buffer in flat:
            index = tuple(i for i in node.index if isinstance(i, Affine))
            when = None if node.when is None else rewrite(node.when, visit)
            return Load(node.buffer, offset(node.buffer, index), node.dtype, when)
        return None

    stores = tuple(
        Store(s.buffer, offset(s.buffer, s.index) if s.buffer in flat else s.index,
              rewrite(s.value, visit))
        for s in kernel.stores
    )  # fmt: skip
    buffers: dict[str, Buffer] = {
        name: Buffer((b.size,), b.dtype, (Dim(1),), b.offset, b.size) if name in flat else b
        for name, b in kernel.buffers.items()
    }
    return replace(kernel, stores=stores, buffers=buffers)


def _drop_unit_axes(kernel: Kernel) -> Kernel:
    zero: Mapping[str, Affine] = {n: Affine() for n, e in kernel.extents.items() if e == 1}

    def visit(node: Expr) -> Expr | None:
        if isinstance(node, Reduce) and any(n in zero for n, _ in node.axes):
            kept = tuple(a for a in node.axes if a[0] not in zero)
            body = rewrite(node.body, visit)
            return Reduce(node.combine, kept, body, node.dtype) if kept else body
        return None

    def clean(store: Store) -> Store:
        value = substitute(rewrite(store.value, visit), zero)
        return Store(store.buffer, tuple(_set(i, zero) for i in store.index), value)

    axes = tuple(a for a in kernel.axes if a[0] not in zero)
    sequential = tuple(n for n in kernel.sequential if n not in zero)
    stores = tuple(clean(s) for s in kernel.stores)
    return replace(kernel, axes=axes, stores=stores, sequential=sequential)


def _set(value: Affine, mapping: Mapping[str, Affine]) -> Affine:
    total = Affine((), value.const)
    for name, coef in value.terms:
        total = total + mapping.get(name, affine(name)) * coef
    return total


def _merge_axes(kernel: Kernel) -> Kernel:
    """Merge neighbours (outer, inner) while every address moves by ``extent(inner)`` inner steps
    per outer step."""
    while True:
        pair = next(_mergeable(kernel), None)
        if pair is None:
            return kernel
        outer, inner = pair
        kernel = _merge(kernel, outer, inner)


def _mergeable(kernel: Kernel) -> Iterator[tuple[Axis, Axis]]:
    addresses = list(_affines(kernel))
    groups: list[tuple[Axis, ...]] = [
        tuple(a for a in kernel.axes if a[0] not in kernel.sequential)
    ]
    for store in kernel.stores:
        groups.extend(n.axes for n in walk(store.value) if isinstance(n, Reduce))
    for group in groups:
        for outer, inner in itertools.pairwise(group):
            if all(a.coef(outer[0]) == a.coef(inner[0]) * inner[1] for a in addresses):
                yield outer, inner


def _merge(kernel: Kernel, outer: Axis, inner: Axis) -> Kernel:
    merged = (inner[0], outer[1] * inner[1])
    zero: Mapping[str, Affine] = {outer[0]: Affine()}

    def axes(group: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(merged if a == inner else a for a in group if a != outer)

    def visit(node: Expr) -> Expr | None:
        if isinstance(node, Reduce) and outer in node.axes:
            body = rewrite(node.body, visit)
            return Reduce(node.combine, axes(node.axes), body, node.dtype)
        return None

    stores = tuple(
        Store(
            s.buffer,
            tuple(_set(i, zero) for i in s.index),
            substitute(rewrite(s.value, visit), zero),
        )
        for s in kernel.stores
    )
    return replace(kernel, axes=axes(kernel.axes), stores=stores)


def _affines(kernel: Kernel) -> Iterator[Affine]:
    for store in kernel.stores:
        yield from store.index
        for node in walk(store.value):
            if isinstance(node, Index):
                yield node.affine
            elif isinstance(node, Load):
                yield from (i for i in node.index if isinstance(i, Affine))


def _loads(kernel: Kernel) -> list[Load]:
    return [n for s in kernel.stores for n in walk(s.value) if isinstance(n, Load)]
