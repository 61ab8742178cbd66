"""Schedules for devices of many work-items: which item computes what.

``points``  one work-item per output element, or per few neighbours in memory that it reads and
            writes as vectors; reductions are loops of the item.
``rows``    a few work-items per row share the row's reductions (softmax, norms, long sums)
            through local memory and then write the row together; a group has one row or several.
``tiles``   one work-group per tile of a product of sums (matrix products, convolutions): both
            factors are staged in local memory, each item keeps a small block in registers.
``steps``   one work-group for a recurrence: its items share each step and meet at a barrier.
            What knows nothing of its neighbours (a batch) is spread over groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from packhorse.compiler.access import Access, View
from packhorse.compiler.c_dialects import Dialect, dialect
from packhorse.compiler.c_text_ops import register
from packhorse.compiler.gpu_lanes import lanes
from packhorse.kernel.expr import Affine, Call, Expr, Load, Reduce, is_float, reduces, walk
from packhorse.kernel.kernel import Buffer, Kernel, contiguous

__all__ = ["GpuSchedule", "GpuTarget", "Launch", "contraction", "gpu_schedule", "pack_gpu"]

Mode: TypeAlias = Literal["points", "rows", "tiles", "steps"]
Launch: TypeAlias = tuple[int, int]
"""Work-items in all, and in a group; both in one dimension."""

_WORTH = 32
"""Terms from which several work-items add up faster than one."""
_FEW = 16384
"""Outputs below which a device would be idle with one work-item each."""


@dataclass(frozen=True)
class GpuTarget:
    """What a schedule must know of the device.

    Parameters
    ----------
    dialect : str or Dialect
        Language of the kernels: ``opencl``, ``cuda`` or ``hip``, or a table of one's own.
    name : str
        The device and driver, as far as they change the code.
    max_group : int
        Work-items a group may have.
    local_bytes : int
        Memory a group may share.
    float64 : bool
        Whether float64 exists.
    lanes : int
        Neighbours in memory that one work-item should read and write as a vector, at most. 1 for
        processors whose compiler makes its vectors of neighbouring work-items.
    """

    dialect: str | Dialect = "opencl"
    name: str = ""
    max_group: int = 256
    local_bytes: int = 32 << 10
    float64: bool = True
    lanes: int = 4
    kind: Literal["gpu"] = "gpu"

    @property
    def vector(self) -> int:
        """``lanes``, where the language has vectors."""
        return self.lanes if dialect(self.dialect).vectors else 1

    def refuses(self, dtypes: Iterable[str]) -> str:
        """Why kernels with these dtypes cannot run on the device; empty where they can.

        Nodes that need such kernels run on the host by their references.
        """
        language = dialect(self.dialect)
        for dtype in dtypes:
            if dtype == "float64" and not self.float64:
                return f"{self.name or 'the device'} has no float64"
            if register(dtype) not in language.types:
                return f"{language.name} has no type for {dtype}"
        return ""


@dataclass(frozen=True)
class GpuSchedule:
    """How one kernel is spread over work-items.

    Parameters
    ----------
    mode : str
        ``points``, ``rows``, ``tiles`` or ``steps``.
    order : tuple of str
        Axes without the sequential ones, outermost first: the last one's neighbours are
        neighbouring work-items.
    rows : tuple of str
        The axes of ``order`` that number the rows (``rows``), the work-groups (``steps``), or
        that only the first factor knows (``tiles``).
    group : int
        Work-items of a group, a power of two.
    columns : tuple of str
        The axes that only the second factor knows (``tiles`` only).
    tile : (rows, columns, terms)
        What a group stages at a time (``tiles`` only).
    block : (rows, columns)
        Outputs of one work-item (``tiles`` only).
    lanes : int
        Neighbours in memory that a work-item reads and writes as one vector, at most.
    many : int
        Rows of one group (``rows`` and ``steps``); each has ``share`` work-items.
    across : bool
        Whether neighbouring work-items belong to neighbouring rows, and not to one row: where
        neighbours in memory are rows.
    """

    mode: Mode
    order: tuple[str, ...]
    rows: tuple[str, ...] = ()
    group: int = 64
    columns: tuple[str, ...] = ()
    tile: tuple[int, int, int] = (0, 0, 0)
    block: tuple[int, int] = (1, 1)
    lanes: int = 1
    many: int = 1
    across: bool = False

    @property
    def share(self) -> int:
        """Work-items of one row."""
        return self.group // self.many

    def launch(self, kernel: Kernel) -> Launch:
        """Work-items in all and per group."""
        extents = dict(kernel.axes)
        rows = math.prod(extents[n] for n in self.rows)
        if self.mode == "steps":
            return rows * self.group, self.group
        if self.mode == "rows":
            return -(-rows // self.many) * self.group, self.group
        if self.mode == "tiles":
            columns = math.prod(extents[n] for n in self.columns)
            rest = set(self.order).difference(self.rows, self.columns)
            tiles = -(-rows // self.tile[0]) * -(-columns // self.tile[1])
            return tiles * math.prod(extents[x] for x in rest) * self.group, self.group
        total = -(-math.prod(extents[n] for n in self.order) // self.lanes)
        return max(1, -(-total // self.group)) * self.group, self.group


def gpu_schedule(kernel: Kernel, target: GpuTarget) -> GpuSchedule:
    """Choose a schedule: by the reductions, and by how much there is to do."""
    view = View(kernel)
    loose = [n for n, _ in kernel.axes if n not in kernel.sequential]
    first = view.store(kernel.stores[0])
    order = tuple(sorted(loose, key=lambda n: -abs(first.stride(n) or 0)))
    if kernel.sequential:
        return _steps(kernel, view, order, target)
    return (
        _tiles(kernel, view, order, target)
        or _rows(kernel, view, order, target)
        or _points(kernel, order, target)
    )


def _points(kernel: Kernel, order: tuple[str, ...], target: GpuTarget) -> GpuSchedule:
    total, count = math.prod(kernel.extents[n] for n in order), 1
    if order and total >= 4 * _FEW:
        view = View(replace(kernel, buffers={**kernel.buffers, **_packed(kernel, order[-1])}))
        values = [s.value for s in kernel.stores]
        count = lanes(view, values, kernel.stores, order[-1], tail=len(order) == 1)
        count = min(count, target.vector)
    group = _power(-(-total // count), min(target.max_group, 128 if total >= 4 * _FEW else 64))
    return GpuSchedule("points", order, group=group, lanes=count)


def _rows(
    kernel: Kernel, view: View, order: tuple[str, ...], target: GpuTarget
) -> GpuSchedule | None:
    """Work-items that share reductions: where points of a row have them in common, or where
    there are more terms to add than outputs to keep the device busy."""
    found, extents = _reductions(kernel), kernel.extents
    terms = max((math.prod(e for _, e in r.axes) for r in found), default=0)
    known = frozenset().union(*(view.free(r) for r in found)) if found else frozenset(order)
    rows = tuple(n for n in order if n in known)
    count = math.prod(extents[n] for n in rows)
    inner = math.prod(extents[n] for n in order if n not in known)
    along = _streams(view, found)
    across = not along and bool(rows) and rows[-1] == order[-1]
    most = min(target.max_group, 1024 if count < 16 else 256)
    if inner > 1 and terms > 1:
        share = max(inner, terms)
    elif along and terms >= _WORTH:
        share = terms
    elif across and terms >= _WORTH and count < _FEW:
        share = min(terms // 4, _FEW * 4 // count)
    else:
        return None
    if across:
        many = _power(count, min(32, most))
        share = _power(share, max(1, most // many))
    else:
        share = _power(-(-share // target.vector), most)
        many = _power(count, max(1, min(64, most) // share))
    wide = target.vector
    return GpuSchedule("rows", order, rows, share * many, lanes=wide, many=many, across=across)


def _steps(kernel: Kernel, view: View, order: tuple[str, ...], target: GpuTarget) -> GpuSchedule:
    rows = tuple(n for n in order if _apart(kernel, view, n))
    count = math.prod(kernel.extents[n] for n in order if n not in rows)
    terms = max((math.prod(e for _, e in r.axes) for r in _reductions(kernel)), default=0)
    most = min(target.max_group, 1024)
    many = _power(count, most, up=True)
    share = _power(terms // 16, most // many)
    return GpuSchedule("steps", order, rows, many * share, many=many, across=True)


def _apart(kernel: Kernel, view: View, axis: str) -> bool:
    """Whether points that differ along an axis never read what the other one wrote."""
    written = {s.buffer for s in kernel.stores}
    found = [view.store(s) for s in kernel.stores]
    found += [view.load(n) for n in _loads(kernel) if n.buffer in written]
    steps = {_digit(where, axis, kernel.extents) for where in found}
    return len(steps) == 1 and None not in steps


def _digit(where: Access, axis: str, extents: Mapping[str, int]) -> int | None:
    """The step of an axis in an address, if the axis can be read off the address: other axes
    move by whole multiples of its range or stay below one step of it."""
    if where.blocked or where.indirect:
        return None
    step = where.linear.coef(axis)
    others = [(c, extents[n]) for n, c in where.linear.terms if n != axis and extents[n] > 1]
    small = [(c, e) for c, e in others if 0 < c < step]
    whole = step * extents[axis]
    if step <= 0 or any(c % whole for c, e in others if (c, e) not in small):
        return None
    reach = where.linear.const % whole + sum(c * (e - 1) for c, e in small)
    return step if reach < step else None


def contraction(kernel: Kernel) -> tuple[Reduce, Expr, Expr] | None:
    """The one sum of products of a kernel with one store, and the two factors."""
    found = _reductions(kernel)
    if len(kernel.stores) != 1 or len(found) != 1 or kernel.sequential:
        return None
    node = found[0]
    body = node.body
    if node.combine != "sum" or not isinstance(body, Call) or body.op != "mul":
        return None
    return node, body.args[0], body.args[1]


_TILES = (
    (128, 128, 8, 8, 8), (64, 64, 16, 4, 4), (32, 64, 16, 4, 4), (32, 32, 16, 4, 4),
    (16, 64, 16, 2, 4), (64, 16, 16, 4, 2), (64, 8, 16, 4, 1), (16, 16, 16, 2, 2),
)  # fmt: skip
"""Rows, columns and terms of the tiles there are, and the block of one work-item."""
_CORE_TILES = ((4, 8, 64, 4, 8),)
"""The same for devices whose groups are one work-item: it keeps the whole tile in registers."""
_GROUPS = 64
"""Work-groups that a device should get at least."""


def _tiles(
    kernel: Kernel, view: View, order: tuple[str, ...], target: GpuTarget
) -> GpuSchedule | None:
    """A schedule with tiles, where there is a contraction large enough to fill some."""
    found = contraction(kernel)
    if found is None or not order:
        return None
    node, first, second = found
    left, right = (view.free(f).intersection(order) for f in (first, second))
    if order[-1] in left:  # neighbouring items write neighbouring outputs
        left, right = right, left
    extents = dict(kernel.axes)
    rows = tuple(n for n in order if n in left and n not in right)
    columns = tuple(n for n in order if n in right and n not in left)
    m, n = (math.prod(extents[x] for x in names) for names in (rows, columns))
    terms = math.prod(extent for _, extent in node.axes)
    if min(m, n) < 8 or terms < 8 or not is_float(node.dtype):
        return None
    rest = math.prod(extents[x] for x in order if x not in (*rows, *columns))
    fitting = [
        t for t in (_CORE_TILES if target.max_group == 1 else _TILES)
        if t[0] * t[1] <= t[3] * t[4] * target.max_group
        and (t[0] + t[1] + 8) * t[2] * 8 <= target.local_bytes
    ]  # fmt: skip
    if not fitting or rest * m * n < 1024:
        return None

    def cost(tile: tuple[int, int, int, int, int]) -> float:
        """Work with what lies beyond the edges, loads per product, and idle parts."""
        tm, tn, _, bm, bn = tile
        groups = rest * -(-m // tm) * -(-n // tn)
        return groups * tm * tn * (1 + 1 / bm + 1 / bn) * max(1.0, _GROUPS / groups)

    tm, tn, tk, bm, bn = min(fitting, key=cost)
    group = (tm // bm) * (tn // bn)
    return GpuSchedule("tiles", order, rows, group, columns, (tm, tn, tk), (bm, bn), target.vector)


def _reductions(kernel: Kernel) -> list[Reduce]:
    return list(dict.fromkeys(r for s in kernel.stores for r in reduces(s.value)))


def _streams(view: View, found: Sequence[Reduce]) -> bool:
    """Whether neighbouring work-items of a row would read neighbouring elements."""
    return all(
        view.load(n).stride(r.axes[-1][0]) in (0, 1)
        for r in found if r.axes
        for n in walk(r.body) if isinstance(n, Load)
    )  # fmt: skip


def _power(work: int, most: int, up: bool = False) -> int:
    """The largest power of two that neither exceeds (``up``: the first that reaches) the work."""
    size = 1
    while size * 2 <= most and (size < work if up else size * 2 <= work):
        size *= 2
    return size


def pack_gpu(kernel: Kernel, plan: GpuSchedule) -> dict[str, Buffer]:
    """Layouts of constants: what neighbouring work-items read lies side by side.

    Weights read within a reduction get the dimension along the fastest output axis innermost.
    """
    if not plan.order or (plan.mode == "rows" and not plan.across):
        return {}
    return _packed(kernel, plan.order[-1])


def _packed(kernel: Kernel, fastest: str) -> dict[str, Buffer]:
    found = {}
    for name, buffer in kernel.buffers.items():
        if buffer != contiguous(buffer.shape, buffer.dtype, constant=True):
            continue  # laid out by someone else, with a border perhaps
        dims = {_dimension(n, fastest) for n in _loads(kernel) if n.buffer == name}
        if len(dims) == 1:
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
