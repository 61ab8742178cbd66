"""What the machine grants this process: processors, instruction sets, quota, memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from packhorse.cli._output import bytes_text
from packhorse.cpu import default_threads, host_name, total_memory
from packhorse.errors import PackhorseError

__all__ = ["cpu_features", "cpu_quota", "facts"]

_FEATURES = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "amx_tile", "neon", "asimd", "asimddp", "sve", "sve2", "rvv",
)  # fmt: skip
"""Instruction sets that matter to kernels, by their names in /proc/cpuinfo."""


def facts() -> Iterator[tuple[str, str]]:
    """Rows of the doctor's report."""
    yield "processor", host_name()
    yield "features", " ".join(cpu_features()) or "unknown"
    yield "processors", str(os.cpu_count() or "unknown")
    if hasattr(os, "sched_getaffinity"):
        yield "affinity", f"{len(os.sched_getaffinity(0))} processors"
    quota = cpu_quota()
    yield "cgroup quota", "none" if quota is None else f"{quota:g} processors"
    try:
        yield "threads used", str(default_threads())
    except PackhorseError as error:
        yield "threads used", f"unknown: {error}"
    yield "memory", bytes_text(total_memory()) or "unknown"


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Instruction sets of the processor that matter to kernels; empty where unknown."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            present = set(value.split())
            return [name for name in _FEATURES if name in present]
    return []


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Processors the cgroup grants (v2 ``cpu.max``, v1 ``cpu.cfs_quota_us``); None: no limit."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()[:2]
        else:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
