"""How many threads a run may use: affinity mask, cgroup quota, ``PACKHORSE_NUM_THREADS``."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from packhorse._config import setting
from packhorse.errors import ArgumentValueError

__all__ = ["available_cpus", "cgroup_quota", "thread_count"]


@functools.cache
def thread_count() -> int:
    """Threads a run uses unless told otherwise: at least 1, never more than may run at once.

    The smallest of the affinity mask, the cgroup CPU quota (rounded down) and
    ``PACKHORSE_NUM_THREADS``. Computed once per process.

    Raises
    ------
    ArgumentValueError
        ``PACKHORSE_NUM_THREADS`` is not a positive integer.
    """
    available = available_cpus()
    asked = setting("PACKHORSE_NUM_THREADS")
    if asked is None:
        return available
    if not asked.isdecimal() or int(asked) < 1:
        raise ArgumentValueError(
            f"PACKHORSE_NUM_THREADS is '{asked}'; set it to a positive integer, or unset it to "
            f"use all {available} CPUs this process may use"
        )
    return min(int(asked), available)


def available_cpus() -> int:
    """CPUs this process may use: affinity mask and cgroup quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = cgroup_quota(Path("/"))
    return max(1, count if quota is None else min(count, int(quota)))


def cgroup_quota(root: Path) -> float | None:
    """CPUs' worth of time the process's cgroups grant; None when unlimited or not Linux.

    Reads cgroup v2 (``cpu.max``) and v1 (``cpu.cfs_quota_us``), every level up to the mount:
    the tightest counts. In a container the path may lie outside the mount; then only its root
    is seen, which is the container's own group. See the kernel's Documentation/admin-guide.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` are: ``/``, or a copy of both in tests.
    """
    found = [quota for folder in _groups(root) if (quota := _quota(folder)) is not None]
    return min(found) if found else None


def _groups(root: Path) -> Iterator[Path]:
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        bases = [mount / controllers, mount / "cpu"] if controllers else [mount, mount / "unified"]
        parts = PurePosixPath(path.lstrip("/"))
        for base in bases:
            yield from (base / level for level in (parts, *parts.parents))


def _quota(folder: Path) -> float | None:
    v2 = _read(folder / "cpu.max").split()
    if len(v2) == 2:
        return _ratio(v2[0], v2[1])
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    quota, period = quota.strip(), period.strip()  # "max" and "-1" mean no limit
    if quota.isdecimal() and period.isdecimal() and int(period) > 0:
        return int(quota) / int(period)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
