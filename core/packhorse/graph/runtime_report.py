"""What profiling a graph module found: a table, a Chrome trace, TVM's report."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packhorse.errors import ArgumentValueError

__all__ = ["ProfileReport", "ProfileRow"]

_NAME_WIDTH = 60


@dataclass(frozen=True)
class ProfileRow:
    """One call.

    Attributes
    ----------
    node : int
        Number of the node in graph JSON.
    name, function : str
        The node's name, and the function it calls.
    start_us, duration_us : float
        Microseconds since the run began; microseconds it took.
    shapes : str
        dtype and shape of its arguments: inputs, then outputs.
    attrs : mapping
        The node's attributes (TVM: hash, layouts).
    """

    node: int
    name: str
    function: str
    start_us: float
    duration_us: float
    shapes: str
    attrs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProfileReport:
    """One timed run.

    Attributes
    ----------
    graph, device : str
        Name of the graph; device string.
    rows : tuple of ProfileRow
        In execution order.
    wall_us : float
        Microseconds of the whole run, the clock's readings between calls included.
    """

    graph: str
    device: str
    rows: tuple[ProfileRow, ...]
    wall_us: float

    @property
    def total_us(self) -> float:
        """Microseconds of all calls."""
        return sum(row.duration_us for row in self.rows)

    def percent(self, row: ProfileRow) -> float:
        """Share of a row in the time of all calls."""
        return 100 * row.duration_us / self.total_us if self.total_us else 0.0

    def __str__(self) -> str:
        rows = sorted(self.rows, key=lambda row: -row.duration_us)
        names = [row.function[-_NAME_WIDTH:] for row in rows]
        width = max((len(name) for name in (*names, "function", "total")), default=8)
        lines = [f"{'node':>5}  {'function':<{width}}  {'us':>10}  {'%':>6}  arguments"]
        lines += [
            f"{row.node:>5}  {name:<{width}}  {row.duration_us:>10.2f}  {self.percent(row):>6.2f}  "
            f"{row.shapes}"
            for row, name in zip(rows, names, strict=True)
        ]
        total = f"{'':>5}  {'total':<{width}}  {self.total_us:>10.2f}  {100 * bool(rows):>6.2f}"
        return "\n".join([*lines, f"{total}  {self.graph} on {self.device}"])

    def as_tvm(self) -> dict[str, Any]:
        """The report in the schema of TVM's ``Report.json()``."""
        return {
            "calls": [self._tvm_call(row) for row in self.rows],
            "device_metrics": {
                self.device: {
                    "Duration (us)": {"microseconds": self.wall_us},
                    "Percent": {"percent": 100.0},
                    "Device": {"string": self.device},
                    "Count": {"count": 1},
                }
            },
            "configuration": {"Executor": {"string": "Graph"}},
        }

    def _tvm_call(self, row: ProfileRow) -> dict[str, Any]:
        texts = {"Name": row.function, "Device": self.device, "Argument Shapes": row.shapes}
        texts |= {key: text for key, text in row.attrs.items() if "layout" in key}
        if "hash" in row.attrs:
            texts["Hash"] = row.attrs["hash"]
        return {
            **{key: {"string": text} for key, text in texts.items()},
            "Duration (us)": {"microseconds": row.duration_us},
            "Percent": {"percent": self.percent(row)},
            "Count": {"count": 1},
        }

    def chrome_trace(self, path: str | os.PathLike[str]) -> Path:
        """Write a file for chrome://tracing and Perfetto; what was there is replaced.

        The schema is the Trace Event Format, JSON object form::

            {"displayTimeUnit": "ms", "otherData": {"graph": str, "device": str},
             "traceEvents": [
               {"ph": "M", "name": "process_name", "pid": 1, "tid": 1, "args": {"name": graph}},
               {"ph": "X", "name": function, "cat": "kernel", "pid": 1, "tid": 1,
                "ts": start in us, "dur": duration in us,
                "args": {"node": number, "name": node name, "arguments": text, ...attributes}},
               ...]}

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ArgumentValueError
            It cannot be written there.
        """
        place = {"pid": 1, "tid": 1}
        meta = {"ph": "M", "name": "process_name", **place, "args": {"name": self.graph}}
        events = [
            {
                "ph": "X",
                "name": row.function,
                "cat": "kernel",
                **place,
                "ts": row.start_us,
                "dur": row.duration_us,
                "args": {**row.attrs, "node": row.node, "name": row.name, "arguments": row.shapes},
            }
            for row in self.rows
        ]
        other = {"graph": self.graph, "device": self.device}
        document = {"displayTimeUnit": "ms", "otherData": other, "traceEvents": [meta, *events]}
        target = Path(path)
        try:
            target.write_text(json.dumps(document), encoding="utf-8")
        except OSError as error:
            raise ArgumentValueError(
                f"the trace cannot be written to '{target}': {error.strerror or error}; choose "
                "another path"
            ) from error
        return target
