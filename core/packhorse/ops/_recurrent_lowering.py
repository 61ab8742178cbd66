"""The one lowering LSTM, GRU and RNN share.

States live in buffers (time + 2, directions, batch, hidden): slot ``t + 1`` holds the state after
time step ``t``, slot 0 the initial state of a forward and slot ``time + 1`` that of a backward
run. So the emitted sequence is the inner slots, whatever the direction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packhorse.errors import UnsupportedOperator
from packhorse.kernel.expr import Affine, Expr, Reduce, affine, cast, const
from packhorse.kernel.lowering import Lazy, Lowering, Operand, axes_of, compute_dtype, lazy
from packhorse.ops._recurrence import Activation, Plan
from packhorse.ops._window import wide

__all__ = ["Step", "lower_recurrent"]


@dataclass(frozen=True)
class Step:
    """What a cell's expression is made of, at one (time, batch, hidden) point.

    ``rows[g]`` is the input part of gate ``g`` (x W + bias), ``products[g]`` is h R, ``bias[g]``
    the recurrent bias where it is kept apart.
    """

    plan: Plan
    functions: tuple[Activation, ...]
    states: tuple[Expr, ...]
    rows: tuple[Expr, ...]
    products: tuple[Expr, ...]
    bias: tuple[Expr, ...]
    peepholes: tuple[Expr, ...]
    attr: Callable[[str], Any]

    @property
    def gates(self) -> tuple[Expr, ...]:
        """Input plus recurrent part of every gate."""
        return tuple(a + b for a, b in zip(self.rows, self.products, strict=True))

    def peep(self, i: int, gate: Expr, cell: Expr) -> Expr:
        """A gate with its peephole connection, if the node has them."""
        return gate + self.peepholes[i] * cell if self.peepholes else gate


@dataclass(frozen=True)
class _Shape:
    time: int
    batch: int
    inputs: int
    many: int


def lower_recurrent(
    name: str,
    gates: int,
    defaults: Sequence[str],
    states: int,
    express: Callable[[Step], tuple[Expr, ...]],
    split_bias: bool = False,
) -> Callable[[Lowering], tuple[Lazy, ...]]:
    """``lower`` of a recurrent operator with that many gates and states."""

    def lower(ctx: Lowering) -> tuple[Lazy, ...]:
        plan = Plan.of(name, ctx.attr, ctx[2].shape[2], defaults)
        x = ctx[0].shape
        time, batch = (x[1], x[0]) if plan.batch_first else x[:2]
        shape = _Shape(time, batch, x[2], len(plan.backward))
        _refuse(ctx, name, shape)
        kept = [_initial(ctx, plan, shape, i) for i in range(states)]
        for d, backward in enumerate(plan.backward):
            rows = _input_part(ctx, plan, shape, d, gates, split_bias)
            _loop(ctx, plan, shape, d, backward, rows, kept, gates, express, split_bias)
        return _results(ctx, plan, shape, kept)

    return lower


def _refuse(ctx: Lowering, name: str, shape: _Shape) -> None:
    if name == "GRU" and not ctx.attr("linear_before_reset"):
        # the reset gate of all hidden units must be known before the candidate's product
        raise UnsupportedOperator("GRU with linear_before_reset=0 is not compiled")
    if not (shape.time and shape.batch and shape.inputs):
        raise UnsupportedOperator(f"{name} over empty data is not compiled")
    if ctx.has(4):
        lengths = ctx[4].constant
        if lengths is None or (lengths != shape.time).any():
            raise UnsupportedOperator(f"{name} with sequences of different lengths is not compiled")


def _initial(ctx: Lowering, plan: Plan, shape: _Shape, i: int) -> Operand:
    """A buffer for state ``i`` with its initial slot written."""
    dtype = compute_dtype(ctx[0].dtype)
    kept = ctx.buffer((shape.time + 2, shape.many, shape.batch, plan.hidden), dtype)
    d, b, h = axes_of(3)
    slot = d * (shape.time + 1) + (shape.time + 1 if plan.backward[0] else 0)
    value: Expr = const(0, dtype)
    if ctx.has(5 + i):
        value = cast(ctx[5 + i].at([b, d, h] if plan.batch_first else [d, b, h]), dtype)
    axes = [("i0", shape.many), ("i1", shape.batch), ("i2", plan.hidden)]
    ctx.kernel(axes, [(kept, [slot, d, b, h], value)])
    return kept


def _weights(operand: Operand) -> Operand:
    return operand if operand.constant is not None else operand.stored()


def _bias(ctx: Lowering, d: int, gates: int, hidden: int, parts: int) -> Operand | None:
    """Input bias (parts=1) or the sum of input and recurrent bias (parts=2), when constant."""
    if not ctx.has(3) or ctx[3].constant is None:
        return None
    both = wide(ctx[3].constant[d]).reshape(2, gates * hidden)[:parts]
    return ctx.constant(np.ascontiguousarray(both.sum(axis=0, dtype=both.dtype)))


def _input_part(
    ctx: Lowering, plan: Plan, shape: _Shape, d: int, gates: int, split_bias: bool
) -> Operand:
    """x W + bias for all time steps: (time, batch, gates * hidden)."""
    n = gates * plan.hidden
    dtype = compute_dtype(ctx[0].dtype)
    out = ctx.buffer((shape.time, shape.batch, n), dtype)
    t, b, g = axes_of(3)
    axis = ctx.axis(shape.inputs)
    k, here = affine(axis[0]), Affine((), d)
    data = ctx[0].stored(last=2).at([b, t, k] if plan.batch_first else [t, b, k])
    value: Expr = Reduce("sum", (axis,), data * _weights(ctx[1]).at([here, g, k]), data.dtype)
    folded = _bias(ctx, d, gates, plan.hidden, 1 if split_bias else 2)
    if folded is not None:
        value = folded.at([g]) + value
    elif ctx.has(3):
        value = ctx[3].at([here, g]) + value
        if not split_bias:
            value = ctx[3].at([here, g + n]) + value
    ctx.kernel([("i0", shape.time), ("i1", shape.batch), ("i2", n)], [(out, [t, b, g], value)])
    return out


def _loop(
    ctx: Lowering,
    plan: Plan,
    shape: _Shape,
    d: int,
    backward: bool,
    rows: Operand,
    kept: Sequence[Operand],
    gates: int,
    express: Callable[[Step], tuple[Expr, ...]],
    split_bias: bool,
) -> None:
    """The sequential kernel of one direction."""
    step, b, h = axes_of(3)
    # backward: step 0 is time T-1, read from slot T+1 and written to slot T
    time = step * -1 + (shape.time - 1) if backward else step
    before, after = (time + 2, time + 1) if backward else (time, time + 1)
    hidden, here = plan.hidden, Affine((), d)
    axis = ctx.axis(hidden)
    k = affine(axis[0])
    previous = kept[0].at([before, here, b, k])
    weights, dtype = _weights(ctx[2]), previous.dtype
    offsets = [h + g * hidden for g in range(gates)]
    zero = const(0, dtype)
    second = split_bias and ctx.has(3)
    made = express(
        Step(
            plan,
            plan.functions[d],
            tuple(s.at([before, here, b, h]) for s in kept),
            tuple(rows.at([time, b, o]) for o in offsets),
            tuple(
                Reduce("sum", (axis,), previous * weights.at([here, o, k]), dtype) for o in offsets
            ),
            tuple(ctx[3].at([here, o + gates * hidden]) if second else zero for o in offsets),
            tuple(ctx[7].at([here, h + i * hidden]) for i in range(3)) if ctx.has(7) else (),
            ctx.attr,
        )
    )
    stores = [(s, [after, here, b, h], v) for s, v in zip(kept, made, strict=True)]
    axes = [("i0", shape.time), ("i1", shape.batch), ("i2", hidden)]
    ctx.kernel(axes, stores, sequential=["i0"])


def _results(ctx: Lowering, plan: Plan, shape: _Shape, kept: Sequence[Operand]) -> tuple[Lazy, ...]:
    """The sequence, then the final states, read from the buffers."""
    i = axes_of(4)
    t, d, b = (i[1], i[2], i[0]) if plan.batch_first else (i[0], i[1], i[2])
    outputs = [lazy(ctx, kept[0].at([t + 1, d, b, i[3]]))]
    first = 1 if plan.backward[0] else shape.time
    d, b = (i[1], i[0]) if plan.batch_first else (i[0], i[1])
    slot = d * (1 - shape.time) + first if shape.many == 2 else Affine((), first)
    for n, state in enumerate(kept, 1):
        if n < len(ctx.output_types):
            outputs.append(lazy(ctx, state.at([slot, d, b, i[2]]), n))
    return tuple(outputs)
