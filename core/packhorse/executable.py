"""Executables: a model compiled for a device and fixed input shapes, or read from an artifact."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from packhorse.compiler.placement import Choice, Placement
from packhorse.compiler.result import Compiled, Report
from packhorse.device import Device
from packhorse.dtype import dtype as as_dtype
from packhorse.errors import ArgumentTypeError, ArgumentValueError, CompileError, DeviceClosed
from packhorse.executable_elsewhere import Elsewhere
from packhorse.feeds import Array, bind, no_such_input
from packhorse.graph.ir import TensorType

if TYPE_CHECKING:
    from packhorse.artifact import Artifact

__all__ = ["DeviceLike", "Executable", "Outputs"]

Outputs: TypeAlias = Array | tuple[Array, ...]
DeviceLike: TypeAlias = "str | Device | Choice | Placement | None"
"""A device string, a Device, ``None`` for the best that works, or several: device -> names of
nodes, ``"auto"`` (what it has kernels for) or ``"rest"``."""


class Executable:
    """Runs with fixed input shapes on one device, or on the devices of a placement. Call it like a
    :class:`~packhorse.Model`.

    Runs of one executable are serialised; different executables run in parallel.

    Attributes
    ----------
    device : Device
        Where it runs; the first of :attr:`devices`.
    inputs : dict of str to TensorType
        Name -> dtype and shape.
    output_names : tuple of str
    """

    def __init__(
        self,
        device: Device,
        inputs: Mapping[str, TensorType],
        outputs: Sequence[str],
        compiled: Compiled,
        artifact: Artifact | None = None,
        reopen: Callable[[Device], Executable] | None = None,
    ) -> None:
        self.device, self.inputs, self.output_names = device, dict(inputs), tuple(outputs)
        self._compiled, self._artifact = compiled, artifact
        self._names = tuple(self.inputs)
        placed = compiled.placement
        self._where = device.name if placed is None else placed.name
        self._devices = (device,) if placed is None else placed.devices
        self._run: Callable[[Any], list[Array]] = compiled.executor.run
        self._elsewhere = Elsewhere(device.name, reopen, artifact)
        self._closed = False

    @classmethod
    def from_artifact(cls, artifact: Artifact, on: str | Device | None = None) -> Executable:
        """Make a loaded artifact runnable.

        Parameters
        ----------
        artifact : Artifact
        on : str or Device, optional
            Where; default: ``$PACKHORSE_DEVICE``, else the best device that works here of those
            it holds code for.

        Raises
        ------
        DeviceUnavailable
            It holds no code for the device (the message names those it has), or none of its
            devices can be used here.
        ArtifactError
            Its parts do not fit together.
        CompileError
            The device cannot run the code: it has no float64, or smaller work-groups.
        """
        from packhorse.executable_artifact import open_artifact

        where, inputs, outputs, compiled = open_artifact(artifact, on)
        again = functools.partial(cls.from_artifact, artifact)
        return cls(where, inputs, outputs, compiled, artifact, again)

    @classmethod
    def from_library(cls, path: Path, on: str | Device | None = None) -> Executable:
        """Make a single-file library runnable: a graph factory (TVM up to 0.19, or ours), or a
        Relax executable (TVM from 0.21 on).

        Parameters
        ----------
        path : Path
        on : str or Device, optional
            Where; default: the first device of the kind it was compiled for.

        Raises
        ------
        ArtifactError
            The library holds functions only: :func:`packhorse.load_module` opens those.
        DeviceUnavailable
            It was compiled for another device.
        """
        from packhorse.executable_library import open_library

        where, inputs, outputs, compiled = open_library(path, on)
        return cls(
            where, inputs, outputs, compiled, reopen=functools.partial(cls.from_library, path)
        )

    def __call__(self, *args: Any, device: DeviceLike = None, **inputs: Any) -> Outputs:
        """Run; inputs and result as for :meth:`packhorse.Model.__call__`.

        ``device`` may name the device (or the placement) it was compiled for or, for artifacts,
        any device that they hold code for: all of host memory share one.
        """
        if device is not None and device != self._where:
            return self._on(device)(*args, **inputs)
        outputs = self._run(bind(self._names, args, inputs))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def compile(
        self,
        device: DeviceLike = None,
        *,
        shapes: Mapping[str, Sequence[int]] | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> Executable:
        """The same as for a :class:`~packhorse.Model`, where nothing is left to do.

        Raises
        ------
        ArgumentValueError
            For another device, or for other shapes than it was compiled for.
        """
        for name, shape in dict(shapes or {}).items():
            if name not in self.inputs:
                raise ArgumentValueError(no_such_input(name, self._names))
            if tuple(shape) != self.inputs[name].shape:
                raise ArgumentValueError(
                    f"input '{name}' was compiled for shape {self.inputs[name].shape}, not for "
                    f"{tuple(shape)}. Load the model and compile it for that shape"
                )
        del values  # built into the code already
        return self if device is None else self._on(device)

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._closed

    @property
    def usable(self) -> bool:
        """False once it or one of its devices was closed."""
        if self._closed:
            return False
        for where in self._devices:  # noqa: SIM110 - on the way of every call: no generator
            if where.closed:
                return False
        return True

    @property
    def outputs(self) -> dict[str, TensorType]:
        """Name -> dtype and shape of each output; empty shapes are unknown before a run."""
        unknown = TensorType(np.dtype(np.float32), None)
        found = dict.fromkeys(self.output_names, unknown) | self.inputs  # some are both
        for made in self._compiled.parts or (self._compiled,):
            program = made.program
            if program is not None:
                entries = [program.entries[i] for i in program.outputs]
                types = (TensorType(as_dtype(e.dtype), e.shape) for e in entries)
                found |= zip(program.output_names, types, strict=True)
        return {name: found[name] for name in self.output_names}

    @property
    def devices(self) -> tuple[Device, ...]:
        """Every device it runs on."""
        return self._devices

    @property
    def module(self) -> Any:
        """The :class:`~packhorse.Module` of its compiled code; None where there is none."""
        return self._compiled.module

    @property
    def compiled_for(self) -> str:
        """The device string it was compiled for, or all with what each runs; empty where the
        artifact does not say (TVM's)."""
        if self._compiled.placement is not None:
            return self._where
        program = self._compiled.program
        found = "" if program is None else program.metadata.get("device", "")
        return found or ("" if self._artifact is None else self._artifact.device)

    @property
    def timings(self) -> dict[str, float]:
        """Seconds spent in each phase of compiling; empty for artifacts."""
        return dict(self._compiled.timings)

    @property
    def memory_bytes(self) -> int:
        """Bytes of work memory it holds besides the weights."""
        return int(getattr(self._compiled.executor, "memory_bytes", 0))

    def report(self) -> Report:
        """Where each node of the model runs, the kernel it was fused into, and what is copied."""
        copies = getattr(self._compiled.executor, "copies", ())
        return Report(self._compiled.report, copies)

    def profile(self, *args: Any, repeat: int = 10, **inputs: Any) -> list[tuple[str, str, float]]:
        """Run step by step: (label, function, median microseconds) in execution order.

        Kernels of a device are timed by its own clock where it has one. Steps that run by their
        NumPy reference on the host have a function ``packhorse.op.<operator>``.

        Raises
        ------
        CompileError
            A Relax executable of TVM: it runs a program of its own, not steps.
        """
        self._require_open()
        executor: Any = self._compiled.executor
        if not hasattr(executor, "profile"):
            raise CompileError(
                "TVM's Relax VM runs a program of its own, which cannot be timed step by step. "
                "Measure it as a whole: packhorse bench MODEL"
            )
        rows: list[tuple[str, str, float]] = executor.profile(
            bind(self._names, args, inputs), repeat
        )
        return rows

    def save(
        self, path: str | os.PathLike[str], *, form: Literal["graph", "relax"] = "graph"
    ) -> Path:
        """Write the compiled model to disk.

        Parameters
        ----------
        path : path-like
            A folder (``deploy/``: ``deploy.json``, ``deploy.params``, ``deploy.so`` in TVM's
            formats; ``deploy.code`` for devices that are not host memory), ``name.packhorse``
            (one file), or ``name.so`` (one library that holds graph and weights too).
        form : str
            Which of TVM's runtimes a ``name.so`` is for: ``"graph"``, the graph executor of TVM
            up to 0.19, or ``"relax"``, the Relax VM of 0.22 and newer. packhorse loads both.

        Returns
        -------
        Path
            What was written. What was there before is replaced whole, or kept whole on failure.

        Raises
        ------
        CompileError
            Nothing was compiled (device ``cpu``), or there is no linker, the backend's code has
            no form on disk, or the Relax VM cannot run a step of the model.
        ArgumentValueError
            No such ``form``, or another than ``"graph"`` for something else than ``name.so``.
        ArtifactError
            It cannot be written there.
        DeviceClosed
            After :meth:`close`.
        """
        from packhorse.artifact import save_artifact
        from packhorse.executable_save import save_library
        from packhorse.export import warn_of_host_operators

        self._require_open()
        if not isinstance(path, (str, os.PathLike)):
            raise ArgumentTypeError(f"save takes a path, not {type(path).__name__}")
        if form not in ("graph", "relax") or (form == "relax" and Path(path).suffix != ".so"):
            raise ArgumentValueError(
                f"form is '{form}' and the path '{path}'; form is 'graph', or for one library "
                "(name.so) also 'relax'"
            )
        if Path(path).suffix == ".so":
            program = self._require_program("saved")
            self._require_unlinked()
            made = self._compiled
            return save_library(Path(path), form, program, made.params, made.module)
        artifact = self.artifact()
        if self._artifact is None and Path(path).suffix != ".packhorse" and not artifact.kinds:
            warn_of_host_operators(artifact.program(), f"'{path}'")
        return save_artifact(path, artifact)

    def artifact(self) -> Artifact:
        """What :meth:`save` writes: program, weights and code. Those of several devices become
        one by :func:`packhorse.artifact_join.join_artifacts`.

        Raises
        ------
        CompileError, ArtifactError, DeviceClosed
            As :meth:`save`.
        """
        from packhorse.artifact import Artifact
        from packhorse.executable_save import code_of

        self._require_open()
        if self._artifact is not None:
            return self._artifact
        program = self._require_program("saved")
        target = self.device.info.name
        self._require_unlinked()
        kind, code = code_of(self._compiled.module, self.device)
        return Artifact(
            programs={target: program},
            params=self._compiled.params,
            libraries={target: code},
            device=self.device.name,
            kinds={target: kind} if kind else {},
        )

    def close(self) -> None:
        """Free its memory; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._compiled.executor.close()
        self._run = _refuse
        # code and weights go now, not when the last reference to this object does
        self._compiled = self._compiled.without_code()
        self._artifact = None
        self._elsewhere.close()

    def __enter__(self) -> Executable:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        inputs = ", ".join(f"{n}: {t}" for n, t in self.inputs.items())
        return f"<packhorse.Executable on {self._where} ({inputs})>"

    def _require_open(self) -> None:
        if self._closed:
            _refuse(None)

    def _require_unlinked(self) -> None:
        """Refuse to link what was loaded and not compiled."""
        if self._elsewhere.reopen is not None:
            raise CompileError(
                "nothing was written: this executable was loaded, and its library is linked "
                "already. Copy the file it came from (an artifact may be saved as a folder or a "
                ".packhorse file), or compile the model again"
            )

    def _require_program(self, what: str) -> Any:
        self._require_open()
        if self._compiled.placement is not None:
            raise CompileError(
                f"this model was cut for {self._where} and cannot be {what} as one. Compile it "
                "for one device"
            )
        if self._compiled.program is None:
            why = f" ({self._compiled.note})" if self._compiled.note else ""
            raise CompileError(
                f"this model runs by the NumPy references on '{self.device.name}'{why}; there is "
                f"nothing compiled to be {what}. Compile it for 'llvm-cpu'"
            )
        return self._compiled.program

    def _on(self, wanted: str | Device | Choice | Placement) -> Executable:
        self._require_open()
        if isinstance(wanted, Mapping):
            wanted = Placement.of(wanted)
        if isinstance(wanted, Placement) or self._compiled.placement is not None:
            name = getattr(wanted, "name", wanted)
            if name == self._where:
                return self
            raise ArgumentValueError(
                f"this executable was compiled for {self._where}, not for {name}. Call the "
                "model, or compile it for that"
            )
        found = self._elsewhere.on(wanted)
        return self if found is None else found


def _refuse(feeds: Any) -> list[Array]:
    """What a closed executable runs; no method, which would keep it alive."""
    raise DeviceClosed("this executable is closed; compile or load it again")
