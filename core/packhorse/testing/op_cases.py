"""The operator cases of the conformance kit: a table of shapes, dtypes and attributes.

An input is a text ``"f32 2x3x4"`` (dtype, shape; random, the same in every run), with a mark for
its values: ``f32+`` positive, ``f32u`` between -0.9 and 0.9, ``f32n`` with NaN and infinities.
A list is an int64 constant (shapes, axes), an array is itself, None is elided.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from packhorse.errors import ModelError
from packhorse.graph.ir import Graph, Node, TensorType, Value
from packhorse.testing import op_table
from packhorse.testing.sampling import spread

__all__ = ["DTYPES", "OpCase", "find", "graph_of", "names", "sample"]

Array: TypeAlias = np.ndarray[Any, Any]
Spec: TypeAlias = "str | list[int] | Array | None"

DTYPES: Mapping[str, str] = {
    "f16": "float16", "f32": "float32", "f64": "float64", "b": "bool",
    "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
    "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64",
}  # fmt: skip


@dataclass(frozen=True)
class OpCase:
    """One application of an operator.

    Attributes
    ----------
    name : str
        ``Conv[f32 1x3x8x8, f32 4x3x3x3; pads=1,1,1,1; constant 1]``.
    constant : tuple of int
        Inputs known when the model is compiled, as weights are.
    """

    name: str
    op: str
    inputs: tuple[Spec, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    constant: tuple[int, ...] = ()
    domain: str = ""

    def arrays(self) -> list[Array | None]:
        """Its inputs; None where elided."""
        rng = np.random.default_rng(zlib.crc32(f"{self.op}{self.inputs}".encode()))
        return [_array(spec, rng) for spec in self.inputs]


def _array(spec: Spec, rng: np.random.Generator) -> Array | None:
    if spec is None or isinstance(spec, np.ndarray):
        return spec
    if isinstance(spec, list):
        return np.array(spec, np.int64)
    word, _, dims = spec.partition(" ")
    mark = word[-1] if word[-1] in "+un" and word not in DTYPES else ""
    dtype = np.dtype(DTYPES[word.removesuffix(mark) if mark else word])
    shape = tuple(int(d) for d in dims.split("x") if d)
    if dtype.kind == "b":
        return np.asarray(rng.random(shape) < 0.5)
    if dtype.kind in "iu":
        low = 1 if mark == "+" or dtype.kind == "u" else -9
        return rng.integers(low, 10, shape).astype(dtype)
    values = np.asarray(rng.standard_normal(shape))
    if mark == "+":
        values = np.abs(values) + 0.1
    elif mark == "u":
        values = np.asarray(rng.uniform(-0.9, 0.9, shape))
    elif mark == "n":
        values.reshape(-1)[:4] = (np.nan, np.inf, -np.inf, -0.0)
    return values.astype(dtype)


@lru_cache(maxsize=1)
def _cases() -> dict[str, OpCase]:
    found: dict[str, OpCase] = {}
    for case in _made():
        if case.name in found:
            raise ValueError(f"two operator cases are called {case.name}")
        found[case.name] = case
    return found


def names() -> list[str]:
    """The names of all cases, in the order of the table."""
    return list(_cases())


def sample(count: int) -> list[str]:
    """The names of a fixed sample, spread over the operators.

    Raises
    ------
    ArgumentValueError
        ``count`` is not positive.
    """
    cases = spread(list(_cases().values()), count, lambda case: case.op, lambda case: case.name)
    return [case.name for case in cases]


def find(name: str) -> OpCase:
    """The case of that name; KeyError when there is none."""
    return _cases()[name]


def _made() -> Iterator[OpCase]:
    for op, inputs, attrs, options in op_table.rows():
        given = list(inputs)
        lists = [i for i, spec in enumerate(given) if isinstance(spec, list)]
        fixed = tuple(sorted({*lists, *options.get("constant", ())}))
        domain, _, word = op.rpartition("::")
        parts = ", ".join(_text(spec) for spec in given)
        words = [f"{key}={_text(value)}" for key, value in attrs.items()]
        words += ["weights constant"] if options.get("constant") else []
        name = f"{word}[{'; '.join([parts, *words])}]"
        yield OpCase(name, word, tuple(given), attrs, options.get("outputs", 1), fixed, domain)


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        words = " ".join(str(value).split()) if value.size <= 8 else "..."
        return f"{value.dtype}({words})"
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, bytes):
        return value.decode()
    return "-" if value is None else str(value)


def graph_of(case: OpCase, arrays: Sequence[Array | None]) -> tuple[Graph, dict[str, Array]]:
    """A graph of one node, and what to call it with: the inputs that are not constant."""
    from packhorse.ops import Inference, get

    names = [f"x{i}" if x is not None else "" for i, x in enumerate(arrays)]
    node = Node(
        case.op, names, [f"y{i}" for i in range(case.outputs)], dict(case.attrs), "node",
        case.domain,
    )  # fmt: skip
    given = {n: x for n, x in zip(names, arrays, strict=True) if x is not None}
    constants = {f"x{i}": given.pop(f"x{i}") for i in case.constant if f"x{i}" in given}
    types = {n: TensorType(x.dtype, x.shape) for n, x in (given | constants).items()}
    operator = get(node)
    seen = tuple(types.get(n) for n in names)
    try:
        inferred = operator.infer(Inference(node, seen, tuple(arrays), operator))
    except ModelError as error:
        raise ModelError(f"conformance case {case.name} is not well made: {error}") from error
    outputs = [Value(n, t) for n, t in zip(node.outputs, inferred, strict=False)]
    inputs = [Value(n, types[n]) for n in given]
    types |= {value.name: value.type for value in outputs}
    return Graph("one", inputs, outputs, [node], constants, types), given
