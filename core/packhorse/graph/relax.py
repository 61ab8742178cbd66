"""Relax executables: models that TVM 0.22 - 0.27 compiled for its Relax VM, run without TVM.

The bytecode is interpreted once per input signature; what it called becomes a static plan, so
later runs with the same shapes make one native call. Where the bytecode looks at the contents of
tensors it is interpreted each time, and :meth:`RelaxExecutable.report` says so.

>>> executable = load_relax(load_module("deploy.so"))  # doctest: +SKIP
>>> y = executable(x)  # doctest: +SKIP
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np

from packhorse.device import Device
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DeviceClosed,
    FunctionNotFound,
    did_you_mean,
)
from packhorse.graph.ir import TensorType
from packhorse.graph.relax_arguments import (
    Bound,
    bind,
    constant_view,
    describe,
    fits,
    order,
    values,
)
from packhorse.graph.relax_device import DeviceReplay, memory_for
from packhorse.graph.relax_file import FunctionKind
from packhorse.graph.relax_fold import fold
from packhorse.graph.relax_machine import Machine, RunNative, refused_mode
from packhorse.graph.relax_module import disassemble, global_callee, loaded, own_functions
from packhorse.graph.relax_plan import Replay, as_output, run_native
from packhorse.graph.relax_signature import Parameter, output_count, signature
from packhorse.graph.relax_text import as_text
from packhorse.graph.relax_values import Buffer, Callee, Trace, View, leaves
from packhorse.module_base import Module

__all__ = ["RelaxExecutable", "disassemble", "load_relax"]

Array: TypeAlias = np.ndarray[Any, Any]
Inputs: TypeAlias = Mapping[str, Any] | Sequence[Any]

_CACHE = 16  # plans kept per executable, the least recently used one goes first


@dataclass
class _Entry:
    """A function of the executable and what is known of its runs."""

    number: int
    parameters: list[Parameter]
    params: dict[str, View] = field(default_factory=dict)
    plans: OrderedDict[Any, Replay | DeviceReplay | str] = field(default_factory=OrderedDict)
    last: Replay | DeviceReplay | None = None
    last_key: tuple[Any, ...] = ()

    def forget(self) -> None:
        """Drop the plans."""
        self.plans.clear()
        self.last = None


class RelaxExecutable:
    """The Relax VM executable of a loaded library. Create once, run often.

    Parameters
    ----------
    module : Module
        A library of TVM's tvm-ffi ABI that holds a ``relax.VMExecutable``.
    params : mapping of str to array, optional
        Weights that are inputs of ``main``: bound once, so that runs take the other inputs only.
    device : Device, optional
        The one it was compiled for, when that has memory of its own; default: the host.
    threads : int
        Threads of a parallel launch; 0 means all this process may use.

    Raises
    ------
    ArtifactError
        The module holds no Relax executable, or a damaged one.
    DeviceUnavailable
        It was compiled for another device.
    ArgumentTypeError, ArgumentValueError
        A param does not fit.

    Notes
    -----
    An executable runs once at a time: a lock sees to it. Different executables, also of one
    library, run in parallel; they share the constants.
    """

    def __init__(
        self,
        module: Module,
        params: Mapping[str, Any] | None = None,
        device: Device | None = None,
        *,
        threads: int = 0,
    ) -> None:
        self._file, self._constants = loaded(module)
        self._memory = memory_for(module, device)
        if self._memory is not None:
            self._constants = self._memory.uploaded(self._constants)
        libraries = [m.name for m in module.imports if m.kind == "library"]
        self.name = libraries[0] if libraries else module.name
        self._threads, self._lock, self._closed = threads, threading.Lock(), False
        self._folded: dict[Any, Buffer] = {}
        self._callees = own_functions(module, self._file)
        self._entries = {
            row.name: _Entry(i, signature(self._file, i))
            for i, row in enumerate(self._file.functions)
            if row.kind is not FunctionKind.PACKED
        }
        kinds = {self._file.functions[entry.number].kind for entry in self._entries.values()}
        if FunctionKind.VMTIR in kinds and FunctionKind.VM not in kinds:
            raise refused_mode(self.name, "the Relax executable")
        if params:
            self.set_params(params)

    # ------------------------------------------------------------ what there is

    @property
    def functions(self) -> list[str]:
        """Names of the functions that can be run."""
        return list(self._entries)

    def signature(self, function: str = "main") -> list[Parameter]:
        """What a function takes, bound params left out; FunctionNotFound if there is none."""
        entry = self._entry(function)
        return [p for p in entry.parameters if p.name not in entry.params]

    @property
    def inputs(self) -> dict[str, TensorType]:
        """Name -> dtype and shape of the inputs of ``main``, bound params left out.

        Where the function does not fix a dtype, float32 is given.
        """
        float32 = np.dtype(np.float32)
        return {p.name: TensorType(p.dtype or float32, p.shape) for p in self.signature()}

    @property
    def output_names(self) -> tuple[str, ...]:
        """``output_0`` and so on for ``main``; empty when only a run can tell how many."""
        count = output_count(self._file, self._entry("main").number)
        return tuple(f"output_{i}" for i in range(count or 0))

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._closed

    @property
    def memory_bytes(self) -> int:
        """Bytes of work memory its plans hold, constants left out."""
        plans = [plan for entry in self._entries.values() for plan in entry.plans.values()]
        folded = sum(buffer.size for buffer in self._folded.values())
        return folded + sum(plan.memory_bytes for plan in plans if not isinstance(plan, str))

    def as_text(self) -> str:
        """The bytecode in the form of TVM's own listing."""
        return as_text(self._file)

    def report(self) -> list[str]:
        """A line per function and input signature that was run: how it runs."""
        lines = []
        for name, entry in self._entries.items():
            for key, plan in entry.plans.items():
                shapes = ", ".join(describe(part) for part in key)
                if isinstance(plan, str):
                    how = f"interpreted each time: {plan}"
                else:
                    how = (
                        f"{plan.native_steps} kernels in {plan.native_calls} native calls, "
                        f"{plan.host_steps} Python functions, {plan.memory_bytes} bytes"
                    )
                lines.append(f"{name}({shapes}): {how}")
        return lines

    # ------------------------------------------------------------ running

    def set_params(self, params: Mapping[str, Any], function: str = "main") -> None:
        """Bind weights that are inputs of a function; runs take them no longer.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            There is no such input, or it is not an array.
        FunctionNotFound
            There is no such function.
        """
        entry = self._entry(function)
        rows = {p.name: p for p in entry.parameters}
        for name in params:
            if name not in rows:
                raise ArgumentValueError(
                    f"there is no input '{name}'{did_you_mean(name, rows)}; '{function}' takes "
                    f"{', '.join(str(p) for p in entry.parameters) or 'none'}"
                )
        bound = bind([rows[name] for name in params], list(params.values()))
        if len(bound.arrays) != len(params):
            raise ArgumentTypeError("params must be arrays; pass other inputs to run()")
        views = [constant_view(array) for array in bound.arrays]
        if self._memory is not None:
            views = self._memory.uploaded(views)
        with self._lock:
            entry.params.update(zip(params, views, strict=True))
            self._folded.clear()
            entry.forget()

    def run(self, inputs: Inputs = (), function: str = "main") -> list[Array]:
        """Run a function.

        Parameters
        ----------
        inputs : mapping of str to value, or sequence of values
            By name or in the order of :meth:`signature`. Arrays of exactly the dtype asked for
            (read in place where they are C-contiguous and aligned to 64 bytes, else copied);
            tuples of ints for shapes, numbers, lists for tuples.
        function : str
            One of :attr:`functions`.

        Returns
        -------
        list of ndarray
            What it returns, tuples flattened; new arrays that belong to the caller.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            An input is missing, unknown, or not what the function was compiled for.
        FunctionNotFound
            There is no such function, or it calls one that is nowhere.
        ArtifactError
            The bytecode makes no sense, or needs what packhorse does not have.
        DeviceClosed
            The executable was closed.
        PackhorseError
            A kernel failed.
        """
        entry = self._entries.get(function) or self._entry(function)
        with self._lock:
            if self._closed:
                raise DeviceClosed("this Relax executable is closed; load the library again")
            if entry.last is not None and fits(entry.last_key, inputs):
                return entry.last.run(inputs)  # type: ignore[arg-type]
            open_rows = [p for p in entry.parameters if p.name not in entry.params]
            bound = bind(open_rows, order(open_rows, inputs))
            key = bound.key
            plan = entry.plans.get(key)
            if plan is not None and not isinstance(plan, str):
                entry.plans.move_to_end(key)
                entry.last, entry.last_key = plan, key
                return plan.run(bound.arrays)
            return self._interpret(entry, bound)

    def _interpret(self, entry: _Entry, bound: Bound) -> list[Array]:
        """Run the bytecode, and remember what it did."""
        given, params = iter(values(bound)), entry.params
        names = [p.name for p in entry.parameters]
        args = [params[name] if name in params else next(given) for name in names]
        native: RunNative = partial(run_native, threads=self._threads)
        if self._memory is not None:
            args, native = self._memory.uploaded(args), self._memory.run
        machine = Machine(self._file, self._constants, self._resolve, native, self._memory)
        machine.trace.result = leaves(machine.run(entry.number, args))
        outputs = [as_output(leaf) for leaf in machine.trace.result]
        dynamic = machine.trace.dynamic
        entry.plans[bound.key] = dynamic or self._replay(machine.trace, bound.arrays)
        if len(entry.plans) > _CACHE:
            entry.plans.popitem(last=False)
            entry.last = None  # it may be the one
        return outputs

    def _replay(self, trace: Trace, arrays: Sequence[Array]) -> Replay | DeviceReplay:
        """The plan of a trace; calls that read constants alone are left out where that is safe."""
        if self._memory is not None:
            return DeviceReplay(trace, self._memory)
        folded = fold(trace, partial(run_native, threads=self._threads), self._folded)
        if folded is not None:
            plan = Replay(folded.trace, self._threads)
            plan.run(arrays)
            if not folded.restore():
                return plan
        return Replay(trace, self._threads)

    def __call__(self, *args: Any, **inputs: Any) -> Array | tuple[Array, ...]:
        """Run ``main``: positional and named inputs; one output as an array, more as a tuple.

        Raises as :meth:`run`.
        """
        if not inputs:
            outputs = self.run(list(args))
            return outputs[0] if len(outputs) == 1 else tuple(outputs)
        rows = self.signature()
        if len(args) > len(rows):
            raise ArgumentValueError(
                f"{len(args)} inputs were given, 'main' takes {len(rows)}: "
                f"{', '.join(str(p) for p in rows) or 'none'}"
            )
        named = {p.name: value for p, value in zip(rows, args, strict=False)}
        for name, value in inputs.items():
            if name in named:
                raise ArgumentValueError(f"input '{name}' was given twice, by position and name")
            named[name] = value
        outputs = self.run(named)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    # ------------------------------------------------------------ functions

    def _entry(self, function: str) -> _Entry:
        entry = self._entries.get(function)
        if entry is None:
            names = ", ".join(self._entries) or "none"
            raise FunctionNotFound(
                f"the Relax executable of '{self.name}' has no function '{function}'"
                f"{did_you_mean(function, self._entries)}; it has: {names}"
            )
        return entry

    def _resolve(self, name: str) -> Callee:
        """The library's own function first, then a global one, as TVM looks them up."""
        if name not in self._callees:
            self._callees[name] = global_callee(name, self.name)
        return self._callees[name]

    # ------------------------------------------------------------ end of life

    def close(self) -> None:
        """Free its memory; waits for a run in progress. Closing twice is fine."""
        with self._lock:
            self._closed = True
            self._callees, self._folded, self._constants = {}, {}, []
            for entry in self._entries.values():
                entry.forget()
                entry.params.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else ", ".join(self._entries)
        return f"<RelaxExecutable {self.name}: {state}>"


def load_relax(
    module: Module,
    params: Mapping[str, Any] | None = None,
    device: Device | None = None,
    *,
    threads: int = 0,
) -> RelaxExecutable:
    """The Relax executable of a loaded library; parameters and errors as its class."""
    return RelaxExecutable(module, params, device, threads=threads)
