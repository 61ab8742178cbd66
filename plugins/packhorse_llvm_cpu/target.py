"""Targets: the CPU of this machine as LLVM sees it, or another model of its architecture."""

from __future__ import annotations

import importlib
import os
import platform
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from packhorse.compiler.target import Target
from packhorse.errors import CompileError, MissingExtra

__all__ = ["host_target", "llvm_module"]

# Only what changes the code we emit. CPUID leaves that hypervisors fill with noise (XOP or FMA4
# on an Intel CPU) would make LLVM emit instructions that trap, so nothing else is passed on.
_X86_FEATURES = (
    "sse", "sse2", "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "f16c",
    "bmi", "bmi2", "lzcnt", "movbe", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl",
    "avx512ifma", "avx512vbmi", "avx512vbmi2", "avx512vnni", "avx512bitalg", "avx512vpopcntdq",
    "avx512bf16", "avxvnni",
)  # fmt: skip
_ARM_FEATURES = ("neon", "fp-armv8", "fullfp16", "dotprod", "i8mm", "bf16", "lse")


def llvm_module() -> Any:
    """The ``llvmlite.binding`` module, its targets initialised.

    Raises
    ------
    MissingExtra
        llvmlite is not installed.
    """
    try:
        binding: Any = importlib.import_module("llvmlite.binding")
    except ImportError as error:
        raise MissingExtra("llvmlite", "llvm-cpu", "compiling for the CPU") from error
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


def _cache_bytes(level: int, otherwise: int) -> int:
    """Size of this CPU's data cache of a level, from sysfs; a usual size where there is none."""
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if int((folder / "level").read_text()) != level:
                continue
            if (folder / "type").read_text().strip() == "Instruction":
                continue
            match = re.fullmatch(r"(\d+)([KM]?)", (folder / "size").read_text().strip())
        except (OSError, ValueError):
            continue
        if match:
            return int(match[1]) << {"": 0, "K": 10, "M": 20}[match[2]]
    return otherwise


def _widths(arch: str, features: tuple[str, ...]) -> tuple[int, int]:
    """Bytes of a vector register and their number."""
    if "+avx512f" in features and "+avx512vl" in features and "+avx512bw" in features:
        return 64, 32
    if "+avx2" in features:
        return 32, 16
    return (16, 32) if arch in ("aarch64", "arm64") else (16, 16)


@lru_cache(maxsize=8)
def host_target(cpu: str = "", threads: int = 0) -> Target:
    """The machine this process runs on, or another CPU model of its architecture.

    Parameters
    ----------
    cpu : str
        An LLVM CPU name; empty: the host's own, with the features it really has.
    threads : int
        Threads to feed; 0: as many as the affinity mask allows.

    Raises
    ------
    MissingExtra
        llvmlite is not installed.
    CompileError
        LLVM does not know the CPU.
    """
    binding = llvm_module()
    triple = str(binding.get_process_triple())
    arch = triple.partition("-")[0]
    name = cpu or str(binding.get_host_cpu_name())
    if cpu:
        features = _model_features(arch, cpu)
    else:
        known = _X86_FEATURES if arch in ("x86_64", "i686", "i386") else _ARM_FEATURES
        host = dict(binding.get_host_cpu_features())
        features = tuple(("+" if host.get(f) else "-") + f for f in known if f in host)
    vector_bytes, registers = _widths(arch, features)
    return Target(
        triple=triple,
        cpu=name,
        features=features,
        vector_bytes=vector_bytes,
        vector_registers=registers,
        l1_bytes=_cache_bytes(1, 32 << 10),
        l2_bytes=_cache_bytes(2, 512 << 10),
        threads=threads or _affinity(),
    )


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


_V2 = ("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt")
_V3 = (*_V2, "avx", "avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_LEVELS = {"x86-64": (), "x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}
_MODELS = {
    "haswell": "x86-64-v3", "broadwell": "x86-64-v3", "skylake": "x86-64-v3",
    "znver1": "x86-64-v3", "znver2": "x86-64-v3", "znver3": "x86-64-v3",
    "alderlake": "x86-64-v3", "raptorlake": "x86-64-v3", "znver4": "x86-64-v4",
    "znver5": "x86-64-v4", "skylake-avx512": "x86-64-v4", "cascadelake": "x86-64-v4",
    "icelake-server": "x86-64-v4", "icelake-client": "x86-64-v4", "rocketlake": "x86-64-v4",
    "tigerlake": "x86-64-v4", "sapphirerapids": "x86-64-v4", "graniterapids": "x86-64-v4",
    "nehalem": "x86-64-v2", "westmere": "x86-64-v2", "generic": "x86-64",
}  # fmt: skip


def _model_features(arch: str, cpu: str) -> tuple[str, ...]:
    """Features of a named model, by its x86-64 level."""
    if platform.machine() not in ("x86_64", "AMD64") or not arch.startswith("x86"):
        return ()
    level = cpu if cpu in _LEVELS else _MODELS.get(cpu)
    if level is None:
        known = ", ".join(sorted({*_LEVELS, *_MODELS}))
        raise CompileError(f"unknown CPU '{cpu}'. Known are: {known}")
    return tuple("+" + f for f in _LEVELS[level])
