"""The global functions that make graph modules: ``tvm.graph_executor.create`` and its kin.

Each takes its devices as TVM's do: Devices, device strings, or pairs of ints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from packhorse.errors import ArgumentTypeError, DeviceUnavailable
from packhorse.function import PackedFunction
from packhorse.graph._devices import place_of
from packhorse.graph._segments import HOST_PREFIX, HostRunner, ModuleLike
from packhorse.graph.graph_json import program_from_json
from packhorse.graph.program import Program
from packhorse.graph.runtime import GraphModule
from packhorse.graph.runtime_debug import DebugModule

__all__ = ["build", "create", "create_cuda_graph", "create_debug", "host_runner"]

G = TypeVar("G", bound=GraphModule)


def create(graph_json: str | bytes, module: ModuleLike | None, *where: Any) -> GraphModule:
    """``tvm.graph_executor.create``, ``tvm.graph_runtime.create``: a graph ready to be set and run.

    Parameters
    ----------
    graph_json : str or bytes
        Content of ``deploy.json``.
    module : Module
        The library with the functions of the graph.
    *where
        A Device, a device string, or TVM's ``device_type, device_id`` (1, 0); of several the one
        that the graph was compiled for. Before them, a function ``f(storage_id) -> address`` of
        weights in the library may stand.

    Raises
    ------
    ArtifactError
        The JSON is damaged.
    FunctionNotFound
        The library lacks a function of the graph.
    DeviceError
        The graph was compiled for another device, or the device cannot be opened.
    ArgumentTypeError, ArgumentValueError
        The arguments are of other kinds, or there is no device.
    """
    return _make(GraphModule, graph_json, module, where)


def create_debug(graph_json: str | bytes, module: ModuleLike | None, *where: Any) -> DebugModule:
    """``tvm.graph_executor_debug.create``: as :func:`create`, and every node can be looked at."""
    return _make(DebugModule, graph_json, module, where)


def _make(
    kind: type[G], graph_json: str | bytes, module: ModuleLike | None, where: Sequence[Any]
) -> G:
    """What :func:`create` does, for other kinds of graph module."""
    if not isinstance(graph_json, str | bytes):
        raise ArgumentTypeError(
            f"the graph is JSON text, not a {type(graph_json).__name__}; pass the content of "
            "deploy.json"
        )
    if module is not None and not hasattr(module, "get_function"):
        raise ArgumentTypeError(
            f"the second argument is the library's Module, not a {type(module).__name__}; load it "
            "with packhorse.load_module"
        )
    return build(kind, program_from_json(graph_json, ()), module, where)


def build(kind: type[G], program: Program, module: ModuleLike | None, where: Sequence[Any]) -> G:
    """A graph module of a program whose arguments are all inputs. Raises as :func:`create`."""
    linked = None
    if where and isinstance(where[0], PackedFunction):
        linked, where = where[0], where[1:]
    place = place_of(program, where)
    return kind(program, module, place, host=host_runner(program), linked=linked)


def host_runner(program: Program) -> HostRunner | None:
    """The NumPy references, for graphs that have such steps. They lie in a layer above this one."""
    if not any(step.function.startswith(HOST_PREFIX) for step in program.steps):
        return None
    from importlib import import_module

    found: HostRunner = import_module("packhorse.compiler.host").run_step
    return found


def create_cuda_graph(*_: Any) -> Any:
    """``tvm.graph_executor_cuda_graph.create``: always refused.

    Raises
    ------
    DeviceUnavailable
        CUDA graphs are not offered under TVM's names.
    """
    raise DeviceUnavailable(
        "CUDA graphs are not offered for libraries that TVM compiled; create the graph with "
        "tvm.graph_executor.create"
    )
