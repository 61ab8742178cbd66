"""Layouts of constants: weights blocked over the vector tile, in the order the loops read them."""

from __future__ import annotations

from collections.abc import Sequence

from packhorse.compiler.schedule import Schedule
from packhorse.kernel.expr import Affine, IndexLike, Load, Reduce, walk
from packhorse.kernel.kernel import Buffer, Dim, Kernel

__all__ = ["pack"]


def pack(kernel: Kernel, plan: Schedule) -> dict[str, Buffer]:
    """The layout each constant buffer should have under a schedule.

    A buffer read inside reductions along the vector axis becomes ``[N/nr][reduce order][nr]``,
    padded (convolution weights ``[oc/nr][kh][kw][c][nr]``, a matrix ``[N/nr][K][nr]``). One read
    once per output keeps its order, with the vector dimension moved innermost and its size
    rounded up so that tails may read whole vectors. Where uses disagree, nothing is changed.
    """
    found: dict[str, Buffer] = {}
    for name, buffer in kernel.buffers.items():
        if buffer.constant and name in kernel.arguments:
            found[name] = _layout(kernel, plan, name, buffer)
    return found


def _layout(kernel: Kernel, plan: Schedule, name: str, buffer: Buffer) -> Buffer:
    if any(d.block for d in buffer.dims) or plan.vector is None or 0 in buffer.shape:
        return buffer
    uses = [(reduce, load) for reduce, load in _uses(kernel) if load.buffer == name]
    dims = {_vector_dim(load.index, plan.vector) for _, load in uses}
    if len(dims) != 1:
        return buffer
    (vector,) = dims
    if vector is None:
        return buffer
    inner = [r for r, _ in uses if r is not None]
    order = _dim_order(kernel, plan, uses, vector)
    if order is None:
        return buffer
    tile = plan.tiles.get(plan.vector, plan.lanes)
    tile = -(-tile // plan.lanes) * plan.lanes
    aligned = all(_offset(load.index[vector]) % tile == 0 for _, load in uses)
    affine = all(isinstance(i, Affine) for _, load in uses for i in load.index)
    if len(inner) == len(uses) and aligned and affine:
        return _blocked(buffer, order, vector, tile)
    if buffer.dims[vector].step == 1 or buffer.shape[vector] == 1:
        return _padded(buffer, plan.lanes) if len(buffer.shape) == 1 else buffer
    return _permuted(buffer, [*order, vector])


def _uses(kernel: Kernel) -> list[tuple[Reduce | None, Load]]:
    """Every load with a reduction around it, if there is one."""
    found: list[tuple[Reduce | None, Load]] = []
    for store in kernel.stores:
        inside: dict[Load, Reduce] = {}
        for node in walk(store.value):
            if isinstance(node, Reduce):
                for load in walk(node.body):
                    if isinstance(load, Load):
                        inside.setdefault(load, node)
        found += [(inside.get(n), n) for n in walk(store.value) if isinstance(n, Load)]
    return list(dict.fromkeys(found))


def _vector_dim(index: Sequence[IndexLike], axis: str) -> int | None:
    """The dimension indexed by the vector axis alone (plus a constant); None if there is no
    single one."""
    places = [d for d, i in enumerate(index) if isinstance(i, Affine) and i.coef(axis)]
    if len(places) != 1:
        return None
    value = index[places[0]]
    assert isinstance(value, Affine)
    return places[0] if value.terms == ((axis, 1),) else None


def _offset(value: IndexLike) -> int:
    return value.const if isinstance(value, Affine) else 0


def _dim_order(
    kernel: Kernel, plan: Schedule, uses: Sequence[tuple[Reduce | None, Load]], vector: int
) -> list[int] | None:
    """The other dimensions, outermost first: output loops, then reduce loops as they nest."""
    reduce, load = uses[0]
    loops = [*plan.order, *(n for n, _ in (reduce.axes if reduce is not None else ()))]
    depth: dict[int, int] = {}
    for d, value in enumerate(load.index):
        if d == vector:
            continue
        if not isinstance(value, Affine):
            depth[d] = -1
            continue
        depth[d] = max((loops.index(n) for n, _ in value.terms if n in loops), default=-1)
    return sorted(depth, key=lambda d: (depth[d], d))


def _blocked(buffer: Buffer, order: Sequence[int], vector: int, tile: int) -> Buffer:
    dims = [Dim(0)] * len(buffer.shape)
    step = tile
    for d in reversed(order):
        dims[d] = Dim(step)
        step *= buffer.shape[d]
    blocks = -(-buffer.shape[vector] // tile)
    dims[vector] = Dim(1, tile, step)
    return Buffer(buffer.shape, buffer.dtype, tuple(dims), 0, step * blocks, True)


def _permuted(buffer: Buffer, order: Sequence[int]) -> Buffer:
    dims = [Dim(0)] * len(buffer.shape)
    step = 1
    for d in reversed(order):
        dims[d] = Dim(step)
        step *= buffer.shape[d]
    return Buffer(buffer.shape, buffer.dtype, tuple(dims), 0, step, True)


def _padded(buffer: Buffer, lanes: int) -> Buffer:
    size = -(-buffer.shape[0] // lanes) * lanes
    if buffer.dims[0].step != 1 or buffer.offset or buffer.size >= size:
        return buffer
    return Buffer(buffer.shape, buffer.dtype, buffer.dims, 0, size, True)
