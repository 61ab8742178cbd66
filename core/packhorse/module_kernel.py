"""Compiled kernels of devices with memory of their own, as packed functions.

A backend derives from :class:`KernelFunction` and writes one method, ``prepare``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

import numpy as np

from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    CompileError,
    DeviceClosed,
)
from packhorse.function import PackedFunction
from packhorse.kernel.layout import numpy_dtype
from packhorse.tensor import Tensor

if TYPE_CHECKING:
    from packhorse.device import Device, Memory

__all__ = ["KernelArgument", "KernelArguments", "KernelFunction", "check_symbols"]


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


class _Wanted(NamedTuple):
    """What an argument must be, worked out once: calls of small kernels are all overhead."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size: int
    nbytes: int


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

    __slots__ = ("_wanted", "device", "kernel")

    def __init__(self, device: Device, kernel: KernelArguments, name: str) -> None:
        super().__init__(KernelFunction, name)  # not a method of self: a cycle delays freeing
        self.device, self.kernel = device, kernel
        self._wanted = tuple(_wanted(kernel))

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
        if len(args) != len(self._wanted):
            self._refuse_count("tensors", args)
        for arg, wanted in zip(args, self._wanted, strict=True):
            if not isinstance(arg, Tensor) or arg.device is not self.device:
                raise self._misplaced(arg, wanted)
            if arg.dtype != wanted.dtype:
                raise ArgumentTypeError(
                    f"{self._what(wanted)} must be {wanted.dtype}, found {arg.dtype}"
                )
            if arg.shape != wanted.shape and arg.size != wanted.size:
                raise ArgumentValueError(
                    f"{self._what(wanted)} must have shape {wanted.shape} or {wanted.size} "
                    f"elements, found {arg.shape}"
                )
        blocks = [arg._open_block().memory for arg in args]
        self._check_blocks(blocks)
        return blocks

    def _check_blocks(self, blocks: Sequence[Memory]) -> None:
        if self.device.closed:
            raise DeviceClosed(f"'{self.name}' cannot run: device '{self.device.name}' is closed")
        if len(blocks) != len(self._wanted):
            self._refuse_count("blocks", blocks)
        for block, wanted in zip(blocks, self._wanted, strict=True):
            if block.nbytes < wanted.nbytes:
                raise ArgumentValueError(
                    f"'{self.name}' needs {wanted.nbytes} bytes for '{wanted.name}', the block has "
                    f"{block.nbytes}"
                )

    def _refuse_count(self, what: str, given: Sequence[Any]) -> NoReturn:
        names = ", ".join(self.kernel.arguments)
        raise ArgumentValueError(
            f"'{self.name}' takes {len(self._wanted)} {what} ({names}), {len(given)} were given"
        )

    def _misplaced(self, arg: Any, wanted: _Wanted) -> ArgumentTypeError:
        where = arg.device.name if isinstance(arg, Tensor) else f"a {type(arg).__name__}"
        return ArgumentTypeError(
            f"{self._what(wanted)} must be a tensor on {self.device.name}, found {where}; copy it "
            f"there with packhorse.tensor(array, device='{self.device.name}')"
        )

    def _what(self, wanted: _Wanted) -> str:
        return f"argument {self._wanted.index(wanted)} of '{self.name}'"


def _wanted(kernel: KernelArguments) -> Iterator[_Wanted]:
    for name in kernel.arguments:
        buffer = kernel.buffers[name]
        dtype = numpy_dtype(buffer.dtype)
        yield _Wanted(name, dtype, buffer.shape, buffer.size, buffer.size * dtype.itemsize)


def check_symbols(symbols: Iterable[str]) -> None:
    """Refuse kernels of one module under one name: CompileError says which."""
    counts = Counter(symbols)
    twice = min((name for name, count in counts.items() if count > 1), default=None)
    if twice is not None:
        raise CompileError(f"symbol '{twice}' names two kernels. Give each its own name")
