"""Where the tensors of a program lie: one zeroed, aligned block for all planned storages.

:func:`place` decides per storage whether it is planned memory, a weight used where it is, or
memory that comes with each run (the caller's input arrays, fresh output arrays).
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from packhorse import dtype as dtypes
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ArtifactError,
    DeviceMemoryError,
    did_you_mean,
)
from packhorse.graph.program import NOP, Entry, Program
from packhorse.native.runtime import ffi

__all__ = [
    "ALIGNMENT",
    "Placement",
    "address",
    "check_weights",
    "entry_dtype",
    "live_bytes",
    "new_aligned",
    "place",
    "place_all",
    "replaceable",
    "view",
]

Array: TypeAlias = np.ndarray[Any, Any]

ALIGNMENT = 128
"""What libraries compiled by TVM assume of every tensor (64 before 0.7 and after 0.9)."""
_CACHE_LINE = 64
_PAGE, _SKEW = 4096, 5 * ALIGNMENT

_UINTPTR = ffi.typeof("uintptr_t")
_cast, _from_buffer = ffi.cast, ffi.from_buffer
_live: dict[int, int] = {}  # changed by single dict operations only: finalizers run anywhere
_serial = itertools.count()


def live_bytes() -> int:
    """Bytes of planned memory that executors hold at the moment, in the whole process."""
    return sum(list(_live.values()))


def address(array: Array) -> int:
    """Address of the first element of a C-contiguous array, read-only ones included."""
    return int(_cast(_UINTPTR, _from_buffer(array)))


def entry_dtype(entry: Entry) -> np.dtype[Any]:
    """The NumPy dtype of an entry; TVM's ``uint1`` is bool."""
    try:
        return dtypes.dtype("bool" if entry.dtype == "uint1" else entry.dtype)
    except ArgumentTypeError as error:
        raise ArtifactError(f"entry '{entry.name}': {error}") from None


def new_aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Array, int]:
    """An uninitialised array where TVM's code may write, and its address. On every run: quick."""
    nbytes = math.prod(shape) * dtype.itemsize
    block = np.empty(nbytes + ALIGNMENT, np.uint8)
    base = int(_cast(_UINTPTR, _from_buffer(block)))
    start = -base % ALIGNMENT
    return np.ndarray(shape, dtype, block, start), base + start


def view(memory: Array, entry: Entry) -> Array:
    """An entry's tensor within the uint8 array of its storage."""
    return memory[: entry.nbytes].view(entry_dtype(entry)).reshape(entry.shape)


@dataclass
class Placement:
    """What :func:`place` decided.

    Attributes
    ----------
    memory : dict of storage id to uint8 array
        Planned storages and weights. Storages bound per run are not in it.
    bound_inputs, bound_outputs : set of entry numbers
        Entries whose memory comes with each run; other inputs and outputs are copied.
    planned, weights : int
        Bytes allocated; bytes of weights used without a copy.
    """

    memory: dict[int, Array]
    bound_inputs: set[int]
    bound_outputs: set[int]
    planned: int
    weights: int


def place(program: Program, params: Mapping[str, Array], alignment: int) -> Placement:
    """Allocate the memory of a program and put its weights there.

    Raises
    ------
    ArgumentValueError, ArgumentTypeError
        A param is missing, or has another shape or dtype than the program says.
    ArtifactError
        Two inputs or params lie in the same storage.
    DeviceMemoryError
        The host is out of memory.
    """
    sizes = program.storage_bytes()
    written = _written(program)
    bound_inputs, bound_outputs = _bound(program, program.inputs, sizes, written)
    weights = check_weights(program, params)
    memory = {
        storage: array
        for storage, array in weights.items()
        if storage not in written
        and array.nbytes == sizes[storage]
        and address(array) % alignment == 0
    }
    used = sum(array.nbytes for array in memory.values())
    elsewhere = {program.entries[i].storage for i in bound_inputs | bound_outputs} | set(memory)
    planned = {s: n for s, n in sizes.items() if s not in elsewhere}
    arena, total = _arena(planned)
    memory |= arena
    for storage, array in weights.items():
        if storage in arena:
            arena[storage][: array.nbytes] = array
    return Placement(memory, bound_inputs, bound_outputs, total, used)


def place_all(program: Program) -> Placement:
    """Allocate every storage, inputs, params and outputs included: what lasts between runs.

    ``bound_inputs`` (params among them) and ``bound_outputs`` are the entries whose memory may
    be replaced by the caller's. Raises ArtifactError and DeviceMemoryError as :func:`place`.
    """
    memory, total = _arena(program.storage_bytes())
    return Placement(memory, *replaceable(program), total, 0)


def replaceable(program: Program) -> tuple[set[int], set[int]]:
    """Entries whose memory may be the caller's: inputs (params among them), and outputs."""
    given = (*program.inputs, *program.params)
    return _bound(program, given, program.storage_bytes(), _written(program))


def _written(program: Program) -> set[int]:
    """Storages that steps write to."""
    return {
        program.entries[i].storage
        for step in program.steps
        if step.function != NOP
        for i in step.outputs
    }


def _bound(
    program: Program, arguments: Sequence[int], sizes: Mapping[int, int], written: set[int]
) -> tuple[set[int], set[int]]:
    """Inputs used where the caller has them, outputs written where the caller gets them.

    An input's storage must never be written, nor be read beyond the input. An output's storage
    must hold nothing larger, nothing that lasts between runs, and no other output.
    """
    of = [entry.storage for entry in program.entries]
    lasting = {of[i] for step in program.steps if step.once for i in step.outputs}
    given = [of[i] for i in (*program.inputs, *program.params)]
    if len(set(given)) < len(given):
        raise ArtifactError("two inputs or params lie in the same storage; each needs its own")
    results = [of[i] for i in program.outputs]
    exact = {i for i, entry in enumerate(program.entries) if sizes[of[i]] == entry.nbytes}
    inputs = {i for i in arguments if i in exact and of[i] not in {*written, *results}}
    taken = {*given, *lasting}
    outputs = {
        i
        for i in program.outputs
        if i in exact and of[i] not in taken and of[i] in written and results.count(of[i]) == 1
    }
    return inputs, outputs


def check_weights(program: Program, params: Mapping[str, Array]) -> dict[int, Array]:
    """Storage -> the bytes of the param that lies there, checked, copied only if scattered."""
    found = {}
    for number in program.params:
        entry = program.entries[number]
        if entry.name not in params:
            raise ArgumentValueError(
                f"param '{entry.name}' is missing{did_you_mean(entry.name, params)}; the program "
                f"needs {len(program.params)} params, {len(params)} were given"
            )
        array, dtype = np.asarray(params[entry.name]), entry_dtype(entry)
        if array.dtype != dtype:
            raise ArgumentTypeError(
                f"param '{entry.name}' must be {dtype}, found {array.dtype}; were these params "
                "saved with this program?"
            )
        if array.shape != entry.shape:
            raise ArgumentValueError(
                f"param '{entry.name}' must have shape {entry.shape}, found {array.shape}; were "
                "these params saved with this program?"
            )
        found[entry.storage] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return found


def _arena(sizes: Mapping[int, int]) -> tuple[dict[int, Array], int]:
    """All planned storages in one zeroed block, each aligned.

    One block lets the system use huge pages. Large storages are set off by a few cache lines, so
    that tensors of 2^k bytes do not meet in the same cache sets and store-buffer slots.
    """
    offsets, end = {}, 0
    for storage, size in sorted(sizes.items()):
        offsets[storage] = end
        end += -(-size // ALIGNMENT) * ALIGNMENT + (_SKEW if size >= _PAGE else 0)
    try:
        block = np.zeros(end + ALIGNMENT, np.uint8)
    except (MemoryError, ValueError):
        raise DeviceMemoryError(
            f"the host could not allocate {end} bytes for the tensors of the program; use smaller "
            "shapes or close other executors"
        ) from None
    number = next(_serial)
    _live[number] = end
    weakref.finalize(block, _live.pop, number, None).atexit = False
    start = -address(block) % ALIGNMENT
    return {s: block[start + o : start + o + sizes[s]] for s, o in offsets.items()}, end
