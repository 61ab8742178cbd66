"""The C core: thread pool, workspace, last error, plans of packed calls, library loader.

Only ``tensor``, ``function``, ``module``, the executor and the CPU backends use it. Names are
loaded when first used, so importing this package alone loads neither cffi nor the extension.

==================  ==============================================================
``Slot``            one DLTensor in native memory
``Plan``            packed calls that run in one native call, GIL released
``Library``         a shared library with the runtime's functions filled in
``slot_addresses``  the functions compiled code calls back, by slot name
``aligned_empty``   128-byte aligned host memory
``thread_count``    threads a run may use
==================  ==============================================================
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packhorse.native.cpus import thread_count
    from packhorse.native.library import Library
    from packhorse.native.memory import ALIGNMENT, aligned_empty
    from packhorse.native.plan import Plan, Slot
    from packhorse.native.runtime import slot_addresses

__all__ = [
    "ALIGNMENT",
    "Library",
    "Plan",
    "Slot",
    "aligned_empty",
    "slot_addresses",
    "thread_count",
]

_HOME = {
    "ALIGNMENT": "memory",
    "Library": "library",
    "Plan": "plan",
    "Slot": "plan",
    "aligned_empty": "memory",
    "slot_addresses": "runtime",
    "thread_count": "cpus",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
