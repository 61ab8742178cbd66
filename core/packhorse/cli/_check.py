"""The check of one device, run by ``packhorse doctor`` in a process of its own."""

from __future__ import annotations

from packhorse.device import device
from packhorse.plugin.child import answer

__all__: list[str] = []


def _check(name: str) -> str:
    """What went wrong, or an empty string."""
    try:
        device(name).check()
    except Exception as error:
        # Whatever a backend does wrong belongs into the report.
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    answer(_check)
