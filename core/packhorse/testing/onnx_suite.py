"""ONNX's own backend tests, run on any device: import, compile, run, compare.

``packhorse testing onnx --device cpu`` is this as a command. :func:`prepare` and
:class:`PackhorseRep` are ONNX's backend interface, so that ``onnx.backend.test.BackendTest`` and
other tools that speak it can run packhorse too.

Source: ``onnx.backend.base`` and ``onnx.backend.test.runner`` (tolerances, and that dtype and
shape must be equal).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from packhorse.device import Device
from packhorse.device import device as open_device
from packhorse.errors import ArgumentValueError, PackhorseError
from packhorse.model import Model
from packhorse.plugin import default_manager
from packhorse.testing.onnx_cases import OnnxCase, load_cases, sample_of
from packhorse.testing.report import Result

__all__ = ["PackhorseRep", "prepare", "run_case", "run_suite", "supports_device"]

_BFLOAT16_RTOL = 2**-6  # two units in the last place, as ONNX's runner allows


class PackhorseRep:
    """A model prepared for a device: the ``BackendRep`` of ONNX's interface."""

    def __init__(self, model: Model, device: Device) -> None:
        self.model, self.device = model, device

    def run(self, inputs: Sequence[Any], **_: Any) -> tuple[Any, ...]:
        """The outputs for inputs in the model's order. Raises as calling a Model does."""
        result = self.model(*inputs, device=self.device)
        return result if isinstance(result, tuple) else (result,)

    def reports(self) -> list[Any]:
        """Where each node runs, for every signature that was run."""
        return [row for found in self.model._ready.values() for row in found.report()]


def prepare(model: Any, device: str | Device = "cpu", **_: Any) -> PackhorseRep:
    """Import a ``ModelProto`` for a device.

    Raises
    ------
    ModelError
        The model cannot be used; :class:`~packhorse.errors.UnsupportedOperator` where only an
        operator is missing.
    DeviceError
        There is no such device here.
    MissingExtra
        The package onnx is not installed.
    """
    graph = default_manager().frontend("onnx").import_model(model)
    return PackhorseRep(Model(graph), open_device(device))


def supports_device(device: str) -> bool:
    """Whether the device can be opened here. Source: ``onnx.backend.base.Backend``."""
    try:
        open_device(device)
    except PackhorseError:
        return False
    return True


def run_case(case: OnnxCase, device: str | Device) -> Result:
    """Run one test.

    Returns
    -------
    Result
        ``passed``; ``unsupported`` when packhorse said what it lacks, with its words; ``failed``
        for wrong results and for anything that is no error of packhorse's own. ``host`` counts
        the nodes that ran by their NumPy reference on a device that compiles, ``hosted`` names
        their operators.
    """
    start = time.perf_counter()
    hosted: list[str] = []
    try:
        with _silent(), prepare(case.load(), device).model as model:
            rep = PackhorseRep(model, open_device(device))
            for inputs, wanted in case.data_sets():
                _compare(rep.run(inputs), wanted, case)
            hosted = [_operator(r.node) for r in rep.reports() if r.device.startswith("host")]
    except PackhorseError as error:
        outcome, reason = "unsupported", str(error)
    except Exception as error:
        outcome, reason = "failed", f"{type(error).__name__}: {error}"
    else:
        outcome, reason = "passed", ""
    took = time.perf_counter() - start
    return Result(
        case.name, outcome, " ".join(reason.split())[:300], took, case.tier,
        len(hosted), ", ".join(sorted(set(hosted))), case.operator,
    )  # fmt: skip


def _operator(label: str) -> str:
    """The operator in a node's label, ``'name' (Op)``."""
    return label.rpartition("(")[2].removesuffix(")")


def run_suite(
    device: str | Device,
    *,
    sample: int | None = None,
    tiers: Iterable[str] = (),
    skip: Mapping[str, str] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Result]:
    """Run the tests on a device.

    Parameters
    ----------
    device : str or Device
    sample : int, optional
        Only so many, always the same ones, spread over the operators: every operator has one
        before any has two.
    tiers : iterable of str
        Only these tiers of :data:`~packhorse.testing.onnx_cases.TIERS`; default all.
    skip : mapping of test name to reason, optional
        Tests not to run, reported as ``skipped``.
    progress : callable, optional
        Called before each test with (number, count, name).

    Raises
    ------
    ArgumentValueError
        An unknown tier, a sample of less than one, a name in ``skip`` that no test has.
    DeviceError, MissingExtra
        The device, or the package onnx, is not there.
    """
    from packhorse.testing.onnx_cases import TIERS

    opened, wanted = open_device(device), list(tiers)
    for tier in wanted:
        if tier not in TIERS:
            raise ArgumentValueError(f"there is no tier '{tier}'; tiers are {', '.join(TIERS)}")
    cases = [case for case in load_cases() if not wanted or case.tier in wanted]
    reasons = dict(skip or {})
    strange = reasons.keys() - {case.name for case in load_cases()}
    if strange:
        raise ArgumentValueError(f"no ONNX test is called '{min(strange)}'; take it off the list")
    chosen = cases if sample is None else sample_of(cases, sample)
    results = []
    for number, case in enumerate(chosen):
        if progress is not None:
            progress(number, len(chosen), case.name)
        if case.name in reasons:
            results.append(
                Result(
                    case.name, "skipped", reasons[case.name], tier=case.tier, operator=case.operator
                )
            )
        else:
            results.append(run_case(case, opened))
    return results


def _compare(found: Sequence[Any], wanted: Sequence[Any], case: OnnxCase) -> None:
    if len(found) != len(wanted):
        raise AssertionError(f"{len(found)} outputs, wanted {len(wanted)}")
    for number, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        if isinstance(theirs, list):
            _compare(ours, theirs, case)
        else:
            _check_array(np.asarray(ours), np.asarray(theirs), case, f"output {number}")


def _check_array(ours: Any, theirs: Any, case: OnnxCase, what: str) -> None:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        raise AssertionError(
            f"{what} is {ours.dtype}{list(ours.shape)}, wanted {theirs.dtype}{list(theirs.shape)}"
        )
    if theirs.dtype.kind in "OSUb":
        np.testing.assert_array_equal(ours, theirs, err_msg=what)
        return
    rtol = case.rtol
    if theirs.dtype.kind == "V" or theirs.dtype.name == "bfloat16":
        ours, theirs = ours.astype(np.float32), theirs.astype(np.float32)
        rtol = max(rtol, _BFLOAT16_RTOL)
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=case.atol, err_msg=what)


@contextmanager
def _silent() -> Any:
    """That a graph runs by its references is counted here; 2,000 warnings help nobody."""
    log = logging.getLogger("packhorse.compiler")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
