"""What registers of a Relax VM hold, and what a run of it leaves behind: a trace.

A value is a :class:`View` (tensor), a :class:`Buffer` (storage), a tuple of ints (shape), a list
of values (tuple), a number, a string, a dtype, a :class:`Closure` or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from packhorse.errors import ArtifactError
from packhorse.native.runtime import Abi

__all__ = [
    "FFI_ALIGNMENT",
    "Buffer",
    "Callee",
    "Closure",
    "Source",
    "Step",
    "Trace",
    "View",
    "leaves",
]

Array: TypeAlias = np.ndarray[Any, Any]
Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

FFI_ALIGNMENT = 64
"""What code compiled by TVM 0.22 - 0.27 assumes of every tensor's address."""


class Source(Enum):
    """Where the memory of a buffer comes from."""

    PLANNED = "alloc_storage"
    INPUT = "the caller"
    CONSTANT = "the executable, or parameters that were bound"
    HEAP = "alloc_shape_heap: holds sizes, which depend on nothing but the input shapes"


@dataclass(eq=False, slots=True)
class Buffer:
    """A stretch of memory of ``size`` bytes. ``number`` counts the inputs."""

    memory: Bytes
    source: Source
    number: int = -1
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = len(self.memory)  # a replay lends other memory


@dataclass(eq=False, slots=True)
class View:
    """A contiguous tensor of that shape and dtype at an offset in a buffer.

    ``base`` is the tensor it is a reshaped view of: a buffer may hold several tensors in turn.
    """

    buffer: Buffer
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    base: View | None = None

    @property
    def root(self) -> View:
        """The tensor as it was allocated, the same for all views of its elements."""
        return self.base or self

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def array(self) -> Array:
        """The tensor over the memory its buffer has now."""
        raw = self.buffer.memory[self.offset : self.offset + self.nbytes]
        return raw.view(self.dtype).reshape(self.shape)

    @property
    def key(self) -> tuple[int, int, tuple[int, ...], np.dtype[Any]]:
        """Equal for views of the same elements."""
        return id(self.buffer), self.offset, self.shape, self.dtype


@dataclass(frozen=True, slots=True)
class Closure:
    """A function of the table; ``bound`` are its last arguments."""

    function: int
    bound: tuple[Any, ...] = ()


class Callee(NamedTuple):
    """A packed function the machine calls. ``address`` is None when it is Python."""

    name: str
    function: Callable[..., Any]
    address: int | None
    abi: Abi = "ffi"


class Step(NamedTuple):
    """One recorded call. ``native``: all arguments are tensors, nothing is returned."""

    callee: Callee
    args: tuple[Any, ...]
    native: bool

    def views(self) -> Iterator[View]:
        """The tensors among its arguments."""
        return (arg for arg in self.args if isinstance(arg, View))

    def call(self) -> Any:
        """Call it with arrays over the tensors' present memory."""
        return self.callee.function(
            *(arg.array if isinstance(arg, View) else arg for arg in self.args)
        )


@dataclass
class Trace:
    """The calls of one run, in order, and what it returned.

    ``dynamic`` says why another run with the same shapes may make other calls; empty if none may.
    """

    steps: list[Step] = field(default_factory=list)
    result: list[Any] = field(default_factory=list)
    dynamic: str = ""


def leaves(value: Any) -> list[Any]:
    """Tensors, shapes and numbers of a returned value; tuples are flattened, depth first.

    Raises
    ------
    ArtifactError
        It holds something that has no form as an array, or a tuple that contains itself.
    """
    found: list[Any] = []
    stack, seen = [value], 0
    while stack:
        seen += 1
        top = stack.pop()
        if isinstance(top, list) and seen < 100_000:
            stack += reversed(top)
        elif isinstance(top, View | tuple | int | float):
            found.append(top)
        elif top is not None or value is not None:
            raise ArtifactError(
                f"the Relax function returned a {type(top).__name__}, which has no form as an "
                "array; return tensors, shapes and numbers"
            )
    return found
