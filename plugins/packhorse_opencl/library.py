"""What an artifact holds for OpenCL: the text of a program and a table of its kernels.

The file is OpenCL C. Its first line is a comment with the table as JSON, the rest is the text::

    // {"format": "packhorse-opencl", "version": 1, "kernels": [...]}
    #pragma ...
    __kernel void k_ph_0(...) ...

Text and no driver's binary: it is the same for every driver and device whose limits it keeps to.
What a driver made of it is kept by the cache on disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from packhorse.dtype import dlpack_code
from packhorse.errors import ArgumentTypeError, ArtifactError
from packhorse.graph import _json as js
from packhorse.graph.program import MAX_RANK, element_bytes

if TYPE_CHECKING:
    from packhorse.compiler.gpu_schedule import GpuSchedule
    from packhorse.kernel import Kernel

__all__ = ["KIND", "ClArgument", "ClKernel", "ClLibrary"]

KIND = "opencl-text"
"""What ``Module.save_blob`` and ``Device.load`` call it."""
_FORMAT, _VERSION = "packhorse-opencl", 1
_COMMENT = b"// "
_MOST = 1 << 48
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


@dataclass(frozen=True)
class ClArgument:
    """One buffer a kernel takes: ``size`` elements hold a tensor of ``shape``, borders included."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def nbytes(self) -> int:
        """Bytes of memory it needs."""
        return self.size * element_bytes(self.dtype)


@dataclass(frozen=True)
class ClKernel:
    """How one kernel is called.

    Attributes
    ----------
    symbol : str
        Its name as a packed function.
    function : str
        Its name in the text.
    arguments : tuple of ClArgument
    total, group : int
        Work-items in all and in a work-group, in one dimension.
    float64 : bool
        Whether it computes in float64.
    """

    symbol: str
    function: str
    arguments: tuple[ClArgument, ...]
    total: int
    group: int
    float64: bool


@dataclass(frozen=True)
class ClLibrary:
    """A program as plain data: ``text`` is OpenCL C 1.2."""

    text: str
    kernels: tuple[ClKernel, ...]

    @cached_property
    def table(self) -> dict[str, ClKernel]:
        """The kernels by symbol."""
        return {kernel.symbol: kernel for kernel in self.kernels}

    @classmethod
    def of(cls, functions: Sequence[tuple[str, Kernel, GpuSchedule]]) -> ClLibrary:
        """The library of kernels with their schedules.

        Raises
        ------
        CompileError
            A kernel has no form in OpenCL C.
        """
        from packhorse.compiler.lower_gpu import gpu_program

        text = gpu_program(functions, "opencl") if functions else ""
        return cls(text, tuple(_row(*function) for function in functions))

    def blob(self) -> bytes:
        """The file."""
        head = {"format": _FORMAT, "version": _VERSION}
        head["kernels"] = [asdict(kernel) for kernel in self.kernels]
        table = json.dumps(head, separators=(",", ":"))
        return _COMMENT + table.encode("ascii") + b"\n" + self.text.encode("utf-8")

    @classmethod
    def read(cls, blob: bytes) -> ClLibrary:
        """The library in a file. Nothing of it is built.

        Raises
        ------
        ArtifactError
            Not such a file, damaged, or of a newer version.
        """
        head, _, rest = bytes(blob).partition(b"\n")
        if not head.startswith(_COMMENT):
            raise ArtifactError("the OpenCL library does not begin with the table of its kernels")
        found = js.parse(head[len(_COMMENT) :], "the table of the OpenCL library")
        if found.get("format") != _FORMAT:
            raise ArtifactError("the OpenCL library does not begin with a table of packhorse's")
        version = js.integer(found.get("version"), "version of the OpenCL library", 1, 1 << 31)
        if version > _VERSION:
            raise ArtifactError(
                f"the OpenCL library has version {version}, this packhorse reads up to "
                f"{_VERSION}; upgrade it: pip install -U packhorse"
            )
        rows = js.listing(found.get("kernels"), "kernels of the OpenCL library")
        made = cls(_text(rest), tuple(_kernel(row, i) for i, row in enumerate(rows)))
        if len(made.table) < len(made.kernels):
            raise ArtifactError("two kernels of the OpenCL library have the same symbol")
        return made


def _row(symbol: str, kernel: Kernel, plan: GpuSchedule) -> ClKernel:
    from packhorse.compiler.lower_gpu import c_name, nodes

    buffers = [(name, kernel.buffers[name]) for name in kernel.arguments]
    arguments = tuple(ClArgument(name, b.dtype, b.shape, b.size) for name, b in buffers)
    total, group = plan.launch(kernel)
    float64 = "float64" in {node.dtype for node in nodes(kernel)}
    return ClKernel(symbol, c_name(symbol), arguments, total, group, float64)


def _text(raw: bytes) -> str:
    try:
        return js.text(raw.decode("utf-8"), "the text of the OpenCL library")
    except UnicodeDecodeError as error:
        raise ArtifactError(
            f"the text of the OpenCL library is not UTF-8 at byte {error.start}; it is damaged"
        ) from None


def _kernel(value: Any, number: int) -> ClKernel:
    where = f"kernel {number} of the OpenCL library"
    row = js.mapping(value, where)
    symbol, function = (js.text(row.get(k), f"{k} of {where}") for k in ("symbol", "function"))
    if not _NAME.fullmatch(function):
        raise ArtifactError(f"function of {where} is {function!r:.80}, which is no name in C")
    listed = js.listing(row.get("arguments"), f"arguments of {where}")
    group = js.integer(row.get("group"), f"group of {where}", 1, 1 << 20)
    total = js.integer(row.get("total"), f"total of {where}", 0, _MOST)
    if total % group:
        raise ArtifactError(f"{where} has {total} work-items, which groups of {group} cannot share")
    if not isinstance(row.get("float64"), bool):
        raise ArtifactError(f"float64 of {where} must be true or false")
    arguments = tuple(_argument(a, f"argument {i} of {where}") for i, a in enumerate(listed))
    return ClKernel(symbol, function, arguments, total, group, row["float64"])


def _argument(value: Any, where: str) -> ClArgument:
    row: Mapping[str, Any] = js.mapping(value, where)
    name, dtype = (js.text(row.get(key), f"{key} of {where}") for key in ("name", "dtype"))
    try:
        dlpack_code(dtype)
    except ArgumentTypeError as error:
        raise ArtifactError(f"dtype of {where}: {error}") from None
    shape = tuple(js.integers(row.get("shape"), f"shape of {where}", 0, _MOST))
    size = js.integer(row.get("size"), f"size of {where}", 0, _MOST)
    if len(shape) > MAX_RANK:
        raise ArtifactError(f"{where} has {len(shape)} dimensions, at most {MAX_RANK} are possible")
    return ClArgument(name, dtype, shape, size)
