"""The meaning of a Kernel, in NumPy: the oracle every code generator is tested against.

Each expression becomes one array over the whole iteration space; nothing is fast here, so keep
it to small extents.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from packhorse.kernel.expr import (
    COMBINES,
    Affine,
    Axis,
    Call,
    Const,
    Expr,
    Index,
    IndexLike,
    Load,
    Reduce,
    is_float,
)
from packhorse.kernel.kernel import Buffer, Kernel
from packhorse.kernel.layout import numpy_dtype

__all__ = ["interpret"]

Array = np.ndarray[Any, Any]


def interpret(kernel: Kernel, storages: Mapping[str, Array]) -> None:
    """Run a kernel over flat storages (one per buffer, as laid out), writing its outputs."""
    loops = [[(n, i) for i in range(dict(kernel.axes)[n])] for n in kernel.sequential]
    axes = [(n, e) for n, e in kernel.axes if n not in kernel.sequential]
    for point in itertools.product(*loops):
        scope = _Scope(kernel, storages, axes, dict(point))
        pending = []
        for store in kernel.stores:
            where = scope.address(kernel.buffers[store.buffer], store.index)
            buffer = kernel.buffers[store.buffer]
            value = np.asarray(scope.eval(store.value)).astype(numpy_dtype(buffer.dtype))
            pending.append((storages[store.buffer], *np.broadcast_arrays(where, value)))
        for flat, where, value in pending:
            flat[where] = value


class _Scope:
    """Axes in scope: output axes, then those of the reductions being evaluated."""

    def __init__(
        self,
        kernel: Kernel,
        storages: Mapping[str, Array],
        axes: list[Axis],
        fixed: Mapping[str, int],
    ) -> None:
        self.kernel, self.storages, self.axes, self.fixed = kernel, storages, axes, fixed
        self.memo: dict[Expr, Array] = {}

    def affine(self, value: Affine) -> Array:
        total = np.array(value.const, np.int64)
        rank = len(self.axes)
        position = {name: (d, extent) for d, (name, extent) in enumerate(self.axes)}
        for name, coef in value.terms:
            if name in self.fixed:
                total = total + coef * self.fixed[name]
            else:
                d, extent = position[name]
                shape = [1] * rank
                shape[d] = extent
                total = total + coef * np.arange(extent).reshape(shape)
        return total

    def index(self, value: IndexLike) -> Array:
        return self.affine(value) if isinstance(value, Affine) else self.eval(value)

    def address(self, buffer: Buffer, index: tuple[IndexLike, ...]) -> Array:
        where = np.array(buffer.offset, np.int64)
        for dim, value in zip(buffer.dims, index, strict=True):
            i = self.index(value)
            if dim.block:
                where = where + (i // dim.block) * dim.block_step + (i % dim.block) * dim.step
            else:
                where = where + i * dim.step
        return where

    def eval(self, expr: Expr) -> Array:
        found = self.memo.get(expr)
        if found is None:
            with np.errstate(all="ignore"):
                found = self._eval(expr)
            self.memo[expr] = found
        return found

    def _eval(self, expr: Expr) -> Array:
        if isinstance(expr, Const):
            raw = float(expr.value) if is_float(expr.dtype) else int(expr.value)
            return np.array(raw, numpy_dtype(expr.dtype))
        if isinstance(expr, Index):
            return self.affine(expr.affine)
        if isinstance(expr, Load):
            return self.load(expr)
        if isinstance(expr, Reduce):
            return self.reduce(expr)
        if isinstance(expr, Call):
            args = [self.eval(a) for a in expr.args]
            if expr.op == "cast":
                return _cast(args[0], expr.dtype)
            if expr.op == "bitcast":
                return args[0].view(numpy_dtype(expr.dtype))
            return np.asarray(_CALLS[expr.op](*args)).astype(numpy_dtype(expr.dtype))
        raise TypeError(f"not an expression node: {expr!r}")

    def load(self, expr: Load) -> Array:
        buffer = self.kernel.buffers[expr.buffer]
        flat = self.storages[expr.buffer]
        where = self.address(buffer, expr.index)
        if expr.when is None:
            if where.size and (where.min() < 0 or where.max() >= flat.size):
                raise IndexError(f"{self.kernel.name}: load of {expr.buffer} out of bounds")
            return flat[where].astype(numpy_dtype(expr.dtype))
        guard, where = np.broadcast_arrays(self.eval(expr.when), where)
        value = flat[np.where(guard, where, 0)].astype(numpy_dtype(expr.dtype))
        return np.asarray(np.where(guard, value, np.zeros((), value.dtype)))

    def reduce(self, expr: Reduce) -> Array:
        rank = len(self.axes)
        inner = _Scope(self.kernel, self.storages, [*self.axes, *expr.axes], self.fixed)
        body = inner.eval(expr.body)
        full = np.broadcast_to(
            body, np.broadcast_shapes(body.shape, (*[1] * rank, *(e for _, e in expr.axes)))
        )
        dims = tuple(range(rank, full.ndim))
        dtype = numpy_dtype(expr.dtype)
        if expr.combine in ("sum", "prod"):
            function = np.sum if expr.combine == "sum" else np.prod
            return np.asarray(function(full, axis=dims, dtype=dtype))
        if full.size == 0:
            return np.full(full.shape[:rank], COMBINES[expr.combine], dtype)
        return np.asarray((np.max if expr.combine == "max" else np.min)(full, axis=dims))


def _cast(value: Array, dtype: str) -> Array:
    if dtype == "bool":
        return np.not_equal(value, 0)
    target = numpy_dtype(dtype)
    if value.dtype.kind == "f" and target.kind in "iu":
        info = np.iinfo(target)
        wide = np.trunc(np.nan_to_num(value.astype(np.float64)))
        clipped = np.clip(wide, float(info.min), float(info.max))
        whole = clipped.astype(target)
        return np.asarray(np.where(wide >= float(info.max), info.max, whole), target)
    return np.asarray(value, target)


def _div(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    whole = np.floor_divide(a, np.where(b == 0, 1, b))  # rounds down; step up where that is off
    # by zero it is 0, as in the code that is generated
    return np.where(b == 0, np.zeros_like(whole), whole + ((whole < 0) & (whole * b != a)))


def _erf(x: Array) -> Array:
    exact = np.vectorize(math.erf, otypes=[np.float64])(x.astype(np.float64))
    return np.asarray(exact, x.dtype)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x.astype(np.float64))))


_CALLS: Mapping[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": _div,
    "floordiv": np.floor_divide,
    "mod": lambda a, b: np.fmod(a, b) if a.dtype.kind == "f" else np.mod(a, b),
    "max": np.maximum, "min": np.minimum, "pow": np.power, "neg": np.negative, "abs": np.abs,
    "sign": np.sign, "exp": np.exp, "log": np.log, "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x), "erf": _erf, "tanh": np.tanh, "sigmoid": _sigmoid,
    "sin": np.sin, "cos": np.cos, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc,
    "round": np.rint, "lt": np.less, "le": np.less_equal, "eq": np.equal, "ne": np.not_equal,
    "gt": np.greater, "ge": np.greater_equal, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "not": np.invert, "isnan": np.isnan, "select": np.where,
}  # fmt: skip
