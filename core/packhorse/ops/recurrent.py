"""Recurrent layers: LSTM, GRU, RNN, and com.microsoft DynamicQuantizeLSTM.

The references multiply all time steps by W at once and loop over time for R. The lowerings do
the same: one kernel for X*W, one sequential kernel per direction that keeps its states in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from packhorse.errors import ModelError
from packhorse.kernel.expr import Expr
from packhorse.ops._recurrence import Plan, infer_recurrent, scan
from packhorse.ops._recurrent_lowering import Step, lower_recurrent
from packhorse.ops._window import narrow, wide
from packhorse.ops.quant import dynamic_quantize_linear
from packhorse.ops.registry import Array, operator

__all__ = ["dynamic_quantize_lstm", "gru", "lstm", "rnn"]

States: TypeAlias = tuple[Array, ...]
LSTM, GRU, RNN = ("Sigmoid", "Tanh", "Tanh"), ("Sigmoid", "Tanh"), ("Tanh",)
"""Default activations of one direction."""


@dataclass(frozen=True)
class Inputs:
    """Inputs of a recurrent reference in time-major order, states per direction."""

    x: Array
    w: Array
    r: Array
    b: Array | None
    lengths: Array | None
    initial: Sequence[Array | None]

    def bias(self, d: int, gates: int, hidden: int) -> tuple[Array, Array]:
        """The input and the recurrent bias of direction ``d``."""
        if self.b is None:
            zero = np.zeros(gates * hidden, self.x.dtype)
            return zero, zero
        first, second = np.split(wide(self.b)[d], 2)
        return first, second


def run(
    plan: Plan,
    inputs: Inputs,
    gates: int,
    step: Callable[[int, Array, States, Array], States],
    split_bias: bool = False,
) -> tuple[Array, ...]:
    """All directions; ``step(d, x part, states, recurrent bias)`` makes the next states."""
    x = inputs.x.swapaxes(0, 1) if plan.batch_first else inputs.x
    data, hidden = wide(x), plan.hidden
    outs, finals = [], []
    for d, backward in enumerate(plan.backward):
        first, second = inputs.bias(d, gates, hidden)
        states = []
        for given in inputs.initial:
            if given is None:
                states.append(np.zeros((x.shape[1], hidden), data.dtype))
            else:
                states.append(wide(given[:, d] if plan.batch_first else given[d]))
        part = data @ wide(inputs.w[d]).T + (first if split_bias else first + second)

        def advance(row: Array, now: States, d: int = d, bias: Array = second) -> States:
            return step(d, row, now, bias)

        out, final = scan(part, inputs.lengths, backward, tuple(states), advance)
        outs.append(out)
        finals.append(final)
    everything = np.stack(outs, axis=1)
    last = [np.stack(state) for state in zip(*finals, strict=True)]
    if plan.batch_first:
        everything = everything.transpose(2, 0, 1, 3)
        last = [state.swapaxes(0, 1) for state in last]
    return tuple(narrow(v, x.dtype) for v in (everything, *last))


def express_lstm(s: Step) -> tuple[Expr, ...]:
    """New hidden and cell state of an LSTM as expressions.

    ``clip`` bounds the gates and the candidate, not the cell state: so does onnxruntime.
    """
    f, g, h = (fn.express for fn in s.functions)
    cell, (i, o, forget, candidate) = s.states[1], s.gates
    keep = s.plan.bound
    i = f(keep(s.peep(0, i, cell)))
    forget = 1.0 - i if s.attr("input_forget") else f(keep(s.peep(2, forget, cell)))
    fresh = forget * cell + i * g(keep(candidate))
    o = f(keep(s.peep(1, o, fresh)))
    return o * h(fresh), fresh


def lstm_step(
    plan: Plan,
    r: Sequence[Array],
    p: Array | None,
    input_forget: int,
    seen: Callable[[Array], Array] = lambda hidden: hidden,
) -> Callable[[int, Array, States, Array], States]:
    """One time step of an LSTM in NumPy; ``r[d]`` is (hidden, 4 * hidden).

    ``seen`` maps the hidden state before it meets R (dynamic quantisation rounds it).
    """

    def step(d: int, row: Array, states: States, _: Array) -> States:
        hidden, cell = states
        f, g, h = (fn.reference for fn in plan.functions[d])
        i, o, forget, candidate = np.split(row + seen(hidden) @ r[d], 4, axis=1)
        keep = plan.bounded
        if p is not None:
            peep_i, peep_o, peep_f = np.split(wide(p)[d], 3)
            i, forget = i + peep_i * cell, forget + peep_f * cell
        i = f(keep(i))
        forget = 1 - i if input_forget else f(keep(forget))
        cell = forget * cell + i * g(keep(candidate))
        if p is not None:
            o = o + peep_o * cell
        return f(keep(o)) * h(cell), cell

    return step


@operator(
    "LSTM",
    infer=infer_recurrent(4, 2, LSTM),
    lower=lower_recurrent("LSTM", 4, LSTM, 2, express_lstm),
)
def lstm(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    p: Array | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Array, ...]:
    """Long short-term memory (ONNX LSTM-14); gates in the order i, o, f, c.

    Parameters
    ----------
    x : float array (time, batch, inputs); batch first with ``layout=1``
    w, r : float arrays (directions, 4 * hidden, inputs) and (directions, 4 * hidden, hidden)
    b : float array (directions, 8 * hidden), optional
    sequence_lens : int32 array (batch,), optional
    initial_h, initial_c : float arrays (directions, batch, hidden), optional
    p : float array (directions, 3 * hidden), optional
        Peepholes in the order i, o, f.

    Returns
    -------
    Y (time, directions, batch, hidden), final hidden and cell state (directions, batch, hidden)

    Raises
    ------
    ModelError
        Attributes that contradict the shapes.
    UnsupportedOperator
        An unknown activation.
    """
    plan = Plan.of("LSTM", locals().__getitem__, r.shape[2], LSTM)
    inputs = Inputs(x, w, r, b, sequence_lens, (initial_h, initial_c))
    turned = [wide(m).T for m in r]
    return run(plan, inputs, 4, lstm_step(plan, turned, p, input_forget))


def express_gru(s: Step) -> tuple[Expr, ...]:
    """New hidden state of a GRU with ``linear_before_reset`` as an expression."""
    f, g = (fn.express for fn in s.functions)
    (hidden,), keep = s.states, s.plan.bound
    z, r = (f(keep(s.rows[i] + s.bias[i] + s.products[i])) for i in (0, 1))
    candidate = g(keep(s.rows[2] + r * (s.products[2] + s.bias[2])))
    return ((1.0 - z) * candidate + z * hidden,)


@operator(
    "GRU",
    infer=infer_recurrent(3, 1, GRU),
    lower=lower_recurrent("GRU", 3, GRU, 1, express_gru, split_bias=True),
)
def gru(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Array, ...]:
    """Gated recurrent unit (ONNX GRU-14); gates in the order z, r, h.

    Shapes, results and errors as for LSTM, with 3 gates and no cell state.
    """
    plan = Plan.of("GRU", locals().__getitem__, r.shape[2], GRU)
    hidden_size = plan.hidden
    turned = [wide(m).T for m in r]

    def step(d: int, row: Array, states: States, bias: Array) -> States:
        (hidden,), two = states, 2 * plan.hidden
        f, g = (fn.reference for fn in plan.functions[d])
        both = row[:, :two] + bias[:two] + hidden @ turned[d][:, :two]
        z, reset = np.split(f(plan.bounded(both)), 2, axis=1)
        recurrent, offset = turned[d][:, two:], bias[two:]
        if linear_before_reset:
            inner = reset * (hidden @ recurrent + offset)
        else:
            inner = (reset * hidden) @ recurrent + offset
        candidate = g(plan.bounded(row[:, two:] + inner))
        return ((1 - z) * candidate + z * hidden,)

    inputs = Inputs(x, w, r, b, sequence_lens, (initial_h,))
    return run(plan, inputs, 3, step, split_bias=True)


def express_rnn(s: Step) -> tuple[Expr, ...]:
    """New hidden state of a plain RNN as an expression."""
    return (s.functions[0].express(s.plan.bound(s.gates[0])),)


@operator(
    "RNN", infer=infer_recurrent(1, 1, RNN), lower=lower_recurrent("RNN", 1, RNN, 1, express_rnn)
)
def rnn(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Array, ...]:
    """Simple recurrent layer ``h = f(x W + h R + b)`` (ONNX RNN-14).

    Shapes, results and errors as for LSTM, with one gate and no cell state.
    """
    plan = Plan.of("RNN", locals().__getitem__, r.shape[2], RNN)
    turned = [wide(m).T for m in r]

    def step(d: int, row: Array, states: States, _: Array) -> States:
        f = plan.functions[d][0].reference
        return (f(plan.bounded(row + states[0] @ turned[d])),)

    return run(plan, Inputs(x, w, r, b, sequence_lens, (initial_h,)), 1, step)


def rounded(x: Array) -> Array:
    """What remains of ``x`` after dynamic quantisation to uint8."""
    q, scale, zero = dynamic_quantize_linear(x)
    return np.asarray((q.astype(np.float32) - np.float32(zero)) * scale)


def dequantized(q: Array, scale: Array, zero: Array | None) -> Array:
    """Weights (directions, inputs, 4 * hidden) as float32; scale per direction or channel."""
    offset = np.zeros_like(scale) if zero is None else zero.astype(np.float32)
    shape = (scale.shape[0], 1, -1)
    return np.asarray((q.astype(np.float32) - offset.reshape(shape)) * scale.reshape(shape))


@operator(
    "DynamicQuantizeLSTM", infer=infer_recurrent(4, 2, LSTM, flip=True), domain="com.microsoft"
)
def dynamic_quantize_lstm(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    p: Array | None = None,
    w_scale: Array | None = None,
    w_zero_point: Array | None = None,
    r_scale: Array | None = None,
    r_zero_point: Array | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Array, ...]:
    """LSTM with 8-bit weights and activations quantised on the fly (com.microsoft, version 1).

    Parameters
    ----------
    x : float32 array (time, batch, inputs)
    w, r : int8 or uint8 arrays (directions, inputs, 4 * hidden), (directions, hidden, 4 * hidden)
        Transposed with respect to LSTM.
    w_scale, r_scale : float32 arrays (directions,) or (directions, 4 * hidden)
    w_zero_point, r_zero_point : arrays of the weights' dtype, shaped like the scales

    The rest, the results and the errors are those of LSTM.
    """
    plan = Plan.of("DynamicQuantizeLSTM", locals().__getitem__, r.shape[1], LSTM)
    if w_scale is None or r_scale is None:
        raise ModelError("DynamicQuantizeLSTM: the scales of W and R are required inputs")
    weights = dequantized(w, w_scale, w_zero_point).transpose(0, 2, 1)
    recurrent = dequantized(r, r_scale, r_zero_point)
    inputs = Inputs(rounded(x), weights, r, b, sequence_lens, (initial_h, initial_c))
    return run(plan, inputs, 4, lstm_step(plan, list(recurrent), p, input_forget, rounded))
