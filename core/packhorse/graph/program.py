"""A Program: the calls of a compiled graph, and the memory they share.

This is the content of ``deploy.json`` in TVM's graph-JSON schema, as plain data: what the
compiler produces, what artifacts hold, and what :class:`~packhorse.graph.executor.GraphExecutor`
runs. :mod:`packhorse.graph.graph_json` writes and reads the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from packhorse.errors import ArtifactError

__all__ = ["MAX_RANK", "MAX_STORAGE", "NOP", "Entry", "Program", "Step", "check", "element_bytes"]

NOP = "__nop"
"""The function that does nothing: its output is a view of its input."""
MAX_RANK = 32
MAX_STORAGE = 1 << 40
"""Most bytes all storages of one program may ask for together; more is a damaged file."""

_DTYPE = re.compile(
    r"(bool|handle|(?:int|uint|float|bfloat|complex)(\d{1,3})(_\w{1,16})?)(?:x(\d{1,4}))?"
)


@lru_cache(maxsize=256)
def element_bytes(dtype: str) -> int:
    """Bytes of one element in memory: ``ceil(bits * lanes / 8)`` as in TVM's graph executor.

    Knows NumPy's names and TVM's (``uint1``, ``float32x4``, ``handle``).

    Raises
    ------
    ArtifactError
        Not the name of a dtype.
    """
    match = _DTYPE.fullmatch(dtype)
    bits = 0
    if match:
        word, digits, _, lanes = match.groups()
        bits = int(digits or {"bool": 8, "handle": 64}[word]) * int(lanes or 1)
    if not bits:
        raise ArtifactError(f"'{dtype[:40]}' is not a dtype; expected one like float32 or int8")
    return (bits + 7) // 8


@dataclass(frozen=True)
class Entry:
    """One tensor. Entries with the same ``storage`` share memory (the planner saw to it that
    their lifetimes allow it). ``shape`` is physical: layouts, halos and packing included; it is
    the logical shape for graph inputs and outputs."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    storage: int

    @property
    def nbytes(self) -> int:
        """Bytes the tensor occupies."""
        return element_bytes(self.dtype) * math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Step:
    """One packed call: arguments are the ``inputs`` then the ``outputs`` entries.

    ``function`` is looked up in the module, then in the global registry. ``__nop`` does nothing
    (its output shares the storage of its input). ``once`` marks steps whose effect lasts (zero
    borders): the executor runs them when it is created, other runtimes run them every time.
    Steps of the host (``packhorse.op.*``) carry their operator's attributes in ``attrs``;
    ``attrs["flatten_data"] == "1"`` passes every argument with one dimension (TVM).
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

    def storage_bytes(self) -> dict[int, int]:
        """Storage id -> bytes: the largest entry that lies in it."""
        sizes: dict[int, int] = {}
        for entry in self.entries:
            sizes[entry.storage] = max(sizes.get(entry.storage, 0), entry.nbytes)
        return sizes


def check(program: Program, max_storage: int = MAX_STORAGE) -> None:
    """Make sure that a program can be run: before anything is allocated.

    Every entry number exists, every entry read was given or written before, names of inputs and
    params are unique, shapes, storages and their sum are within bounds.

    Raises
    ------
    ArtifactError
        Names what is wrong and where.
    """
    for number, entry in enumerate(program.entries):
        _check_entry(number, entry)
    _check_given(program)
    ready = {*program.inputs, *program.params}
    for step in program.steps:
        _check_numbers(program, f"step '{step.name}'", (*step.inputs, *step.outputs))
        early = [i for i in step.inputs if i not in ready]
        if early:
            raise ArtifactError(
                f"step '{step.name}' reads entry {early[0]} before any step wrote it; "
                "steps must be in execution order"
            )
        ready.update(step.outputs)
    _check_outputs(program, ready)
    total = sum(program.storage_bytes().values())
    if total > max_storage:
        raise ArtifactError(
            f"the program asks for {total} bytes of memory, more than the limit of {max_storage}; "
            "the file is damaged, or the limit is too low for this model"
        )


def _check_entry(number: int, entry: Entry) -> None:
    rank, where = len(entry.shape), f"entry {number} ('{entry.name}')"
    if rank > MAX_RANK:
        raise ArtifactError(f"{where} has {rank} dimensions, at most {MAX_RANK} are possible")
    if any(not 0 <= d < 1 << 48 for d in entry.shape):
        raise ArtifactError(f"{where} has the impossible shape {list(entry.shape)!s:.200}")
    if not 0 <= entry.storage < 1 << 31:
        raise ArtifactError(f"{where} has storage id {entry.storage!s:.40}, expected 0 or more")
    element_bytes(entry.dtype)


def _check_given(program: Program) -> None:
    given = (*program.inputs, *program.params)
    _check_numbers(program, "the list of inputs and params", given)
    seen: set[str] = set()
    for name in (program.entries[i].name for i in given):
        if name in seen:
            raise ArtifactError(f"two inputs or params are called '{name}'; names must be unique")
        seen.add(name)


def _check_outputs(program: Program, ready: set[int]) -> None:
    _check_numbers(program, "the list of outputs", program.outputs)
    if len(program.output_names) != len(program.outputs):
        raise ArtifactError(
            f"{len(program.output_names)} output names for {len(program.outputs)} outputs"
        )
    missing = [i for i in program.outputs if i not in ready and program.entries[i].nbytes]
    if missing:
        raise ArtifactError(f"output entry {missing[0]} is never written by a step")


def _check_numbers(program: Program, where: str, numbers: tuple[int, ...]) -> None:
    count = len(program.entries)
    for number in numbers:
        if not 0 <= number < count:
            raise ArtifactError(f"{where} names entry {number!s:.40}, but there are {count}")
