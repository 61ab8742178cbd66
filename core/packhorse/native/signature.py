"""What a compiled function takes, as far as its library says.

TVM's llvm target of 0.2 to 0.20 writes the text of its own argument checks into the library:
``myadd: num_args should be 3``, ``myadd: Expect arg[0] to be pointer``, ``myadd.A.dtype is
expected to be float32``. Those checks look at type codes after they have read through the
pointers, so a wrong argument would end the process; here it is refused before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from packhorse.dtype import dtype_name
from packhorse.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["Param", "Signature", "read_signatures"]

ParamKind: TypeAlias = Literal["pointer", "int", "float", "any"]
_MAX_PARAMS = 4096

_COUNT = re.compile(rb"([\w.]+): num_args should be (\d{1,4})\0")
_EXPECT = re.compile(rb"([\w.]+): Expect arg\[(\d{1,4})\] to be (pointer|int|float)\0")
_NAME = re.compile(rb"(\w+?)(?:_code|\.code) == 3")
_DETAIL = re.compile(rb"([\w.]+?)\.(\w+)\.(ndim|dtype) is expected to (?:equal|be) (\w+)\0")
_MENTION = b"num_args should be "


@dataclass(frozen=True)
class Param:
    """One parameter; None: not known."""

    name: str
    kind: ParamKind = "any"
    ndim: int | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Signature:
    """The parameters of one function, all of them."""

    params: tuple[Param, ...]

    def check(self, args: Sequence[Any], what: str) -> None:
        """Refuse arguments the function was not compiled for.

        Raises
        ------
        ArgumentTypeError
            A tensor is missing where one is needed, or has another dtype.
        ArgumentValueError
            Another number of arguments, or of dimensions.
        """
        if len(args) != len(self.params):
            names = ", ".join(p.name for p in self.params)
            raise ArgumentValueError(
                f"{what} takes {len(self.params)} arguments ({names}), found {len(args)}"
            )
        for i, (param, arg) in enumerate(zip(self.params, args, strict=True)):
            if param.kind == "pointer":
                _check_tensor(param, arg, f"argument {i} ({param.name}) of {what}")
            elif param.kind != "any" and not isinstance(arg, int | float):
                raise ArgumentTypeError(
                    f"argument {i} of {what} must be {param.kind}, found {type(arg).__name__}"
                )

    def __str__(self) -> str:
        return ", ".join(_describe(p) for p in self.params)


def _check_tensor(param: Param, arg: Any, where: str) -> None:
    if not hasattr(arg, "shape") or not hasattr(arg, "dtype"):
        raise ArgumentTypeError(
            f"{where} must be a Tensor or numpy.ndarray{_wanted(param)}, found {type(arg).__name__}"
        )
    if param.dtype is not None and dtype_name(arg.dtype) != param.dtype:
        raise ArgumentTypeError(
            f"{where} must be of dtype {param.dtype}, found {arg.dtype}; convert it with "
            f"astype('{param.dtype}')"
        )
    if param.ndim is not None and len(arg.shape) != param.ndim:
        raise ArgumentValueError(
            f"{where} must have {param.ndim} dimensions, found shape {tuple(arg.shape)}"
        )


def _wanted(param: Param) -> str:
    return f" of {param.dtype}" if param.dtype else ""


def _describe(param: Param) -> str:
    if param.kind != "pointer":
        return f"{param.name}: {param.kind}"
    rank = "" if param.ndim is None else f"[{', '.join('?' * param.ndim)}]"
    return f"{param.name}: {param.dtype or 'tensor'}{rank}"


def read_signatures(data: Any) -> dict[str, Signature]:
    """The signatures that the text in a library gives away.

    Parameters
    ----------
    data : bytes or mmap
        The library's file.
    """
    if data.find(_MENTION) < 0:
        return {}
    counts = {m[1].decode(): int(m[2]) for m in _COUNT.finditer(data)}
    known = {f: [Param(f"arg{i}") for i in range(n)] for f, n in counts.items() if n < _MAX_PARAMS}
    for match in _EXPECT.finditer(data):
        params, index = known.get(match[1].decode(), []), int(match[2])
        if index < len(params):
            name = _name_before(data, match.start()) or params[index].name
            params[index] = Param(name, match[3].decode())  # type: ignore[arg-type]
    for match in _DETAIL.finditer(data):
        function, name, field, value = (part.decode() for part in match.groups())
        for i, param in enumerate(known.get(function, [])):
            if param.name == name:
                known[function][i] = _refine(param, field, value)
    return {function: Signature(tuple(params)) for function, params in known.items()}


def _name_before(data: Any, end: int) -> str | None:
    """The parameter's name in the condition that stands before the message."""
    start = max(data.rfind(b"\0", 0, end) + 1, end - 400)
    found = _NAME.search(data[start:end])
    return found[1].decode() if found else None


def _refine(param: Param, field: str, value: str) -> Param:
    if field == "ndim":
        return replace(param, ndim=int(value)) if value.isdecimal() else param
    return replace(param, dtype=value)
