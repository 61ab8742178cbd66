"""What ``pytest --packhorse-device DEVICE --pyargs packhorse.testing`` collects."""

from __future__ import annotations

from packhorse.testing.conformance import BackendConformance

__all__ = ["TestDevice"]


class TestDevice(BackendConformance):
    """The conformance kit on the device of the command line; skipped where there is none."""

    from_command_line = True
