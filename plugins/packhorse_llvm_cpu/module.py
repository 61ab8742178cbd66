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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from packhorse.compiler.abi_text import SLOTS, library_text
from packhorse.compiler.target import Target
from packhorse.errors import CompileError
from packhorse.module import AddressModule

__all__ = ["JitModule", "link_objects"]

Chunks: TypeAlias = Iterable[bytes | memoryview]

_NUMBER = itertools.count(1)
_FLOAT_BYTES = 4


class Assembler(Protocol):
    """Makes object files of LLVM text, for one target."""

    @property
    def target(self) -> Target:
        """The CPU compiled for."""

    def assemble(self, text: str, name: str) -> bytes:
        """The object file; ``name`` is for errors."""


class JitModule(AddressModule):
    """Packed functions compiled for this process.

    Attributes
    ----------
    objects : list of bytes
        The object files, as LLVM emitted them.
    """

    def __init__(
        self,
        llvm: Any,
        compiler: Any,
        names: Sequence[str],
        objects: Sequence[bytes],
        assembler: Assembler,
    ) -> None:
        self.objects = list(objects)
        self._llvm, self._assembler = llvm, assembler
        addresses, owner = _load(llvm, compiler, names, objects)
        super().__init__(addresses, owner, "llvm-cpu", alignment=_FLOAT_BYTES)

    def export_library(
        self, path: str | os.PathLike[str], data: Mapping[str, Chunks] | None = None
    ) -> Path:
        """Link the objects into a shared library that needs neither packhorse nor LLVM.

        Its functions follow both of TVM's ABIs, see :mod:`packhorse.compiler.abi_text`. A single
        function is also the library's entry: ``__tvm_main__``, ``__tvm_ffi_main``.

        Parameters
        ----------
        path : path-like
            Appears complete or not at all.
        data : mapping of symbol name to chunks of bytes, optional
            Read-only data the library exports besides, aligned to 64 bytes.

        Raises
        ------
        CompileError
            No linker is installed, or it failed; ``log`` holds what it said.
        """
        text = library_text(self.functions, self._assembler.target)
        objects = [*self.objects, self._assembler.assemble(text, "library")]
        objects += [self._embed(name, chunks) for name, chunks in (data or {}).items()]
        return link_objects(objects, Path(path))

    def _embed(self, symbol: str, chunks: Chunks) -> bytes:
        """An object file with data. The assembler reads it: as LLVM text it would be five times
        as long."""
        self._llvm.initialize_native_asmparser()
        handle, name = tempfile.mkstemp(prefix="packhorse-data-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(chunks)
            lines = [*_DATA, f'.incbin "{name}"', ".size {symbol}, .-{symbol}"]
            text = [f'target triple = "{self._assembler.target.triple}"']
            for line in lines:
                plain = line.replace("{symbol}", symbol).replace("\\", "\\5C")
                text.append('module asm "' + plain.replace('"', "\\22") + '"')
            return self._assembler.assemble("\n".join(text), symbol)
        finally:
            os.unlink(name)


_DATA = (
    '.section .rodata.packhorse,"a"', ".globl {symbol}", ".type {symbol}, %object",
    ".balign 64", "{symbol}:",
)  # fmt: skip


def _load(
    llvm: Any, compiler: Any, names: Sequence[str], objects: Sequence[bytes]
) -> tuple[dict[str, int], object]:
    """Addresses of the functions, and what keeps their code in memory."""
    if not objects:
        return {}, None
    builder = llvm.JITLibraryBuilder()
    for data in objects:
        builder.add_object_img(data)
    slots = [name for name in SLOTS if any(name.encode() in data for data in objects)]
    for name in (*names, *slots):
        builder.export_symbol(name)
    try:
        library = builder.link(compiler, f"packhorse{next(_NUMBER)}")
    except RuntimeError as error:
        raise CompileError("LLVM could not load the compiled kernels", str(error)) from error
    _fill(library, slots)
    return {name: library[name] for name in names}, (library, compiler)


def _fill(library: Any, names: Sequence[str]) -> None:
    """What the system's loader and load_module do for a library in a file."""
    from packhorse.native import slot_addresses

    addresses = {**slot_addresses("ffi"), **slot_addresses()}
    for name in names:
        ctypes.c_void_p.from_address(library[name]).value = addresses.get(name, 0)


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
