"""From kernels to object files: text, LLVM, cache."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import packhorse.compiler.llvm_text as _text_module
from packhorse.compiler.abi_support import support_text
from packhorse.compiler.llvm_text import emit_llvm
from packhorse.compiler.schedule import Schedule
from packhorse.compiler.target import Target
from packhorse.disk_cache import DiskCache
from packhorse.errors import CompileError
from packhorse.kernel import Kernel
from packhorse_llvm_cpu.module import JitModule
from packhorse_llvm_cpu.target import llvm_module

__all__ = ["Codegen"]

_SOURCES = (
    "abi_support", "abi_text", "access", "accumulate", "evaluate", "llvm_builder", "llvm_math",
    "llvm_num", "llvm_ops", "llvm_power", "llvm_text", "lower_cpu", "memory", "schedule",
)  # fmt: skip
_LOCK = threading.Lock()  # LLVM contexts are not shared between threads


@functools.lru_cache(maxsize=1)
def _generator() -> str:
    """Digest of the code generator's own sources: a changed generator misses the cache."""
    folder = Path(_text_module.__file__).parent
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((folder / f"{name}.py").read_bytes())
    return digest.hexdigest()


class Codegen:
    """Compiles kernels for one target."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._llvm = llvm_module()
        machine = self._llvm.Target.from_triple(target.triple)
        options = {"cpu": target.cpu, "features": target.feature_string, "opt": 1}
        self._machine = machine.create_target_machine(reloc="pic", codemodel="default", **options)
        self._tuning = self._llvm.create_pipeline_tuning_options(speed_level=1)
        jit_machine = machine.create_target_machine(jit=True, **options)
        self._jit = self._llvm.create_lljit_compiler(jit_machine)
        versions = f"{version('llvmlite')} {self._llvm.llvm_version_info}"
        self._salt = f"{versions} {target!r} {_generator()}"
        self._cache = DiskCache("kernels")

    def module(self, functions: Sequence[tuple[str, Kernel, Schedule]]) -> JitModule:
        """Compile (or fetch) each kernel and load them as one module."""
        objects = [self.object(*function) for function in functions]
        if objects:
            objects.append(self.support())
        names = [name for name, _, _ in functions]
        with _LOCK:
            return JitModule(self._llvm, self._jit, names, objects, self)

    def object(self, symbol: str, kernel: Kernel, plan: Schedule) -> bytes:
        """The object file of one kernel, from the cache if it is there.

        Raises
        ------
        CompileError
            The kernel and its schedule do not fit, or LLVM refused the text.
        """
        return self._cached(
            f"{symbol} {kernel.digest} {plan!r}",
            kernel.name,
            lambda: emit_llvm(kernel, plan, self.target, symbol),
        )

    def support(self) -> bytes:
        """The object file that every library needs once: what its kernels share."""
        return self._cached("support", "support", lambda: support_text(self.target))

    def _cached(self, identity: str, name: str, text: Callable[[], str]) -> bytes:
        key = hashlib.sha256(f"{self._salt} {identity}".encode()).hexdigest()
        found = self._cache.get(key)
        if found is None:
            found = self.assemble(text(), name)
            self._cache.put(key, found)
        return found

    def assemble(self, text: str, name: str) -> bytes:
        """Object file of LLVM text. One pass suffices: the text needs its accumulators turned
        into registers, nothing else."""
        with _LOCK:
            try:
                module = self._llvm.parse_assembly(text)
                module.data_layout = str(self._machine.target_data)
                module.verify()
            except RuntimeError as error:
                raise CompileError(
                    f"LLVM refused the code of kernel '{name}'. This is a bug of packhorse's "
                    "code generator: please report it with the kernel",
                    str(error),
                ) from error
            builder = self._llvm.create_pass_builder(self._machine, self._tuning)
            passes = self._llvm.create_new_function_pass_manager()
            passes.add_sroa_pass()
            for function in module.functions:
                if not function.is_declaration:
                    passes.run(function, builder)
            return bytes(self._machine.emit_object(module))
