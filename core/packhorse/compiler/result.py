"""What compiling a graph gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from packhorse.compiler.placement import Placement
from packhorse.graph._base import Copy
from packhorse.graph.program import Program

__all__ = ["HOST", "Compiled", "NodeReport", "Report", "Runner"]

HOST = "host (NumPy reference)"
"""What :class:`NodeReport` calls the place of a node that runs by its NumPy reference."""


class Runner(Protocol):
    """What runs a compiled graph: a GraphExecutor, or the references."""

    def run(self, inputs: Any) -> list[np.ndarray[Any, Any]]:
        """Outputs, in order, for inputs by name."""

    def close(self) -> None:
        """Free what it holds; idempotent."""


@dataclass(frozen=True)
class NodeReport:
    """Where one node of the model runs. ``step`` names the kernel it was fused into."""

    node: str
    device: str
    step: str


class Report(list[NodeReport]):
    """Where each node runs, and what every run copies between memories: ``print`` shows both.

    Attributes
    ----------
    copies : tuple of Copy
        Between host and devices: inputs, outputs, values that cross from one device to another,
        what steps of the host read and write; and tensors of another device that were given as
        inputs so far.
    """

    def __init__(self, rows: Iterable[NodeReport], copies: Iterable[Copy] = ()) -> None:
        super().__init__(rows)
        self.copies = tuple(copies)

    def __str__(self) -> str:
        lines = [f"{row.node}: {row.device}, {row.step}" for row in self]
        return "\n".join(lines + [f"copied: {copy}" for copy in self.copies])


@dataclass
class Compiled:
    """A graph ready to run on a device.

    ``program``, ``module`` and ``params`` are None for graphs that run by the references.
    ``timings`` holds seconds per phase; ``note`` says why a graph was not compiled. A graph that
    was cut for the devices of a ``placement`` has ``parts``, and no program of its own.
    """

    executor: Runner
    report: list[NodeReport]
    program: Program | None = None
    module: Any = None
    params: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    note: str = ""
    parts: tuple[Compiled, ...] = ()
    placement: Placement | None = None

    def without_code(self) -> Compiled:
        """The same without modules and weights, those of its parts included."""
        parts = tuple(part.without_code() for part in self.parts)
        return replace(self, module=None, params={}, parts=parts)
