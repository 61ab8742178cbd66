"""What all executors of programs share: who they are, what they take, give and hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from packhorse.errors import ArgumentValueError
from packhorse.graph._inputs import Signature
from packhorse.graph._segments import ExecutorReport
from packhorse.graph.program import Program

__all__ = ["HOST_MEMORY", "Copy", "ProgramExecutor", "check_repeat"]

HOST_MEMORY = "host"
"""What :class:`Copy` calls the memory of the process."""


@dataclass(frozen=True)
class Copy:
    """One copy that a run makes: the value (or the step of the host it is for), from which memory
    to which, and its bytes."""

    what: str
    source: str
    target: str
    nbytes: int

    def __str__(self) -> str:
        return f"{self.what}: {self.source} -> {self.target}, {self.nbytes} bytes"


class ProgramExecutor:
    """Base of the executors: introspection and end of life.

    Attributes
    ----------
    program : Program
    signature : Signature
        Its inputs.
    """

    _report: ExecutorReport

    def __init__(self, program: Program) -> None:
        self.program = program
        self.signature = Signature([program.entries[i] for i in program.inputs])

    def input_info(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Input name -> (dtype, shape), in the order of positional inputs."""
        return self._info(self.program.inputs)

    def param_info(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Param name -> (dtype, shape)."""
        return self._info(self.program.params)

    def output_info(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Output name -> (dtype, shape), in the order :meth:`run` returns them."""
        entries = (self.program.entries[i] for i in self.program.outputs)
        names = self.program.output_names
        return {n: (e.dtype, e.shape) for n, e in zip(names, entries, strict=True)}

    def _info(self, numbers: Sequence[int]) -> dict[str, tuple[str, tuple[int, ...]]]:
        entries = (self.program.entries[i] for i in numbers)
        return {entry.name: (entry.dtype, entry.shape) for entry in entries}

    @property
    def memory_bytes(self) -> int:
        """Bytes of planned memory: intermediate tensors, and weights that had to be copied."""
        return self._report.memory_bytes

    def report(self) -> ExecutorReport:
        """What runs where, and the memory it takes."""
        return self._report

    @property
    def copies(self) -> tuple[Copy, ...]:
        """Inputs that were given as tensors of another device, and so were copied to the host."""
        return tuple(
            Copy(f"'{name}'", source, HOST_MEMORY, nbytes)
            for name, (source, nbytes) in self.signature.copied.items()
        )

    def close(self) -> None:
        """Free what it holds; idempotent."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def check_repeat(repeat: int) -> None:
    """Refuse to profile no run at all: ArgumentValueError."""
    if repeat < 1:
        raise ArgumentValueError(f"repeat must be at least 1, found {repeat}")
