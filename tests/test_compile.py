"""compile(): what is refused before any work is done."""

from __future__ import annotations

import numpy as np
import pytest

from packhorse.errors import ArgumentValueError, DeviceMemoryError
from packhorse.graph.ir import Graph, Node, TensorType, Value
from packhorse.model import Model

pytest.importorskip("llvmlite", reason="llvm-cpu needs the extra [llvm-cpu]")


def relu() -> Model:
    kind = TensorType(np.dtype(np.float32), ("n", 4))
    graph = Graph("r", [Value("x", kind)], [Value("y", kind)], [Node("Relu", ["x"], ["y"])])
    return Model(graph)


def test_more_memory_than_there_is():
    with pytest.raises(DeviceMemoryError, match=r"needs .* GiB .* the machine has"):
        relu().compile("llvm-cpu", shapes={"x": (2**38, 4)})


def test_an_executable_is_compiled_already():
    executable = relu().compile("llvm-cpu?threads=1", shapes={"x": (2, 4)})
    assert executable.compile() is executable
    assert executable.compile("llvm-cpu?threads=1", shapes={"x": (2, 4)}) is executable
    with pytest.raises(ArgumentValueError, match="compiled for shape"):
        executable.compile(shapes={"x": (3, 4)})
    with pytest.raises(ArgumentValueError, match="did you mean 'x'"):
        executable.compile(shapes={"X": (2, 4)})
    with pytest.raises(ArgumentValueError, match="not for 'cpu:0'"):
        executable.compile("cpu")
