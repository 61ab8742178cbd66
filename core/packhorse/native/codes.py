"""The words of both packed-call ABIs: type codes, opaque handles, devices."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

__all__ = ["CODES", "KINDS", "Codes", "DLDevice", "Handle", "TypeCode"]


class TypeCode(IntEnum):
    """Type codes of the legacy ABI (``TVMArgTypeCode``)."""

    INT = 0
    UINT = 1
    FLOAT = 2
    HANDLE = 3
    NULL = 4
    DTYPE = 5
    DEVICE = 6
    TENSOR = 7
    OBJECT = 8
    MODULE = 9
    FUNCTION = 10
    STR = 11
    BYTES = 12
    NDARRAY = 13
    RVALUE_REF = 14
    BOOL = 15


class Handle(int):
    """An opaque pointer from compiled code, to be passed back to it."""


class DLDevice(NamedTuple):
    """A device as the ABI names it: DLPack type and index."""

    device_type: int
    device_id: int

    @property
    def dlpack_device(self) -> tuple[int, int]:
        """(DLDeviceType, index), as every Device has it."""
        return self.device_type, self.device_id


class Codes(NamedTuple):
    """The type codes arguments are passed with."""

    none: int
    integer: int
    boolean: int
    real: int
    handle: int
    dtype: int
    device: int
    tensor: int
    module: int
    function: int
    text: int
    blob: int


CODES: dict[str, Codes] = {
    "legacy": Codes(4, 0, 0, 2, 3, 5, 6, 7, 9, 10, 11, 12),
    "ffi": Codes(0, 1, 2, 3, 4, 5, 6, 7, 73, 68, 8, 9),
}
KINDS: dict[str, dict[int, str]] = {
    "legacy": {code.value: code.name.lower() for code in TypeCode},
    "ffi": dict(
        [
            *enumerate(("null", "int", "bool", "float", "handle", "dtype", "device", "tensor")),
            *((8, "str"), (9, "bytes"), (11, "small str"), (12, "small bytes")),
            *enumerate(("heap str", "heap bytes", "error", "object function", "shape"), start=65),
            *enumerate(("heap tensor", "array", "map", "object module"), start=70),
            *((75, "list"), (76, "dict")),
        ]
    ),
}
"""What errors call a value by its code."""
