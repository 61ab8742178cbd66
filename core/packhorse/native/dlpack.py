"""DLPack 1.1 for memory: managed capsules out, arrays in. Versioned and unversioned.

Source: dlpack.h 1.1 and the Python specification of the array API standard.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from packhorse.dtype import dlpack_code, from_dlpack_code
from packhorse.errors import ArgumentTypeError
from packhorse.native.memory import address_of
from packhorse.native.runtime import ffi, lib

__all__ = ["CPU", "VERSION", "View", "array_of", "export_array", "export_capsule", "import_array"]

VERSION = (1, 1)
CPU = 1
READ_ONLY, IS_COPIED, SUBBYTE_PADDED = 1, 2, 4

_api = ctypes.pythonapi
_capsule_new = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
)(("PyCapsule_New", _api))
_capsule_is = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(
    ("PyCapsule_IsValid", _api)
)
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)(
    ("PyCapsule_GetPointer", _api)
)
_capsule_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(
    ("PyCapsule_SetName", _api)
)


class View(NamedTuple):
    """Memory to export: ``strides`` count elements, ``device`` is (DLDeviceType, index)."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    device: tuple[int, int]


def export_capsule(
    view: View,
    owner: object,
    *,
    max_version: tuple[int, int] | None,
    read_only: bool = False,
    copied: bool = False,
) -> Any:
    """A capsule that keeps ``owner`` alive until its consumer is done with the memory.

    Versioned when the consumer said it understands version 1 (``max_version``), which alone can
    say that memory is read-only or that elements narrower than a byte are padded.

    Raises
    ------
    BufferError
        The consumer understands only the unversioned form, and that cannot describe the memory.
    """
    versioned = max_version is not None and max_version[0] >= 1
    code, bits, lanes = dlpack_code(view.dtype)
    if not versioned and (read_only or bits < 8):
        what = "read-only memory" if read_only else f"padded {view.dtype} elements"
        raise BufferError(
            f"{what} can only be exported as versioned DLPack; update the importing library to "
            "one that passes max_version=(1, 0), or copy the tensor first"
        )
    dims = ffi.new("int64_t[]", view.shape or (0,))
    steps = ffi.new("int64_t[]", view.strides or (0,))
    tensor = ffi.new("ph_tensor *")
    tensor.data, tensor.ndim, tensor.shape, tensor.strides = (
        view.address,
        len(view.shape),
        dims,
        steps,
    )
    tensor.device.device_type, tensor.device.device_id = view.device
    tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes = code, bits, lanes
    major, minor = min(max_version or (0, 0), VERSION) if versioned else (0, 0)
    flags = READ_ONLY * read_only | IS_COPIED * copied | SUBBYTE_PADDED * (bits < 8)
    managed = lib.ph_dlpack_new(tensor, id(owner), major, minor, flags)
    if not managed:
        raise MemoryError("no memory for a DLPack capsule")
    return _capsule_new(
        managed, lib.ph_dlpack_name(versioned, 0), lib.ph_dlpack_destructor(versioned)
    )


def export_array(
    array: np.ndarray[Any, Any], max_version: tuple[int, int] | None, copied: bool
) -> Any:
    """A capsule of a host array, read-only if it is not writeable. BufferError if it cannot be."""
    size = array.dtype.itemsize
    if any(step % size for step in array.strides):
        raise BufferError("strides that are no multiple of the element size cannot be exported")
    steps = tuple(step // size for step in array.strides)
    view = View(address_of(array), array.shape, steps, array.dtype, (CPU, 0))
    read_only = not array.flags.writeable
    return export_capsule(view, array, max_version=max_version, read_only=read_only, copied=copied)


def import_array(source: Any) -> np.ndarray[Any, Any]:
    """The host memory of an object with ``__dlpack__``, or of a capsule, as an array: no copy.

    The array keeps the memory alive; it is not writeable when the producer says so.

    Raises
    ------
    ArgumentTypeError
        No DLPack object, device memory, or a dtype packhorse lacks.
    BufferError
        The producer refuses, its capsule was used before, or its version is newer than 1.
    """
    capsule = source if type(source).__name__ == "PyCapsule" else _ask(source)
    for versioned in (1, 0):
        if _capsule_is(capsule, lib.ph_dlpack_name(versioned, 0)):
            return _take(capsule, bool(versioned))
    raise BufferError("this DLPack capsule was used before; ask its producer for another")


def _ask(source: Any) -> Any:
    if not hasattr(source, "__dlpack__"):
        raise ArgumentTypeError(
            f"expected an object with __dlpack__, found {type(source).__name__}; use "
            "packhorse.tensor to copy lists and scalars"
        )
    if hasattr(source, "__dlpack_device__"):
        _check_device(source.__dlpack_device__()[0])
    try:
        return source.__dlpack__(max_version=VERSION)
    except TypeError:  # written before versions existed
        return source.__dlpack__()


def _take(capsule: Any, versioned: bool) -> np.ndarray[Any, Any]:
    pointer = _capsule_pointer(capsule, lib.ph_dlpack_name(versioned, 0))
    kind, release = (
        ("ph_versioned *", lib.ph_dlpack_release_versioned)
        if versioned
        else ("ph_managed *", lib.ph_dlpack_release)
    )
    managed = ffi.cast(kind, pointer)
    if versioned and managed.major > VERSION[0]:  # only version and deleter may be read
        raise BufferError(
            f"the producer made DLPack {managed.major}.{managed.minor}; this packhorse "
            f"understands up to {VERSION[0]}.x. Update packhorse"
        )
    flags = managed.flags if versioned else 0
    tensor = managed.tensor
    _check_device(tensor.device.device_type)
    if tensor.dtype.bits < 8 and not flags & SUBBYTE_PADDED:
        raise BufferError(
            f"elements of {tensor.dtype.bits} bits packed into bytes are not supported; "
            "unpack them to a byte each"
        )
    _capsule_rename(capsule, lib.ph_dlpack_name(versioned, 1))
    owner = ffi.gc(managed, release)
    return array_of(tensor, owner, read_only=bool(flags & READ_ONLY))


def _check_device(kind: int) -> None:
    if kind != CPU:
        raise ArgumentTypeError(
            f"this is memory of DLPack device type {int(kind)}, not of the host; copy it to the "
            "host first"
        )


class _Interface:
    """NumPy's array interface over foreign memory; the array keeps this and ``owner`` alive."""

    def __init__(self, owner: object, interface: dict[str, Any]) -> None:
        self.owner = owner
        self.__array_interface__ = interface


def array_of(tensor: Any, owner: object, *, read_only: bool = False) -> np.ndarray[Any, Any]:
    """An array over the host memory a ``ph_tensor`` describes. ``owner`` lives as long as it.

    Raises ArgumentTypeError for a dtype packhorse lacks.
    """
    dtype = from_dlpack_code(tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes)
    shape = tuple(ffi.unpack(tensor.shape, tensor.ndim)) if tensor.ndim else ()
    if math.prod(shape) == 0:
        return np.empty(shape, dtype)  # its address may be NULL, which NumPy refuses
    carrier = dtype if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")
    strides = _byte_strides(tensor, dtype.itemsize)
    interface = {
        "version": 3,
        "shape": shape,
        "typestr": carrier.str,
        "data": (tensor.data + tensor.byte_offset, read_only),
        "strides": strides,
    }
    array = np.asarray(_Interface(owner, interface))
    return array if carrier is dtype else array.view(dtype)


def _byte_strides(tensor: Any, itemsize: int) -> tuple[int, ...] | None:
    if tensor.strides == ffi.NULL:
        return None
    steps: Sequence[int] = ffi.unpack(tensor.strides, tensor.ndim) if tensor.ndim else ()
    return tuple(step * itemsize for step in steps)
