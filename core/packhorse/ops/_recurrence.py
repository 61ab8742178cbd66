"""What the recurrent operators share: attributes, activations, time loops, shape rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Expr, call, select
from packhorse.ops.registry import Array, Inference
from packhorse.ops.rules import text

__all__ = ["ACTIVATIONS", "Activation", "Plan", "infer_recurrent", "scan"]


@dataclass(frozen=True)
class Activation:
    """An activation function with its alpha and beta bound."""

    reference: Callable[[Array], Array]
    express: Callable[[Expr], Expr]


@dataclass(frozen=True)
class _Row:
    """Functions of the value and of as many of alpha and beta as have defaults."""

    reference: Callable[..., Any]
    express: Callable[..., Expr]
    defaults: tuple[float, ...] = ()


def _sigmoid(x: Array) -> Array:
    # tanh saturates where exp would overflow
    return 0.5 * np.tanh(0.5 * x) + 0.5


def _clamp(x: Expr, low: float, high: float) -> Expr:
    return call("min", call("max", x, low), high)


ACTIVATIONS = {
    "sigmoid": _Row(_sigmoid, lambda x: call("sigmoid", x)),
    "tanh": _Row(np.tanh, lambda x: call("tanh", x)),
    "relu": _Row(lambda x: np.maximum(x, 0), lambda x: call("max", x, 0.0)),
    "affine": _Row(lambda x, a, b: a * x + b, lambda x, a, b: x * a + b, (1.0, 0.0)),
    "leakyrelu": _Row(
        lambda x, a: np.where(x < 0, a * x, x),
        lambda x, a: select(call("lt", x, 0.0), x * a, x),
        (0.01,),
    ),
    "thresholdedrelu": _Row(
        lambda x, a: np.where(x > a, x, 0).astype(x.dtype),
        lambda x, a: select(call("gt", x, a), x, 0.0),
        (1.0,),
    ),
    "scaledtanh": _Row(
        lambda x, a, b: a * np.tanh(b * x), lambda x, a, b: call("tanh", x * b) * a, (1.0, 1.0)
    ),
    "hardsigmoid": _Row(
        lambda x, a, b: np.clip(a * x + b, 0, 1),
        lambda x, a, b: _clamp(x * a + b, 0.0, 1.0),
        (0.2, 0.5),
    ),
    "elu": _Row(
        lambda x, a: np.where(x < 0, a * np.expm1(np.minimum(x, 0)), x),
        lambda x, a: select(call("lt", x, 0.0), (call("exp", x) - 1.0) * a, x),
        (1.0,),
    ),
    "softsign": _Row(lambda x: x / (1 + np.abs(x)), lambda x: x / (call("abs", x) + 1.0)),
    "softplus": _Row(
        lambda x: np.logaddexp(x, x.dtype.type(0)),
        lambda x: call("max", x, 0.0)
        + call("log", call("exp", -call("abs", x)) + 1.0),
    ),
}  # fmt: skip
"""Activations of ONNX LSTM, GRU and RNN by lower-case name."""


def _activations(
    label: str, names: Sequence[str | bytes], alphas: Sequence[float], betas: Sequence[float]
) -> list[Activation]:
    """Bind alpha and beta, which are consumed in order by the functions that use them."""
    given = iter(alphas), iter(betas)
    found = []
    for raw in names:
        row = ACTIVATIONS.get(text(raw).lower())
        if row is None:
            raise UnsupportedOperator(
                f"{label}: activation '{text(raw)}' is not implemented. "
                f"Known are {', '.join(sorted(ACTIVATIONS))}"
            )
        found.append(_bind(row, tuple(next(g, d) for g, d in zip(given, row.defaults))))  # noqa: B905
    return found


def _bind(row: _Row, values: tuple[float, ...]) -> Activation:
    return Activation(
        lambda x: np.asarray(row.reference(x, *values)), lambda x: row.express(x, *values)
    )


@dataclass(frozen=True)
class Plan:
    """Resolved attributes of a recurrent node.

    ``backward[d]`` tells whether direction ``d`` runs from the end; ``functions[d]`` are its
    activations. ``clip`` bounds what enters an activation, None for no bound.
    """

    hidden: int
    backward: tuple[bool, ...]
    functions: tuple[tuple[Activation, ...], ...]
    clip: float | None
    batch_first: bool

    @classmethod
    def of(
        cls, label: str, attr: Callable[[str], Any], hidden: int, defaults: Sequence[str]
    ) -> Plan:
        """Resolve attributes; ``defaults`` are the activations of one direction.

        Raises
        ------
        ModelError
            Unknown direction, hidden_size that contradicts R, wrong number of activations.
        UnsupportedOperator
            An activation packhorse does not know.
        """
        ways = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
        direction = text(attr("direction"))
        if direction not in ways:
            raise ModelError(
                f"{label}: direction is '{direction}', expected one of {', '.join(ways)}"
            )
        backward = ways[direction]
        if attr("hidden_size") not in (None, hidden):
            raise ModelError(
                f"{label}: hidden_size is {attr('hidden_size')}, but R has {hidden} columns. "
                "They must be equal"
            )
        names = attr("activations") or [*defaults] * len(backward)
        count = len(defaults)
        if len(names) != count * len(backward):
            raise ModelError(
                f"{label}: {len(names)} activations for direction '{direction}', "
                f"expected {count * len(backward)}"
            )
        alphas, betas = attr("activation_alpha") or (), attr("activation_beta") or ()
        functions = _activations(label, names, alphas, betas)
        split = tuple(tuple(functions[d * count : (d + 1) * count]) for d in range(len(backward)))
        return cls(hidden, backward, split, attr("clip") or None, bool(attr("layout")))

    def bounded(self, x: Array) -> Array:
        """``x`` clipped (NumPy)."""
        return x if self.clip is None else np.clip(x, -self.clip, self.clip)

    def bound(self, x: Expr) -> Expr:
        """``x`` clipped (expression)."""
        return x if self.clip is None else _clamp(x, -self.clip, self.clip)


def infer_recurrent(gates: int, states: int, defaults: Sequence[str], flip: bool = False) -> Any:
    """Shape rule of LSTM (4 gates, 2 states), GRU (3, 1) and RNN (1, 1).

    ``flip``: weights are (directions, inputs, gates * hidden), as in com.microsoft operators.
    """

    def infer(ctx: Inference) -> list[TensorType]:
        label, x, w, r = ctx.node.label, ctx.shape(0), ctx.shape(1), ctx.shape(2)
        if len(x) != 3 or len(w) != 3 or len(r) != 3:
            raise ModelError(f"{label}: X {x}, W {w} and R {r} must have three dimensions")
        hidden = r[1] if flip else r[2]
        plan = Plan.of(label, ctx.attr, hidden, defaults)
        time, batch = (x[1], x[0]) if plan.batch_first else x[:2]
        many, wide = len(plan.backward), gates * hidden
        expected: dict[int, tuple[str, tuple[int, ...]]] = {
            1: ("W", (many, x[2], wide) if flip else (many, wide, x[2])),
            2: ("R", (many, hidden, wide) if flip else (many, wide, hidden)),
            3: ("B", (many, 2 * wide)),
            4: ("sequence_lens", (batch,)),
        }
        state = (batch, many, hidden) if plan.batch_first else (many, batch, hidden)
        expected |= {5 + i: (f"initial_{'hc'[i]}", state) for i in range(states)}
        if states == 2:
            expected[7] = ("P", (many, 3 * hidden))
        for i, (name, shape) in expected.items():
            if ctx.has(i) and ctx.shape(i) != shape:
                raise ModelError(f"{label}: {name} has shape {ctx.shape(i)}, expected {shape}")
        every = (batch, time, many, hidden) if plan.batch_first else (time, many, batch, hidden)
        dtype = ctx.type(0).dtype
        types = [TensorType(dtype, every)] + [TensorType(dtype, state)] * states
        return types[: len(ctx.node.outputs)]

    return infer


def scan(
    x: Array,
    lengths: Array | None,
    backward: bool,
    states: tuple[Array, ...],
    step: Callable[[Array, tuple[Array, ...]], tuple[Array, ...]],
) -> tuple[Array, tuple[Array, ...]]:
    """Run ``step`` over time in one direction.

    Parameters
    ----------
    x : array (time, batch, n)
        What ``step`` gets, one time step after the other.
    lengths : int array (batch,), optional
        Steps of each sequence; outputs behind it are 0 and its states stay. A backward run
        starts at the last step of each sequence.
    states : tuple of arrays (batch, hidden)
        Initial states; the first is what is emitted.

    Returns
    -------
    array (time, batch, hidden) in the order of ``x``, and the final states
    """
    time, batch = x.shape[:2]
    steps = np.arange(time)[:, None]
    ends = np.full(batch, time) if lengths is None else lengths.astype(np.int64)
    # reading and writing back use the same order: it is its own inverse
    order = np.where(steps < ends, ends - 1 - steps, steps)[:, :, None]
    if backward:
        x = np.take_along_axis(x, order, axis=0)
    out = np.zeros((time, batch, states[0].shape[1]), x.dtype)
    for t in range(time):
        made = step(x[t], states)
        if lengths is not None:
            alive = (t < ends)[:, None]
            made = tuple(np.where(alive, new, old) for new, old in zip(made, states, strict=True))
            out[t] = np.where(alive, made[0], 0)
        else:
            out[t] = made[0]
        states = made
    return (np.take_along_axis(out, order, axis=0) if backward else out), states
