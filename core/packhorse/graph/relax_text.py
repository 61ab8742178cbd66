"""Relax VM executables as text, in the form of TVM's own ``Executable.as_text()``."""

from __future__ import annotations

from packhorse.graph.relax_file import (
    VM_REGISTER,
    VOID_REGISTER,
    Arg,
    ArgKind,
    FunctionKind,
    Instruction,
    Opcode,
    RelaxFile,
    VMFunction,
)

__all__ = ["as_text"]


def as_text(file: RelaxFile) -> str:
    """Every function with its instructions.

    ``%n`` is a register, ``in`` an integer, ``c[n]`` a constant and ``f[n]`` a function.
    """
    return "".join(_function(file, function) + "\n" for function in file.functions)


def _function(file: RelaxFile, function: VMFunction) -> str:
    if function.kind is FunctionKind.PACKED:
        return f"@{function.name} packed_func;\n"
    if function.kind is FunctionKind.VMTIR:
        return f"@{function.name} num_inputs={len(function.params)} vm_tir_func;\n"
    code = [_line(file, file.decode(i)) for i in range(function.start, function.end)]
    return "\n".join([f"@{function.name}:", *code, ""])


def _line(file: RelaxFile, step: Instruction) -> str:
    name = "If" if step.opcode is Opcode.IF else step.opcode.name.lower()  # TVM's spelling
    word = f"  {name:<6}"
    if step.opcode is Opcode.CALL:
        name = file.functions[step.target].name
        args = ", ".join(_arg(file, arg) for arg in step.args)
        return f"{word}{name:<16} in: {args:<12} dst: {_register(step.dst)}"
    if step.opcode is Opcode.RET:
        return f"{word}{_register(step.dst)}"
    if step.opcode is Opcode.GOTO:
        return f"{word}{step.target}"
    return f"{word}{_register(step.dst)}, {step.target}"


def _arg(file: RelaxFile, arg: Arg) -> str:
    if arg.kind is ArgKind.REGISTER:
        return _register(arg.value)
    if arg.kind is ArgKind.IMMEDIATE:
        return f"i{arg.value}"
    if arg.kind is ArgKind.CONSTANT:
        return f"c[{arg.value}]"
    return f"f[{file.functions[arg.value].name}]"


def _register(number: int) -> str:
    special = {VOID_REGISTER: "%void", VM_REGISTER: "%vm"}
    return special.get(number, f"%{number}")
