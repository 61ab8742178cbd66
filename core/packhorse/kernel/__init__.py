"""The kernel language: scalar expressions, loop nests, and what operators lower to.

A leaf package: it imports nothing of packhorse, so operators, compiler and backends all build on
it. ``expr`` (what is computed) <- ``kernel`` (over which loops, from which memory) <- ``lowering``
(what an operator's ``lower`` sees).
"""

from packhorse.kernel.expr import Affine, Axis, Expr
from packhorse.kernel.kernel import Buffer, Dim, Kernel, Store, contiguous

__all__ = ["Affine", "Axis", "Buffer", "Dim", "Expr", "Kernel", "Store", "contiguous"]
