"""Making a single-file library runnable: TVM's and ours hold the graph beside the code."""

from __future__ import annotations

from pathlib import Path

from packhorse.compiler.result import Compiled, NodeReport
from packhorse.device import Device, device
from packhorse.errors import ArtifactError
from packhorse.executable_artifact import Opened, input_types
from packhorse.graph._devices import backend_of
from packhorse.graph.factory import find_factory, load_factory
from packhorse.graph.relax import load_relax
from packhorse.module import load_module

__all__ = ["open_library"]


def open_library(path: Path, on: str | Device | None) -> Opened:
    """Load a graph factory (TVM up to 0.19, or ours) or a Relax executable (TVM from 0.21 on).

    Raises
    ------
    ArtifactError
        The library holds functions only.
    DeviceUnavailable
        It was compiled for another device.
    """
    module = load_module(path)
    factory = find_factory(module)
    where = device(on or backend_of(factory.program() if factory else None, module))
    threads = getattr(where, "threads", 0)
    if factory is not None:
        executor = load_factory(factory, where, threads=threads)
        program = executor.program
        steps = [NodeReport(s.name, where.name, s.function) for s in program.steps]
        compiled = Compiled(executor, steps, program, module)
        return where, input_types(program), program.output_names, compiled
    if any(m.kind == "relax.VMExecutable" for m in (module, *module.imports)):
        relax = load_relax(module, device=where, threads=threads)
        rows = [NodeReport(name, where.name, name) for name in relax.functions]
        return where, relax.inputs, relax.output_names, Compiled(relax, rows, module=module)
    raise ArtifactError(
        f"'{path}' is a library of functions and holds no graph. Open it with "
        f"packhorse.load_module('{path}'), or load the folder of its deploy.json"
    )
