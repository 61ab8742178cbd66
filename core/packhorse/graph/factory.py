"""Single-file libraries: a graph, its weights and its code in one ``.so``.

TVM's ``relay.build(...).export_library("deploy.so")`` writes a module of kind
``GraphExecutorFactory`` (``GraphRuntimeFactory`` before 0.8) that imports the code:

>>> factory = load_module("deploy_factory.so")  # doctest: +SKIP
>>> graph = factory["default"](ph.device("cpu"))  # doctest: +SKIP

Source: TVM's graph_executor_factory.cc (0.7 to 0.19).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from packhorse.device import Device
from packhorse.errors import ArgumentTypeError, ArgumentValueError, ArtifactError
from packhorse.function import PackedFunction, add_value_type
from packhorse.graph._arguments import host_array
from packhorse.graph._devices import place_of
from packhorse.graph._storage import ALIGNMENT, Array
from packhorse.graph.device_executor import DeviceExecutor
from packhorse.graph.executor import GraphExecutor
from packhorse.graph.graph_json import program_from_json
from packhorse.graph.program import Program
from packhorse.graph.runtime import GraphModule, Method
from packhorse.graph.runtime_debug import DebugModule
from packhorse.graph.runtime_functions import build, create_cuda_graph, host_runner
from packhorse.module import Module
from packhorse.module_blob import Factory
from packhorse.native.memory import address_of, aligned_array
from packhorse.tensor import Tensor

__all__ = ["GraphFactory", "create_factory", "find_factory", "from_payload", "load_factory"]

G = TypeVar("G", bound=GraphModule)


class GraphFactory(Module):
    """Makes graph modules that share their weights. ``imports[0]`` is the library.

    Parameters
    ----------
    graph_json : str
        Read when the first graph module is made.
    params : mapping of str to ndarray
        The weights. Aligned once, for all graph modules together.
    module_name : str
        The function that makes a graph module is called that; TVM's own name is "default".
    imports : sequence of Module
        The library first.
    """

    kind = "GraphExecutorFactory"

    def __init__(
        self,
        graph_json: str,
        params: Mapping[str, Array],
        module_name: str = "default",
        imports: Sequence[Module] = (),
    ) -> None:
        super().__init__(module_name, imports)
        self.graph_json = graph_json
        self._params = dict(params)
        self._aligned = False
        self._program: Program | None = None
        self._makers: dict[str, Callable[..., Any]] = {
            "get_graph_json": GraphFactory.get_graph_json,
            "get_graph_params": GraphFactory.get_graph_params,
            "debug_create": GraphFactory.debug_create,
            "remove_params": GraphFactory.remove_params,
            "cuda_graph_create": GraphFactory.cuda_graph_create,
            module_name: GraphFactory.create,
        }

    def create(self, *where: Any) -> GraphModule:
        """A graph module with its weights set: what ``factory["default"](device)`` calls.

        Parameters
        ----------
        *where
            Devices as :func:`packhorse.graph.runtime_functions.create` takes them.

        Raises
        ------
        ArtifactError, FunctionNotFound, DeviceUnavailable, ArgumentError
            As there.
        """
        return self._make(GraphModule, where)

    def debug_create(self, module_name: str, *where: Any) -> DebugModule:
        """The same, of the debug form. Raises ArgumentValueError for another ``module_name``."""
        if module_name != self.name:
            raise ArgumentValueError(
                f"this factory makes '{self.name}', not '{module_name!s:.80}'; pass that name"
            )
        return self._make(DebugModule, where)

    def _make(self, kind: type[G], where: Sequence[Any]) -> G:
        made = build(kind, self.program(), self._library(), where)
        made.set_params(self.weights(), lend=True)
        return made

    def program(self) -> Program:
        """The graph, all its arguments as inputs. Raises ArtifactError when it is damaged."""
        self._require_open()
        if self._program is None:
            self._program = program_from_json(self.graph_json, ())
        return self._program

    def weights(self) -> dict[str, Array]:
        """The weights by name, aligned for compiled code, read-only."""
        self._require_open()
        if not self._aligned:
            self._params = {name: _aligned(array) for name, array in self._params.items()}
            self._aligned = True
        return dict(self._params)

    def _library(self) -> Module | None:
        return self._imports[0] if self._imports else None

    def get_graph_json(self) -> str:
        """The graph as JSON."""
        self._require_open()
        return self.graph_json

    def get_graph_params(self) -> dict[str, Tensor]:
        """The weights by name, read-only."""
        return {name: Tensor(array) for name, array in self.weights().items()}

    def remove_params(self) -> GraphFactory:
        """A factory of the same graph and library without weights."""
        self._require_open()
        return GraphFactory(self.graph_json, {}, self.name, self._imports)

    def cuda_graph_create(self, *where: Any) -> Any:
        """Raises DeviceUnavailable: CUDA graphs are not offered here."""
        return create_cuda_graph(*where)

    def _names(self) -> list[str]:
        return list(self._makers)

    def _entry_name(self) -> str | None:
        return self.name

    def _look_up(self, name: str, query_imports: bool) -> PackedFunction | None:
        self._require_open()
        maker = self._makers.get(name)
        if maker is not None:
            return Method(maker.__get__(self), name)
        return self._imported(name) if query_imports else None

    def _release(self) -> None:
        self._params, self._program = {}, None


add_value_type(GraphFactory)


def from_payload(kind: str, payload: Any, imports: Sequence[Module]) -> GraphFactory:
    """What :func:`packhorse.module.load_module` makes of ``GraphExecutorFactory`` in a library.

    Raises
    ------
    ArtifactError
        The payload is that of another kind.
    """
    if not isinstance(payload, Factory):
        raise ArtifactError(
            f"a module of kind '{kind:.60}' should hold a graph with weights, found "
            f"{type(payload).__name__}; build the library again"
        )
    return GraphFactory(payload.graph_json, payload.params, payload.module_name, imports)


def create_factory(
    graph_json: str, module: Module, module_name: str = "default", *params: Any
) -> GraphFactory:
    """``tvm.graph_executor_factory.create``: name and array of each weight follow the name.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        Arguments of other kinds, or a name without an array.
    """
    if not isinstance(graph_json, str) or not isinstance(module_name, str):
        raise ArgumentTypeError(
            "a graph factory takes the graph's JSON as str, the library, and a name as str; found "
            f"{type(graph_json).__name__} and {type(module_name).__name__}"
        )
    if not isinstance(module, Module):
        raise ArgumentTypeError(
            f"the second argument is the library's Module, not a {type(module).__name__}; load it "
            "with packhorse.load_module"
        )
    if len(params) % 2 or not all(isinstance(name, str) for name in params[::2]):
        raise ArgumentValueError(
            "params are given as name and array in turn; found "
            f"{', '.join(type(p).__name__ for p in params[:6])}"
        )
    pairs = zip(params[::2], params[1::2], strict=True)
    arrays = {name: host_array(f"param '{name}'", array) for name, array in pairs}
    return GraphFactory(graph_json, arrays, module_name, [module])


def load_factory(
    module: Module, device: Device | None = None, *, threads: int = 0
) -> GraphExecutor | DeviceExecutor:
    """The executor of a single-file library: inputs in, outputs out, no state between runs.

    Parameters
    ----------
    module : Module
        A :class:`GraphFactory`, or a module that imports one.
    device : Device, optional
        Where to run it; default: host memory.
    threads : int
        Threads of a parallel launch; 0 means all this process may use.

    Raises
    ------
    ArgumentTypeError
        The module holds no graph.
    ArtifactError, FunctionNotFound, DeviceMemoryError
        The graph is damaged or cannot be run.
    DeviceUnavailable
        It was compiled for another device.
    """
    factory = find_factory(module)
    if factory is None:
        raise ArgumentTypeError(
            f"module '{getattr(module, 'name', module)!s:.80}' holds no graph; single-file "
            "libraries are written by TVM's export_library from relay.build"
        )
    weights = factory.weights()
    program = program_from_json(factory.graph_json, weights)
    runner, library = host_runner(program), factory._library()
    place = place_of(program, (device or "cpu",))
    if place.device is None or library is None:
        return GraphExecutor(program, library, weights, threads=threads, host=runner)
    return DeviceExecutor(program, library, weights, place.device, host=runner)


def find_factory(module: Any) -> GraphFactory | None:
    """The module itself or the first of its imports, depth first, that is a graph factory."""
    if isinstance(module, GraphFactory):
        return module
    if isinstance(getattr(module, "payload", None), Factory):
        return from_payload(module.kind, module.payload, module.imports)
    return next((f for m in getattr(module, "imports", ()) if (f := find_factory(m))), None)


def _aligned(array: Array) -> Array:
    """The same elements, read-only, where compiled code may read them."""
    if address_of(array) % ALIGNMENT or not array.flags.c_contiguous:
        copy = aligned_array(array.shape, array.dtype)
        np.copyto(copy, array)
        array = copy
    frozen = array.view()
    frozen.flags.writeable = False
    return frozen
