"""The cases of ONNX's backend tests, named and sorted into tiers.

They come with the onnx package: the node tests are made when they are asked for, the others are
files beside it. Nothing is downloaded; the nine tests of whole classic networks are left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from packhorse.errors import MissingExtra
from packhorse.testing.sampling import spread

__all__ = ["TIERS", "OnnxCase", "load_cases", "sample_of"]

TIERS = {
    "dense": "plain dense tensors: float16 to float64, integers, bool",
    "small": "bfloat16 and dtypes of 8 bits and less: float8, float4, int4, int2",
    "dynamic": "shapes that depend on data: NonMaxSuppression, Unique, Compress, NonZero",
    "control": "If, Loop and Scan",
    "random": "operators without a defined result",
    "string": "strings, text features and images",
    "sequence": "sequences and optionals",
    "domain": "the domains ai.onnx.ml, training and preview",
}
"""Tier -> what its tests need. A test belongs to the last tier that it needs."""

_OPERATORS = {
    "dynamic": {"NonMaxSuppression", "Unique", "Compress", "NonZero"},
    "control": {"If", "Loop", "Scan"},
    "random": {
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"),
        *("RandomUniform", "RandomUniformLike"),
    },
    "string": {"ImageDecoder", "TfIdfVectorizer"},
}
_GLUE = {"Cast", "Constant", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators that converters put around the one that a test is about."""
_KINDS = ("simple", "pytorch-converted", "pytorch-operator")
_SMALL = 16
"""First of the element types that came after bfloat16 (16) in TensorProto.DataType."""
_STRING = 8


@dataclass(frozen=True)
class OnnxCase:
    """One test: a model, and pairs of inputs and expected outputs.

    ``model`` is a ModelProto, or the Path of one with its data sets beside it.
    """

    name: str
    tier: str
    model: Any
    data: Sequence[tuple[Sequence[Any], Sequence[Any]]]
    rtol: float
    atol: float
    operator: str = ""
    """What the test is about: the last one that computes. Samples are spread over it."""

    def load(self) -> Any:
        """The ModelProto."""
        if isinstance(self.model, Path):
            return _onnx().load(str(self.model))
        return self.model

    def data_sets(self) -> Iterator[tuple[list[Any], list[Any]]]:
        """Inputs and expected outputs: arrays, or lists of them for sequences."""
        if isinstance(self.model, Path):
            yield from _read_data(self.model.parent)
            return
        for inputs, outputs in self.data:
            yield [_plain(x) for x in inputs], [_plain(y) for y in outputs]


@lru_cache(maxsize=1)
def load_cases() -> tuple[OnnxCase, ...]:
    """Every case, by name. Making the node tests takes some seconds, once per process.

    Raises
    ------
    MissingExtra
        The package onnx is not installed.
    """
    _onnx()
    from onnx.backend.test.loader import load_model_tests

    found = []
    with _quiet():
        from onnx.backend.test.case.node import collect_testcases

        for case in collect_testcases(None):
            model = case.model
            data = case.data_sets or ()
            found.append(_case(case, model, model, data))
        for kind in _KINDS:
            for case in load_model_tests(kind=kind):
                path = Path(str(case.model_dir)) / "model.onnx"
                found.append(_case(case, _onnx().load(str(path)), path, ()))
    return tuple(sorted(found, key=lambda case: case.name))


def _case(case: Any, model: Any, kept: Any, data: Sequence[Any]) -> OnnxCase:
    names = [node.op_type for node in model.graph.node]
    operator = next((name for name in reversed(names) if name not in _GLUE), names[-1])
    return OnnxCase(case.name, tier_of(model), kept, data, case.rtol, case.atol, operator)


def sample_of(cases: Sequence[OnnxCase], count: int) -> list[OnnxCase]:
    """A fixed sample, spread over the operators; see :func:`~packhorse.testing.sampling.spread`.

    Raises
    ------
    ArgumentValueError
        ``count`` is not positive.
    """
    return spread(cases, count, lambda case: case.operator, lambda case: case.name)


def tier_of(model: Any) -> str:
    """The tier of a ModelProto; see :data:`TIERS`."""
    needs = {"dense"}
    for node in _nodes(model.graph):
        if node.domain not in ("", "ai.onnx"):
            needs.add("domain")
        needs.update(tier for tier, names in _OPERATORS.items() if node.op_type in names)
    for value in (*model.graph.input, *model.graph.output):
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            needs.add("sequence")
        elif value.type.tensor_type.elem_type == _STRING:
            needs.add("string")
        elif value.type.tensor_type.elem_type >= _SMALL:
            needs.add("small")
    return next(tier for tier in reversed(TIERS) if tier in needs)


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _read_data(folder: Path) -> Iterator[tuple[list[Any], list[Any]]]:
    for part in sorted(folder.glob("test_data_set_*")):
        sides = []
        for side in ("input", "output"):
            files = sorted(part.glob(f"{side}_*.pb"), key=lambda p: int(p.stem.rpartition("_")[2]))
            tensors = [_onnx().TensorProto.FromString(file.read_bytes()) for file in files]
            sides.append([_plain(tensor) for tensor in tensors])
        yield sides[0], sides[1]


def _plain(value: Any) -> Any:
    """A value of a data set as an array; what is no tensor is left as it is."""
    if isinstance(value, _onnx().TensorProto):
        from onnx import numpy_helper

        return numpy_helper.to_array(value)
    if isinstance(value, (np.ndarray, list)) or value is None:
        return value
    return np.asarray(value)


def _onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise MissingExtra("onnx", "testing", "the ONNX backend suite") from None
    return onnx


@contextmanager
def _quiet() -> Iterator[None]:
    """The generators divide by zero and the like on purpose, and seed NumPy's global state."""
    state = np.random.get_state()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.set_state(state)
