"""Kernels that only read constants run once, not in every replay: a transposed weight, say.

TVM runs them each time. Kernels tell nobody which arguments they write; by TVM's destination-
passing style it is fresh tensors at the end. Files may also hold kernels that work in place, so a
tensor is only made a constant if every kernel that takes it has a fresh last argument, and the
caller replays the result once and drops it unless :meth:`Folded.restore` finds nothing written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from packhorse.graph.relax_values import Buffer, Source, Step, Trace, View
from packhorse.native.memory import aligned_empty

__all__ = ["Folded", "fold"]

RunNative = Callable[[Sequence[Step]], None]
Cache = dict[Any, Buffer]


@dataclass
class Folded:
    """A trace without the calls that were made once.

    Attributes
    ----------
    trace : Trace
    made : list of (Buffer, ndarray)
        The new constants, and copies of what they hold.
    """

    trace: Trace
    made: list[tuple[Buffer, np.ndarray[Any, Any]]] = field(default_factory=list)

    def restore(self) -> bool:
        """Undo what kernels wrote into the new constants; False when they wrote nothing."""
        spoiled = [pair for pair in self.made if not np.array_equal(pair[0].memory, pair[1])]
        for buffer, copy in spoiled:  # other plans may use it
            buffer.memory[...] = copy
        return bool(spoiled)


def fold(trace: Trace, run_native: RunNative, cache: Cache) -> Folded | None:
    """Run the calls that depend on constants alone, and leave them out.

    Parameters
    ----------
    trace : Trace
        It stays as it is.
    run_native : callable
        Runs native steps.
    cache : dict
        Tensors that were made for other traces of the same executable, by what made them.

    Returns
    -------
    Folded or None
        None when there is no such call, or some call cannot be seen through.
    """
    if not all(step.native for step in trace.steps):
        return None
    done = Folded(Trace())
    constants: dict[View, Buffer] = {}
    written: set[View] = set()
    for step in trace.steps:
        views = list(step.views())
        fresh = views[-1].buffer.source is Source.PLANNED and views[-1].root not in written
        known = [view.root in constants for view in views]
        if any(known) and not fresh:
            return None  # it may work in place
        constant = (view.buffer.source is Source.CONSTANT for view in views[:-1])
        foldable = fresh and len(views) > 1
        if foldable and all(a or b for a, b in zip(constant, known, strict=False)):
            constants[views[-1].root] = _make(step, views, constants, run_native, cache)
        else:
            done.trace.steps.append(step._replace(args=tuple(_moved(views, constants))))
        written.update(view.root for view in views)
    done.trace.result = _moved(trace.result, constants)
    done.made = [(buffer, buffer.memory.copy()) for buffer in constants.values()]
    return done if constants else None


def _make(
    step: Step,
    views: list[View],
    constants: dict[View, Buffer],
    run_native: RunNative,
    cache: Cache,
) -> Buffer:
    *inputs, out = _moved(views, constants)
    key = (step.callee.address, *(view.key for view in inputs), out.shape, out.dtype)
    if key not in cache:
        buffer = Buffer(aligned_empty(out.nbytes), Source.CONSTANT)
        target = View(buffer, 0, out.shape, out.dtype)
        run_native([step._replace(args=(*inputs, target))])
        cache[key] = buffer
    return cache[key]


def _moved(values: Sequence[Any], constants: dict[View, Buffer]) -> list[Any]:
    """The values with tensors that became constants where they are now."""
    return [
        replace(value, buffer=constants[value.root], offset=0)
        if isinstance(value, View) and value.root in constants
        else value
        for value in values
    ]
