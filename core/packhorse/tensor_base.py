"""The class of tensors: typed n-d arrays in a device's memory, exchanged through DLPack.

Host tensors are NumPy arrays with an owner; device tensors hold a block of the device's memory.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self, SupportsIndex, TypeAlias, cast

import numpy as np

from packhorse.dtype import DTypeLike, dlpack_code, dtype_name
from packhorse.dtype import dtype as as_dtype
from packhorse.errors import ArgumentTypeError, ArgumentValueError, DeviceClosed
from packhorse.function import add_value_type
from packhorse.native import fast
from packhorse.native.dlpack import CPU, View, export_array, export_capsule
from packhorse.native.memory import address_of, aligned_array
from packhorse.native.plan import Slot
from packhorse.native.runtime import Abi, ffi

if TYPE_CHECKING:
    from packhorse.device import Device, Memory

__all__ = ["HOST", "Array", "Place", "Tensor", "TensorDevice", "as_dims"]

Array: TypeAlias = np.ndarray[Any, Any]


class TensorDevice(Protocol):
    """Where a tensor lies; every Device is one."""

    @property
    def name(self) -> str:
        """Canonical device string."""

    @property
    def dlpack_device(self) -> tuple[int, int]:
        """(DLDeviceType, index)."""


class Place:
    """Host memory that no Device was opened for."""

    name = "cpu:0"
    dlpack_device = (CPU, 0)

    def __repr__(self) -> str:
        return self.name


HOST = Place()


class _Block:
    """Device memory shared by a tensor and its views: closed when the last of them is."""

    def __init__(self, device: Device, memory: Memory) -> None:
        self.device, self.memory = device, memory
        weakref.finalize(self, memory.close)


class Tensor:
    """A typed n-d array in a device's memory. Made by :func:`packhorse.tensor`,
    :func:`packhorse.empty`, DLPack.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    device : Device or Place
        Has ``name`` ("cpu:0") and ``dlpack_device`` ((1, 0)).
    """

    __slots__ = ("__weakref__", "_array", "_block", "_packed", "_slot", "device", "dtype", "shape")

    device: TensorDevice
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __init__(self, array: Array, device: TensorDevice = HOST) -> None:
        """Wrap a host array without a copy: the array's memory is the tensor's."""
        dtype_name(array.dtype)
        self._array: Array | None = array
        self._block: _Block | None = None
        self._slot: Slot | None = None
        self._packed: object = None  # for calls in C: see _pack
        self.shape, self.dtype, self.device = array.shape, array.dtype, device

    @classmethod
    def from_memory(
        cls, memory: Memory, device: Device, shape: Sequence[int], dtype: DTypeLike
    ) -> Self:
        """A C-contiguous tensor in device memory, which it owns from now on.

        Raises
        ------
        ArgumentValueError
            The block is too small.
        """
        made = cls.__new__(cls)
        made.shape, made.dtype, made.device = tuple(shape), as_dtype(dtype), device
        if memory.nbytes < made.nbytes:
            raise ArgumentValueError(
                f"{made.shape} of {made.dtype} needs {made.nbytes} bytes, the block has "
                f"{memory.nbytes}"
            )
        made._array, made._slot, made._packed = None, None, None
        made._block = _Block(device, memory)
        return made

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.size * self.dtype.itemsize

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._array is None and self._block is None

    @property
    def on_device(self) -> bool:
        """Whether it lies in a device's own memory, from which :meth:`numpy` copies."""
        return self._array is None and self._open_block() is not None

    @property
    def address(self) -> int:
        """What ``DLTensor.data`` holds: a host pointer, or the device's own."""
        if self._array is not None:
            return address_of(self._array)
        return self._open_block().memory.address

    def _open_block(self) -> _Block:
        if self._block is None:
            raise DeviceClosed(
                f"this tensor {self.shape} {self.dtype} was used after close(); create another"
            )
        return self._block

    # ------------------------------------------------------------ host arrays

    def numpy(self) -> Array:
        """Its elements as an array: the same memory on the host, a copy from a device.

        Raises
        ------
        DeviceClosed
            The tensor was closed.
        """
        if self._array is not None:
            return self._array
        block = self._open_block()
        host = aligned_array(self.shape, self.dtype)
        block.device.copy_to_host(block.memory, host)
        return host

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        """NumPy's conversion protocol; ``copy=False`` raises ValueError where a copy is needed."""
        wanted = self.dtype if dtype is None else np.dtype(dtype)
        if copy is False and (self._array is None or wanted != self.dtype):
            where = self.device.name
            raise ArgumentValueError(
                f"a {wanted} array of this {self.dtype} tensor on {where} needs a copy; pass "
                "copy=None"
            )
        return self.numpy().astype(wanted, copy=bool(copy) and self._array is not None)

    def __packed_tensor__(self) -> tuple[Slot | None, Array]:
        """For calls of host code: its DLTensor (None when strided) and the memory behind it.

        Raises
        ------
        ArgumentTypeError
            The tensor lies on another device.
        """
        array = self._array
        if array is None:
            self._open_block()
            raise ArgumentTypeError(
                f"this tensor lies on {self.device.name} and the function is host code; pass "
                "tensor.numpy()"
            )
        if self._slot is None and array.flags.c_contiguous:
            self._slot = Slot(self.shape, dtype_name(self.dtype), address_of(array))
        return self._slot, array

    def __packed_block__(self, abi: Abi) -> tuple[Slot, _Block]:
        """For calls of code that launches kernels: its DLTensor, whose ``data`` is the device's
        handle, and the block behind it. Raises DeviceClosed."""
        block = self._open_block()
        where, dtype = self.device.dlpack_device, dtype_name(self.dtype)
        return Slot(self.shape, dtype, block.memory.address, where, abi), block

    def _pack(self) -> object:
        """For calls in C: a capsule with both ABIs' DLTensors that keeps the memory; else None."""
        if self._array is None or not self._array.flags.c_contiguous:
            return None
        slot, array = self.__packed_tensor__()
        assert slot is not None
        code, bits, _ = dlpack_code(self.dtype)
        pointer = int(ffi.cast("uintptr_t", slot.pointer))
        self._packed = fast.make_tensor(pointer, code, bits, array)
        return self._packed

    def copy_from(self, source: Tensor | Array) -> Self:
        """Overwrite the elements with those of ``source``; returns self.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            Another dtype or shape (nothing is converted), or this tensor is read-only.
        DeviceClosed
            One of the two was closed.
        """
        if isinstance(source, Tensor) and self._copied_there(source):
            return self
        array = source.numpy() if isinstance(source, Tensor) else np.asarray(source)
        _check_same(array, self)
        if self._array is None:
            block = self._open_block()
            block.device.copy_from_host(block.memory, np.ascontiguousarray(array))
        elif not self._array.flags.writeable:
            raise ArgumentValueError("this tensor is read-only; copy it with packhorse.tensor")
        else:
            np.copyto(self._array, array)
        return self

    def _copied_there(self, source: Tensor) -> bool:
        """Copy within a device that can, queued and not waited for."""
        if self._block is None or source._block is None or self.device is not source.device:
            return False
        device: Any = self.device
        if "copy" not in device.capabilities:
            return False
        _check_same(source, self)
        source_memory, memory = source._block.memory, self._open_block().memory
        if source_memory is not memory:  # views of the same memory hold the same
            device.copy(source_memory, memory, self.nbytes)
        return True

    def copy_to(self, target: Tensor | Array) -> None:
        """Write the elements into a tensor or array of the same shape and dtype.

        Raises as :meth:`copy_from`.
        """
        (target if isinstance(target, Tensor) else Tensor(target)).copy_from(self)

    def reshape(self, *shape: SupportsIndex | Sequence[int]) -> Tensor:
        """A view under another shape; one dimension may be -1.

        Raises
        ------
        ArgumentValueError
            Another number of elements, or strided memory, which only a copy could reshape.
        """
        wanted = _resolve(as_dims(shape), self.size)
        if self._array is None:
            return self._viewed(wanted, self.dtype)
        if not self._array.flags.c_contiguous:
            raise ArgumentValueError(
                "a strided tensor cannot be reshaped without a copy; use "
                "packhorse.tensor(t.numpy().reshape(...))"
            )
        return Tensor(self._array.reshape(wanted), self.device)

    def _viewed(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """The first bytes of device memory as another tensor; the caller answers for the size."""
        view = Tensor.__new__(Tensor)
        view._array, view._slot, view._packed = None, None, None
        view._block = self._open_block()
        view.shape, view.dtype, view.device = shape, dtype, self.device
        return view

    # ------------------------------------------------------------ DLPack

    def __dlpack_device__(self) -> tuple[int, int]:
        """(DLDeviceType, index)."""
        return self.device.dlpack_device

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack 1.1 capsule, unversioned unless ``max_version`` is (1, 0) or newer.

        A device tensor is synchronized first. ``dl_device=(1, 0)`` copies it to the host.
        Source: the array API standard, ``__dlpack__``.

        Raises
        ------
        BufferError
            What is asked for cannot be exported: another device, ``copy=False`` where a copy is
            needed, read-only memory to a consumer of unversioned capsules.
        ArgumentValueError
            ``stream`` is given for host memory.
        DeviceClosed
            The tensor was closed.
        """
        to_host = dl_device is not None and tuple(dl_device) == (CPU, 0)
        here = self.device.dlpack_device
        if dl_device is not None and tuple(dl_device) != here and not to_host:
            raise BufferError(
                f"this tensor lies on {here}, not on {tuple(dl_device)}; copy it there first"
            )
        if here[0] == CPU and stream is not None:
            raise ArgumentValueError("stream must be None for host memory; there are none")
        if self._array is None and not to_host:
            return self._export_block(max_version, copy)
        copied = bool(copy) or self._array is None
        if copied and copy is False:
            raise BufferError("a copy to the host is needed; pass copy=None or copy=True")
        array = self.numpy()
        if copied and self._array is not None:
            array = array.copy()
        return export_array(array, max_version, copied)

    def _export_block(self, max_version: tuple[int, int] | None, copy: bool | None) -> Any:
        block = self._open_block()
        if copy:
            raise BufferError("a copy within the device is not offered; copy the tensor first")
        block.device.synchronize()
        steps = [math.prod(self.shape[i + 1 :]) for i in range(self.ndim)]
        view = View(
            block.memory.address, self.shape, tuple(steps), self.dtype, self.device.dlpack_device
        )
        return export_capsule(view, block, max_version=max_version)

    # ------------------------------------------------------------ end of life

    def close(self) -> None:
        """Let go of the memory; idempotent. It is freed when no view or consumer is left."""
        self._array = self._block = self._slot = self._packed = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        if not self.shape:
            raise ArgumentTypeError("a tensor without dimensions has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        head = f"Tensor({self.dtype}{list(self.shape)}, '{self.device.name}'"
        if self.closed:
            return f"{head}, closed)"
        if self._array is None:
            return f"{head})"
        text = np.array2string(self._array, threshold=100, edgeitems=3, prefix="  ")
        return f"{head},\n  {text})" if "\n" in text else f"{head}, {text})"


add_value_type(Tensor)
fast.setup(Tensor, None, None, None)


def as_dims(shape: Sequence[SupportsIndex | Sequence[int]]) -> tuple[int, ...]:
    """``*shape`` of a call, ints or one sequence of them, as dimensions.

    Raises
    ------
    ArgumentTypeError
        Something else than integers.
    """
    one = shape[0] if len(shape) == 1 else shape
    dims = one if isinstance(one, Sequence | np.ndarray) else (one,)
    try:
        return tuple(operator.index(cast(SupportsIndex, d)) for d in dims)
    except TypeError:
        raise ArgumentTypeError(f"a shape holds integers, found {one!r}") from None


def _resolve(dims: tuple[int, ...], size: int) -> tuple[int, ...]:
    known = math.prod(d for d in dims if d != -1)
    fits = dims.count(-1) == 1 and known > 0 and size % known == 0
    resolved = tuple(size // known if d == -1 else d for d in dims) if fits else dims
    if any(d < 0 for d in resolved) or math.prod(resolved) != size:
        raise ArgumentValueError(f"{size} elements cannot be reshaped to {dims}")
    return resolved


def _check_same(array: Array | Tensor, target: Tensor) -> None:
    if array.dtype != target.dtype:
        raise ArgumentTypeError(
            f"the target holds {target.dtype}, found {array.dtype}; convert with "
            f"astype('{target.dtype}')"
        )
    if array.shape != target.shape:
        raise ArgumentValueError(
            f"the target has shape {target.shape}, found {array.shape}; reshape it first"
        )
