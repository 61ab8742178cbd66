"""What a function of a Relax executable takes, read from the checks its bytecode begins with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from packhorse.graph.ir import Dim, Shape
from packhorse.graph.relax_file import (
    Arg,
    ArgKind,
    FunctionKind,
    Instruction,
    Opcode,
    RelaxFile,
)

__all__ = ["Kind", "Parameter", "output_count", "signature"]

Kind: TypeAlias = Literal["tensor", "shape", "number", "tuple", "function", "any"]
_PREFIX = "vm.builtin."
_CHECKS: dict[str, Kind] = {
    "check_tensor_info": "tensor",
    "check_shape_info": "shape",
    "check_prim_value_info": "number",
    "match_prim_value": "number",
    "check_tuple_info": "tuple",
    "check_func_info": "function",
}
_ONE = {"alloc_tensor", "make_prim_value", "make_shape", "reshape", "shape_of", "tensor_to_shape"}
_ANNOTATION = re.compile(r"annotation=R\.(?:Tensor|Shape)\([(\[]([^)\]]*)[)\]]")


@dataclass
class Parameter:
    """One parameter of a function.

    Attributes
    ----------
    name : str
    kind : str
        ``tensor``, ``shape``, ``number``, ``tuple``, ``function``; ``any`` when nothing is known.
    dtype : numpy.dtype or None
        Of a tensor or number, where the function fixes it.
    shape : tuple of int and str, or None
        Of a tensor, or the values of a shape. Strings are sizes that may vary; equal ones are
        the same size. None: any.
    """

    name: str
    kind: Kind = "any"
    dtype: np.dtype[Any] | None = None
    shape: Shape | None = None

    def __str__(self) -> str:
        dims = "" if self.shape is None else f"[{', '.join(str(d) for d in self.shape)}]"
        return f"{self.name}: {self.dtype or self.kind}{dims}"


def signature(file: RelaxFile, function: int) -> list[Parameter]:
    """The parameters of function number ``function``."""
    row = file.functions[function]
    found = [Parameter(name) for name in row.params]
    if row.kind is not FunctionKind.VM:
        return found
    calls = list(_calls(file, row.start, row.end))
    names = _names(file, calls)
    for name, step in calls:
        first = step.args[0] if step.args else None
        if first is None or first.kind is not ArgKind.REGISTER or first.value >= len(found):
            continue
        parameter = found[first.value]
        if name in _CHECKS and parameter.kind == "any":
            parameter.kind = _CHECKS[name]
            parameter.dtype = _dtype(file, step)
            if name == "check_tensor_info" and step.args[1].value == 0:
                parameter.shape = ()  # nothing is left to match
        elif name == "match_shape" and parameter.shape is None:
            parameter.shape = _shape(step, names)
    return found


def output_count(file: RelaxFile, function: int) -> int | None:
    """How many arrays the function returns, tuples flattened; None when only a run can tell."""
    row = file.functions[function]
    if row.kind is not FunctionKind.VM:
        return None
    made: dict[int, int | None] = {}
    for number in range(row.start, row.end):
        step = file.decode(number)
        if step.opcode is Opcode.RET:
            return made.get(step.dst)
        if step.opcode is not Opcode.CALL:
            return None
        made[step.dst] = _made(file, step, made)
    return None


def _made(file: RelaxFile, step: Instruction, made: dict[int, int | None]) -> int | None:
    """How many arrays the result of a call stands for."""
    name = file.functions[step.target].name.removeprefix(_PREFIX)
    if name in _ONE:
        return 1
    if name != "make_tuple":
        return None
    total = 0
    for arg in step.args:
        count = made.get(arg.value) if arg.kind is ArgKind.REGISTER else 1
        if count is None:
            return None
        total += count
    return total


def _calls(file: RelaxFile, start: int, end: int) -> Iterator[tuple[str, Instruction]]:
    """Calls of built-in functions up to the first branch, without their prefix."""
    for number in range(start, end):
        step = file.decode(number)
        if step.opcode is not Opcode.CALL:
            return
        name = file.functions[step.target].name
        if name.startswith(_PREFIX):
            yield name.removeprefix(_PREFIX), step


def _dtype(file: RelaxFile, step: Instruction) -> np.dtype[Any] | None:
    constants = (_constant(file, arg) for arg in step.args)
    return next((value for value in constants if isinstance(value, np.dtype)), None)


def _constant(file: RelaxFile, arg: Arg) -> Any:
    return file.constants[arg.value] if arg.kind is ArgKind.CONSTANT else None


def _pairs(step: Instruction) -> Iterator[tuple[int, int]]:
    """(code, value) per dimension of a match_shape."""
    count = step.args[2].value if len(step.args) > 2 else 0
    values = [arg.value for arg in step.args[3 : 3 + 2 * count]]
    return zip(values[::2], values[1::2], strict=False)


def _shape(step: Instruction, names: dict[int, str]) -> Shape:
    def dim(i: int, code: int, value: int) -> Dim:
        if code == 0:
            return value
        return f"?{i}" if code == 2 else names.get(value, f"s{value}")

    return tuple(dim(i, *pair) for i, pair in enumerate(_pairs(step)))


def _names(file: RelaxFile, calls: list[tuple[str, Instruction]]) -> dict[int, str]:
    """Names of the symbolic sizes by their place in the heap, as TVM wrote them for errors."""
    found: dict[int, str] = {}
    for name, step in calls:
        context = _constant(file, step.args[-1]) if step.args else None
        match = _ANNOTATION.search(context) if isinstance(context, str) else None
        if name != "match_shape" or match is None:
            continue
        dims = [dim.strip() for dim in match[1].split(",") if dim.strip()]
        pairs = list(_pairs(step))
        for dim, (code, value) in zip(dims, pairs, strict=False):
            if len(dims) == len(pairs) and code == 1 and dim.isidentifier():
                found[value] = dim
    return found
