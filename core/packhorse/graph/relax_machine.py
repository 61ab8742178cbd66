"""The Relax VM: runs the bytecode of a function once and records the calls it makes.

A run is always a real one: kernels are called as the bytecode asks for them, so branches and
shapes that depend on data are right. What was recorded can be replayed without the bytecode for
inputs of the same shapes, unless :attr:`~packhorse.graph.relax_values.Trace.dynamic` says why not.

Source: TVM 0.27, src/runtime/vm/vm.cc (``VirtualMachineImpl::RunLoop``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from packhorse.errors import ArtifactError, PackhorseError
from packhorse.graph.relax_builtins import BUILTINS
from packhorse.graph.relax_device import DeviceMemory
from packhorse.graph.relax_file import (
    VM_REGISTER,
    VOID_REGISTER,
    Arg,
    ArgKind,
    FunctionKind,
    Instruction,
    Opcode,
    RelaxFile,
    VMFunction,
)
from packhorse.graph.relax_values import Buffer, Callee, Closure, Source, Step, Trace, View
from packhorse.native.memory import aligned_empty

__all__ = ["Machine", "Resolve", "RunNative", "refused_mode"]

Resolve = Callable[[str], Callee]
"""Finds a packed function by name; raises FunctionNotFound."""
RunNative = Callable[[Sequence[Step]], None]
"""Runs native steps on the tensors' present memory."""

_MAX_DEPTH = 128
_MAX_STEPS = 1_000_000
_DAMAGE = (TypeError, ValueError, IndexError, AttributeError, KeyError, OverflowError)


def refused_mode(name: str, what: str) -> ArtifactError:
    """The error for code of ``exec_mode="compiled"``."""
    return ArtifactError(
        f"{what} '{name}' was compiled with exec_mode=\"compiled\": its code needs the TVM "
        "runtime's lists of objects (TVMBackendAnyListSetPackedArg, "
        "TVMBackendAnyListMoveFromPackedReturn), which packhorse does not have. Compile the model "
        'with exec_mode="bytecode", the default'
    )


class Machine:
    """Runs functions of one executable; one run per machine.

    Parameters
    ----------
    file : RelaxFile
    constants : sequence
        The executable's constants, tensors as :class:`View`.
    resolve : callable
        Finds packed functions by name.
    run_native : callable
        Runs native steps.
    memory : DeviceMemory, optional
        Where tensors lie; default: on the host.
    """

    def __init__(
        self,
        file: RelaxFile,
        constants: Sequence[Any],
        resolve: Resolve,
        run_native: RunNative,
        memory: DeviceMemory | None = None,
    ) -> None:
        self.file, self.trace, self._memory = file, Trace(), memory
        self._constants, self._resolve, self._run_native = constants, resolve, run_native
        self._depth = self._count = 0

    def run(self, function: int, args: Sequence[Any]) -> Any:
        """Run function number ``function`` and return its value.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            The arguments are not what the function was compiled for.
        ArtifactError
            The bytecode makes no sense, or needs what packhorse does not have.
        FunctionNotFound
            It calls a function that is nowhere.
        PackhorseError
            A function it called failed.
        """
        row = self.file.functions[function]
        if row.kind is not FunctionKind.VM:
            raise refused_mode(row.name, "the function")
        if len(args) != len(row.params):
            raise ArtifactError(
                f"function '{row.name}' takes {len(row.params)} arguments, but the executable "
                f"passes {len(args)}; export the library again"
            )
        if self._depth >= _MAX_DEPTH:
            raise ArtifactError(
                f"function '{row.name}' is called {_MAX_DEPTH} levels deep; recursion without an "
                "end cannot be run"
            )
        self._depth += 1
        try:
            return self._loop(row, [*args, *[None] * (row.registers - len(args))])
        finally:
            self._depth -= 1

    def _loop(self, row: VMFunction, registers: list[Any]) -> Any:
        at = row.start
        while True:
            self._count += 1
            if self._count > _MAX_STEPS:
                raise ArtifactError(
                    f"function '{row.name}' still runs after {_MAX_STEPS} instructions; packhorse "
                    "takes this for an endless loop"
                )
            step = self.file.instruction(at)
            if step.opcode is Opcode.CALL:
                result = self._call(row, at, step, registers)
                if step.dst != VOID_REGISTER:
                    registers[step.dst] = result
                at += 1
            elif step.opcode is Opcode.RET:
                return None if step.dst == VOID_REGISTER else registers[step.dst]
            elif step.opcode is Opcode.GOTO:
                at += step.target
            else:
                condition = registers[step.dst]
                if not isinstance(condition, int):
                    self._damaged(at, "If", f"its condition is {condition!r:.80}")
                at += 1 if condition else step.target

    def _call(self, row: VMFunction, at: int, step: Instruction, registers: list[Any]) -> Any:
        args = [self._value(arg, registers) for arg in step.args]
        name = self.file.functions[step.target].name
        builtin = BUILTINS.get(name)
        if builtin is None:
            wanted = step.dst != VOID_REGISTER and self._is_read(row, step.dst)
            return self._invoke(self._function(step.target), args, wanted)
        try:
            return builtin(self, *args)
        except PackhorseError:
            raise
        except _DAMAGE as error:
            self._damaged(at, name, str(error))

    def _is_read(self, row: VMFunction, register: int) -> bool:
        """False for the register of a call in destination-passing style, whose result is None."""
        for number in range(row.start, row.end):
            step = self.file.instruction(number)
            if step.opcode in (Opcode.RET, Opcode.IF) and step.dst == register:
                return True
            if (ArgKind.REGISTER, register) in step.args:
                return True
        return False

    def _damaged(self, at: int, name: str, found: str) -> NoReturn:
        raise ArtifactError(
            f"instruction {at} of the Relax executable, {name}, cannot be run: {found}. Export "
            "the library again"
        )

    def _value(self, arg: Arg, registers: list[Any]) -> Any:
        kind, value = arg
        if kind is ArgKind.REGISTER:
            return None if value in (VOID_REGISTER, VM_REGISTER) else registers[value]
        if kind is ArgKind.CONSTANT:
            return self._constants[value]
        return value if kind is ArgKind.IMMEDIATE else self._function(value)

    def _function(self, number: int) -> Closure | Callee:
        row = self.file.functions[number]
        if row.kind is FunctionKind.PACKED:
            return self._resolve(row.name)
        return Closure(number)

    # ------------------------------------------------------------ called by the builtins

    def call(self, closure: Closure | Callee, args: Sequence[Any], wanted: bool = True) -> Any:
        """Run a function of the table, or a packed one; ``wanted``: what it returns matters."""
        return self._invoke(closure, args, wanted)

    def depend(self, why: str) -> None:
        """Note why other contents of the inputs may lead to other calls."""
        self.trace.dynamic = self.trace.dynamic or why

    def storage(self, nbytes: int, device: int, scope: str) -> Buffer:
        """Memory of the executable's device 0; -1, the last one, is the host.

        Raises
        ------
        ArtifactError
            It wants another device, or memory that is no plain buffer.
        """
        if device not in (0, -1) or scope != "global":
            name = self._memory.device.name if self._memory else "the CPU"
            raise ArtifactError(
                f"the executable wants memory '{scope}' of its device {device}, but packhorse runs "
                f"this one on {name} alone; compile the model for one target"
            )
        if self._memory is None or device == -1:
            return Buffer(aligned_empty(nbytes), Source.PLANNED)
        return self._memory.storage(nbytes)

    def device_type(self) -> int:
        """DLPack type of the device that tensors lie on."""
        return self._memory.device.dlpack_device[0] if self._memory else 1

    # ------------------------------------------------------------ packed functions

    def _invoke(self, callee: Closure | Callee, args: Sequence[Any], wanted: bool) -> Any:
        if isinstance(callee, Closure):
            return self.run(callee.function, (*args, *callee.bound))
        native = callee.address is not None and not wanted and bool(args)
        native = native and all(isinstance(arg, View) for arg in args)
        heaps = {id(v.buffer): v.buffer for v in args if _is_heap(v)}
        step = Step(callee, tuple(args), native)
        if heaps and not wanted and all(_is_heap(arg) for arg in args):
            self._run_native([step]) if native else self._run_step(step)
            return None  # it computed sizes from sizes: nothing to replay
        before = {number: _frozen(heap) for number, heap in heaps.items()}
        if native:
            self._run_native([step])
            result = None
        else:
            returned = self._run_step(step)
            result = self._result(callee, returned) if wanted else None
        if any(not np.array_equal(before[i].memory, heap.memory) for i, heap in heaps.items()):
            self.depend(f"'{callee.name}' computes sizes from data")
        self.trace.steps.append(_with_heaps(step, before))
        return result

    def _run_step(self, step: Step) -> Any:
        return step.call() if self._memory is None else self._memory.bound(step)()

    def _result(self, callee: Callee, value: Any) -> Any:
        if value is None:
            return None
        self.depend(f"'{callee.name}' returns a value")
        array = np.asarray(value) if hasattr(value, "__dlpack__") else None
        if array is None:
            return value
        memory = aligned_empty(array.nbytes)
        view = View(Buffer(memory, Source.PLANNED), 0, array.shape, array.dtype)
        view.array[...] = array
        return view if self._memory is None else self._memory.uploaded(view)


def _is_heap(value: Any) -> bool:
    return isinstance(value, View) and value.buffer.source is Source.HEAP


def _frozen(heap: Buffer) -> Buffer:
    memory = aligned_empty(heap.memory.nbytes)
    memory[...] = heap.memory
    return Buffer(memory, Source.CONSTANT)


def _with_heaps(step: Step, before: dict[int, Buffer]) -> Step:
    """The step with the sizes it saw: later calls of the same run change the heap."""
    if not before:
        return step
    args = [
        View(before[id(arg.buffer)], arg.offset, arg.shape, arg.dtype) if _is_heap(arg) else arg
        for arg in step.args
    ]
    return step._replace(args=tuple(args))
