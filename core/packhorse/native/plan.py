"""Plans: packed calls with prebuilt arguments, run in one native call with the GIL released."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from packhorse.dtype import dlpack_code, legacy_code
from packhorse.errors import ArgumentTypeError, ArgumentValueError
from packhorse.native.runtime import ABI_NUMBER, Abi, ffi, lib, raise_last_error

__all__ = ["Plan", "Slot", "Step"]

TENSOR = 7  # type code of a DLTensor* in both ABIs
_plan_run = lib.ph_plan_run
_new, _TENSOR, _DIMS = ffi.new, ffi.typeof("ph_tensor *"), ffi.typeof("int64_t[]")


class Slot:
    """One DLTensor in native memory, C-contiguous, ``byte_offset`` 0.

    Parameters
    ----------
    shape : sequence of int
    dtype : str
        A name of :mod:`packhorse.dtype`; ``bool`` is encoded as TVM does (unsigned, 1 bit).
    data : int
        Address or device handle; may be changed at any time between runs.
    device : (int, int)
        DLPack device type and index; host memory unless said otherwise.
    abi : str
        "ffi" for functions of the tvm-ffi ABI, where ``bool`` is a type of its own.
    """

    __slots__ = ("_c", "_dims", "abi", "dtype", "shape")

    def __init__(
        self,
        shape: Sequence[int],
        dtype: str,
        data: int,
        device: tuple[int, int] = (1, 0),
        abi: Abi = "legacy",
    ) -> None:
        self.shape, self.dtype, self.abi = tuple(shape), dtype, abi
        self._dims = _new(_DIMS, self.shape or (0,))
        code = legacy_code(dtype) if abi == "legacy" else dlpack_code(dtype)
        self._c = _new(_TENSOR, (data, device, len(self.shape), code, self._dims))

    @property
    def data(self) -> int:
        """Address of the first element."""
        return self._c.data  # type: ignore[no-any-return]

    @data.setter
    def data(self, address: int) -> None:
        self._c.data = address

    @property
    def pointer(self) -> Any:
        """The ``ph_tensor *`` (DLTensor) cdata; valid as long as this slot."""
        return self._c

    def __repr__(self) -> str:
        return f"Slot({self.shape}, '{self.dtype}', data={self.data:#x})"


Step: TypeAlias = tuple[int, Sequence[Slot]] | tuple[int, Sequence[Slot], str]
"""Address, arguments and, unless it is "legacy", the ABI of a packed function."""


class Plan:
    """Packed calls in order. Built once, run many times.

    Parameters
    ----------
    steps : sequence of (address, arguments) or (address, arguments, abi)
        Address of a packed function and the Slots passed to it. ``abi`` "ffi" is for functions
        of TVM 0.21 and newer, which get TVMFFIAny of type 7 (DLTensor*); its Slots should be
        made for that ABI too.
    names : sequence of str, optional
        What errors call the steps.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        A step is not an address with Slots.
    """

    __slots__ = ("_c", "_keep", "_names")

    def __init__(self, steps: Sequence[Step], names: Sequence[str] = ()) -> None:
        _check(steps)
        counts = [len(step[1]) for step in steps]
        values = ffi.new("ph_value[]", max(1, sum(counts)))
        anys = ffi.new("ph_any[]", max(1, sum(counts)))
        codes = ffi.new("int[]", [TENSOR] * max(1, *counts, 1))
        array = ffi.new("ph_step[]", max(1, len(steps)))
        done = 0
        for c, (address, slots, *abi) in zip(array, steps, strict=False):
            c.function, c.count, c.abi = (
                address,
                len(slots),
                ABI_NUMBER[abi[0] if abi else "legacy"],
            )
            c.values, c.codes, c.anys = values + done, codes, anys + done
            for slot in slots:
                values[done].v_tensor = anys[done].value.v_tensor = slot.pointer
                anys[done].type_index = TENSOR
                done += 1
        self._c = ffi.new("ph_plan *")
        self._c.steps, self._c.count = array, len(steps)
        self._names = tuple(names)
        self._keep = (values, codes, anys, array, [tuple(step[1]) for step in steps])

    def __len__(self) -> int:
        return self._c.count  # type: ignore[no-any-return]

    def run(self, threads: int = 0) -> None:
        """Run every step; other Python threads go on meanwhile.

        Stops at the first step that fails. The steps see ``threads`` as the number of threads
        of a parallel launch; 0 means :func:`packhorse.native.thread_count`. One plan must not
        run twice at the same time, since its slots are shared.

        Raises
        ------
        PackhorseError
            A step failed: its number and the text of the last error. When a Python function
            that the step called raised, that exception is raised instead.
        """
        failed = _plan_run(self._c, threads)
        if failed:
            self._fail(failed)

    def profile(self, threads: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Run every step and return how many seconds each took. Raises as :meth:`run`."""
        seconds = np.zeros(len(self), np.float64)
        failed = lib.ph_plan_profile(self._c, threads, ffi.cast("double *", seconds.ctypes.data))
        if failed:
            self._fail(failed)
        return seconds

    def _fail(self, failed: int) -> None:
        name = f" ('{self._names[failed - 1]}')" if failed <= len(self._names) else ""
        raise_last_error(f"step {failed - 1} of {len(self)}{name}")


def _check(steps: Sequence[Step]) -> None:
    for i, (address, slots, *abi) in enumerate(steps):
        if address <= 0:
            raise ArgumentValueError(
                f"step {i} has address {address}; pass the address of a packed function"
            )
        if abi and abi[0] not in ABI_NUMBER:
            raise ArgumentValueError(f"step {i} has abi {abi[0]!r}; it must be 'legacy' or 'ffi'")
        for slot in slots:
            if not isinstance(slot, Slot):
                raise ArgumentTypeError(
                    f"step {i} has an argument of type {type(slot).__name__}; "
                    "wrap it in packhorse.native.Slot"
                )
