"""Aligned host memory. Alignment is part of TVM's ABI: compiled code assumes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from packhorse.errors import ArgumentValueError, DeviceMemoryError

__all__ = ["ALIGNMENT", "address_of", "aligned_array", "aligned_empty"]

ALIGNMENT = 128
"""What TVM 0.7 to 0.9 assume (64 before and after): with less, vector moves fault."""


def aligned_empty(nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Uninitialised host memory: a uint8 array of that length, its address a multiple of 128.

    Raises
    ------
    ArgumentValueError
        ``nbytes`` is negative.
    DeviceMemoryError
        The host is out of memory.
    """
    if nbytes < 0:
        raise ArgumentValueError(f"cannot allocate {nbytes} bytes; the size must not be negative")
    try:
        block = np.empty(nbytes + ALIGNMENT, np.uint8)
    except (MemoryError, ValueError) as error:
        raise DeviceMemoryError(
            f"the host could not allocate {nbytes} bytes; use smaller shapes or free tensors"
        ) from error
    start = -block.ctypes.data % ALIGNMENT
    return block[start : start + nbytes]


def aligned_array(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """An uninitialised, 128-byte aligned, C-contiguous array."""
    nbytes = math.prod(shape) * dtype.itemsize
    return aligned_empty(nbytes).view(dtype).reshape(tuple(shape))


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Address of the first element, whatever the strides; quicker than ``array.ctypes.data``."""
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]
