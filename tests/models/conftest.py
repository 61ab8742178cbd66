"""Where models come from, and what onnxruntime says about them."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@lru_cache
def script(name: str) -> ModuleType:
    """A script of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def trained() -> Any:
    """Path of a trained model; skips where it was not fetched."""
    folder = script("fetch_models").models_dir()

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(f"{name} is not there: run python benchmarks/fetch_models.py")
        return path

    return find


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Path of a random-weight model of benchmarks/models.py, built on first use."""
    folder = script("fetch_models").models_dir()
    home = folder if folder.exists() else tmp_path_factory.mktemp("models")

    def find(name: str) -> Path:
        return Path(script("models").build(name, home / "random"))

    return find


@pytest.fixture(scope="session")
def feeds() -> Any:
    """Inputs for a random-weight model."""
    return script("models").feeds


@pytest.fixture(scope="session")
def oracle() -> Any:
    """Outputs of onnxruntime by name, remembered per model and input."""
    ort = pytest.importorskip("onnxruntime")
    sessions: dict[Path, Any] = {}
    answers: dict[Any, dict[str, Any]] = {}

    def ask(path: Path, inputs: dict[str, Any]) -> dict[str, Any]:
        key = (path, *(a.tobytes() for a in inputs.values()))
        if key not in answers:
            if path not in sessions:
                options = ort.SessionOptions()
                options.intra_op_num_threads, options.log_severity_level = 1, 3
                sessions[path] = ort.InferenceSession(
                    str(path), options, providers=["CPUExecutionProvider"]
                )
            names = [o.name for o in sessions[path].get_outputs()]
            found = sessions[path].run(None, inputs)
            answers[key] = {n: np.asarray(x) for n, x in zip(names, found, strict=True)}
        return answers[key]

    return ask
