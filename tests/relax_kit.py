"""Writes Relax VM executables, the way TVM 0.27 does: for files no compiler would make."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from packhorse.dtype import dlpack_code
from packhorse.module import AddressModule, EmbeddedModule
from packhorse.module_blob import Opaque

DATA = Path(__file__).resolve().parent / "data" / "tvm"
F32 = np.dtype(np.float32)
VOID, VM = 1 << 54, (1 << 54) + 1


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str) -> bytes:
    raw = value.encode()
    return u64(len(raw)) + raw


def words(values: list[int]) -> bytes:
    return u64(len(values)) + struct.pack(f"<{len(values)}q", *values)


def reg(number: int) -> int:
    return number


def imm(value: int) -> int:
    return 1 << 56 | value & (1 << 56) - 1


def const(number: int) -> int:
    return 2 << 56 | number


def func(number: int) -> int:
    return 3 << 56 | number


def constant(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        raw = value.tobytes()
        shape = struct.pack(f"<{value.ndim}q", *value.shape)
        code, bits, lanes = dlpack_code(value.dtype)
        head = struct.pack(
            "<iQQiiiBBH", 70, 0xDD5E40F096B4A13F, 0, 1, 0, value.ndim, code, bits, lanes
        )
        return head + shape + struct.pack("<q", len(raw)) + raw
    if isinstance(value, np.dtype):
        return struct.pack("<iBBH", 5, *dlpack_code(value))
    if isinstance(value, tuple):
        return struct.pack("<i", 69) + words(list(value))
    if isinstance(value, str):
        return struct.pack("<i", 65) + text(value)
    if isinstance(value, bool):
        return struct.pack("<iq", 2, value)
    return struct.pack("<id" if isinstance(value, float) else "<iq", *typed(value))


def typed(value: float) -> tuple[int, float]:
    return (3 if isinstance(value, float) else 1), value


@dataclass
class Row:
    kind: int
    name: str
    code: list[list[int]] = field(default_factory=list)
    params: tuple[str, ...] = ()
    registers: int = 0


class Assembler:
    """Collects functions and constants; ``call`` adds packed functions as they are named."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.constants: list[Any] = []

    def function(self, name: str, params: str = "", registers: int = 8) -> Row:
        row = Row(1, name, params=tuple(params.split()), registers=registers)
        self.rows.append(row)
        return row

    def index(self, name: str) -> int:
        for i, row in enumerate(self.rows):
            if row.name == name:
                return i
        self.rows.append(Row(0, name))
        return len(self.rows) - 1

    def const(self, value: Any) -> int:
        self.constants.append(value)
        return const(len(self.constants) - 1)

    def call(self, row: Row, name: str, *args: int, dst: int = VOID) -> None:
        name = name if name.partition(".")[0] in ("test", "self") else f"vm.builtin.{name}"
        row.code.append([1, dst, self.index(name.removeprefix("self.")), len(args), *args])

    def bytes(self, magic: int = 0xD225DE2F4214151E, version: str = "0.14") -> bytes:
        code, rows = [], []
        for row in self.rows:
            start = len(code)
            code += row.code
            head = struct.pack("<i", row.kind) + text(row.name)
            count = len(row.params) if row.kind else -2
            ends = (start, len(code)) if row.kind else (0, 0)
            head += struct.pack("<4q", *ends, count, row.registers)
            rows.append(head + u64(len(row.params)) + b"".join(text(p) for p in row.params))
        offsets = np.cumsum([0, *(len(step) for step in code)])[:-1].tolist() if code else []
        scopes = u64(0) if magic & 0xFF == 0x1E else b""
        return b"".join(
            [
                u64(magic),
                text(version),
                u64(len(rows)),
                *rows,
                scopes,
                u64(len(self.constants)),
                *(constant(value) for value in self.constants),
                words(offsets),
                words([word for step in code for word in step]),
            ]
        )


def embedded(executable: bytes) -> EmbeddedModule:
    """A module without a library: everything is called in the global registry."""
    return EmbeddedModule("relax.VMExecutable", Opaque(executable))


def module(assembler: Assembler) -> EmbeddedModule:
    return embedded(assembler.bytes())


def tensor(
    made: Assembler,
    row: Row,
    dst: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any] = F32,
    storage: int | None = None,
    nbytes: int | None = None,
    offset: int = 0,
) -> None:
    """Code for alloc_storage and alloc_tensor."""
    size = int(np.prod(shape)) * dtype.itemsize if nbytes is None else nbytes
    scope, u8 = made.const("global"), made.const(np.dtype(np.uint8))
    if storage is None:
        storage = dst
        made.call(row, "alloc_storage", reg(VM), made.const((size,)), imm(0), u8, scope, dst=dst)
    types = made.const(shape), made.const(dtype)
    made.call(row, "alloc_tensor", reg(storage), imm(offset), *types, dst=dst)


# ---------------------------------------------------------------- kernels at addresses


class _Tensor(ctypes.Structure):
    """DLTensor of float32."""

    _fields_ = [
        *(("data", ctypes.c_void_p), ("device", ctypes.c_int32 * 2), ("ndim", ctypes.c_int32)),
        *(("dtype", ctypes.c_uint8 * 4), ("shape", ctypes.POINTER(ctypes.c_int64))),
    ]


_PACKED = ctypes.CFUNCTYPE(
    ctypes.c_int,
    *(ctypes.POINTER(ctypes.POINTER(_Tensor)), ctypes.c_void_p, ctypes.c_int),
    *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
)


def kernel(function: Callable[..., object]) -> tuple[int, object]:
    """Address of a packed function of the legacy ABI over float32 arrays, and its owner."""

    def packed(args: Any, codes: int, count: int, *rest: int) -> int:
        arrays = []
        for i in range(count):
            tensor = args[i].contents
            shape = tuple(tensor.shape[d] for d in range(tensor.ndim))
            assert tensor.data % 128 == 0
            raw = (ctypes.c_float * int(np.prod(shape))).from_address(tensor.data)
            arrays.append(np.frombuffer(raw, np.float32).reshape(shape))
        function(*arrays)
        return 0

    made = _PACKED(packed)
    return ctypes.cast(made, ctypes.c_void_p).value or 0, made


def with_kernels(assembler: Assembler, **functions: Callable[..., object]) -> EmbeddedModule:
    """The executable importing a module with these as ``test.<name>``."""
    made = {f"test.{name}": kernel(function) for name, function in functions.items()}
    addresses = {name: address for name, (address, _) in made.items()}
    library = AddressModule(addresses, keepalive=made)
    return EmbeddedModule("relax.VMExecutable", Opaque(assembler.bytes()), [library])
