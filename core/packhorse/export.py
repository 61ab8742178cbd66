"""Writing what other runtimes load: a model as one shared library.

:meth:`packhorse.executable.Executable.save` with a path ending in ``.so`` writes the graph and
the weights into the library itself, as a ``GraphExecutorFactory`` in TVM's ``__tvm_dev_mblob``:

>>> lib = tvm.runtime.load_module("deploy.so")                      # doctest: +SKIP
>>> graph = tvm.contrib.graph_executor.GraphModule(lib["default"](tvm.cpu()))  # doctest: +SKIP

:mod:`packhorse.export_relax` writes the same for the Relax VM of newer TVMs.

Source: TVM's library_module.cc and graph_executor_factory.cc (0.7 to 0.19), dmlc's serializer.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from packhorse.graph._segments import HOST_PREFIX
from packhorse.graph.graph_json import program_to_json
from packhorse.graph.params import Array, params_chunks
from packhorse.graph.program import Program

__all__ = [
    "BLOB",
    "Chunk",
    "factory_blob",
    "host_operators",
    "include_dir",
    "string",
    "tree",
    "warn_of_host_operators",
    "word",
]

BLOB = "__tvm_dev_mblob"
"""The symbol under which a library holds modules besides its code."""

_log = logging.getLogger("packhorse.export")
Chunk: TypeAlias = "bytes | memoryview"


def include_dir() -> str:
    """Folder of ``packhorse.h``, the C header for programs that call compiled libraries."""
    return str(Path(__file__).with_name("include"))


def host_operators(program: Program) -> list[str]:
    """Operators that run by their NumPy references: packhorse has them, other runtimes lack them.

    Sorted, each once.
    """
    found = {s.function for s in program.steps if s.function.startswith(HOST_PREFIX)}
    return sorted(name.removeprefix(HOST_PREFIX) for name in found)


def warn_of_host_operators(program: Program, what: str) -> None:
    """Log a warning when what is being saved will run in packhorse only."""
    missing = host_operators(program)
    if missing:
        _log.warning(
            "%s runs in packhorse only: %s %s no compiled kernel and run%s by the NumPy reference, "
            "which TVM lacks. Executable.report() names the nodes",
            what, ", ".join(missing), *(("has", "s") if len(missing) == 1 else ("have", "")),
        )  # fmt: skip


def factory_blob(
    program: Program, params: Mapping[str, Array], name: str = "default"
) -> list[Chunk]:
    """The content of ``__tvm_dev_mblob``: a factory of this graph that imports the library.

    Parameters
    ----------
    program : Program
    params : mapping of str to ndarray
        Its weights; not copied.
    name : str
        The function that makes a graph module; TVM's own name is "default".

    Returns
    -------
    list of bytes or memoryview
        To be written one after the other.

    Raises
    ------
    ArtifactError
        The program is not one that could be run.
    ArgumentTypeError
        A weight has a dtype that the format lacks.
    """
    body: list[Chunk] = [
        word(3),
        string("GraphExecutorFactory"),
        string(program_to_json(program)),
        word(len(params)),
        word(len(params)),
        *map(string, params),
    ]
    body += islice(params_chunks(params), 2, None)  # a params file: head, names, then the arrays
    body += [string(name), string("_lib"), string("_import_tree"), *tree([[1], []])]
    return [word(sum(len(chunk) for chunk in body)), *body]


def tree(children: Sequence[Sequence[int]]) -> Iterable[bytes]:
    """Which module imports which, in compressed rows; module 0 is the root."""
    rows = [0]
    for row in children:
        rows.append(rows[-1] + len(row))
    for numbers in (rows, [child for row in children for child in row]):
        yield word(len(numbers)) + b"".join(map(word, numbers))


def word(value: int) -> bytes:
    """A u64, little endian."""
    return struct.pack("<Q", value)


def string(value: str) -> bytes:
    """A length and UTF-8."""
    raw = value.encode()
    return word(len(raw)) + raw
