"""What shape rules and references of all families share: checks, axes, broadcasting, dtypes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from packhorse.dtype import dtype
from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Const, const
from packhorse.kernel.lowering import Lowering, Operand, compute_dtype
from packhorse.ops.registry import Inference, InferRule, NotStatic

__all__ = [
    "Array",
    "broadcast",
    "compiled",
    "data_dependent",
    "dtype_of_onnx",
    "known",
    "labelled",
    "literal",
    "normal_axes",
    "normal_axis",
    "require_kernel_dtypes",
    "same_dtype",
    "text",
    "whole",
]

Array: TypeAlias = np.ndarray[Any, Any]

_ONNX_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    8: "object", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
    14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8_e4m3fn",
    18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4_e2m1fn", 24: "float8_e8m0fnu", 25: "uint2", 26: "int2",
}  # fmt: skip
"""``TensorProto.DataType`` -> NumPy (or ml_dtypes) name; strings are object arrays."""

_KERNEL_DTYPES = frozenset(
    ["bool", "bfloat16", "float16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)


def dtype_of_onnx(code: int) -> np.dtype[Any]:
    """The NumPy dtype of an ONNX ``TensorProto.DataType`` number.

    Raises
    ------
    ModelError
        No such number.
    MissingExtra
        bfloat16 and smaller floats need ml_dtypes.
    """
    name = _ONNX_DTYPES.get(int(code))
    if name is None:
        raise ModelError(f"{code} is not an ONNX data type; they are numbered 1 to 26")
    return np.dtype(object) if name == "object" else dtype(name)


def labelled(rule: InferRule) -> InferRule:
    """A shape rule whose ModelErrors start with the node's name, so helpers need not know it."""

    @functools.wraps(rule)
    def infer(ctx: Inference) -> Sequence[TensorType]:
        try:
            return rule(ctx)
        except ModelError as error:
            if ctx.node.label in str(error):
                raise
            raise type(error)(f"{ctx.node.label}: {error}") from None

    return infer


@labelled
def data_dependent(ctx: Inference) -> Sequence[TensorType]:
    """Shape rule of operators whose output sizes depend on the data: static where that is known."""
    if any(v is None and t is not None for v, t in zip(ctx.values, ctx.inputs, strict=True)):
        raise NotStatic("the output's size depends on the input's values")
    made = ctx.operator.run(ctx.node, ctx.values)
    return [TensorType(y.dtype, y.shape) for y in made[: len(ctx.node.outputs)]]


def normal_axis(axis: int, rank: int) -> int:
    """``axis`` counted from 0; ModelError when it is outside ``[-rank, rank)``."""
    if not -rank <= axis < rank:
        raise ModelError(
            f"axis {axis} is outside [{-rank}, {rank - 1}] for an input of rank {rank}"
        )
    return int(axis % rank)


def normal_axes(axes: Sequence[int] | Array, rank: int) -> tuple[int, ...]:
    """Several axes counted from 0, in the order given; ModelError when one is named twice."""
    found = tuple(normal_axis(int(a), rank) for a in np.asarray(axes).reshape(-1))
    if len(set(found)) != len(found):
        raise ModelError(f"axes {[int(a) for a in axes]} name a dimension twice")
    return found


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The common shape under ONNX (NumPy) broadcasting; ModelError when there is none."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        listed = " and ".join(str(s) for s in shapes)
        raise ModelError(f"shapes {listed} cannot be broadcast together") from None


def same_dtype(ctx: Inference, first: int = 0) -> np.dtype[Any]:
    """The dtype shared by the given inputs from ``first`` on; ModelError when they differ."""
    found = [t.dtype for t in ctx.inputs[first:] if t is not None]
    if len(set(found)) > 1:
        listed = ", ".join(str(d) for d in found)
        raise ModelError(f"inputs must have one dtype, found {listed}; insert a Cast")
    if not found:
        raise ModelError("no input is given")
    return found[0]


def whole(value: Array, what: str) -> list[int]:
    """The elements of a small integer operand (axes, sizes, pads ...) as Python ints."""
    array = np.asarray(value)
    if array.ndim > 1 or array.dtype.kind not in "iu":
        raise ModelError(
            f"{what} must be a list of integers, found {array.dtype}{list(array.shape)}"
        )
    return [int(n) for n in array.reshape(-1)]


def text(value: str | bytes) -> str:
    """A string attribute, which frontends may leave as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def known(ctx: Lowering, i: int, what: str) -> Array:
    """Compile-time value of input ``i``; UnsupportedOperator (run on the host) without one."""
    value = ctx[i].constant
    if value is None:
        raise UnsupportedOperator(f"{what} (input {i}) is not known at compile time")
    return value


def literal(operand: Operand) -> Const | None:
    """A constant of one element as a literal, so that it costs no load; else None."""
    if operand.constant is None or operand.constant.size != 1:
        return None
    return const(operand.constant.reshape(()).item(), compute_dtype(operand.dtype))


def require_kernel_dtypes(ctx: Lowering) -> None:
    """UnsupportedOperator when an input or output dtype is not one the kernel language has."""
    found = [x.dtype for x in ctx.inputs if x is not None] + [d for _, d in ctx.output_types]
    strange = sorted(set(found) - _KERNEL_DTYPES)
    if strange:
        raise UnsupportedOperator(f"kernels have no dtype {', '.join(strange)}")


def compiled(lower: Callable[[Lowering], Any]) -> Callable[[Lowering], Any]:
    """A lowering that first checks :func:`require_kernel_dtypes`."""

    @functools.wraps(lower)
    def checked(ctx: Lowering) -> Any:
        require_kernel_dtypes(ctx)
        return lower(ctx)

    return checked
