"""Tensors: typed n-d arrays in a device's memory, exchanged through DLPack in both directions.

>>> import packhorse as ph
>>> x = ph.tensor([[1, 2], [3, 4]], "float32")
>>> x.shape, x.dtype, x.device.name
((2, 2), dtype('float32'), 'cpu:0')
>>> x.numpy().sum().item()  # the same memory, no copy
10.0

The class is in :mod:`packhorse.tensor_base`; here is what makes tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

import numpy as np

from packhorse.dtype import DTypeLike
from packhorse.dtype import dtype as as_dtype
from packhorse.errors import ArgumentTypeError, ArgumentValueError
from packhorse.native.dlpack import CPU, import_array
from packhorse.native.memory import aligned_array
from packhorse.tensor_base import HOST, Array, Place, Tensor, TensorDevice, as_dims

if TYPE_CHECKING:
    from packhorse.device import Device

__all__ = ["HOST", "Place", "Tensor", "TensorDevice", "empty", "from_dlpack", "tensor"]


def tensor(obj: Any, dtype: DTypeLike | None = None, device: str | TensorDevice = "cpu") -> Tensor:
    """A new tensor with a copy of ``obj``: an array, a Tensor, a DLPack object, nested lists.

    Parameters
    ----------
    dtype : str, numpy.dtype or type, optional
        Converted to; default what ``numpy.asarray`` gives.
    device : str or Device
        Where it lies. No such device is an error.

    Raises
    ------
    ArgumentTypeError
        The elements are of no dtype packhorse knows (strings, objects).
    ArgumentValueError
        Lists of unequal lengths.
    DeviceError
        The device cannot be had; see :func:`packhorse.device`.
    """
    host = _as_array(obj)
    wanted = as_dtype(host.dtype if dtype is None else dtype)
    made = empty(host.shape, wanted, device)
    if made._array is None:
        return made.copy_from(host.astype(wanted, copy=False))
    np.copyto(made._array, host, casting="unsafe")
    return made


def empty(
    shape: SupportsIndex | Sequence[int],
    dtype: DTypeLike = "float32",
    device: str | TensorDevice = "cpu",
) -> Tensor:
    """An uninitialised, C-contiguous tensor, 128-byte aligned on the host.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        Unknown dtype; a dimension that is negative or no integer.
    DeviceMemoryError
        The device is out of memory.
    DeviceError
        The device cannot be had.
    """
    dims, kind, where = as_dims((shape,)), as_dtype(dtype), _place(device)
    if any(d < 0 for d in dims):
        raise ArgumentValueError(f"shape {dims} has a negative dimension")
    if where.dlpack_device[0] == CPU:
        return Tensor(aligned_array(dims, kind), where)
    opened = cast("Device", where)
    return Tensor.from_memory(opened.allocate(math.prod(dims) * kind.itemsize), opened, dims, kind)


def from_dlpack(obj: Any) -> Tensor:
    """A host tensor over the memory of any object with ``__dlpack__``: no copy.

    Read-only when the producer says so. The memory lives as long as the tensor or its arrays.

    Raises
    ------
    ArgumentTypeError
        Not a DLPack object, device memory, or a dtype packhorse lacks.
    BufferError
        The producer cannot export it, or its DLPack is newer than version 1.
    """
    if isinstance(obj, Tensor):
        if obj._array is None:
            obj._open_block()
        return obj.reshape(obj.shape) if obj._array is None else Tensor(obj._array, obj.device)
    return Tensor(import_array(obj))


def _as_array(obj: Any) -> Array:
    if isinstance(obj, Tensor):
        return obj.numpy()
    if isinstance(obj, np.ndarray):
        return obj
    if hasattr(obj, "__dlpack__") and not isinstance(obj, np.generic):
        return import_array(obj)
    try:
        return np.asarray(obj)
    except ValueError as error:
        raise ArgumentValueError(
            f"this {type(obj).__name__} is no array: {error}. Give lists of equal lengths"
        ) from None


def _place(device: str | TensorDevice) -> TensorDevice:
    if isinstance(device, str):
        if device in ("cpu", "cpu:0"):
            return HOST
        from packhorse.device import device as open_device

        return open_device(device)
    if not hasattr(device, "dlpack_device"):
        raise ArgumentTypeError(
            f"device must be a device string or a Device, not {type(device).__name__}"
        )
    return device
