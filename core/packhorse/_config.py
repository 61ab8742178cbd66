"""Environment variables and the cache directory: the one table of both.

An explicit argument beats a variable. No behaviour depends on a ``PACKHORSE_`` variable that is
not in :data:`ENVIRONMENT`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a list of devices needs no paths
    from pathlib import Path

__all__ = ["ENVIRONMENT", "cache_dir", "cache_usage", "flag", "names", "setting"]

ENVIRONMENT: Mapping[str, str] = {
    "PACKHORSE_DEVICE": "device used when none is named; a device, a list or auto (default: auto)",
    "PACKHORSE_CACHE_DIR": "where compiled kernels are kept (default: the user's cache directory)",
    "PACKHORSE_PLUGINS": "off, or the only plugins to use: a,b (default: every installed one)",
    "PACKHORSE_DISABLE": "plugins not to use: a,b",
    "PACKHORSE_TRACE_PLUGINS": "1 writes every plugin hook call and its result to stderr",
    "PACKHORSE_NUM_THREADS": "threads per run (default: affinity mask and cgroup quota)",
    "PACKHORSE_LOG": "log level of the command line: debug, info, warning (default), error",
    "PACKHORSE_DEBUG": "1 makes the command line show the traceback of an error",
    "PACKHORSE_RPC_TOKEN": "secret for rpc devices; never written in a device string",
    "PACKHORSE_MODELS_DIR": "where tests and benchmarks look for trained models",
}
"""Every variable packhorse reads, with its meaning."""

_FALSE = frozenset({"", "0", "no", "false", "off"})


def setting(name: str) -> str | None:
    """Value of a variable of :data:`ENVIRONMENT`; None when unset or empty.

    Raises
    ------
    KeyError
        The variable is not in the table: add it there first.
    """
    if name not in ENVIRONMENT:
        raise KeyError(f"{name} is not in packhorse._config.ENVIRONMENT")
    return os.environ.get(name, "").strip() or None


def flag(name: str) -> bool:
    """True when the variable is set to anything but 0, no, false or off."""
    return (setting(name) or "").lower() not in _FALSE


def names(value: str | None) -> tuple[str, ...]:
    """The words of a comma-separated list, lower case, in order and without repeats."""
    words = (word.strip().lower() for word in (value or "").split(","))
    return tuple(dict.fromkeys(word for word in words if word))


def _user_cache() -> Path:
    from pathlib import Path

    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: a relative path is invalid and must be ignored.
    return Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"


def cache_dir(*parts: str) -> Path:
    """The cache directory or a directory below it; not created.

    ``$PACKHORSE_CACHE_DIR``, else ``packhorse`` in the user's cache directory
    (``$XDG_CACHE_HOME`` or ``~/.cache`` on Linux).
    """
    from pathlib import Path

    chosen = setting("PACKHORSE_CACHE_DIR")
    root = Path(chosen).expanduser() if chosen else _user_cache() / "packhorse"
    return root.joinpath(*parts)


def cache_usage() -> tuple[int, int]:
    """Number of files in the cache directory and their bytes; (0, 0) when there is none."""
    files = total = 0
    for folder, _, found in os.walk(cache_dir()):
        for file in found:
            try:
                total += os.stat(os.path.join(folder, file), follow_symlinks=False).st_size
                files += 1
            except OSError:  # removed by another process since it was listed
                continue
    return files, total
