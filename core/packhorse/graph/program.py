"""A Program: the calls of a compiled graph, and the memory they share.

This is the content of ``deploy.json`` in TVM's graph-JSON schema, as plain data: what the
compiler produces, what artifacts hold, and what :class:`~packhorse.graph.executor.GraphExecutor`
runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Entry", "Program", "Step"]


@dataclass(frozen=True)
class Entry:
    """One tensor. Entries with the same ``storage`` share memory (the planner saw to it that
    their lifetimes allow it). ``shape`` is physical: layouts, halos and packing included; it is
    the logical shape for graph inputs and outputs."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    storage: int


@dataclass(frozen=True)
class Step:
    """One packed call: arguments are the ``inputs`` then the ``outputs`` entries.

    ``function`` is looked up in the module, then in the global registry. ``__nop`` does nothing
    (its output shares the storage of its input). ``once`` marks steps whose effect lasts (zero
    borders): the executor runs them when it is created, other runtimes run them every time.
    Steps of the host (``packhorse.op.*``) carry their operator's attributes in ``attrs``.
    """

    function: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    name: str
    once: bool = False
    attrs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """Steps in execution order over a table of entries.

    ``inputs``, ``params`` and ``outputs`` are entry numbers; each of those entries has a storage
    of its own, except that an output may share the storage of the step output it views.
    ``output_names`` are the model's names (graph JSON has none). ``metadata`` is free text pairs.
    """

    name: str
    entries: tuple[Entry, ...]
    inputs: tuple[int, ...]
    params: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    output_names: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
