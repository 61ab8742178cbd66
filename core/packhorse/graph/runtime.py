"""The graph runtime: a graph, its library and its memory behind TVM's functions.

>>> create = get_global_func("tvm.graph_executor.create")  # doctest: +SKIP
>>> graph = create(open("deploy.json").read(), lib, ph.device("cpu"))  # doctest: +SKIP
>>> graph.load_params(open("deploy.params", "rb").read())  # doctest: +SKIP
>>> graph.set_input("data", x); graph.run(); y = graph.get_output(0)  # doctest: +SKIP

A :class:`GraphModule` keeps its tensors between runs, as TVM's does:
:class:`~packhorse.graph.executor.GraphExecutor` is the form without state. Where TVM goes on
silently with wrong results, this one raises: unknown names, tensors that do not fit, runs before
every input was set.

Source: TVM's graph_executor.h (0.4 to 0.19) and its Python wrapper.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from packhorse.errors import ArgumentTypeError, ArgumentValueError
from packhorse.function import PackedFunction, add_value_type
from packhorse.graph._arguments import Argument
from packhorse.graph._device_state import DeviceState
from packhorse.graph._devices import Place, require_host
from packhorse.graph._segments import HostRunner, ModuleLike, Segment
from packhorse.graph._segments import segments as make_segments
from packhorse.graph._state import State
from packhorse.graph.params import load_params, param_names
from packhorse.graph.program import Program, Step
from packhorse.module import Module
from packhorse.tensor import Tensor

__all__ = ["GraphModule", "Method"]

Info: TypeAlias = dict[str, dict[str, Any]]
LINKED = "_lookup_linked_param"
"""Libraries of TVM 0.8 and 0.9 built with ``--link-params`` hold their weights behind this."""


class Method(PackedFunction):
    """A method of a graph module as a packed function; takes and returns whatever it does.

    Values that are no packed ones (the dicts of ``get_input_info``) reach Python callers only.
    """

    __slots__ = ()

    def __call__(self, *args: Any) -> Any:
        """Call the method. Raises what it raises."""
        return self._call(*args)


class GraphModule(Module):
    """A graph with its memory: set inputs, run, get outputs. A Module of those functions too.

    Parameters
    ----------
    program : Program
        Its inputs and params together are TVM's inputs, in the order of ``arg_nodes``.
    module : Module or None
        Where the functions of the steps are; the global registry is asked next.
    place : Place
        The device it was made for. On one with memory of its own all tensors lie there.
    host : callable, optional
        Runs the steps ``packhorse.op.*`` of graphs that packhorse compiled.
    linked : callable, optional
        ``linked(storage_id)`` is the address of weights within the library, or None. Default:
        the module's ``_lookup_linked_param``.

    Raises
    ------
    ArtifactError, FunctionNotFound, DeviceMemoryError
        As :class:`~packhorse.graph.executor.GraphExecutor`.

    Notes
    -----
    One call at a time: a lock sees to it. Different graph modules of one library run in
    parallel. Steps marked ``once`` run every time, as in every other runtime of graph JSON.
    """

    kind = "GraphExecutor"
    METHODS: tuple[str, ...] = (
        *("set_input", "set_input_zero_copy", "set_output_zero_copy"),
        *("get_input", "get_output", "get_num_inputs", "get_num_outputs"),
        *("get_input_index", "get_input_info", "get_output_info", "get_output_index"),
        *("run", "run_from_inputs", "load_params", "share_params"),
    )
    """Names that ``module[name]`` knows: TVM's."""

    def __init__(
        self,
        program: Program,
        module: ModuleLike | None,
        place: Place | None = None,
        *,
        host: HostRunner | None = None,
        linked: Callable[[int], int | None] | None = None,
    ) -> None:
        super().__init__(program.name or "graph")
        self.program, self.place = program, place or Place()
        self._lock = threading.RLock()
        self._source, self._host = module, host
        where = self.place.device
        self._state = State(program) if where is None else DeviceState(program, where)
        self._segments = self._bind_steps(program.steps)
        self._calls = [segment.run for segment in self._segments]
        linked = linked or _find_linked(module)
        if linked is not None:
            self._state.link(linked)

    def _bind_steps(self, steps: Sequence[Step]) -> list[Segment]:
        threads = self.place.threads
        return make_segments(steps, self._state.tensors, self._source, self._host, threads)

    def _changed(self) -> None:
        """Called, with the lock held, before anything in memory changes."""
        self._require_open()

    # ------------------------------------------------------------ inputs

    def set_input(self, key: Any = None, value: Any = None, /, **named: Any) -> None:
        """Copy arrays into inputs or params: one by name or position, and any by keyword.

        Parameters
        ----------
        key : str or int, optional
        value, **named : array, Tensor, or object with ``__dlpack__`` or ``__array__``
            Of exactly the dtype and shape of the input. Nothing is set when one does not fit.

        Raises
        ------
        ArgumentValueError, ArgumentTypeError
            No such input (TVM ignores unknown names), another shape or dtype, no array.
        DeviceClosed
            The module was closed.
        """
        with self._lock:
            self._changed()
            find = self._state.inputs.find
            pairs = [(find(name), array) for name, array in named.items()]
            if key is not None:
                pairs.append((find(key), value))
            self._state.set(pairs)

    def set_input_zero_copy(self, key: Any, value: Any) -> None:
        """Read an input or param where the caller has it, now and in later runs.

        Raises
        ------
        ArgumentValueError, ArgumentTypeError
            As :meth:`set_input`; strided memory, memory on another device, memory that is not
            aligned to 128 bytes (code TVM compiled) or to its elements (ours), or an input whose
            memory the graph writes to.
        """
        with self._lock:
            self._changed()
            self._state.replace(self._state.inputs, key, value, "set_input")

    def set_output_zero_copy(self, key: Any, value: Any) -> None:
        """Let runs write an output, by name or position, where the caller wants it.

        Raises
        ------
        ArgumentValueError, ArgumentTypeError
            As :meth:`set_input_zero_copy`; read-only memory.
        """
        with self._lock:
            self._changed()
            self._state.replace(self._state.outputs, key, value, "get_output(i, out)")

    def load_params(self, source: bytes | bytearray | memoryview) -> None:
        """Copy the weights of a ``deploy.params`` file in; names the graph lacks are ignored.

        Raises
        ------
        ArtifactError
            Damaged, or not TVM params.
        ArgumentValueError, ArgumentTypeError
            A weight does not fit the graph.
        """
        self.set_params(load_params(_blob(source)))

    def set_params(self, params: Mapping[str, Any], *, lend: bool = False) -> None:
        """The same from arrays by name.

        ``lend=True`` uses those that are aligned and contiguous where they are, for many modules
        over the same weights. Raises as :meth:`load_params`.
        """
        with self._lock:
            self._changed()
            (self._state.lend if lend else self._state.load)(params)

    def share_params(self, other: GraphModule, source: bytes | bytearray | memoryview) -> None:
        """Use the weights of another module of the same graph: the names are in ``source``.

        Parameters
        ----------
        other : GraphModule
            Its weights must be set. It may be closed later: memory lives as long as it is used.
        source : bytes
            TVM params; only the names are read, so its start is enough.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            Not a graph module, or its weights do not fit or were never set.
        ArtifactError
            Damaged, or not TVM params.
        """
        if not isinstance(other, GraphModule):
            raise ArgumentTypeError(
                f"params are shared with a graph module, not with a {type(other).__name__}"
            )
        names = [n for n in param_names(_blob(source)) if n in self._state.inputs.index]
        self.set_params(other._views(names), lend=True)

    def _views(self, names: Iterable[str]) -> dict[str, Any]:
        with self._lock:
            self._require_open()
            rows = [self._state.inputs.find(name) for name in names]
            missing = [row for row in rows if row.name in self._state.unset]
            if missing:
                raise ArgumentValueError(
                    f"the params cannot be shared: {missing[0]} was never set in the other module"
                )
            return {row.name: row.view for row in rows}

    def get_input(self, key: Any) -> Tensor:
        """The tensor of an input or param: the memory the next run reads, not a copy.

        It lies on the graph's device.
        """
        with self._lock:
            self._require_open()
            return self._state.tensor(self._state.inputs.find(key))

    def get_input_index(self, name: str) -> int:
        """Position of an input or param; -1 when there is none of that name."""
        return self._state.inputs.index.get(name, -1)

    def get_num_inputs(self) -> int:
        """Number of inputs and params together."""
        return len(self._state.inputs.rows)

    def get_input_info(self) -> Info:
        """``{"shape": {name: shape}, "dtype": {name: dtype}}`` of inputs that are not params."""
        params = self._state.params | {self.program.entries[i].name for i in self.program.params}
        return self._info(row for row in self._state.inputs.rows if row.name not in params)

    # ------------------------------------------------------------ running

    def run(self, **inputs: Any) -> None:
        """Run the graph; inputs given by keyword are set first.

        Raises
        ------
        ArgumentValueError
            Inputs or params were never set: the message names them.
        PackhorseError
            A step failed; the message names it.
        """
        with self._lock:
            if inputs:
                self.set_input(**inputs)
            self._changed()
            self._state.require_set()
            for call in self._calls:
                call()

    def run_from_inputs(self, device_type: int, device_id: int, *pairs: Any) -> list[Tensor]:
        """Set inputs, run, and return copies of all outputs on the host.

        Parameters
        ----------
        device_type, device_id : int
            Where the copies are wanted: 1, 0 (the host).
        *pairs
            Name or position, array, and so on.

        Raises
        ------
        ArgumentValueError
            As :meth:`set_input` and :meth:`run`; a name without an array.
        DeviceUnavailable
            Another device.
        """
        require_host(device_type, device_id)
        if len(pairs) % 2:
            raise ArgumentValueError(
                f"run_from_inputs takes a name and an array for each input, found {len(pairs)} "
                "values after the device"
            )
        with self._lock:
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                self.set_input(key, value)
            self.run()
            return [self._state.fetched(row) for row in self._state.outputs.rows]

    # ------------------------------------------------------------ outputs

    def get_output(self, key: Any, out: Any = None) -> Tensor | None:
        """An output by position or name.

        Parameters
        ----------
        out : array or Tensor, optional
            Copied into; of the output's dtype and shape. Nothing is returned then.

        Returns
        -------
        Tensor
            The memory that the next run writes, not a copy.

        Raises
        ------
        ArgumentValueError, ArgumentTypeError
            No such output; ``out`` does not fit, or is read-only.
        """
        with self._lock:
            self._require_open()
            row = self._state.outputs.find(key)
            if out is None:
                return self._state.tensor(row)
            self._copy_out(row, out)
            return None

    def _copy_out(self, row: Argument, out: Any) -> None:
        if isinstance(out, Tensor):
            out.copy_from(self._state.tensor(row))
            return
        target = self._state.outputs.accept(row, out)
        if not target.flags.writeable:
            raise ArgumentValueError("the array to copy the output into is read-only")
        np.copyto(target, self._state.tensor(row).numpy())

    def get_num_outputs(self) -> int:
        """Number of outputs."""
        return len(self._state.outputs.rows)

    def get_output_index(self, name: str) -> int:
        """Position of an output; -1 when there is none of that name."""
        return self._state.outputs.index.get(name, -1)

    def get_output_info(self) -> Info:
        """``{"shape": {name: shape}, "dtype": {name: dtype}}``; names are those of the nodes."""
        return self._info(self._state.outputs.rows)

    @staticmethod
    def _info(rows: Any) -> Info:
        found = list(rows)
        shapes = {row.name: row.shape for row in found}
        return {"shape": shapes, "dtype": {row.name: str(row.dtype) for row in found}}

    # ------------------------------------------------------------ the Module

    def _names(self) -> list[str]:
        return list(self.METHODS)

    def _look_up(self, name: str, query_imports: bool) -> PackedFunction | None:
        # Not kept in a table: a method that the module kept would keep the module.
        self._require_open()
        return Method(getattr(self, name), name) if name in self.METHODS else None

    def _release(self) -> None:
        with self._lock:
            self._segments, self._calls = [], []
            self._state.release()
            self._source = None


add_value_type(GraphModule)
add_value_type(Method)


def _find_linked(module: Any) -> PackedFunction | None:
    """The module's, or an import's, function that knows weights within the library."""
    if not isinstance(module, Module):
        return None
    if LINKED in module:
        return module[LINKED]
    return next((f for m in module.imports if (f := _find_linked(m))), None)


def _blob(source: Any) -> memoryview:
    if not isinstance(source, bytes | bytearray | memoryview):
        hint = "; open the file in binary mode" if isinstance(source, str) else ""
        raise ArgumentTypeError(f"params are bytes, not a {type(source).__name__}{hint}")
    return memoryview(source)
