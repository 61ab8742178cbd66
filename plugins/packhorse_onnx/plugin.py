"""Entry point of the ONNX frontend (group ``packhorse.frontends``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packhorse.errors import ArgumentValueError, did_you_mean
from packhorse.graph.ir import Graph
from packhorse.plugin import FrontendInfo, hookimpl

INFO = FrontendInfo(
    name="onnx",
    suffixes=(".onnx",),
    summary="ONNX models, opset 1 and later",
    extra="onnx",
    requires=("onnx",),
)

OPTIONS = ("folder", "strict")


@hookimpl
def packhorse_frontend_info(name: str) -> FrontendInfo:
    """Static description."""
    return INFO


@hookimpl
def packhorse_import_model(
    source: Any, fmt: str | None, options: Mapping[str, Any]
) -> Graph | None:
    """Read a path ending in ``.onnx``, an ``onnx.ModelProto``, or anything when ``fmt`` is onnx.

    Options: ``folder`` and ``strict`` of :func:`packhorse_onnx.import_onnx`.
    """
    if fmt not in (None, INFO.name) or (fmt is None and not _is_onnx(source)):
        return None
    for option in options:
        if option not in OPTIONS:
            raise ArgumentValueError(
                f"the ONNX frontend has no option '{option}'{did_you_mean(option, OPTIONS)}; "
                f"it takes {', '.join(OPTIONS)}"
            )
    from packhorse_onnx import import_onnx

    return import_onnx(source, **options)


def _is_onnx(source: Any) -> bool:
    if isinstance(source, (str, Path)):
        return str(source).lower().endswith(INFO.suffixes)
    return type(source).__name__ == "ModelProto"
