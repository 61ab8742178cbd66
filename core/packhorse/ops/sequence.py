"""Operators that move parts of one axis as counts held in a tensor say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from packhorse.errors import ModelError
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Expr, Index, IndexLike, call, cast, const, select
from packhorse.kernel.lowering import Lazy, Lowering, axes_of, lazy
from packhorse.ops._window import guarded
from packhorse.ops.registry import Inference, operator
from packhorse.ops.rules import Array, compiled, labelled, normal_axis, text

__all__ = ["reverse_sequence", "tensor_scatter"]

# ReverseSequence


def _batch_and_time(batch: int, time: int, shape: Sequence[int]) -> tuple[int, int]:
    if len(shape) < 2 or {batch, time} != {0, 1}:
        raise ModelError(
            f"batch_axis {batch} and time_axis {time} of data of shape {tuple(shape)}: they must "
            "be 0 and 1 or 1 and 0, and the data have 2 dimensions or more"
        )
    return batch, time


@labelled
def _reverse_rule(ctx: Inference) -> Sequence[TensorType]:
    x = ctx.type(0)
    batch, _ = _batch_and_time(ctx.attr("batch_axis"), ctx.attr("time_axis"), x.dims)
    if ctx.shape(1) != (x.dims[batch],) or ctx.type(1).dtype.kind not in "iu":
        raise ModelError(
            f"sequence_lens is {ctx.type(1).dtype}{list(ctx.shape(1))}, expected one integer per "
            f"element of axis {batch}: ({x.dims[batch]},)"
        )
    return [x]


@compiled
def _lower_reverse(ctx: Lowering) -> Lazy:
    """Position ``t`` of a sequence of ``n`` reads ``n - 1 - t``, behind its end itself."""
    x = ctx[0]
    batch, time = _batch_and_time(ctx.attr("batch_axis"), ctx.attr("time_axis"), x.shape)
    index: list[IndexLike] = list(axes_of(len(x.shape)))
    here = Index(axes_of(2)[time])
    count = cast(ctx[1].at([axes_of(2)[batch]]), "int64")
    # no load strays, whatever the lengths are
    last = call("min", call("max", count, 0), x.shape[time]) - 1
    index[time] = select(call("le", here, last), last - here, here)
    return lazy(ctx, x.at(index))


@operator("ReverseSequence", infer=_reverse_rule, lower=_lower_reverse)
def reverse_sequence(x: Array, lengths: Array, *, batch_axis: int = 1, time_axis: int = 0) -> Array:
    """The first ``lengths[b]`` steps of every sequence reversed (ONNX ReverseSequence-10).

    Parameters
    ----------
    x : array of rank 2 or more
    lengths : int64 array, one number from 0 to the extent of ``time_axis`` per sequence

    Raises
    ------
    ModelError
        Axes that are not 0 and 1; a length outside the axis.
    """
    _, time = _batch_and_time(batch_axis, time_axis, x.shape)
    steps = x.shape[time]
    if lengths.size and (int(lengths.min()) < 0 or int(lengths.max()) > steps):
        raise ModelError(
            f"ReverseSequence: lengths {lengths.tolist()} must lie between 0 and the {steps} "
            "steps of the data"
        )
    place = np.arange(steps)[:, None]
    from_ = np.where(place < lengths, lengths - 1 - place, place)  # (time, batch)
    index = from_ if time == 0 else from_.T
    return np.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=time)


# TensorScatter: a cache of keys or values, updated


def _cache_axis(axis: int, past: Sequence[int], update: Sequence[int]) -> int:
    found = normal_axis(axis, len(past))
    fits = len(past) == len(update) and all(
        n == m or (d == found and m <= n) for d, (n, m) in enumerate(zip(past, update, strict=True))
    )
    if not fits or found == 0:
        raise ModelError(
            f"an update of shape {tuple(update)} does not fit a cache of shape {tuple(past)}: "
            f"they may differ along axis {found} only, which is not the batch axis 0"
        )
    return found


@labelled
def _tensor_scatter_rule(ctx: Inference) -> Sequence[TensorType]:
    past = ctx.type(0)
    _cache_axis(ctx.attr("axis"), past.dims, ctx.shape(1))
    if ctx.type(1).dtype != past.dtype:
        raise ModelError(f"the update is {ctx.type(1).dtype}, the cache {past.dtype}")
    if ctx.has(2) and ctx.shape(2) != past.dims[:1]:
        raise ModelError(
            f"write_indices has shape {ctx.shape(2)}, expected one per batch: {past.dims[:1]}"
        )
    _circular(ctx.attr("mode"))
    return [past]


def _circular(mode: str | bytes) -> bool:
    if text(mode) not in ("linear", "circular"):
        raise ModelError(f"mode is '{text(mode)}', expected linear or circular")
    return text(mode) == "circular"


@compiled
def _lower_tensor_scatter(ctx: Lowering) -> Lazy:
    """Every position of the cache takes the update's element that falls on it, if one does."""
    past, update = ctx[0], ctx[1]
    axis = _cache_axis(ctx.attr("axis"), past.shape, update.shape)
    index: list[IndexLike] = list(axes_of(len(past.shape)))
    place: Expr = Index(axes_of(len(past.shape))[axis])
    if ctx.has(2):
        place = place - cast(ctx[2].at([axes_of(1)[0]]), "int64")
    if _circular(ctx.attr("mode")):
        place = call("mod", place, past.shape[axis])
    old = past.at(index)
    new = call("and", call("ge", place, 0), call("lt", place, update.shape[axis]))
    index[axis] = select(new, place, const(0, "int64"))
    return lazy(ctx, select(new, guarded(update.at(index), new), old))


@operator("TensorScatter", infer=_tensor_scatter_rule, lower=_lower_tensor_scatter)
def tensor_scatter(
    past: Array,
    update: Array,
    write_indices: Array | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Array:
    """A cache with an update written at a position per batch (ONNX TensorScatter-24).

    Parameters
    ----------
    past : array (batch, ..., positions, ...)
    update : array of the same dtype, shorter along ``axis``
    write_indices : int64 array (batch,), optional
        First position written; default 0.
    mode : str
        ``circular`` goes on at position 0 behind the last one.

    Raises
    ------
    ModelError
        Shapes that do not fit; with ``linear`` an update that reaches outside the cache.
    """
    d = _cache_axis(axis, past.shape, update.shape)
    starts = np.zeros(past.shape[0], np.int64) if write_indices is None else write_indices
    where = starts[:, None] + np.arange(update.shape[d])
    if _circular(mode):
        where = where % past.shape[d]
    elif where.size and (where.min() < 0 or where.max() >= past.shape[d]):
        raise ModelError(
            f"TensorScatter: positions {int(where.min())} to {int(where.max())} are written, the "
            f"cache has 0 to {past.shape[d] - 1}. Use mode='circular' to wrap round"
        )
    shape = [n if i in (0, d) else 1 for i, n in enumerate(update.shape)]
    out = past.copy()
    np.put_along_axis(out, where.reshape(shape), update, axis=d)
    return out
