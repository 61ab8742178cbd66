"""A TVM with a graph executor (0.16) runs our triples and factories, bit for bit.

It needs a Python of its own: TVM_LEGACY_PYTHON, which `tox -e tvm-legacy` sets.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from interop_kit import network

pytest.importorskip("llvmlite")
from export_kit import SMALL, library

PYTHON = os.environ.get("TVM_LEGACY_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="no TVM_LEGACY_PYTHON: tox -e tvm-legacy")
RUNNER = Path(__file__).with_name("legacy_runner.py")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_triples_and_factories(tmp_path, threads, batch):
    model, x = network(batch)
    with model.compile(f"llvm-cpu?threads={threads}") as executable:
        expected = executable(x)
        executable.save(tmp_path / "deploy/")
        executable.save(tmp_path / "deploy.so")
    library(tmp_path, {"add": SMALL})
    np.savez(tmp_path / "inputs.npz", x=x)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(PYTHON), str(RUNNER), str(tmp_path)], env=clean, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "add: 2 arguments were given; it takes 3" in done.stdout
    for form in ("triple", "factory"):
        found = np.load(tmp_path / f"{form}.npz")
        for i, output in enumerate(expected):
            np.testing.assert_array_equal(found[f"arr_{i}"], output)
