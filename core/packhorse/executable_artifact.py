"""Making an artifact runnable: which of its targets serves a device, and what runs it there.

Nothing of the compiler is imported, but for programs with steps of the host: those need the
operators' NumPy references.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from packhorse import _config
from packhorse._device_string import parse_choice
from packhorse.artifact import Artifact
from packhorse.compiler.result import HOST, Compiled, NodeReport, Runner
from packhorse.device import Device, device
from packhorse.dtype import dtype as as_dtype
from packhorse.errors import (
    ArgumentError,
    ArtifactError,
    CompileError,
    DeviceError,
    DeviceUnavailable,
    FunctionNotFound,
    MissingExtra,
    PackhorseError,
    PluginError,
    UnknownBackend,
)
from packhorse.graph._devices import backend_of, device_type
from packhorse.graph._segments import HOST_PREFIX
from packhorse.graph.device_executor import DeviceExecutor
from packhorse.graph.executor import GraphExecutor
from packhorse.graph.ir import TensorType
from packhorse.graph.program import Program, Step
from packhorse.module import load_module
from packhorse.module_base import Module

__all__ = ["Opened", "device_for", "input_types", "open_artifact", "target_for"]

T = TypeVar("T")
Opened: TypeAlias = tuple[Device, dict[str, TensorType], tuple[str, ...], Compiled]
"""Where it runs, its inputs, the names of its outputs, and what runs it."""

_log = logging.getLogger("packhorse.artifact")
_NEXT = (UnknownBackend, DeviceUnavailable, MissingExtra, PluginError, CompileError)
"""What makes the next device be tried where several were named, or none."""
_CHOICE = re.compile(r",|^auto$", re.IGNORECASE)
"""Device strings that mean more than one device."""


def open_artifact(artifact: Artifact, on: str | Device | None) -> Opened:
    """Load an artifact's code and weights onto a device.

    Parameters
    ----------
    artifact : Artifact
    on : str, Device or None
        None: ``$PACKHORSE_DEVICE``, else ``auto``, the best device that works here of those it
        is for. Of a list the first that works here and that it is for.

    Raises
    ------
    DeviceUnavailable
        It holds no code for the device, or none of its devices can be used here: says why.
    ArtifactError
        Program and code do not fit together, or the code is damaged.
    CompileError
        The device cannot run the code.
    """
    named = _config.setting("PACKHORSE_DEVICE") if on is None else None
    try:
        return _first(artifact, on or named or "auto", lambda where: _opened(artifact, where))
    except DeviceError as error:
        if named is not None:
            error.args = (f"PACKHORSE_DEVICE={named}: {error}", *error.args[1:])
        raise


def device_for(artifact: Artifact, wanted: str | Device) -> Device:
    """The device a string means for an artifact: of a list the first that works here and that it
    holds code for, for ``auto`` the best of those it was compiled for.

    Raises
    ------
    DeviceUnavailable
        There is none; a device named alone may still lack code in the artifact.
    """
    if not isinstance(wanted, str) or not _CHOICE.search(wanted):
        return device(wanted)  # on the way of calls: no more than that
    return _first(artifact, wanted, lambda where: where)


def target_for(artifact: Artifact, where: Device) -> str:
    """The target whose code a device runs: its backend's own, or any code of the host for a
    device of host memory.

    Raises
    ------
    DeviceUnavailable
        There is none; names those that it holds.
    """
    own = where.info.name
    if own in artifact.kinds and "load" in where.capabilities:
        return own
    libraries = [target for target in artifact.targets if target not in artifact.kinds]
    host = [target for target in libraries if not _launches(artifact, target)]
    if where.info.is_host and host:
        return own if own in host else host[0]
    for target in libraries:
        if "load" in where.capabilities and _may_launch(artifact.program(target), where):
            return target
    why = ""
    if own in artifact.kinds:
        why = f", which loads no code of the kind '{artifact.kinds[own]}'"
    raise DeviceUnavailable(
        f"this artifact holds code for {', '.join(artifact.targets)}, none for "
        f"'{where.name}'{why}. Load the model and compile it for that device"
    )


def _launches(artifact: Artifact, target: str) -> bool:
    """Whether a target's library (TVM's) launches kernels of a device."""
    return backend_of(artifact.program(target)) != "cpu"


def _may_launch(program: Program, where: Device) -> bool:
    """Whether TVM compiled a graph for a device, as far as the graph says: until 0.5 it did not,
    and what its library says is found out when it is loaded."""
    tvm = program.metadata.get("alignment") == "strict"
    return tvm and device_type(program) in (None, where.dlpack_device[0])


def input_types(program: Program) -> dict[str, TensorType]:
    """Name -> dtype and shape of what a program takes."""
    entries = [program.entries[i] for i in program.inputs]
    return {entry.name: TensorType(as_dtype(entry.dtype), entry.shape) for entry in entries}


def _first(artifact: Artifact, wanted: str | Device, use: Callable[[Device], T]) -> T:
    """What ``use`` makes of the device named, or of the first of several that works here."""
    names = _names(artifact, wanted) if isinstance(wanted, str) else [wanted]
    reasons = []
    for name in names:
        try:
            where = device(name)
            target_for(artifact, where)
            return use(where)
        except _NEXT as error:
            if len(names) == 1:
                raise
            _log.info("'%s' is passed over for '%s': %s", name, wanted, error)
            reasons.append(f"\n  {name}: {error}")
    raise DeviceUnavailable(
        f"this artifact holds code for {', '.join(artifact.targets)}, and none of the devices "
        f"'{wanted}' stands for can be used here:{''.join(reasons)}"
    )


def _names(artifact: Artifact, wanted: str) -> list[str]:
    """The devices to try."""
    names = [str(choice) for choice in parse_choice(wanted)]
    if names != ["auto"]:  # auto:gpu means here what it means everywhere
        return names
    own = {t for t in artifact.targets if t in artifact.kinds or _launches(artifact, t)}
    # backends are asked for their priority only where there is a choice: code of the host alone
    # needs none of them
    targets = _by_priority(artifact.targets) if own else artifact.targets
    return list(dict.fromkeys(target if target in own else "cpu" for target in targets))


def _by_priority(targets: Sequence[str]) -> list[str]:
    from packhorse.plugin.manager import default_manager

    def priority(target: str) -> int:
        try:
            return default_manager().backend_info(target).priority
        except PackhorseError:
            return 0  # what opening it says is shown if no other can be opened

    return sorted(targets, key=priority, reverse=True)


def _opened(artifact: Artifact, where: Device) -> Opened:
    target = target_for(artifact, where)
    program = artifact.program(target)
    module = _module(artifact, target, where)
    executor: Runner
    try:
        if where.info.is_host:
            threads = getattr(where, "threads", 0)
            executor = GraphExecutor(program, module, artifact.params, threads=threads, host=_host)
        else:
            executor = DeviceExecutor(program, module, artifact.params, where, host=_host)
    except (ArgumentError, FunctionNotFound) as error:
        raise ArtifactError(
            f"program, weights and code for '{target}' do not fit together: {error}"
        ) from error
    made = Compiled(executor, _report(program, where), program, module, artifact.params)
    return where, input_types(program), program.output_names, made


def _module(artifact: Artifact, target: str, where: Device) -> Any:
    """The target's code, loaded; None when it has none."""
    if target not in artifact.kinds:
        library = artifact.library_path(target)
        return None if library is None else load_module(library, abi="legacy")
    module = where.load(artifact.code(target), artifact.kinds[target])  # type: ignore[attr-defined]
    if not isinstance(module, Module):
        raise PluginError(
            f"{where.name}: load() gave a {type(module).__name__}, not a packhorse Module. Report "
            "it to the plugin's author"
        )
    return module


def _report(program: Program, where: Device) -> list[NodeReport]:
    rows = []
    for step in program.steps:
        if not step.once:
            place = HOST if step.function.startswith(HOST_PREFIX) else where.name
            rows.append(NodeReport(step.name, place, step.function))
    return rows


def _host(step: Step, inputs: Any, outputs: Any) -> None:
    from packhorse.compiler.host import run_step

    run_step(step, inputs, outputs)
