"""Moving arrays into and out of the layout of a :class:`~packhorse.kernel.Buffer`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from packhorse.kernel.kernel import Buffer

__all__ = ["from_storage", "numpy_dtype", "to_storage", "views"]

Array = np.ndarray[Any, Any]
_Part: TypeAlias = tuple[slice, tuple[int, ...], tuple[int, ...], int]
"""Slice of one logical dimension, the view dimensions it becomes, their steps, its start."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a kernel dtype (bfloat16 and the like come from ml_dtypes)."""
    try:
        found: np.dtype[Any] = np.dtype(name)
    except TypeError:
        import ml_dtypes

        found = np.dtype(getattr(ml_dtypes, name))
    return found


def views(flat: Array, buffer: Buffer) -> Iterator[tuple[tuple[slice, ...], Array]]:
    """Strided views of a flat storage that together cover the buffer.

    Yields (slices of the logical array, view with that part's elements). A plain buffer is one
    view; a blocked dimension that its block does not divide adds one for the tail. Blocked
    dimensions appear in the view as two, (blocks, block).
    """
    parts: list[list[_Part]] = []
    for extent, dim in zip(buffer.shape, buffer.dims, strict=True):
        if not dim.block:
            parts.append([(slice(0, extent), (extent,), (dim.step,), 0)])
            continue
        whole, tail = divmod(extent, dim.block)
        cut = whole * dim.block
        choices: list[_Part] = []
        if whole:
            choices.append((slice(0, cut), (whole, dim.block), (dim.block_step, dim.step), 0))
        if tail:
            choices.append((slice(cut, extent), (1, tail), (0, dim.step), whole * dim.block_step))
        parts.append(choices)
    item = flat.dtype.itemsize
    # as_strided does not know dtypes of ml_dtypes: stride over their bits
    bits = flat if flat.dtype.isbuiltin == 1 else flat.view(f"u{item}")
    for choice in itertools.product(*parts):
        start = buffer.offset + sum(part[3] for part in choice)
        shape = [n for part in choice for n in part[1]]
        steps = [s for part in choice for s in part[2]]
        view = np.lib.stride_tricks.as_strided(bits[start:], shape, [s * item for s in steps])
        yield tuple(part[0] for part in choice), view.view(flat.dtype)


def to_storage(array: Array, buffer: Buffer, out: Array | None = None) -> Array:
    """Lay an array of ``buffer.shape`` out in a flat array of ``buffer.size``; gaps are zero.

    A new array is aligned to 128 bytes, so that executors use it in place.
    """
    flat = _zeros(buffer.size, numpy_dtype(buffer.dtype)) if out is None else out
    if array.size:
        for where, view in views(flat, buffer):
            view[...] = array[where].reshape(view.shape)
    return flat


def _zeros(count: int, dtype: np.dtype[Any]) -> Array:
    nbytes = count * dtype.itemsize
    raw = np.zeros(nbytes + 127, np.uint8)
    start = -raw.ctypes.data % 128
    return raw[start : start + nbytes].view(dtype)


def from_storage(flat: Array, buffer: Buffer) -> Array:
    """The logical array held by a flat storage (always a copy)."""
    array = np.empty(buffer.shape, flat.dtype)
    if array.size:
        for where, view in views(flat, buffer):
            array[where] = view.reshape(array[where].shape)
    return array
