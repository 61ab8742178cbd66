"""Reading Relax VM executables: the ``relax.VMExecutable`` entry of a library TVM compiled.

Everything is checked before it is used: lengths against what is left, register, constant and
function numbers, jump targets. Instructions stay packed words and are decoded when needed, so a
hostile file cannot make the reader allocate much more than its own size.

Source: TVM 0.22 - 0.27, ``VM_VERSION "0.14"``, include/tvm/runtime/vm/bytecode.h and
src/runtime/vm/executable.cc. Little endian throughout::

    u64 magic | str version | functions | [magic 2: memory scopes] | constants
    | vec<i64> instruction offsets | vec<i64> instruction words
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from packhorse.dtype import from_dlpack_code
from packhorse.errors import ArgumentTypeError, ArtifactError
from packhorse.module_blob_reader import BlobReader
from packhorse.native.memory import aligned_array

__all__ = [
    "VERSION",
    "VM_REGISTER",
    "VOID_REGISTER",
    "Arg",
    "ArgKind",
    "Constant",
    "FunctionKind",
    "Instruction",
    "Opcode",
    "RelaxFile",
    "VMFunction",
    "parse_relax",
]

MAGIC_1, MAGIC_2 = 0xD225DE2F4214151D, 0xD225DE2F4214151E
VERSION = "0.14"
VOID_REGISTER = 1 << 54
VM_REGISTER = VOID_REGISTER + 1

Array: TypeAlias = np.ndarray[Any, Any]
Constant: TypeAlias = "Array | tuple[int, ...] | str | int | float | bool | np.dtype[Any] | None"
"""Weights (read-only, aligned), shapes, strings, numbers and dtypes (None: the void dtype)."""


class FunctionKind(IntEnum):
    """What an entry of the function table is."""

    PACKED = 0
    VM = 1
    VMTIR = 2


class Opcode(IntEnum):
    """The four instructions of the machine."""

    CALL = 1
    RET = 2
    GOTO = 3
    IF = 4


class ArgKind(IntEnum):
    """What an argument word of a call stands for: the top byte of the word."""

    REGISTER = 0
    IMMEDIATE = 1
    CONSTANT = 2
    FUNCTION = 3


class Arg(NamedTuple):
    """One argument of a call: a register, an integer, or an index into a table."""

    kind: ArgKind
    value: int


class Instruction(NamedTuple):
    """A decoded instruction.

    ``dst`` is the register a call writes, that ``RET`` returns or that ``IF`` reads; ``target`` is
    the function of a call, or the distance of a jump (of ``IF``: when the register is 0).
    """

    opcode: Opcode
    dst: int
    target: int
    args: tuple[Arg, ...] = ()


@dataclass(frozen=True, slots=True)
class VMFunction:
    """A row of the function table; instructions ``start`` to ``end`` are its code."""

    kind: FunctionKind
    name: str
    start: int
    end: int
    params: tuple[str, ...]
    registers: int


@dataclass(frozen=True)
class RelaxFile:
    """A parsed executable.

    Attributes
    ----------
    version : str
        Of the format.
    functions : tuple of VMFunction
    constants : tuple
    scopes : dict of int to str
        Memory scope of constants, where given.
    """

    version: str
    functions: tuple[VMFunction, ...]
    constants: tuple[Constant, ...]
    scopes: dict[int, str]
    _offsets: np.ndarray[Any, np.dtype[np.int64]]
    _words: np.ndarray[Any, np.dtype[np.int64]]
    _decoded: dict[int, Instruction] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of instructions."""
        return len(self._offsets)

    def decode(self, number: int) -> Instruction:
        """Instruction ``number``; ArtifactError when its words make no instruction."""
        start = int(self._offsets[number])
        end = int(self._offsets[number + 1]) if number + 1 < self.size else len(self._words)
        return _decode(number, self._words[start:end].tolist())

    def instruction(self, number: int) -> Instruction:
        """The same, remembered: for code that runs."""
        if number not in self._decoded:
            self._decoded[number] = self.decode(number)
        return self._decoded[number]

    def find(self, name: str) -> int | None:
        """Index of the function of that name that runs in the machine; None if there is none."""
        found = (
            i
            for i, function in enumerate(self.functions)
            if function.name == name and function.kind is not FunctionKind.PACKED
        )
        return next(found, None)


_COUNTS = {Opcode.RET: 2, Opcode.GOTO: 2, Opcode.IF: 3}


def _decode(number: int, words: list[int]) -> Instruction:
    try:
        opcode = Opcode(words[0])
        if opcode is Opcode.CALL:
            _, dst, function, count = words[:4]
            if count != len(words) - 4:
                raise ValueError(f"{count} arguments are announced, {len(words) - 4} are there")
            return Instruction(opcode, dst, function, tuple(_arg(word) for word in words[4:]))
        if len(words) != _COUNTS[opcode]:
            raise ValueError(f"{opcode.name} has {len(words)} words")
    except (ValueError, IndexError) as error:
        raise ArtifactError(f"instruction {number} of the executable is damaged: {error}") from None
    if opcode is Opcode.GOTO:
        return Instruction(opcode, VOID_REGISTER, words[1])
    return Instruction(opcode, words[1], words[2] if opcode is Opcode.IF else 0)


def _arg(word: int) -> Arg:
    value = word & ((1 << 56) - 1)
    return Arg(ArgKind(word >> 56 & 0xFF), value - (1 << 56) if value >> 55 else value)


class Reader(BlobReader):
    """What of the file is not in other streams of TVM's."""

    def number(self, form: str, what: str) -> Any:
        """A number of a :mod:`struct` format."""
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form), what))[0]

    def integers(self, what: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """A list of int64."""
        return self.words(what).view(np.int64)


def parse_relax(data: bytes | memoryview) -> RelaxFile:
    """Parse the bytes of a ``relax.VMExecutable`` entry.

    Raises
    ------
    ArtifactError
        Not such an executable, of a version this packhorse cannot read, truncated or damaged;
        the message has the offset.
    """
    reader = Reader(data, "Relax executable")
    magic = reader.word("the magic number")
    if magic not in (MAGIC_1, MAGIC_2):
        raise ArtifactError(
            f"no Relax executable: at offset 0 there is {magic:#x} instead of the magic number "
            f"{MAGIC_1:#x} or {MAGIC_2:#x}"
        )
    version = reader.text("the version")
    if version != VERSION:
        raise ArtifactError(
            f"the Relax executable has format version '{version:.20}'; packhorse reads {VERSION}, "
            "which TVM 0.22 to 0.27 write. Compile the model with one of those"
        )
    functions = tuple(_function(reader) for _ in range(reader.count("number of functions", 52)))
    scopes = _scopes(reader) if magic == MAGIC_2 else {}
    constants = tuple(_constant(reader, i) for i in range(reader.count("number of constants", 12)))
    offsets_at = reader.offset
    file = RelaxFile(
        version,
        functions,
        constants,
        scopes,
        reader.integers("instruction offsets"),
        reader.integers("instruction words"),
    )
    reader.finish()
    _check_code(file, reader, offsets_at)
    return file


def _function(reader: Reader) -> VMFunction:
    offset = reader.offset
    kind = reader.number("i", "the kind of a function")
    if kind not in set(FunctionKind):
        raise reader.error(f"a function is of kind {kind}, known are 0, 1 and 2", offset)
    name = reader.text("the name of a function")
    start, end, count, registers = struct.unpack("<4q", reader.take(32, f"function '{name:.80}'"))
    params = tuple(reader.texts("parameter"))
    if kind == FunctionKind.VM and not (count == len(params) <= registers and 0 <= start < end):
        raise reader.error(
            f"function '{name:.80}' has {count} arguments, {len(params)} parameter names, "
            f"{registers} registers and instructions {start} to {end}",
            offset,
        )
    return VMFunction(FunctionKind(kind), name, start, end, params, registers)


def _scopes(reader: Reader) -> dict[int, str]:
    count = reader.count("number of memory scopes", 16)
    return {reader.number("q", "a constant's index"): reader.text("a scope") for _ in range(count)}


# ---------------------------------------------------------------- constants


def _constant(reader: Reader, number: int) -> Constant:
    offset = reader.offset
    index = reader.number("i", f"the type of constant {number}")
    if index not in _CONSTANTS:
        known = ", ".join(str(i) for i in _CONSTANTS)
        raise reader.error(f"constant {number} is of type {index}, known are {known}", offset)
    return _CONSTANTS[index](reader)


def _array(reader: Reader) -> Array:
    found = reader.array("a tensor")
    array = aligned_array(found.shape, found.dtype)  # compiled code assumes alignment
    np.copyto(array, found)
    array.flags.writeable = False
    return array


def _dtype(reader: Reader) -> np.dtype[Any] | None:
    offset = reader.offset
    code = struct.unpack("<BBH", reader.take(4, "a dtype"))
    if code[1:] == (0, 0):
        return None  # TVM's void type, for "any dtype": a handle of 0 bits and 0 lanes
    try:
        return from_dlpack_code(*code)
    except ArgumentTypeError as error:
        raise reader.error(str(error), offset) from None


def _shape(reader: Reader) -> tuple[int, ...]:
    return tuple(reader.integers("a shape").tolist())


_CONSTANTS: dict[int, Callable[[Reader], Constant]] = {  # by type index of tvm-ffi
    1: lambda reader: int(reader.number("q", "an integer")),
    2: lambda reader: bool(reader.number("q", "a bool")),
    3: lambda reader: float(reader.number("d", "a float")),
    5: _dtype,
    65: lambda reader: reader.text("a string"),
    69: _shape,
    70: _array,
}


# ---------------------------------------------------------------- code


def _check_code(file: RelaxFile, reader: Reader, at: int) -> None:
    """Every number in the code against its table; ``at`` is where the offsets begin."""
    offsets = file._offsets
    steps = np.diff(offsets, append=len(file._words))
    if len(offsets) and (offsets[0] != 0 or steps.min() < 1):
        raise reader.error("the instruction offsets do not rise from 0 to the end of the code", at)
    used = 0
    for function in file.functions:
        if function.kind is not FunctionKind.VM:
            continue
        used += function.end - function.start
        what = f"function '{function.name:.80}'"
        # used: functions that share instructions would be checked again and again
        if function.end > file.size or used > file.size:
            raise reader.error(f"{what} ends beyond or shares the {file.size} instructions", at)
        if function.registers > len(function.params) + len(file._words) + 64:
            raise reader.error(f"{what} has {function.registers} registers", at)
        for number in range(function.start, function.end):
            _check_instruction(file, function, number)


def _check_instruction(file: RelaxFile, function: VMFunction, number: int) -> None:
    step = file.decode(number)
    limits = {
        ArgKind.REGISTER: function.registers,
        ArgKind.CONSTANT: len(file.constants),
        ArgKind.FUNCTION: len(file.functions),
    }
    wrong = ""
    nowhere = step.dst == VOID_REGISTER and step.opcode is not Opcode.IF
    if not (0 <= step.dst < function.registers or nowhere):
        wrong = f"register {step.dst} of {function.registers}"
    if step.opcode is Opcode.CALL and not 0 <= step.target < len(file.functions):
        wrong = f"function {step.target} of {len(file.functions)}"
    for kind, value in step.args:
        special = kind is ArgKind.REGISTER and value in (VOID_REGISTER, VM_REGISTER)
        if kind in limits and not special and not 0 <= value < limits[kind]:
            wrong = f"{kind.name.lower()} {value} of {limits[kind]}"
    jumps = {Opcode.GOTO: [step.target], Opcode.IF: [step.target, 1], Opcode.CALL: [1]}
    for distance in jumps.get(step.opcode, []):
        if not function.start <= number + distance < function.end:
            wrong = f"it goes on at instruction {number + distance}"
    if wrong:
        raise ArtifactError(
            f"instruction {number} of the Relax executable, {step.opcode.name} in function "
            f"'{function.name:.80}', is damaged: {wrong}. Export the library again"
        )
