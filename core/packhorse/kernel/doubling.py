"""The smallest kernel there is to run: what ``Device.check()`` compiles."""

from __future__ import annotations

from packhorse.kernel.expr import Affine, Load
from packhorse.kernel.kernel import Kernel, Store, contiguous

__all__ = ["doubling_kernel"]


def doubling_kernel() -> Kernel:
    """``y = x + x`` over three float32, 12 bytes each; the arguments are x and y."""
    i = Affine((("i", 1),))
    x = Load("x", (i,), "float32")
    buffers = {name: contiguous((3,), "float32") for name in ("x", "y")}
    return Kernel("check", (("i", 3),), (Store("y", (i,), x + x),), buffers)
