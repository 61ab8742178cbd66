"""PartsExecutor: a model cut into parts that run on different devices, one after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import numpy as np

from packhorse.errors import DeviceClosed
from packhorse.graph._base import Copy, check_repeat
from packhorse.graph._inputs import Inputs, Signature
from packhorse.graph._segments import HOST_PREFIX
from packhorse.graph._storage import Array
from packhorse.graph.program import Entry

__all__ = ["Part", "PartExecutor", "PartsExecutor"]


class PartExecutor(Protocol):
    """What runs one part: an executor of a program, or the references."""

    def run(self, inputs: Any) -> list[Array]:
        """Outputs, in order, for inputs by name."""

    def close(self) -> None:
        """Free what it holds; idempotent."""


@dataclass(frozen=True)
class Part:
    """A part ready to run: the values it takes from the host and those it gives back there.

    Values that stay on a device between two of its parts are neither.
    """

    device: str
    executor: PartExecutor
    takes: tuple[str, ...]
    gives: tuple[str, ...]

    def run(self, values: dict[str, Any]) -> None:
        """Take the inputs out of ``values`` and put the outputs there."""
        results = self.executor.run({name: values[name] for name in self.takes})
        values.update(zip(self.gives, results, strict=True))


class PartsExecutor:
    """Runs parts in order. Values that cross devices pass through host memory.

    Parameters
    ----------
    parts : sequence of Part
        In execution order.
    inputs : sequence of Entry
        The model's; their storage means nothing.
    outputs : sequence of str
        Names of the model's outputs.
    """

    def __init__(
        self, parts: Sequence[Part], inputs: Sequence[Entry], outputs: Sequence[str]
    ) -> None:
        self._parts, self._outputs = tuple(parts), tuple(outputs)
        self._signature = Signature(inputs)
        self._inputs = [entry.name for entry in inputs]
        taken = {name for part in parts for name in part.takes}
        self._unread = [name for name in self._inputs if name not in taken]
        self._lock, self._closed = threading.Lock(), False

    def run(self, inputs: Inputs) -> list[Array]:
        """Run all parts; inputs, results and errors as for :meth:`GraphExecutor.run`."""
        with self._lock:
            values = self._start(inputs)
            for part in self._parts:
                part.run(values)
            return [self._result(k, values[name]) for k, name in enumerate(self._outputs)]

    def _start(self, inputs: Inputs) -> dict[str, Any]:
        if self._closed:
            raise DeviceClosed("this executor was closed; create another to run the model")
        values = dict(self._signature.by_name(inputs))
        for name in self._unread:  # the others are checked by the parts that take them
            values[name] = self._signature.accept(values, name)
        return values

    def _result(self, number: int, value: Any) -> Array:
        """An output: never the caller's own array, nor the same one as another output."""
        name = self._outputs[number]
        shared = name in self._inputs or name in self._outputs[:number]
        return np.array(value) if shared else value

    def profile(self, inputs: Inputs, repeat: int = 10) -> list[tuple[str, str, float]]:
        """Time every step of every part: (step name, function, median microseconds).

        A part that runs by the references is one row. Raises as the executors do.
        """
        check_repeat(repeat)
        rows: list[tuple[str, str, float]] = []
        with self._lock:
            values = self._start(inputs)
            for part in self._parts:
                rows += _profile(part, values, repeat)
                part.run(values)
        return rows

    @property
    def memory_bytes(self) -> int:
        """Bytes of planned memory of all parts."""
        return sum(int(getattr(part.executor, "memory_bytes", 0)) for part in self._parts)

    @property
    def copies(self) -> tuple[Copy, ...]:
        """What runs copy between the host and the devices."""
        return tuple(c for part in self._parts for c in getattr(part.executor, "copies", ()))

    def close(self) -> None:
        """Free what the parts hold; waits for a run in progress. Closing twice is fine."""
        with self._lock:
            self._closed = True
            for part in reversed(self._parts):  # later ones may use memory of earlier ones
                part.executor.close()


def _profile(part: Part, values: Mapping[str, Any], repeat: int) -> list[tuple[str, str, float]]:
    feeds = {name: values[name] for name in part.takes}
    profile: Callable[..., Any] | None = getattr(part.executor, "profile", None)
    if profile is not None:
        rows: list[tuple[str, str, float]] = profile(feeds, repeat)
        return rows
    times = []
    for _ in range(repeat):
        start = time.perf_counter_ns()
        part.executor.run(feeds)
        times.append((time.perf_counter_ns() - start) * 1e-3)
    return [(f"part on {part.device}", f"{HOST_PREFIX}references", median(times))]
