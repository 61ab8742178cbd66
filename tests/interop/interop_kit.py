"""What the tests beside other runtimes share. They run in `tox -e tvm` and `tox -e tvm-legacy`."""

import warnings
from typing import Any

import numpy as np
import pytest

from packhorse.dtype import dtype
from packhorse.graph.ir import Graph, Node
from packhorse.graph.program import Program
from packhorse.model import Model
from packhorse.native.memory import aligned_array


def optional(name: str) -> Any:
    """A module of the other side; tests are skipped without it. Its warnings are its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


def network(batch: int = 2) -> tuple[Model, np.ndarray]:
    """A convolutional network with every kind of step but those of the host, and an input."""
    from model_kit import value

    rng = np.random.default_rng(5)
    constants = {
        "w": rng.standard_normal((16, 3, 3, 3), np.float32),
        "b": rng.standard_normal(16, np.float32),
        "v": rng.standard_normal((16 * 8 * 8, 10), np.float32),
    }
    nodes = [
        Node("Conv", ["x", "w", "b"], ["c"], {"pads": [1, 1, 1, 1]}),
        Node("Relu", ["c"], ["r"]),
        Node("MaxPool", ["r"], ["p"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        Node("Flatten", ["p"], ["f"]),
        Node("MatMul", ["f", "v"], ["m"]),
        Node("Softmax", ["m"], ["y"]),
        Node("GreaterOrEqual", ["m", "y"], ["large"]),
    ]
    outputs = [value("y", (batch, 10)), value("large", (batch, 10), np.bool_)]
    graph = Graph("network", [value("x", (batch, 3, 16, 16))], outputs, nodes, constants)
    return Model(graph), rng.standard_normal((batch, 3, 16, 16), np.float32)


def run_program(
    program: Program, params: Any, inputs: list[np.ndarray], function: Any, wrap: Any
) -> list[np.ndarray]:
    """Run a program's kernels elsewhere: ``function(name)(*map(wrap, arrays))``."""
    sizes = program.storage_bytes()
    memory = {storage: aligned_array((size,), np.dtype("u1")) for storage, size in sizes.items()}

    def view(number: int) -> np.ndarray:
        entry = program.entries[number]
        return memory[entry.storage][: entry.nbytes].view(dtype(entry.dtype)).reshape(entry.shape)

    given = [*inputs, *(params[program.entries[i].name] for i in program.params)]
    for number, array in zip((*program.inputs, *program.params), given, strict=True):
        view(number)[...] = array
    for step in program.steps:
        if step.function != "__nop":
            function(step.function)(*(wrap(view(i)) for i in (*step.inputs, *step.outputs)))
    return [view(i).copy() for i in program.outputs]
