"""Whole models on an OpenCL device give what onnxruntime gives, every operator by a kernel."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_kit import opencl

import packhorse as ph

sys.path.append(str(Path(__file__).parent.parent.parent / "benchmarks"))

from _common import CASES as BENCHMARKS

pytestmark = pytest.mark.models

CASES = {case.name: case for case in BENCHMARKS}
SMALLER = {"ppocr-det-480x640", "ppocr-rec-320"}
"""Left out: the same models at another size."""


def compare(case: Any, oracle: Any) -> None:
    try:
        path = case.path
    except FileNotFoundError as error:
        pytest.skip(str(error))
    feeds = case.feeds()
    wanted = oracle(path, feeds)
    scalars = {name: a for name, a in feeds.items() if a.ndim == 0}
    shapes = {name: a.shape for name, a in feeds.items()}
    with ph.load(path).compile("opencl:0", shapes=shapes, values=scalars) as executable:
        found = executable(**feeds)
        hosts = [row for row in executable.report() if row.device != "opencl:0"]
    assert not hosts
    outputs = found if isinstance(found, tuple) else (found,)
    for ours, (name, theirs) in zip(outputs, wanted.items(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", sorted(CASES.keys() - SMALLER))
def test_equal_to_onnxruntime(name, oracle):
    opencl()
    compare(CASES[name], oracle)


@pytest.mark.parametrize("name", ["mobilenet-v2", "minilm-16", "lstm", "silero", "ppocr-cls"])
def test_equal_with_the_vectors_of_a_gpu(name, oracle, monkeypatch):
    """Drivers for CPUs get schedules without vectors; here they get those of a GPU."""
    device = opencl()
    monkeypatch.setattr(device, "_target", replace(device.target, lanes=4, max_group=1024))
    compare(CASES[name], oracle)
