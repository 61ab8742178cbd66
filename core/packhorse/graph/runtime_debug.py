"""The debug form of the graph runtime: run node by node, look at any tensor, time each node.

A *node* is what graph JSON calls one: an input or param, or a call, in the order of the file.
Source: TVM's graph_executor_debug.cc (0.6 to 0.19).
"""

from __future__ import annotations

import json
import struct
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from packhorse.errors import ArgumentTypeError, ArgumentValueError, did_you_mean
from packhorse.function import add_value_type
from packhorse.graph._segments import Segment
from packhorse.graph.program import NOP, Program, Step
from packhorse.graph.runtime import GraphModule
from packhorse.graph.runtime_report import ProfileReport, ProfileRow
from packhorse.tensor import Tensor

__all__ = ["DebugModule", "Node", "nodes_of"]

_NONE = -1  # no node was executed since an input changed


@dataclass(frozen=True)
class Node:
    """One node of graph JSON: ``step`` is None for inputs and params."""

    name: str
    outputs: tuple[int, ...]
    step: Step | None


def nodes_of(program: Program) -> list[Node]:
    """The nodes in the order of the file: entries are numbered by the nodes that make them."""
    nodes: list[Node] = []
    given = sorted((*program.inputs, *program.params))
    at = 0
    for step in program.steps:
        before = step.outputs[0] if step.outputs else -1
        while at < len(given) and given[at] < before:
            nodes.append(Node(program.entries[given[at]].name, (given[at],), None))
            at += 1
        nodes.append(Node(step.name, step.outputs, step))
    return nodes + [Node(program.entries[i].name, (i,), None) for i in given[at:]]


class DebugModule(GraphModule):
    """A graph module that can stop at every node: ``tvm.graph_executor_debug.create``.

    Runs as a whole cost the same as those of :class:`GraphModule`.
    """

    kind = "GraphExecutorDebug"
    METHODS = (
        *GraphModule.METHODS,
        *("debug_get_output", "execute_node", "get_node_output", "get_output_by_layer"),
        *("run_individual", "run_individual_node", "profile", "profile_rpc"),
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._nodes = nodes_of(self.program)
        self._single: dict[int, Segment | None] = {}
        self._reached = _NONE

    @property
    def nodes(self) -> list[Node]:
        """What the node numbers of the other methods count."""
        return list(self._nodes)

    def _changed(self) -> None:
        super()._changed()
        self._reached = _NONE

    def _index(self, key: Any) -> int:
        """The node number of a name or number.

        Names that repeat mean the first node of that name, as in TVM.
        """
        names = [node.name for node in self._nodes]
        if isinstance(key, str):
            if key in names:
                return names.index(key)
            hint = did_you_mean(key, names)
            raise ArgumentValueError(f"there is no node '{key:.80}'{hint}; see module.nodes")
        if isinstance(key, bool) or not isinstance(key, int | np.integer):
            raise ArgumentTypeError(
                f"a node is a name or a number, not a {type(key).__name__}; see module.nodes"
            )
        if not 0 <= key < len(names):
            raise ArgumentValueError(
                f"there is no node {key}: the graph has {len(names)}, counted from 0"
            )
        return int(key)

    def _segment(self, index: int) -> Segment | None:
        """The call of one node; None for inputs and ``__nop``."""
        if index not in self._single:
            step = self._nodes[index].step
            idle = step is None or step.function == NOP
            self._single[index] = None if idle else self._bind_steps([step])[0]  # type: ignore[list-item]
        return self._single[index]

    def _advance(self, index: int) -> None:
        """Run up to a node: on from the last one reached, or from the start.

        An earlier node than the last one starts over: its memory may have been used again.
        """
        self._require_open()
        self._state.require_set()
        start = self._reached + 1 if index >= self._reached else 0
        self._reached = _NONE  # if a node fails, start over
        for number in range(start, index + 1):
            segment = self._segment(number)
            if segment is not None:
                segment.run()
        self._reached = index

    def _output(self, index: int, output: int) -> np.ndarray[Any, Any]:
        entries = self._nodes[index].outputs
        if isinstance(output, bool) or not isinstance(output, int | np.integer):
            raise ArgumentTypeError(f"an output is a number, not a {type(output).__name__}")
        if not 0 <= output < len(entries):
            raise ArgumentValueError(
                f"node {index} ('{self._nodes[index].name}') has {len(entries)} outputs, found "
                f"output {output}"
            )
        return self._state.tensors.array(entries[output])

    # ------------------------------------------------------------ looking at nodes

    def execute_node(self, node: int | str) -> None:
        """Run the graph up to and with a node, going on from the last node executed.

        Raises
        ------
        ArgumentValueError, ArgumentTypeError
            No such node; inputs were never set.
        PackhorseError
            A step failed.
        """
        with self._lock:
            self._advance(self._index(node))

    def get_node_output(self, node: int | str, output: int = 0) -> Tensor:
        """A copy of an output of the node executed last.

        Raises
        ------
        ArgumentValueError
            No such node or output, or another node was executed last: the memory may hold
            something else by now.
        """
        with self._lock:
            self._require_open()
            index = self._index(node)
            if index != self._reached:
                raise ArgumentValueError(
                    f"node {index} ('{self._nodes[index].name}') is not the one executed last; "
                    f"call execute_node({index}) first"
                )
            return Tensor(self._output(index, output).copy())

    def get_output_by_layer(self, node: int | str, output: int = 0) -> Tensor:
        """Run up to a node and return a copy of one of its outputs (TVM 0.6)."""
        with self._lock:
            self._advance(self._index(node))
            return Tensor(self._output(self._index(node), output).copy())

    def debug_get_output(self, node: int | str, out: Any = None) -> Tensor | None:
        """Run the graph from the start up to a node; its first output, copied.

        Parameters
        ----------
        node : int or str
            Number or name.
        out : array or Tensor, optional
            Copied into, nothing is returned then.

        Raises
        ------
        ArgumentValueError, ArgumentTypeError
            No such node; inputs were never set; ``out`` does not fit or is read-only.
        PackhorseError
            A step failed.
        """
        with self._lock:
            index = self._index(node)
            self._reached = _NONE
            self._advance(index)
            found = self._output(index, 0)
            if out is None:
                return Tensor(found.copy())
            (out if isinstance(out, Tensor) else Tensor(np.asarray(out))).copy_from(found)
            return None

    # ------------------------------------------------------------ timing

    def run_individual(
        self,
        number: int,
        repeat: int = 1,
        min_repeat_ms: int = 0,
        limit_zero_time_iterations: int = 100,
        cooldown_interval_ms: int = 0,
        repeats_to_cooldown: int = 1,
    ) -> bytes:
        """Time every node by itself, after one run of the whole graph.

        Parameters
        ----------
        number : int
            Calls per measurement; more when it takes less than ``min_repeat_ms``.
        repeat : int
            Measurements per node.
        limit_zero_time_iterations : int
            How often ``number`` is raised for a node that takes no measurable time.
        cooldown_interval_ms, repeats_to_cooldown : int
            Sleep so long after every so many measurements.

        Returns
        -------
        bytes
            int64 number of nodes, then ``repeat`` doubles per node: seconds per call, 0 for
            inputs. Little-endian, as TVM's.

        Raises
        ------
        ArgumentValueError
            A count below its minimum; inputs were never set.
        """
        options = (min_repeat_ms, limit_zero_time_iterations, cooldown_interval_ms)
        with self._lock:
            self.run()
            count = len(self._nodes)
            times = [
                self.run_individual_node(i, number, repeat, *options, repeats_to_cooldown)
                for i in range(count)
            ]
        return struct.pack("<q", count) + b"".join(times)

    def run_individual_node(
        self,
        node: int | str,
        number: int,
        repeat: int = 1,
        min_repeat_ms: int = 0,
        limit_zero_time_iterations: int = 100,
        cooldown_interval_ms: int = 0,
        repeats_to_cooldown: int = 1,
    ) -> bytes:
        """``repeat`` doubles: seconds per call of one node. Parameters of :meth:`run_individual`.

        The node works on whatever lies in its memory, so run the graph before.
        """
        _check_counts(number=(number, 1), repeat=(repeat, 1), min_repeat_ms=(min_repeat_ms, 0))
        _check_counts(
            limit_zero_time_iterations=(limit_zero_time_iterations, 0),
            cooldown_interval_ms=(cooldown_interval_ms, 0),
            repeats_to_cooldown=(repeats_to_cooldown, 1),
        )
        with self._lock:
            self._changed()
            segment = self._segment(self._index(node))
            self._state.require_set()
            if segment is None:
                return struct.pack(f"<{repeat}d", *[0.0] * repeat)
            segment.run()
            found = []
            for i in range(1, repeat + 1):
                seconds, number = _measure(
                    segment, number, min_repeat_ms * 1e-3, limit_zero_time_iterations
                )
                found.append(seconds)
                if cooldown_interval_ms and i % repeats_to_cooldown == 0:
                    time.sleep(cooldown_interval_ms * 1e-3)
            return struct.pack(f"<{repeat}d", *found)

    def profile(self, collectors: Any = None, /, **inputs: Any) -> ProfileReport:
        """Run the graph once, timing every call, after three runs to warm up.

        Parameters
        ----------
        collectors : None or empty
            TVM's collectors of hardware counters are not offered.
        **inputs
            Set first, as by :meth:`set_input`.

        Returns
        -------
        ProfileReport
            ``print(report)`` shows a table, ``report.chrome_trace(path)`` writes a trace.

        Raises
        ------
        ArgumentValueError
            Collectors were given; inputs were never set.
        PackhorseError
            A step failed.
        """
        if collectors is not None and (not hasattr(collectors, "__len__") or len(collectors)):
            raise ArgumentValueError(
                "metric collectors are not offered; call profile() without them, or use a "
                "profiler of the system for hardware counters"
            )
        with self._lock:
            for _ in range(3):
                self.run(**inputs)
                inputs = {}
            self._changed()
            calls = [(i, self._segment(i)) for i in range(len(self._nodes))]
            start, rows = time.perf_counter_ns(), []
            for index, segment in calls:
                if segment is not None:
                    begin = (time.perf_counter_ns() - start) * 1e-3
                    rows.append(self._row(index, begin, segment.profile()[0][2]))
            wall = (time.perf_counter_ns() - start) * 1e-3
        return ProfileReport(self.name, self.place.name, tuple(rows), wall)

    def _row(self, index: int, start: float, duration: float) -> ProfileRow:
        node = self._nodes[index]
        step, entries = node.step, self.program.entries
        assert step is not None  # inputs have no segment
        shapes = ", ".join(str(entries[i]) for i in (*step.inputs, *step.outputs))
        return ProfileRow(index, node.name, step.function, start, duration, shapes, step.attrs)

    def profile_rpc(self) -> str:
        """The same as JSON in the schema of TVM's profiling reports."""
        return json.dumps(self.profile().as_tvm())

    def _release(self) -> None:
        super()._release()
        self._single = {}


add_value_type(DebugModule)


def _measure(segment: Segment, number: int, least: float, zero_limit: int) -> tuple[float, int]:
    """Seconds per call, and the number of calls that took at least ``least`` seconds.

    TVM's rule: too short a measurement is done again with more calls.
    """
    zeros = 0
    while True:
        total = sum(segment.profile()[0][2] for _ in range(number)) * 1e-6
        zeros += total <= 0
        if total >= least or zeros > zero_limit:
            return total / number, number
        number = int(max(least / (total / number) + 1 if total else 0, number * 1.618 + 1))


def _check_counts(**counts: tuple[Any, int]) -> None:
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ArgumentTypeError(f"{name} must be an int, found {type(value).__name__}")
        if value < least:
            raise ArgumentValueError(f"{name} must be at least {least}, found {value}")
