"""GraphExecutor: runs a Program with the functions of a Module.

Everything that can be decided once is decided at creation: memory, argument tensors, plans. A
run checks the inputs, puts their addresses into the argument tensors, and makes one native call
per stretch of compiled steps. Inputs are used where they are and outputs are written where the
caller gets them, so a run copies nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, TypeAlias, cast

import numpy as np

from packhorse.errors import ArtifactError, DeviceClosed
from packhorse.graph._base import ProgramExecutor, check_repeat
from packhorse.graph._inputs import Inputs
from packhorse.graph._segments import (
    ExecutorReport,
    HostRunner,
    ModuleLike,
    Segment,
    Tensors,
    segments,
)
from packhorse.graph._storage import (
    ALIGNMENT,
    Array,
    address,
    entry_dtype,
    live_bytes,
    new_aligned,
    place,
)
from packhorse.graph.program import Program, Step, check
from packhorse.native.memory import aligned_array
from packhorse.native.runtime import ffi

__all__ = ["ExecutorReport", "GraphExecutor", "HostRunner", "Inputs", "live_bytes"]

_UINTPTR = ffi.typeof("uintptr_t")
_cast, _from_buffer, _ndarray, _empty = ffi.cast, ffi.from_buffer, np.ndarray, np.empty
_LOOSE = 64  # what packhorse's own kernels like of weights; they run with any alignment
_Pointers: TypeAlias = tuple[Any, ...]
_Carrier: TypeAlias = np.dtype[Any] | None
_In: TypeAlias = tuple[
    str, np.dtype[Any], tuple[int, ...], _Pointers, Array | None, _Carrier, int, int
]
"""name, dtype, shape, DLTensors to point at it, array to copy it to instead, carrier, bits of the
address that must be 0, entry"""
_Out: TypeAlias = tuple[tuple[int, ...], np.dtype[Any], _Pointers | None, _Carrier, int]
"""shape, dtype, DLTensors to point at it (None: copied after the run), carrier, entry"""


class GraphExecutor(ProgramExecutor):
    """Runs a Program. Create once, run often; close it or let it be collected.

    Parameters
    ----------
    program : Program
        What to run.
    module : Module or None
        Where the functions of the steps are; the global registry is asked next.
    params : mapping of str to ndarray
        The weights by name. Used in place where they are contiguous and aligned, else copied.
        Names that the program does not know are ignored, as TVM does.
    threads : int
        Threads of a parallel launch; 0 means all this process may use.
    host : callable, optional
        ``host(step, inputs, outputs)`` runs the steps ``packhorse.op.*``, writing into outputs.
    strict_alignment : bool, optional
        The compiled code assumes TVM's alignment of 128 bytes, so inputs that lack it are
        copied. Default: what the program says, ``metadata["alignment"] == "strict"``, which
        :func:`~packhorse.graph.graph_json.program_from_json` sets for graphs TVM wrote.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        A param is missing or does not fit.
    ArtifactError
        The program cannot be run.
    FunctionNotFound
        A function is neither in the module nor registered.
    DeviceMemoryError
        The host is out of memory.

    Notes
    -----
    An executor runs once at a time: a lock sees to it. Different executors run in parallel.
    """

    def __init__(
        self,
        program: Program,
        module: ModuleLike | None,
        params: Mapping[str, Array],
        *,
        threads: int = 0,
        host: HostRunner | None = None,
        strict_alignment: bool | None = None,
    ) -> None:
        check(program)
        if strict_alignment is None:
            strict_alignment = program.metadata.get("alignment") == "strict"
        super().__init__(program)
        self._mask = ALIGNMENT - 1 if strict_alignment else 0
        self._lock = threading.Lock()
        placement = place(program, params, ALIGNMENT if strict_alignment else _LOOSE)
        self._tensors = tensors = Tensors(program, placement)
        once = [step for step in program.steps if step.once]
        _check_once(program, once)
        steps = [step for step in program.steps if not step.once]
        self._segments: list[Segment] = segments(steps, tensors, module, host, threads)
        self._prepare(placement.bound_inputs, placement.bound_outputs)
        self._report = self._count(placement.planned, placement.weights, len(once))
        self._keep: ModuleLike | None = module  # plans hold bare addresses of its functions
        self._closed = False
        for segment in segments(once, tensors, module, host, threads):
            segment.run()

    def _prepare(self, bound_inputs: set[int], bound_outputs: set[int]) -> None:
        """The tables :meth:`run` walks: everything about an input or output in one tuple."""
        entries, tensors = self.program.entries, self._tensors
        hosts = any(segment.host for segment in self._segments)
        self._calls = [segment.run for segment in self._segments]
        self._bindings = [i for i in bound_inputs | bound_outputs if hosts]
        self._in: list[_In] = []
        for i in self.program.inputs:
            entry, bound = entries[i], i in bound_inputs
            target = None if bound else tensors.array(i)
            pointers = tensors.pointers(i) if bound else ()
            dtype = entry_dtype(entry)
            mask = self._mask or dtype.alignment - 1
            carrier = _carrier(dtype)
            self._in.append((entry.name, dtype, entry.shape, pointers, target, carrier, mask, i))
        self._out: list[_Out] = []
        for i in self.program.outputs:
            entry, dtype = entries[i], entry_dtype(entries[i])
            place_of = tensors.pointers(i) if i in bound_outputs else None
            self._out.append((entry.shape, dtype, place_of, _carrier(dtype), i))
        self._copied = [
            (k, i) for k, i in enumerate(self.program.outputs) if i not in bound_outputs
        ]
        self._aligned: dict[int, Array] = {}

    def run(self, inputs: Inputs) -> list[Array]:
        """Run the program.

        Parameters
        ----------
        inputs : mapping of str to array, or sequence of arrays
            Arrays of exactly the dtype and shape of :meth:`input_info`, by name or in its order.
            C-contiguous ones are read in place (do not write to them meanwhile), others copied.

        Returns
        -------
        list of ndarray
            The outputs in the order of :meth:`output_info`, new arrays that belong to the caller.

        Raises
        ------
        ArgumentTypeError
            An input is not an array, or of another dtype.
        ArgumentValueError
            An input is missing, unknown, or of another shape.
        DeviceClosed
            The executor was closed.
        PackhorseError
            A step failed; the message names it.
        """
        with self._lock:
            held, outputs = self._bind(inputs)
            for call in self._calls:
                call()
            if self._copied or self._bindings:
                self._finish(outputs)
            del held  # the arrays whose addresses the native call used
            return outputs

    def _bind(self, inputs: Inputs) -> tuple[list[Array], list[Array]]:
        """Check inputs, make outputs, and put their addresses into the argument tensors."""
        if self._closed:
            raise DeviceClosed("this executor was closed; create another to run the program")
        named = inputs
        if type(named) is not dict or len(named) != len(self._in):
            named = self.signature.by_name(inputs)
        held: list[Array] = []
        for name, dtype, shape, pointers, target, carrier, mask, number in self._in:
            array = named.get(name)
            if (
                type(array) is not _ndarray
                or array.dtype is not dtype
                or array.shape != shape
                or not array.flags.c_contiguous
            ):
                array = cast(Array, self.signature.accept(named, name))
            if target is not None:
                np.copyto(target, array)
                continue
            data = int(_cast(_UINTPTR, _from_buffer(array.view(carrier) if carrier else array)))
            if data & mask:
                array = self._realign(number, array)
                data = address(array.view(carrier) if carrier else array)
            for pointer in pointers:
                pointer.data = data
            held.append(array)
        outputs = self._new_outputs()
        if self._bindings:
            self._bind_host(held, outputs)
        return held, outputs

    def _new_outputs(self) -> list[Array]:
        outputs = []
        for shape, dtype, pointers, carrier, _ in self._out:
            if self._mask:
                array, data = new_aligned(shape, dtype)
            else:
                array = _empty(shape, dtype)
                view = array.view(carrier) if carrier else array
                data = int(_cast(_UINTPTR, _from_buffer(view)))
            outputs.append(array)
            for pointer in pointers or ():
                pointer.data = data
        return outputs

    # ------------------------------------------------------------ the less usual ways

    def _realign(self, number: int, array: Array) -> Array:
        if number not in self._aligned:
            self._aligned[number] = aligned_array(array.shape, array.dtype)
        np.copyto(self._aligned[number], array)
        return self._aligned[number]

    def _bind_host(self, held: list[Array], outputs: list[Array]) -> None:
        given = [row[-1] for row in self._in if row[4] is None]
        results = [row[-1] for row in self._out]
        arrays = dict(zip((*given, *results), (*held, *outputs), strict=True))
        for number in self._bindings:
            self._tensors.bind(number, arrays[number])

    def _finish(self, outputs: list[Array]) -> None:
        for k, number in self._copied:
            np.copyto(outputs[k], self._tensors.array(number))
        for number in self._bindings:
            self._tensors.bind(number, None)

    def profile(self, inputs: Inputs, repeat: int = 10) -> list[tuple[str, str, float]]:
        """Time every step: (step name, function, median microseconds), in execution order.

        Raises as :meth:`run`; ArgumentValueError when ``repeat`` is less than 1.
        """
        check_repeat(repeat)
        with self._lock:
            held, outputs = self._bind(inputs)
            rounds = [[t for s in self._segments for t in s.profile()] for _ in range(repeat)]
            self._finish(outputs)
            del held
        return [
            (steps[0][0], steps[0][1], median(t for _, _, t in steps))
            for steps in zip(*rounds, strict=True)
        ]

    def _count(self, planned: int, weights: int, once: int) -> ExecutorReport:
        native = [s for s in self._segments if not s.host]
        return ExecutorReport(
            self.program.name,
            planned,
            weights,
            sum(len(s.steps) for s in native),
            len(native),
            once,
            tuple((t.name, t.function) for s in self._segments if s.host for t in s.steps),
        )

    # ------------------------------------------------------------ end of life

    def close(self) -> None:
        """Free the memory; waits for a run in progress. Closing twice is fine."""
        with self._lock:
            self._closed = True
            self._segments, self._calls, self._in, self._out = [], [], [], []
            self._aligned = {}
            self._tensors.release()
            self._keep = None


def _carrier(dtype: np.dtype[Any]) -> _Carrier:
    """An integer dtype of the same size for dtypes the buffer protocol lacks (bfloat16)."""
    try:
        _from_buffer(np.empty(1, dtype))
    except ValueError:
        return np.dtype(f"uint{8 * dtype.itemsize}")
    return None


def _check_once(program: Program, once: Sequence[Step]) -> None:
    lasting = set(program.params)
    for step in once:
        if not lasting.issuperset(step.inputs):
            raise ArtifactError(
                f"step '{step.name}' is to run once, but reads what only a run brings"
            )
        lasting.update(step.outputs)
