"""Putting values into memory: buffers, kernels, parameters, and the list of calls.

The half of the builder that does not decide anything about fusion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from packhorse.compiler.collapse import collapse
from packhorse.compiler.layout import Layouts, column_axes
from packhorse.compiler.operands import ConstOperand, Halo, Place
from packhorse.errors import UnsupportedOperator
from packhorse.graph.ir import Graph, Node
from packhorse.kernel.expr import Affine, Axis, Expr, Load, cast, const, walk
from packhorse.kernel.kernel import Buffer, Kernel, Store, contiguous
from packhorse.kernel.layout import numpy_dtype
from packhorse.kernel.lowering import Lazy, axes_of, compute_dtype

__all__ = ["Build", "Emitted", "Emitter", "Scheduler"]

Array = np.ndarray[Any, Any]
Scheduler = Callable[[Kernel], tuple[Any, dict[str, Buffer]]]
"""kernel -> (schedule, layouts of its constant buffers): what the backend's target prefers."""
Refuses = Callable[[Iterable[str]], str]
"""dtypes -> why the device has no kernels with them; empty where it has."""


@dataclass(frozen=True)
class Emitted:
    """One call of the program to be: a kernel, or a node run on the host by its reference."""

    label: str
    nodes: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    function: str
    host: Node | None = None
    once: bool = False


@dataclass
class Build:
    """What the builder produced; ``packhorse.compiler.link`` turns it into a Program."""

    graph: Graph
    steps: list[Emitted] = field(default_factory=list)
    functions: dict[str, tuple[Kernel, Any]] = field(default_factory=dict)
    roots: dict[str, Buffer] = field(default_factory=dict)
    params: dict[str, tuple[Array, Buffer]] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)


class Emitter:
    """Memory and kernels of one static graph."""

    def __init__(self, graph: Graph, scheduler: Scheduler, refuses: Refuses | None = None) -> None:
        self.graph, self.scheduler = graph, scheduler
        self.refuses = refuses
        self.out = Build(graph)
        self.layouts = Layouts(graph)
        self.places: dict[str, Place] = {}
        self.constants: dict[str, ConstOperand] = {}
        self.nodes: tuple[str, ...] = ()
        """Labels of the nodes whose work the next kernel does."""
        self._copies: dict[object, Place] = {}
        self._exact: dict[tuple[str, str], ConstOperand] = {}
        self._params: dict[tuple[str, Buffer], str] = {}
        self._count = 0

    def axis(self, extent: int) -> Axis:
        """A fresh reduce axis."""
        self._count += 1
        return (f"r{self._count}", extent)

    def place(
        self,
        value: Lazy,
        name: str,
        *,
        order: Sequence[int] | None = None,
        halo: Halo | None = None,
    ) -> Place:
        """Emit the kernel that computes a lazy value into memory of its own."""
        chosen = self.order(name, value, order)
        key = (value, tuple(chosen), None if halo is None else tuple(halo))
        if key in self._copies:
            return self._copies[key]
        buffer = contiguous(value.shape, value.dtype, chosen, halo)
        place = self.allocate(name, buffer)
        axes = [(f"i{d}", value.shape[d]) for d in chosen]
        store = Store(place.name, axes_of(len(value.shape)), cast(value.value, value.dtype))
        self.emit(axes, [store])
        self._copies[key] = place
        return place

    def view(self, place: Place, buffer: Buffer) -> Place:
        """Another view of the same memory, under a name of its own."""
        name = self.fresh(place.root + ".view")
        self.places[name] = Place(name, place.root, buffer)
        return self.places[name]

    def find(self, name: str) -> Place | None:
        """The memory of that name; None for constants."""
        return self.places.get(name)

    def constant(self, array: Array) -> ConstOperand:
        """Register an array; float16 is widened once, here, and not in every kernel."""
        dtype = str(array.dtype)
        if compute_dtype(dtype) != dtype:
            array = array.astype(np.float32)
        name = self.fresh("const")
        self.constants[name] = ConstOperand(self, name, array, str(array.dtype))
        return self.constants[name]

    def exact(self, operand: ConstOperand, dtype: str) -> ConstOperand:
        """A constant in the dtype that the model gave it: what the host reads is not widened."""
        if operand.dtype == dtype:
            return operand
        assert operand.constant is not None
        key = (operand.name, dtype)
        if key not in self._exact:
            name, array = self.fresh("const"), operand.constant.astype(numpy_dtype(dtype))
            self.constants[name] = ConstOperand(self, name, array, dtype)
            self._exact[key] = self.constants[name]
        return self._exact[key]

    def preferred_halo(self, name: str, wanted: Halo) -> Halo:
        """The halo wanted now, widened to what the other readers of the value want."""
        root = self.places[name].root if name in self.places else name
        known = self.layouts.halos.get(root)
        if known is None or len(known) != len(wanted):
            return tuple(wanted)
        return tuple((max(a, c), max(b, d)) for (a, b), (c, d) in zip(wanted, known, strict=True))

    def admit(self, value: Expr) -> None:
        """Refuse what the device cannot compute.

        Raises
        ------
        UnsupportedOperator
            It lacks a dtype that is stored, loaded or computed in.
        """
        reason = self.refuses and self.refuses(dict.fromkeys(n.dtype for n in walk(value)))
        if reason:
            raise UnsupportedOperator(f"node {self.nodes[-1] if self.nodes else 'none'}: {reason}")

    def emit(
        self, axes: Sequence[Axis], stores: Sequence[Store], sequential: Sequence[str] = ()
    ) -> None:
        """Normalise, schedule and record one kernel."""
        if any(extent == 0 for _, extent in axes):
            return
        for store in stores:
            self.admit(store.value)
        names = {s.buffer for s in stores}
        for store in stores:
            names |= {n.buffer for n in walk(store.value) if isinstance(n, Load)}
        label = self.nodes[-1].split("'")[1] if self.nodes and "'" in self.nodes[-1] else "fill"
        kernel = Kernel(
            _kernel_name(self.nodes),
            tuple(axes),
            tuple(stores),
            {n: self._buffer(n) for n in names},
            tuple(sequential),
        )
        kernel, originals = collapse(kernel).canonical()
        schedule, packed = self.scheduler(kernel)
        kernel = replace(kernel, buffers={**kernel.buffers, **packed})
        function = f"{kernel.name}_{kernel.digest[:12]}"
        self.out.functions.setdefault(function, (kernel, schedule))
        outputs = kernel.outputs
        arguments = {
            new: self._argument(old, kernel.buffers[new]) for new, old in originals.items()
        }
        self.out.steps.append(
            Emitted(
                label,
                self.nodes,
                tuple(arguments[a] for a in kernel.arguments if a not in outputs),
                tuple(arguments[a] for a in outputs),
                function,
            )
        )

    def _argument(self, name: str, buffer: Buffer) -> str:
        return self.param(name, buffer) if name in self.constants else self.places[name].root

    def param(self, name: str, buffer: Buffer) -> str:
        key = (name, buffer)
        if key not in self._params:
            param = f"p{len(self._params)}"
            self._params[key] = param
            array = self.constants[name].constant
            assert array is not None
            self.out.params[param] = (array, buffer)
            self.out.roots[param] = buffer
        return self._params[key]

    def _buffer(self, name: str) -> Buffer:
        if name in self.constants:
            operand = self.constants[name]
            return contiguous(operand.shape, operand.dtype, constant=True)
        return self.places[name].buffer

    def allocate(self, name: str, buffer: Buffer) -> Place:
        """New memory; a border is zeroed by a step that lasts."""
        place = self.root(self.fresh(name), buffer)
        if buffer.size > int(np.prod(buffer.shape)):
            flat = self.view(place, Buffer((buffer.size,), buffer.dtype, contiguous(
                (buffer.size,), buffer.dtype).dims, 0, buffer.size))  # fmt: skip
            outer, self.nodes = self.nodes, ()
            zero = cast(const(0, compute_dtype(buffer.dtype)), buffer.dtype)
            self.emit([("i0", buffer.size)], [Store(flat.name, axes_of(1), zero)])
            self.out.steps[-1] = replace(
                self.out.steps[-1], once=True, label=f"{place.root}.border"
            )
            self.nodes = outer
        return place

    def root(self, name: str, buffer: Buffer) -> Place:
        self.places[name] = Place(name, name, buffer)
        self.out.roots[name] = buffer
        return self.places[name]

    def fresh(self, name: str) -> str:
        if name not in self.places and name not in self.constants:
            return name
        self._count += 1
        return f"{name}.{self._count}"

    def order(self, name: str, value: Lazy, order: Sequence[int] | None) -> list[int]:
        """Explicit, else the graph's preference, else as the largest thing read lies."""
        if order is not None:
            return list(order)
        preferred = self.layouts.order(name, value.shape)
        if preferred is not None:
            return preferred
        rank = len(value.shape)
        columns = column_axes(value)
        if columns:
            rows = [d for d in range(rank) if d not in columns]
            return [*rows, *columns]
        best, steps = 0, [0] * rank
        for node in walk(value.value):
            if isinstance(node, Load) and node.buffer in self.places:
                found = [_step(node, self.places[node.buffer].buffer, f"i{d}") for d in range(rank)]
                covered = sum(1 for d in range(rank) if found[d] and value.shape[d] > 1)
                if covered > best:
                    best, steps = covered, found
        if best < sum(1 for n in value.shape if n > 1):
            return list(range(rank))
        return sorted(range(rank), key=lambda d: (-abs(steps[d]) if steps[d] else 0, d))


def _step(load: Load, buffer: Buffer, axis: str) -> int:
    return sum(
        i.coef(axis) * dim.step
        for i, dim in zip(load.index, buffer.dims, strict=True)
        if isinstance(i, Affine)
    )


def _kernel_name(nodes: Sequence[str]) -> str:
    ops = [n[n.rindex("(") + 1 : -1].lower() for n in nodes if n.endswith(")")]
    text = "_".join(["ph", *dict.fromkeys(ops)]) if ops else "ph_fill"
    return "".join(c if c.isalnum() else "_" for c in text)[:48]
