"""Writes Relax VM executables, the way TVM 0.27 does: for files no compiler would make."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from packhorse.dtype import dlpack_code
from packhorse.module import EmbeddedModule
from packhorse.module_blob import Opaque

DATA = Path(__file__).resolve().parent / "data" / "tvm"
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
