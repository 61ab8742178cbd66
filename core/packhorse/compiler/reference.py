"""Runs a graph with the NumPy references: any operator, any shape, no compiler.

It is the ``cpu`` device's way to run models, the fallback for graphs whose shapes depend on data,
and the oracle of the tests. It lies here and not in ``packhorse.graph`` because it reads the
operator table.
"""

from __future__ import annotations

import time
from collections import ChainMap, Counter
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from packhorse import ops
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ModelError,
    did_you_mean,
)
from packhorse.graph.ir import Graph, Node, Value, node_reads

__all__ = ["ReferenceExecutable", "TimedReferences", "check_input", "node_failed"]

Array = np.ndarray[Any, Any]
Env = MutableMapping[str, Array]


def check_input(value: Value, array: Any) -> Array:
    """An argument as an array that fits a graph input.

    Raises
    ------
    ArgumentTypeError
        Another dtype than declared.
    ArgumentValueError
        Another rank, or another size where the declared one is a number.
    """
    found = np.asarray(array)
    kind = value.type
    if found.dtype != kind.dtype:
        raise ArgumentTypeError(
            f"input '{value.name}' must be {kind.dtype}, got {found.dtype}. "
            f"Convert it: x.astype('{kind.dtype}')"
        )
    if kind.shape is not None:
        fits = len(kind.shape) == found.ndim and all(
            isinstance(want, str) or want == got
            for want, got in zip(kind.shape, found.shape, strict=True)
        )
        if not fits:
            want = ", ".join(str(d) for d in kind.shape)
            raise ArgumentValueError(
                f"input '{value.name}' must have shape ({want}), got {found.shape}"
            )
    return found


def node_failed(node: Node, inputs: Sequence[Array | None], error: Exception) -> ModelError:
    """What to raise when a node's reference raised ``error``: names the node and its inputs."""
    given = ", ".join("-" if x is None else f"{x.dtype}{list(x.shape)}" for x in inputs)
    kind, what = ModelError, f"{type(error).__name__}: "
    if isinstance(error, ModelError):
        kind, what = type(error), ""
    return kind(f"node {node.label} failed on ({given}): {what}{error}")


class ReferenceExecutable:
    """A graph, ready to run on the host by the NumPy references.

    Parameters
    ----------
    graph : Graph
        Static or symbolic shapes; it is not changed.

    Raises
    ------
    UnsupportedOperator
        An operator is neither in the table nor control flow.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._constants: dict[int, dict[str, Array]] = {}
        self._uses: dict[int, Counter[str]] = {}
        for node in graph.nodes:
            if node.op not in _CONTROL or node.domain:
                ops.get(node)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Run once.

        Parameters
        ----------
        inputs : mapping of str to array
            One array per graph input, dtype and shape as declared.

        Returns
        -------
        dict of str to ndarray
            The graph's outputs by name, in order.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            An input is missing, unknown, or does not fit.
        ModelError
            A node failed: named, with the types it was given.
        """
        wanted = {value.name: value for value in self.graph.inputs}
        for name in inputs:
            if name not in wanted:
                raise ArgumentValueError(
                    f"the model has no input '{name}'{did_you_mean(name, wanted)}; "
                    f"its inputs are: {', '.join(wanted)}"
                )
        missing = [name for name in wanted if name not in inputs]
        if missing:
            raise ArgumentValueError(f"inputs missing: {', '.join(missing)}")
        env: Env = {name: check_input(value, inputs[name]) for name, value in wanted.items()}
        with np.errstate(all="ignore"):  # inf and nan are values here, not accidents
            results = self._run_graph(self.graph, ChainMap(env, self._frozen(self.graph)))
        found: dict[str, Array] = {}
        for value, array in zip(self.graph.outputs, results, strict=True):
            found[value.name] = _owned(array, (*inputs.values(), *found.values()))
        return found

    def _run_graph(self, graph: Graph, env: ChainMap[str, Array]) -> list[Array]:
        """Outputs of a graph; ``env.maps[0]`` is its own scope, values leave it after last use."""
        left = self._use_counts(graph).copy()
        local = env.maps[0]
        for node in graph.nodes:
            for name, array in zip(node.outputs, self._run_node(node, env), strict=False):
                if name and left[name]:
                    local[name] = array
            for name in node_reads(node):
                left[name] -= 1
                if not left[name]:
                    local.pop(name, None)
        return [env[value.name] for value in graph.outputs]

    def _frozen(self, graph: Graph) -> dict[str, Array]:
        """Constants as aligned read-only views, made once per graph or body.

        Views of a file may be unaligned, and NumPy would copy those in every matmul.
        """
        found = self._constants.get(id(graph))
        if found is None:
            found = {k: np.require(v, requirements="A").view() for k, v in graph.constants.items()}
            for array in found.values():
                array.flags.writeable = False
            self._constants[id(graph)] = found
        return found

    def _use_counts(self, graph: Graph) -> Counter[str]:
        if id(graph) not in self._uses:
            reads = Counter(name for node in graph.nodes for name in node_reads(node))
            reads.update(value.name for value in graph.outputs)
            self._uses[id(graph)] = reads
        return self._uses[id(graph)]

    def _run_node(self, node: Node, env: ChainMap[str, Array]) -> Sequence[Array]:
        inputs = [env[name] if name else None for name in node.inputs]
        try:
            if not node.domain and node.op in _CONTROL:
                run = {"If": self._if, "Loop": self._loop, "Scan": self._scan}[node.op]
                return run(node, inputs, env)
            return ops.get(node).run(node, inputs)
        except Exception as error:
            if isinstance(error, ModelError) and "node '" in str(error):
                raise  # from the body of this node
            raise node_failed(node, inputs, error) from error

    def _body(self, body: Graph, inputs: Sequence[Array], env: ChainMap[str, Array]) -> list[Array]:
        names = [value.name for value in body.inputs]
        if len(names) != len(inputs):
            raise ModelError(f"body '{body.name}' takes {len(names)} values, given {len(inputs)}")
        scope = dict(zip(names, inputs, strict=True))
        return self._run_graph(body, env.new_child(self._frozen(body)).new_child(scope))

    def _if(
        self, node: Node, inputs: Sequence[Array | None], env: ChainMap[str, Array]
    ) -> Sequence[Array]:
        condition = bool(np.asarray(inputs[0]).reshape(-1)[0])
        return self._body(node.attrs["then_branch" if condition else "else_branch"], [], env)

    def _loop(
        self, node: Node, inputs: Sequence[Array | None], env: ChainMap[str, Array]
    ) -> Sequence[Array]:
        """ONNX Loop-21: trip count, condition, carried values; scan outputs are stacked."""
        trips = None if inputs[0] is None else int(inputs[0].reshape(-1)[0])
        going = inputs[1] is None or bool(inputs[1].reshape(-1)[0])
        body: Graph = node.attrs["body"]
        carried = [np.asarray(x) for x in inputs[2:]]
        scans: list[list[Array]] = [[] for _ in body.outputs[1 + len(carried) :]]
        step = 0
        while going and (trips is None or step < trips):
            given = [np.asarray(step, np.int64), np.asarray(going), *carried]
            condition, *made = self._body(body, given, env)
            going = bool(condition.reshape(-1)[0])
            carried = made[: len(carried)]
            for kept, value in zip(scans, made[len(carried) :], strict=True):
                kept.append(value)
            step += 1
        outs = body.outputs[1 + len(carried) :]
        return carried + [_stack(kept, out, 0) for kept, out in zip(scans, outs, strict=True)]

    def _scan(
        self, node: Node, inputs: Sequence[Array | None], env: ChainMap[str, Array]
    ) -> Sequence[Array]:
        """ONNX Scan-21 (9 and later: no batch axis)."""
        body: Graph = node.attrs["body"]
        count = int(node.attrs["num_scan_inputs"])
        given = [np.asarray(x) for x in inputs]
        carried, sources = given[: len(given) - count], given[len(given) - count :]
        outs = body.outputs[len(carried) :]
        backward = node.attrs.get("scan_input_directions", [0] * count)
        axes = node.attrs.get("scan_input_axes", [0] * count)
        moved = [np.moveaxis(x, a, 0) for x, a in zip(sources, axes, strict=True)]
        moved = [x[::-1] if back else x for x, back in zip(moved, backward, strict=True)]
        scans: list[list[Array]] = [[] for _ in outs]
        for parts in zip(*moved, strict=True):
            made = self._body(body, [*carried, *parts], env)
            carried = made[: len(carried)]
            for kept, value in zip(scans, made[len(carried) :], strict=True):
                kept.append(value)
        backward = node.attrs.get("scan_output_directions", [0] * len(outs))
        axes = node.attrs.get("scan_output_axes", [0] * len(outs))
        return carried + [
            _stack(kept[::-1] if back else kept, out, axis)
            for kept, out, back, axis in zip(scans, outs, backward, axes, strict=True)
        ]


class TimedReferences(ReferenceExecutable):
    """The same, timing every node of the graph; what bodies of control flow take is their node's.

    Attributes
    ----------
    nanoseconds : list of list of int
        Times of each node of the graph, one a run.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.nanoseconds: list[list[int]] = [[] for _ in graph.nodes]
        self._times = dict(zip(map(id, graph.nodes), self.nanoseconds, strict=True))

    def _run_node(self, node: Node, env: ChainMap[str, Array]) -> Sequence[Array]:
        start = time.perf_counter_ns()
        found = super()._run_node(node, env)
        took = time.perf_counter_ns() - start
        self._times.get(id(node), []).append(took)
        return found


_CONTROL = frozenset({"If", "Loop", "Scan"})


def _stack(parts: list[Array], out: Value, axis: int) -> Array:
    if parts:
        return np.stack(parts, axis)
    shape = tuple(0 if isinstance(d, str) else d for d in out.type.shape or ())
    return np.zeros((0, *shape), out.type.dtype)


def _owned(array: Array, others: Sequence[Any]) -> Array:
    """A result the caller may write to: none of the others (inputs, results before), not a
    constant, not a view of one."""
    given = any(array is x for x in others)
    if array.flags.writeable and array.flags.owndata and not given:
        return array
    return np.array(array, order="C")
