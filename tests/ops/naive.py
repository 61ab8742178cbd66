"""The simplest Lowering: every operand is dense in memory, kernels run in the interpreter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from packhorse.graph.ir import Node
from packhorse.kernel import Affine, Axis, Expr, Kernel, Store, contiguous
from packhorse.kernel.expr import IndexLike, Load, cast, free_axes
from packhorse.kernel.interpret import interpret
from packhorse.kernel.kernel import Buffer
from packhorse.kernel.layout import from_storage, numpy_dtype, to_storage
from packhorse.kernel.lowering import (
    Lazy,
    Lowered,
    Lowering,
    Operand,
    axes_of,
    compute_dtype,
)
from packhorse.ops import get

Array = np.ndarray[Any, Any]


class NaiveOperand(Operand):
    """An operand in memory: ``at`` is a Load, widened for the small floats."""

    def __init__(self, ctx: NaiveLowering, name: str, constant: Array | None = None) -> None:
        self.ctx, self.name, self.constant = ctx, name, constant
        buffer = ctx.buffers[name]
        self.shape, self.dtype = buffer.shape, buffer.dtype

    def at(self, index: Sequence[IndexLike]) -> Expr:
        assert len(index) == len(self.shape), f"index {index} for shape {self.shape}"
        return cast(Load(self.name, tuple(index), self.dtype), compute_dtype(self.dtype))

    def stored(
        self, *, halo: Sequence[tuple[int, int]] | None = None, last: int | None = None
    ) -> NaiveOperand:
        if halo is None:
            return self
        array = self.ctx.read(self)
        return self.ctx.add(array, contiguous(self.shape, self.dtype, halo=halo), self.constant)

    def reshape(self, shape: Sequence[int]) -> NaiveOperand:
        assert math.prod(shape) == math.prod(self.shape)
        known = None if self.constant is None else self.constant.reshape(shape)
        if known is None and self.name in self.ctx.pending:  # written later: share the storage
            return self.ctx.alias(self, tuple(shape))
        return self.ctx.add(self.ctx.read(self).reshape(shape), None, known)


class NaiveLowering(Lowering):
    """Lowers one node; :meth:`materialise` runs what ``lower`` returned."""

    def __init__(
        self,
        node: Node,
        arrays: Sequence[Array | None],
        types: Sequence[tuple[tuple[int, ...], str]],
        known: set[int],
    ) -> None:
        self.node, self.output_types = node, tuple(types)
        self.buffers: dict[str, Buffer] = {}
        self.storages: dict[str, Array] = {}
        self.pending: set[str] = set()
        self.count = itertools.count()
        self.inputs = tuple(
            None if x is None else self.add(x, None, x if i in known else None)
            for i, x in enumerate(arrays)
        )

    def add(
        self, array: Array, buffer: Buffer | None = None, known: Array | None = None
    ) -> NaiveOperand:
        name = f"v{next(self.count)}"
        self.buffers[name] = buffer or contiguous(array.shape, array.dtype.name)
        # dense ones are copied plainly: strided views of some small floats do not exist in NumPy
        dense = buffer is None
        flat = array.reshape(-1).copy() if dense else to_storage(array, self.buffers[name])
        self.storages[name] = flat
        return NaiveOperand(self, name, known)

    def alias(self, operand: NaiveOperand, shape: tuple[int, ...]) -> NaiveOperand:
        name = f"v{next(self.count)}"
        self.buffers[name] = contiguous(shape, operand.dtype)
        self.storages[name] = self.storages[operand.name]
        self.pending.add(name)
        return NaiveOperand(self, name)

    def read(self, operand: NaiveOperand) -> Array:
        buffer, flat = self.buffers[operand.name], self.storages[operand.name]
        dense = buffer.size == math.prod(buffer.shape)
        return flat.reshape(buffer.shape).copy() if dense else from_storage(flat, buffer)

    def attr(self, name: str) -> Any:
        return get(self.node).attr(self.node, name)

    def axis(self, extent: int) -> Axis:
        return f"r{next(self.count)}", extent

    def constant(self, array: Array) -> NaiveOperand:
        return self.add(array, None, array)

    def buffer(self, shape: Sequence[int], dtype: str) -> NaiveOperand:
        made = self.add(np.zeros(shape, numpy_dtype(dtype)))
        self.pending.add(made.name)
        return made

    def kernel(
        self,
        axes: Sequence[Axis],
        stores: Sequence[tuple[Operand, Sequence[Affine], Expr]],
        sequential: Sequence[str] = (),
    ) -> None:
        made = []
        for target, index, value in stores:
            assert isinstance(target, NaiveOperand)
            bound = {n for n, _ in axes}
            loose = free_axes(value) | {n for i in index for n, _ in i.terms}
            assert loose <= bound, f"unbound axes {loose - bound}"
            made.append(Store(target.name, tuple(index), value))
        if all(extent for _, extent in axes):
            self._run(Kernel("k", tuple(axes), tuple(made), self.buffers, tuple(sequential)))

    def _run(self, kernel: Kernel) -> None:
        with np.errstate(all="ignore"):
            interpret(kernel, self.storages)

    def materialise(self, value: Lowered) -> Array:
        """The array a lowering result stands for."""
        if isinstance(value, Operand):
            assert isinstance(value, NaiveOperand)
            return self.read(value)
        target = self.buffer(value.shape, value.dtype)
        if isinstance(value, Lazy):
            self.write(target, value, axes_of(len(value.shape)))
            return self.read(target)
        written = sum(math.prod(p.value.shape) for p in value.pieces)
        assert written == math.prod(value.shape), "pieces must cover the output once"
        for part in value.pieces:
            self.write(target, part.value, part.index)
        return self.read(target)

    def write(self, target: NaiveOperand, value: Lazy, index: Sequence[Affine]) -> None:
        axes = [(f"i{d}", n) for d, n in enumerate(value.shape)]
        assert value.value.dtype == compute_dtype(value.dtype)
        self.kernel(axes, [(target, index, value.value)])
