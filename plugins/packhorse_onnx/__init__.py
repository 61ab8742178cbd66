"""The ONNX frontend: :func:`import_onnx` reads ``.onnx`` files into graphs.

Needs the package onnx (``pip install 'packhorse[onnx]'``), which is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packhorse_onnx.importer import import_onnx

__all__ = ["import_onnx"]


def __getattr__(name: str) -> Any:
    if name != "import_onnx":
        raise AttributeError(f"module 'packhorse_onnx' has no attribute '{name}'")
    from packhorse.errors import MissingExtra

    try:
        import onnx  # noqa: F401
    except ImportError:
        raise MissingExtra("onnx", "onnx", "reading ONNX models") from None
    from packhorse_onnx.importer import import_onnx

    return import_onnx
