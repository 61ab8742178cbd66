"""What compiling a graph gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from packhorse.graph.program import Program

__all__ = ["Compiled", "NodeReport", "Runner"]


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


@dataclass
class Compiled:
    """A graph ready to run on a device.

    ``program``, ``module`` and ``params`` are None for graphs that run by the references.
    ``timings`` holds seconds per phase; ``note`` says why a graph was not compiled.
    """

    executor: Runner
    report: list[NodeReport]
    program: Program | None = None
    module: Any = None
    params: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    note: str = ""
