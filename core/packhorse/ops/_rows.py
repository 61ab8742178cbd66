"""Reductions along rows, the shape normalisations share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from packhorse.errors import UnsupportedOperator
from packhorse.kernel.expr import Expr, Reduce, affine
from packhorse.kernel.lowering import Lowering, Operand, axes_of

__all__ = ["Rows"]


class Rows:
    """Reductions of one operand over some of its axes, for every output element.

    ``at`` gives the element at the output index with the reduced axes replaced.
    """

    def __init__(self, ctx: Lowering, x: Operand, axes: Sequence[int]) -> None:
        self.ctx, self.x, self.axes = ctx, x, tuple(axes)
        self.count = math.prod(x.shape[a] for a in axes)
        if not self.count:
            raise UnsupportedOperator("a normalisation over no elements is not compiled")

    @property
    def here(self) -> Expr:
        """The element at the output index."""
        return self.x.at(axes_of(len(self.x.shape)))

    def over(self, combine: str, fn: Callable[[Expr], Expr] = lambda value: value) -> Expr:
        """``combine`` of ``fn(element)`` over the axes."""
        bound = {a: self.ctx.axis(self.x.shape[a]) for a in self.axes}
        index = list(axes_of(len(self.x.shape)))
        for a, (name, _) in bound.items():
            index[a] = affine(name)
        body = fn(self.x.at(index))
        return Reduce(combine, tuple(bound.values()), body, body.dtype)

    def mean(self, fn: Callable[[Expr], Expr] = lambda value: value) -> Expr:
        """Mean of ``fn(element)`` over the axes."""
        return self.over("sum", fn) * (1 / self.count)
