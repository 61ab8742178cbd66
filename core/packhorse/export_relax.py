"""A model as one library for the Relax VM of TVM 0.22 and newer, which has no graph executor.

>>> vm = tvm.relax.VirtualMachine(tvm.runtime.load_module("deploy.so"), tvm.cpu())  # doctest: +SKIP
>>> y = vm["main"](x)                                                           # doctest: +SKIP

The executable is bytecode: check the inputs, allocate, call the kernels in order, return.

Source: TVM 0.22 - 0.27, ``VM_VERSION "0.14"``, include/tvm/runtime/vm/bytecode.h and
src/runtime/vm/executable.cc; the library's blob as in tvm-ffi's library_module.cc.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from packhorse.dtype import dlpack_code
from packhorse.dtype import dtype as as_dtype
from packhorse.errors import CompileError
from packhorse.export import Chunk, host_operators, string, tree, word
from packhorse.graph.params import Array, raw_bytes
from packhorse.graph.program import NOP, Entry, Program, check

__all__ = ["BLOB", "relax_blob", "relax_executable"]

BLOB = "__tvm_ffi__library_bin"
"""The symbol under which a library of tvm-ffi holds modules besides its code."""

_MAGIC, _VERSION = 0xD225DE2F4214151D, "0.14"
_ARRAY_MAGIC, _CPU = 0xDD5E40F096B4A13F, 1
_VOID = 1 << 54  # the register for results that nobody wants
_VM = _VOID + 1  # the register that holds the machine itself
_CALL, _RETURN, _ASSERT = 1, 2, 0
_PACKED, _BYTECODE = 0, 1
_ARGUMENTS = -2  # "any number"
_MAIN = "main"

Constant: TypeAlias = "Array | np.dtype[Any] | tuple[int, ...] | str"


def relax_blob(program: Program, params: Mapping[str, Array]) -> list[Chunk]:
    """The content of ``__tvm_ffi__library_bin``: an executable that imports the library.

    Raises as :func:`relax_executable`.
    """
    executable = relax_executable(program, params)
    size = sum(len(chunk) for chunk in executable)
    body = [*tree([[1], []]), string("relax.VMExecutable"), word(size), *executable]
    body.append(string("_lib"))
    return [word(sum(len(chunk) for chunk in body)), *body]


def relax_executable(program: Program, params: Mapping[str, Array]) -> list[Chunk]:
    """A ``relax.VMExecutable`` with one function, ``main``: inputs in, output or tuple out.

    Parameters
    ----------
    program : Program
    params : mapping of str to ndarray
        Its weights; not copied.

    Returns
    -------
    list of bytes or memoryview
        To be written one after the other.

    Raises
    ------
    ArtifactError
        The program is not one that could be run.
    CompileError
        It has steps that only packhorse can run.
    ArgumentTypeError
        A dtype that DLPack lacks.
    """
    check(program)
    missing = host_operators(program)
    if missing:
        raise CompileError(
            f"the Relax VM cannot run {', '.join(missing)}, which packhorse runs by NumPy "
            "references. Save the model as a folder or a .packhorse file"
        )
    writer = _Writer(program, params)
    writer.write()
    return writer.chunks()


class _Writer:
    """Collects functions, constants and instructions."""

    def __init__(self, program: Program, params: Mapping[str, Array]) -> None:
        self.program, self.params = program, params
        self.functions: dict[str, int] = {_MAIN: 0}
        self.constants: list[Constant] = []
        self.known: dict[Any, int] = {}
        self.code: list[list[int]] = []
        self.registers = len(program.inputs)
        self.place: dict[int, int] = {}  # entry -> argument word

    def write(self) -> None:
        """The code of ``main``."""
        program = self.program
        for register, number in enumerate(program.inputs):
            self.place[number] = register
            self.check_input(register, program.entries[number])
        for number in program.params:
            array = self.params[program.entries[number].name]
            self.place[number] = self.constant(array, id(array))
        self.allocate()
        for step in program.steps:
            if step.function != NOP:
                self.call(step.function, *(self.place[i] for i in (*step.inputs, *step.outputs)))
        results = [self.place[i] for i in program.outputs]
        constant = [word for word in results if word >> 56]
        if len(results) > 1 or constant:
            results = [self.call("vm.builtin.make_tuple", *results, wanted=True)]
        self.code.append([_RETURN, results[0]])

    def check_input(self, register: int, entry: Entry) -> None:
        """What TVM's own executables check first: kind, rank, dtype, then each dimension."""
        rank = _immediate(len(entry.shape))
        where = self.constant(f"input '{entry.name}'")
        kind = self.constant(as_dtype(entry.dtype))
        self.call("vm.builtin.check_tensor_info", register, rank, kind, where)
        pairs = [_immediate(n) for extent in entry.shape for n in (_ASSERT, extent)]
        self.call("vm.builtin.match_shape", register, _VOID, rank, *pairs, where)

    def allocate(self) -> None:
        """Memory for what the steps write, shared as planned."""
        program, sizes = self.program, self.program.storage_bytes()
        kind, scope = self.constant(np.dtype(np.uint8)), self.constant("global")
        storages: dict[int, int] = {}
        written = dict.fromkeys(i for step in program.steps for i in step.outputs)
        for number in (*written, *program.outputs):
            if number in self.place:
                continue
            entry = program.entries[number]
            if entry.storage not in storages:
                shape = self.constant((sizes[entry.storage],))
                storages[entry.storage] = self.call(
                    "vm.builtin.alloc_storage", _VM, shape, _immediate(0), kind, scope, wanted=True
                )
            self.place[number] = self.call(
                "vm.builtin.alloc_tensor",
                storages[entry.storage],
                _immediate(0),
                self.constant(entry.shape),
                self.constant(as_dtype(entry.dtype)),
                wanted=True,
            )

    def call(self, name: str, *args: int, wanted: bool = False) -> int:
        """An instruction; the register of its result."""
        target = _VOID
        if wanted:
            target, self.registers = self.registers, self.registers + 1
        function = self.functions.setdefault(name, len(self.functions))
        self.code.append([_CALL, target, function, len(args), *args])
        return target

    def constant(self, value: Constant, key: Any = None) -> int:
        """Its argument word; equal constants are written once."""
        key = (type(value), value if key is None else key)
        if key not in self.known:
            self.known[key] = len(self.constants)
            self.constants.append(value)
        return 2 << 56 | self.known[key]

    def chunks(self) -> list[Chunk]:
        """The executable."""
        made: list[Chunk] = [word(_MAGIC), string(_VERSION), word(len(self.functions))]
        names = [self.program.entries[i].name for i in self.program.inputs]
        for name in self.functions:
            made += _function(name, names, len(self.code), self.registers)
        made.append(word(len(self.constants)))
        for value in self.constants:
            made += _constant(value)
        offsets = [0]
        for instruction in self.code[:-1]:
            offsets.append(offsets[-1] + len(instruction))
        return [*made, _words(offsets), _words([n for row in self.code for n in row])]


def _function(name: str, params: Sequence[str], count: int, registers: int) -> list[bytes]:
    """A row of the function table: ``main``, or a packed function by name."""
    if name != _MAIN:
        numbers = struct.pack("<4q", 0, 0, _ARGUMENTS, 0)
        return [struct.pack("<i", _PACKED), string(name), numbers, word(0)]
    numbers = struct.pack("<4q", 0, count, len(params), registers)
    head = [struct.pack("<i", _BYTECODE), string(name), numbers, word(len(params))]
    return [*head, *map(string, params)]


def _constant(value: Constant) -> list[Chunk]:
    """A constant with its type index of tvm-ffi."""
    if isinstance(value, str):
        return [struct.pack("<i", 65), string(value)]
    if isinstance(value, tuple):
        return [struct.pack("<i", 69), _words(value)]
    if isinstance(value, np.dtype):
        return [struct.pack("<iBBH", 5, *dlpack_code(value))]
    code, bits, lanes = dlpack_code(value.dtype)
    head = (70, _ARRAY_MAGIC, 0, _CPU, 0, value.ndim, code, bits, lanes)
    shape = struct.pack(f"<{value.ndim + 1}q", *value.shape, value.nbytes)
    return [struct.pack("<iQQiiiBBH", *head) + shape, raw_bytes(value)]


def _immediate(value: int) -> int:
    return 1 << 56 | value & (1 << 56) - 1


def _words(values: Sequence[int]) -> bytes:
    return word(len(values)) + struct.pack(f"<{len(values)}q", *values)
