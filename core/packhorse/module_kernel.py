"""Compiled kernels of devices with memory of their own, as packed functions.

A backend derives from :class:`KernelFunction` and writes one method, ``prepare``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from packhorse.errors import ArgumentTypeError, ArgumentValueError, DeviceClosed
from packhorse.function import PackedFunction
from packhorse.kernel.layout import numpy_dtype
from packhorse.tensor import Tensor

if TYPE_CHECKING:
    from packhorse.device import Device, Memory

__all__ = ["KernelArgument", "KernelArguments", "KernelFunction"]


class KernelArgument(Protocol):
    """One buffer of a call: a ``packhorse.kernel.Buffer`` is one."""

    @property
    def dtype(self) -> str:
        """Name of the dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape."""

    @property
    def size(self) -> int:
        """Elements in memory, borders and padding included."""


class KernelArguments(Protocol):
    """What a kernel is called with: a ``packhorse.kernel.Kernel`` says it, and so does whatever a
    backend saved of one."""

    @property
    def arguments(self) -> Sequence[str]:
        """The names of its buffers in the order of the call."""

    @property
    def buffers(self) -> Mapping[str, KernelArgument]:
        """What each of them is."""


class KernelFunction(PackedFunction):
    """One kernel as a packed function over tensors of its device, in argument order.

    Everything is checked when it is bound; the bound call only launches.

    Parameters
    ----------
    device : Device
        Where it runs; its memory is what the kernel reads and writes.
    kernel : Kernel or KernelArguments
        What was compiled: ``arguments``, and the ``buffers`` they name.
    name : str
        What errors call it.
    """

    __slots__ = ("device", "kernel")

    def __init__(self, device: Device, kernel: KernelArguments, name: str) -> None:
        super().__init__(KernelFunction, name)  # not a method of self: a cycle delays freeing
        self.device, self.kernel = device, kernel

    def prepare(self, blocks: Sequence[Any]) -> Callable[[], Any]:
        """A call without arguments that launches (or queues) the kernel on these blocks.

        Their number and sizes are checked already; a block may be larger than its buffer. A
        subclass writes this.
        """
        raise NotImplementedError(f"{type(self).__name__} must write prepare(blocks)")

    def __call__(self, *args: Any) -> None:
        """Launch it on tensors of its device. Raises as :meth:`bind`."""
        self.bind(*args)()

    def bind(self, *args: Any) -> Callable[[], Any]:
        """Check tensors now; returns the call that launches.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            Not the tensors the kernel takes.
        DeviceClosed
            The device, or a tensor, was closed.
        """
        return self.prepare(self._memory_of(args))

    def bind_memory(self, blocks: Sequence[Memory]) -> Callable[[], Any]:
        """The same for bare blocks of the device's memory; the caller answers for what they hold.

        Raises
        ------
        ArgumentValueError
            Another number of blocks, or one that is too small.
        DeviceClosed
            The device was closed.
        """
        self._check_blocks(blocks)
        return self.prepare(blocks)

    def _memory_of(self, args: Sequence[Any]) -> list[Memory]:
        """The blocks of tensors; everything is checked."""
        names = self.kernel.arguments
        if len(args) != len(names):
            raise ArgumentValueError(
                f"'{self.name}' takes {len(names)} tensors ({', '.join(names)}), "
                f"{len(args)} were given"
            )
        for position, (arg, name) in enumerate(zip(args, names, strict=True)):
            self._check(f"argument {position} of '{self.name}'", arg, name)
        blocks = [arg._open_block().memory for arg in args]
        self._check_blocks(blocks)
        return blocks

    def _check_blocks(self, blocks: Sequence[Memory]) -> None:
        if self.device.closed:
            raise DeviceClosed(f"'{self.name}' cannot run: device '{self.device.name}' is closed")
        names = self.kernel.arguments
        if len(blocks) != len(names):
            raise ArgumentValueError(
                f"'{self.name}' takes {len(names)} blocks ({', '.join(names)}), "
                f"{len(blocks)} were given"
            )
        for name, block in zip(names, blocks, strict=True):
            buffer = self.kernel.buffers[name]
            needed = buffer.size * numpy_dtype(buffer.dtype).itemsize
            if block.nbytes < needed:
                raise ArgumentValueError(
                    f"'{self.name}' needs {needed} bytes for '{name}', the block has {block.nbytes}"
                )

    def _check(self, what: str, arg: Any, name: str) -> None:
        buffer = self.kernel.buffers[name]
        if not isinstance(arg, Tensor) or arg.device is not self.device:
            where = arg.device.name if isinstance(arg, Tensor) else f"a {type(arg).__name__}"
            raise ArgumentTypeError(
                f"{what} must be a tensor on {self.device.name}, found {where}; copy it there "
                f"with packhorse.tensor(array, device='{self.device.name}')"
            )
        if arg.dtype != numpy_dtype(buffer.dtype):
            raise ArgumentTypeError(f"{what} must be {buffer.dtype}, found {arg.dtype}")
        if arg.shape != buffer.shape and arg.size != buffer.size:
            raise ArgumentValueError(
                f"{what} must have shape {buffer.shape} or {buffer.size} elements, found "
                f"{arg.shape}"
            )
