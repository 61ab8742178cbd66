"""Operators by family: shape rule, NumPy reference and, where there are loops, the lowering.

Importing this package fills the table of :mod:`packhorse.ops.registry`. Operators are added to a
family module (or to a new one, named in :data:`FAMILIES`) and nowhere else. Plugins add theirs
through the hook ``packhorse_operators``.
"""

from __future__ import annotations

from importlib import import_module

from packhorse.ops.registry import (
    Inference,
    NotStatic,
    Operator,
    define,
    find,
    get,
    names,
    operator,
    same_as_first,
)

__all__ = [
    "FAMILIES",
    "Inference",
    "NotStatic",
    "Operator",
    "define",
    "find",
    "get",
    "names",
    "operator",
    "same_as_first",
]

FAMILIES = (
    "elementwise",
    "activation",
    "cast",
    "logic",
    "shape",
    "index",
    "gather",
    "scatter",
    "sequence",
    "pad",
    "constant",
    "control",
    "conv",
    "deform",
    "matmul",
    "pool",
    "unpool",
    "reduce",
    "top_k",
    "scan",
    "norm",
    "recurrent",
    "resize",
    "sample",
    "region",
    "signal",
    "quant",
)
"""Modules of this package that register operators when imported."""

for _family in FAMILIES:
    import_module(f"{__name__}.{_family}")
