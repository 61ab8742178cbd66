"""Indices held in tensors: checks, and what gathering and scattering share."""

from __future__ import annotations

import numpy as np

from packhorse.errors import ModelError
from packhorse.kernel.expr import Expr, call, cast, select
from packhorse.ops.registry import Inference
from packhorse.ops.rules import Array, normal_axis

__all__ = ["along", "check_elements", "check_integers", "depth", "safe_index", "tuples", "wrapped"]


def wrapped(indices: Array, extent: int, what: str) -> Array:
    """Indices counted from 0; ModelError naming one that is outside."""
    found = np.asarray(indices, np.int64)
    outside = (found < -extent) | (found >= extent)
    if outside.any():
        worst = int(found[outside].reshape(-1)[0])
        raise ModelError(f"{what}: index {worst} is outside [{-extent}, {extent - 1}]")
    return np.where(found < 0, found + extent, found)


def check_integers(ctx: Inference, i: int) -> None:
    """Input ``i`` must hold integers."""
    if ctx.type(i).dtype.kind not in "iu":
        raise ModelError(f"indices must be integers, found {ctx.type(i).dtype}")


def check_elements(ctx: Inference) -> tuple[int, ...]:
    """The shape of input 1: indices along one axis of input 0, and within it on the others."""
    check_integers(ctx, 1)
    x, indices = ctx.shape(0), ctx.shape(1)
    axis = normal_axis(ctx.attr("axis"), len(x))
    if len(x) != len(indices) or any(
        m > n for d, (n, m) in enumerate(zip(x, indices, strict=True)) if d != axis
    ):
        raise ModelError(f"indices of shape {indices} do not fit into {x} beside axis {axis}")
    return indices


def safe_index(index: Expr, extent: int) -> Expr:
    """An index in a kernel: negative ones wrap, the rest is clamped so that no load strays.

    Kernels cannot raise; the reference reports what this hides.
    """
    i = cast(index, "int64")
    i = select(call("lt", i, 0), i + extent, i)
    return call("max", call("min", i, max(extent - 1, 0)), 0)


def along(shape: tuple[int, ...], axis: int, position: Array) -> tuple[Array, ...]:
    """An index tuple: ``position`` on ``axis``, each element's own place on the others."""
    grid = np.indices(shape, sparse=True)
    return tuple(position if d == axis else grid[d] for d in range(len(shape)))


def depth(x: tuple[int, ...], indices: tuple[int, ...], batch: int) -> int:
    """How many dimensions of ``x`` a GatherND or ScatterND index names."""
    if not indices or x[:batch] != indices[:batch] or indices[-1] > len(x) - batch:
        raise ModelError(f"indices of shape {indices} do not fit an input of shape {x}")
    return indices[-1]


def tuples(x: Array, indices: Array, batch: int, what: str) -> tuple[Array, ...]:
    """What to index ``x`` with, for index tuples in the last dimension of ``indices``."""
    count = depth(x.shape, indices.shape, batch)
    grid = np.indices(indices.shape[:batch], sparse=True)
    pad = (1,) * (indices.ndim - 1 - batch)
    own = [g.reshape(g.shape + pad) for g in grid]
    named = [wrapped(indices[..., k], x.shape[batch + k], what) for k in range(count)]
    return (*own, *named)
