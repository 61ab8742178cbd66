"""A model or an artifact as commands use it: load, compile with progress, run, name outputs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from packhorse.cli._progress import progress
from packhorse.compiler.placement import Placement
from packhorse.compiler.specialize import shape_operands
from packhorse.device import Device, device
from packhorse.errors import ArgumentValueError
from packhorse.graph.ir import TensorType
from packhorse.loading import load
from packhorse.model import Executable, Model

__all__ = ["Session", "Wanted", "add_device_options", "duration", "wanted_device"]

Array: TypeAlias = np.ndarray[Any, Any]
Wanted: TypeAlias = str | Mapping[str, str | Sequence[str]] | None
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def duration(seconds: float) -> str:
    """A time for people, three digits: ``1.23 s``, ``45.6 ms``, ``789 us``."""
    scale, unit = next((u for u in _UNITS if seconds >= u[0]), _UNITS[-1])
    value = seconds / scale
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def add_device_options(parser: argparse.ArgumentParser, help: str) -> None:
    """``--device``, and ``--place`` for several devices."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--device", "-d", help=help)
    either.add_argument(
        "--place",
        nargs=2,
        action="append",
        metavar=("DEVICE", "NODES"),
        help="share the work: names of nodes with commas between (* and ? are wildcards), 'auto' "
        "for all the device has kernels for, or 'rest'; repeat for each device",
    )


def wanted_device(arguments: argparse.Namespace) -> Wanted:
    """What the two options say: a device string, device -> nodes, or nothing.

    Raises
    ------
    ArgumentValueError
        A device has two ``--place``.
    """
    choice: dict[str, str | list[str]] = {}
    for name, nodes in arguments.place or ():
        if name in choice:
            raise ArgumentValueError(f"--place {name} is given twice; join the nodes by commas")
        choice[name] = nodes if nodes in ("auto", "rest") else nodes.split(",")
    return choice or arguments.device


class Session:
    """A loaded file and the device it is to run on.

    Parameters
    ----------
    path : str
        Model file or artifact.
    wanted : str or mapping, optional
        Device string, or what each of several devices is to run; default as everywhere:
        ``$PACKHORSE_DEVICE``, else the best that works. An artifact runs on a device it has code
        for; another one is an error.

    Raises
    ------
    PackhorseError
        Whatever loading and opening the device raise.
    """

    def __init__(self, path: str, wanted: Wanted) -> None:
        start = time.perf_counter()
        loaded = load(Path(path), device=None if isinstance(wanted, Mapping) else wanted)
        self.model: Model | None = loaded if isinstance(loaded, Model) else None
        self.executable: Executable | None = loaded if isinstance(loaded, Executable) else None
        self._wanted: Device | Placement | None = None
        if isinstance(wanted, Mapping):
            self._wanted = Placement.of(wanted)
        elif self.model:
            self._wanted = device(wanted)
        if self.executable is not None:
            self.executable = self.executable.compile(wanted)
        self.load_seconds = time.perf_counter() - start
        self.compile_seconds: float | None = None

    @property
    def inputs(self) -> dict[str, TensorType]:
        """Name -> dtype and shape of each input."""
        source = self.model if self.model is not None else self.ready
        return source.inputs

    @property
    def device_name(self) -> str:
        """Canonical string of the device it runs on."""
        return self._wanted.name if self._wanted is not None else self.ready.device.name

    @property
    def ready(self) -> Executable:
        """The executable; only after :meth:`prepare` for a model."""
        assert self.executable is not None, "prepare() compiles it"
        return self.executable

    @property
    def timings(self) -> dict[str, float]:
        """Seconds per phase of compiling; empty for artifacts."""
        return self.ready.timings if self.compile_seconds is not None else {}

    def prepare(
        self,
        feeds: Mapping[str, Array] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> Executable:
        """Compile for the shapes (and values, where shapes depend on them) of ``feeds``.

        Raises
        ------
        ArgumentValueError
            Shapes depend on the value of an input that ``feeds`` does not hold.
        """
        if self.model is not None and self.executable is None:
            self._require_values(feeds or {})
            start = time.perf_counter()
            with progress(f"compiling for {self.device_name}"):
                self.executable = self.model.compile(self._wanted, shapes=shapes, values=feeds)
            self.compile_seconds = time.perf_counter() - start
        return self.ready

    def _require_values(self, feeds: Mapping[str, Array]) -> None:
        assert self.model is not None
        assert self._wanted is not None, "a model has a device"
        if isinstance(self._wanted, Device) and "compile" not in self._wanted.capabilities:
            return  # the references need no values ahead of time
        missing = sorted(shape_operands(self.model.graph) - feeds.keys())
        if missing:
            options = " ".join(f"--value {name}=NUMBER" for name in missing)
            raise ArgumentValueError(
                f"shapes inside this model depend on the value of input '{missing[0]}'. "
                f"Say for which to compile: {options}"
            )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; outputs by name."""
        # by position: an input may have any name, "device" included
        found = self.ready(*(feeds[name] for name in self.inputs))
        outputs = found if isinstance(found, tuple) else (found,)
        return dict(zip(self.ready.output_names, outputs, strict=True))

    def close(self) -> None:
        """Free what was compiled."""
        for held in (self.model, self.executable):
            if held is not None:
                held.close()
