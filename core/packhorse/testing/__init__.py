"""The conformance kit: what a backend must do, as tests that its author runs.

A test file of a backend is five lines::

    from packhorse.testing import BackendConformance


    class TestAcme(BackendConformance):
        device = "acme:0"

and ``pytest --packhorse-device acme:0 --pyargs packhorse.testing`` needs no file at all.
:mod:`packhorse.testing.onnx_suite` runs ONNX's own tests; ``packhorse testing onnx`` is that as a
command. Needs pytest, and onnx for the latter: ``pip install 'packhorse[testing]'``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packhorse.testing.conformance import BackendConformance

__all__ = ["BackendConformance"]


def __getattr__(name: str) -> Any:
    # pytest loads packhorse.testing.plugin at every start: nothing heavy may hang on this package
    if name != "BackendConformance":
        raise AttributeError(f"module 'packhorse.testing' has no attribute '{name}'")
    from packhorse.testing.conformance import BackendConformance

    return BackendConformance
