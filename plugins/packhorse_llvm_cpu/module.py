"""Compiled objects as a module: loaded into this process, or linked into a shared library."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packhorse.compiler.llvm_text import PARALLEL_SLOT
from packhorse.errors import CompileError
from packhorse.module import AddressModule

__all__ = ["JitModule", "link_objects"]

_NUMBER = itertools.count(1)
_FLOAT_BYTES = 4


class JitModule(AddressModule):
    """Packed functions compiled for this process.

    Attributes
    ----------
    objects : list of bytes
        The object files, as LLVM emitted them.
    """

    def __init__(
        self, llvm: Any, compiler: Any, names: Sequence[str], objects: Sequence[bytes]
    ) -> None:
        self.objects = list(objects)
        addresses, owner = _load(llvm, compiler, names, objects)
        super().__init__(addresses, owner, "llvm-cpu", alignment=_FLOAT_BYTES)

    def export_library(self, path: str | os.PathLike[str]) -> Path:
        """Link the objects into a shared library that needs neither packhorse nor LLVM.

        Raises
        ------
        CompileError
            No linker is installed, or it failed; ``log`` holds what it said.
        """
        return link_objects(self.objects, Path(path))


def _load(
    llvm: Any, compiler: Any, names: Sequence[str], objects: Sequence[bytes]
) -> tuple[dict[str, int], object]:
    """Addresses of the functions, and what keeps their code in memory."""
    if not objects:
        return {}, None
    builder = llvm.JITLibraryBuilder()
    threaded = any(PARALLEL_SLOT.encode() in data for data in objects)
    for data in objects:
        builder.add_object_img(data)
    for name in names:
        builder.export_symbol(name)
    if threaded:
        builder.export_symbol(PARALLEL_SLOT)
    try:
        library = builder.link(compiler, f"packhorse{next(_NUMBER)}")
    except RuntimeError as error:
        raise CompileError("LLVM could not load the compiled kernels", str(error)) from error
    if threaded:
        from packhorse.native import slot_addresses

        slots = slot_addresses()
        launch = slots.get(PARALLEL_SLOT, slots.get(PARALLEL_SLOT.removeprefix("__"), 0))
        ctypes.c_void_p.from_address(library[PARALLEL_SLOT]).value = launch
    return {name: library[name] for name in names}, (library, compiler)


def _linkers() -> Iterator[list[str]]:
    """Command lines that link a shared library here, fastest first."""
    if sys.platform.startswith("linux"):
        for name in ("ld.lld", "ld"):
            if shutil.which(name):
                yield [name, "-shared", "-z", "noexecstack"]
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            yield [name, "-shared", *([] if sys.platform == "darwin" else ["-nostdlib"])]
    if find_spec("ziglang") is not None:
        yield [sys.executable, "-m", "ziglang", "cc", "-shared", "-nostdlib"]


def link_objects(objects: Sequence[bytes], path: Path) -> Path:
    """Link object files into ``path``, which appears complete or not at all.

    Raises
    ------
    CompileError
        No linker, or none of them succeeded.
    """
    logs = []
    with tempfile.TemporaryDirectory(prefix="packhorse-link-") as folder:
        names = []
        for i, data in enumerate(objects):
            names.append(str(Path(folder, f"{i}.o")))
            Path(names[-1]).write_bytes(data)
        result = Path(folder, "library.so")
        for command in _linkers():
            line = [*command, "-o", str(result), *names]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                _place(result, path)
                return path
            logs.append(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr.strip()}")
    if logs:
        raise CompileError(f"linking '{path.name}' failed with every linker found", "\n".join(logs))
    raise CompileError(
        "no linker was found: looked for ld.lld, ld, cc, gcc, clang and ziglang. "
        "Install one of them, for instance with: pip install 'packhorse[link]'"
    )


def _place(source: Path, path: Path) -> None:
    """Copy to a temporary name beside ``path``, flush to disk, rename."""
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as out, open(source, "rb") as data:
            shutil.copyfileobj(data, out)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(name, 0o755)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
