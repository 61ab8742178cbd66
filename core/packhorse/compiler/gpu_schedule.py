"""Schedules for devices of many work-items: which item computes what.

``points``  one work-item per output element, neighbours in memory side by side; reductions are
            loops of the item.
``rows``    one work-group per row: its items share the row's reductions (softmax, norms, long
            sums) through local memory and then write the row together.
``steps``   one work-group for a recurrence: its items share each step and meet at a barrier.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from packhorse.compiler.access import View
from packhorse.kernel.expr import Affine, Load, Reduce, reduces, walk
from packhorse.kernel.kernel import Buffer, Kernel, contiguous

__all__ = ["GpuSchedule", "GpuTarget", "Launch", "gpu_schedule", "pack_gpu"]

Mode: TypeAlias = Literal["points", "rows", "steps"]
Launch: TypeAlias = tuple[int, int]
"""Work-items in all, and in a group; both in one dimension."""

_LONG = 256
"""Terms from which a sum is worth a work-group."""
_FEW = 4096
"""Outputs below which the device would be idle with one work-item each."""


@dataclass(frozen=True)
class GpuTarget:
    """What a schedule must know of the device.

    Parameters
    ----------
    dialect : str
        Language of the kernels: ``opencl``, ``cuda`` or ``hip``.
    name : str
        The device and driver, as far as they change the code.
    max_group : int
        Work-items a group may have.
    local_bytes : int
        Memory a group may share.
    float64 : bool
        Whether float64 exists.
    """

    dialect: str = "opencl"
    name: str = ""
    max_group: int = 256
    local_bytes: int = 32 << 10
    float64: bool = True
    kind: Literal["gpu"] = "gpu"


@dataclass(frozen=True)
class GpuSchedule:
    """How one kernel is spread over work-items.

    Parameters
    ----------
    mode : str
        ``points``, ``rows`` or ``steps``.
    order : tuple of str
        Axes without the sequential ones, outermost first: the last one's neighbours are
        neighbouring work-items.
    rows : tuple of str
        The axes of ``order`` that number the work-groups (``rows`` only).
    group : int
        Work-items of a group, a power of two.
    """

    mode: Mode
    order: tuple[str, ...]
    rows: tuple[str, ...] = ()
    group: int = 64

    def launch(self, kernel: Kernel) -> Launch:
        """Work-items in all and per group."""
        extents = dict(kernel.axes)
        if self.mode == "steps":
            return self.group, self.group
        if self.mode == "rows":
            return math.prod(extents[n] for n in self.rows) * self.group, self.group
        total = math.prod(extents[n] for n in self.order)
        return max(1, -(-total // self.group)) * self.group, self.group


def gpu_schedule(kernel: Kernel, target: GpuTarget) -> GpuSchedule:
    """Choose a schedule: by the reductions, and by how much there is to do."""
    view, extents = View(kernel), dict(kernel.axes)
    loose = [n for n, _ in kernel.axes if n not in kernel.sequential]
    first = view.store(kernel.stores[0])
    order = tuple(sorted(loose, key=lambda n: -abs(first.stride(n) or 0)))
    total = math.prod(extents[n] for n in order)
    if kernel.sequential:
        return GpuSchedule("steps", order, group=_group(total, target))
    found = _reductions(kernel)
    rows = frozenset().union(*(view.free(r) for r in found)) if found else frozenset(order)
    outer = tuple(n for n in order if n in rows)
    inner = math.prod(extents[n] for n in order if n not in rows)
    terms = max((math.prod(e for _, e in r.axes) for r in found), default=0)
    few = math.prod(extents[n] for n in outer) <= _FEW
    if (inner > 1 and terms > 1) or (terms >= _LONG and few and _streams(view, found)):
        return GpuSchedule("rows", order, outer, _group(max(inner, terms), target))
    return GpuSchedule("points", order, group=_group(total, target, most=64))


def _reductions(kernel: Kernel) -> list[Reduce]:
    return list(dict.fromkeys(r for s in kernel.stores for r in reduces(s.value)))


def _streams(view: View, found: Sequence[Reduce]) -> bool:
    """Whether neighbouring work-items of a row would read neighbouring elements."""
    return all(
        view.load(n).stride(r.axes[-1][0]) in (0, 1)
        for r in found if r.axes
        for n in walk(r.body) if isinstance(n, Load)
    )  # fmt: skip


def _group(work: int, target: GpuTarget, most: int = 256) -> int:
    """Work-items for a group with that much to do: a power of two."""
    size, most = 1, min(most, target.max_group)
    while size * 2 <= most and size < work:
        size *= 2
    return size


def pack_gpu(kernel: Kernel, plan: GpuSchedule) -> dict[str, Buffer]:
    """Layouts of constants: what neighbouring work-items read lies side by side.

    Weights read within a reduction get the dimension along the fastest output axis innermost.
    """
    if plan.mode == "rows" or not plan.order:
        return {}
    fastest, found = plan.order[-1], {}
    for name, buffer in kernel.buffers.items():
        dims = {_dimension(n, fastest) for n in _loads(kernel) if n.buffer == name}
        if buffer.constant and len(dims) == 1:
            (dim,) = dims
            if dim is not None and dim != len(buffer.shape) - 1:
                order = [d for d in range(len(buffer.shape)) if d != dim]
                found[name] = contiguous(buffer.shape, buffer.dtype, [*order, dim], constant=True)
    return found


def _loads(kernel: Kernel) -> list[Load]:
    return [n for s in kernel.stores for n in walk(s.value) if isinstance(n, Load)]


def _dimension(load: Load, axis: str) -> int | None:
    """The dimension that alone moves by one with an axis."""
    found = [d for d, i in enumerate(load.index) if isinstance(i, Affine) and i.coef(axis)]
    if len(found) != 1 or any(not isinstance(i, Affine) for i in load.index):
        return None
    index = load.index[found[0]]
    return found[0] if isinstance(index, Affine) and index.coef(axis) == 1 else None
