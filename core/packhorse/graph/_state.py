"""The tensors of a graph module between runs: whose memory they use, and which were set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from packhorse.errors import ArgumentValueError
from packhorse.graph._arguments import Argument, Arguments, alignment_of, check_aligned
from packhorse.graph._segments import Tensors
from packhorse.graph._storage import Array, entry_dtype, place_all
from packhorse.graph.program import Program
from packhorse.native.memory import address_of
from packhorse.native.runtime import ffi
from packhorse.tensor import Tensor

__all__ = ["State"]

Linked = Callable[[int], int | None]


class State:
    """Inputs (params among them, in the order of ``arg_nodes``) and outputs of a program.

    Everything has memory from the start. Parts of it can be replaced by the caller's, lent by
    another module or lie within the library. Not thread-safe: the graph module has a lock.

    Attributes
    ----------
    inputs, outputs : Arguments
    unset : dict
        Name -> row of the inputs that runs read and nobody set yet.
    params : set of str
        Names of the inputs that were set as params.

    Raises
    ------
    ArtifactError, DeviceMemoryError
        As :func:`packhorse.graph._storage.place`.
    """

    def __init__(self, program: Program) -> None:
        placed = place_all(program)
        self.tensors = Tensors(program, placed)
        self._describe(program, placed.bound_inputs, placed.bound_outputs)

    def _describe(self, program: Program, inputs: set[int], outputs: set[int]) -> None:
        """Rows of what is there; the numbers are of entries that may lie elsewhere."""
        self.program = program
        given, entries = (*program.inputs, *program.params), program.entries
        names = [entries[i].name for i in given]
        self.inputs = Arguments("input", self._rows(given, names, inputs))
        results = self._rows(program.outputs, _output_names(program), outputs)
        self.outputs = Arguments("output", results)
        used = {i for step in program.steps for i in step.inputs} | set(program.outputs)
        self.unset = {row.name: row for row in self.inputs.rows if row.number in used}
        self.params: set[str] = set()

    def _rows(
        self, numbers: tuple[int, ...], names: list[str], replaceable: set[int]
    ) -> list[Argument]:
        rows = []
        for number, name in zip(numbers, names, strict=True):
            entry, view = self.program.entries[number], self._view(number)
            row = Argument(
                name, number, entry_dtype(entry), entry.shape, number in replaceable, view
            )
            rows.append(row)
        return rows

    def _view(self, number: int) -> Any:
        """Where the elements of an entry are."""
        return self.tensors.array(number)

    def tensor(self, row: Argument) -> Tensor:
        """The memory of an input or output, not a copy."""
        return Tensor(row.view)

    def fetched(self, row: Argument) -> Tensor:
        """A copy on the host."""
        return Tensor(row.view.copy())

    def _accept(self, row: Argument, value: Any) -> Any:
        """``value`` as something to copy in; raises as :meth:`Arguments.accept`."""
        return self.inputs.accept(row, value)

    def _home(self, row: Argument) -> Any:
        """The memory of its own."""
        return row.own

    def _write(self, row: Argument, value: Any) -> None:
        np.copyto(row.own, value)

    def set(self, pairs: list[tuple[Argument, Any]]) -> None:
        """Copy arrays in: all of them, or none when one does not fit."""
        for row, value in [(row, self._accept(row, value)) for row, value in pairs]:
            if row.view is not row.own:  # never write into memory that was only lent
                self._point(row, self._home(row))
            self._write(row, value)
            self.unset.pop(row.name, None)

    def replace(self, rows: Arguments, key: Any, value: Any, instead: str) -> None:
        """Use the caller's memory for an input or output from now on."""
        row = rows.find(key)
        what = f"{rows.kind} '{row.name}'"
        array = rows.accept(row, value, exact=True)
        if rows is self.outputs and not array.flags.writeable:
            raise ArgumentValueError(f"the memory of {what} is read-only; pass a writable array")
        check_aligned(what, array, alignment_of(self.program, row.dtype), instead)
        if not row.replaceable:
            raise ArgumentValueError(
                f"{what} shares its memory with other tensors of the graph, so it cannot lie "
                f"elsewhere; use {instead}, which copies"
            )
        self._use(row, array)

    def _use(self, row: Argument, memory: Any) -> None:
        self._point(row, memory)
        self.unset.pop(row.name, None)

    def _point(self, row: Argument, memory: Any) -> None:
        self.tensors.point(row.number, memory)
        row.view = memory

    def load(self, params: Mapping[str, Any]) -> None:
        """Copy params in; names the graph lacks are ignored, as TVM does."""
        rows = [row for row in self.inputs.rows if row.name in params]
        self.set([(row, params[row.name]) for row in rows])
        self.params.update(row.name for row in rows)

    def lend(self, params: Mapping[str, Any]) -> None:
        """Use params where they are; copy those that are strided, unaligned or not replaceable."""
        rows = [row for row in self.inputs.rows if row.name in params]
        accepted = [(row, self._accept(row, params[row.name])) for row in rows]
        self.set([(row, value) for row, value in accepted if not self._lendable(row, value)])
        for row, value in accepted:
            if self._lendable(row, value):
                self._use(row, value)
        self.params.update(row.name for row in rows)

    def _lendable(self, row: Argument, array: Any) -> bool:
        if not row.replaceable or not array.flags.c_contiguous:
            return False
        return not array.size or address_of(array) % alignment_of(self.program, row.dtype) == 0

    def link(self, linked: Linked) -> None:
        """Use weights within the library: ``linked(storage_id)`` is their address, or None.

        TVM 0.8 and 0.9, ``--link-params``. The library must outlive this state.
        """
        for row in self.inputs.rows:
            found = linked(self.program.entries[row.number].storage) if row.replaceable else None
            if not found:
                continue
            raw = ffi.buffer(ffi.cast("char *", int(found)), row.nbytes)
            array = np.frombuffer(raw, np.uint8).view(row.dtype).reshape(row.shape)
            array.flags.writeable = False  # const data of a library
            self.lend({row.name: array})

    def require_set(self) -> None:
        """Refuse to run on memory nobody wrote to.

        Raises
        ------
        ArgumentValueError
            Names what was never set.
        """
        if not self.unset:
            return
        rows = list(self.unset.values())
        shown = ", ".join(map(str, rows[:6])) + (", ..." if len(rows) > 6 else "")
        raise ArgumentValueError(
            f"the graph cannot run: {len(rows)} of its {len(self.inputs.rows)} inputs and params "
            f"were never set: {shown}. Set them with set_input, weights with load_params"
        )

    def release(self) -> None:
        """Let go of all memory."""
        for row in (*self.inputs.rows, *self.outputs.rows):
            row.view = row.own = _NOTHING
        self.tensors.release()


_NOTHING: Array = np.empty(0, np.uint8)


def _output_names(program: Program) -> list[str]:
    """The model's names; TVM writes none, so the names of the nodes, as TVM answers."""
    names: list[str] = []
    for i, (name, number) in enumerate(zip(program.output_names, program.outputs, strict=True)):
        found = program.entries[number].name if name == f"output_{i}" else name
        names.append(found if found not in names else f"{found}:{i}")
    return names
