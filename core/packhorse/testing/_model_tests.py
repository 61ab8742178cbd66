"""What models must do on a device: whole small graphs, errors, threads, lifetime."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from packhorse.device import Device
from packhorse.errors import ArgumentTypeError, ArgumentValueError, CompileError, DeviceClosed
from packhorse.module_base import Module
from packhorse.testing.compare import check_equal
from packhorse.testing.graphs import GRAPHS, Example

__all__ = ["ModelTests"]

_CYCLES = 100


class ModelTests:
    """Tests of models on the device."""

    device: ClassVar[str] = ""
    rtol: ClassVar[Mapping[str, float]] = {}
    atol: ClassVar[Mapping[str, float]] = {}

    @pytest.mark.parametrize("graph", list(GRAPHS))
    def test_graph(self, opened: Device, graph: str) -> None:
        """A small network gives what the NumPy references give, twice."""
        example = GRAPHS[graph]()
        with _model(example) as model:
            for _ in range(2):
                self._check(model(**example.feeds, device=opened), example)

    def test_sizes_change_from_call_to_call(self, opened: Device) -> None:
        """A symbolic dimension takes every size, in any order, and each result is right."""
        with _model(GRAPHS["mlp"]()) as model:
            for rows in (1, 5, 2, 5, 1):
                example = GRAPHS["mlp"](rows)
                self._check(model(**example.feeds, device=opened), example)

    def test_inputs_are_left_alone(self, opened: Device) -> None:
        """Inputs are not written to; results of earlier calls do not change."""
        example = GRAPHS["mlp"](3)
        kept = {name: array.copy() for name, array in example.feeds.items()}
        with _model(example) as model:
            first = model(**example.feeds, device=opened)
            copy = np.array(first)
            model(**{n: x * 2 for n, x in example.feeds.items()}, device=opened)
        np.testing.assert_array_equal(first, copy)
        for name, array in example.feeds.items():
            np.testing.assert_array_equal(array, kept[name])

    def test_strided_inputs(self, opened: Device) -> None:
        """Inputs may be views with any strides."""
        example = GRAPHS["mlp"](4)
        feeds = {name: np.asfortranarray(x) for name, x in example.feeds.items()}
        with _model(example) as model:
            self._check(model(**feeds, device=opened), example)

    def test_wrong_inputs_are_refused(self, opened: Device) -> None:
        """Another dtype, shape or name: ArgumentError that names it; then it runs again."""
        example = GRAPHS["mlp"](2)
        ((name, array),) = example.feeds.items()
        with _model(example) as model:
            with pytest.raises(ArgumentTypeError, match=name):
                model(array.astype(np.float64), device=opened)
            with pytest.raises(ArgumentValueError, match=name):
                model(array[:, :-1], device=opened)
            with pytest.raises(ArgumentValueError, match="no_such_input"):
                model(no_such_input=array, device=opened)
            self._check(model(array, device=opened), example)

    def test_the_report_names_the_device(self, opened: Device) -> None:
        """Every node is reported, on the device or, visibly, on the host."""
        example = GRAPHS["cnn"]()
        with _model(example) as model:
            shapes = {name: array.shape for name, array in example.feeds.items()}
            rows = model.compile(opened, shapes=shapes).report()
        assert rows
        assert all(row.device == opened.name or "host" in row.device for row in rows)

    def test_threads_share_a_model(self, opened: Device) -> None:
        """Many threads call one model, each gets the result of its own input."""
        examples = [GRAPHS["mlp"](1 + i % 3, seed=i) for i in range(12)]
        with _model(examples[0]) as model, ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda e: model(**e.feeds, device=opened), examples))
        for result, example in zip(results, examples, strict=True):
            self._check(result, example)

    def test_closed_executables_refuse(self, opened: Device) -> None:
        """DeviceClosed after close, which is idempotent; the model compiles anew."""
        example = GRAPHS["mlp"](2)
        with _model(example) as model:
            shapes = {name: array.shape for name, array in example.feeds.items()}
            ready = model.compile(opened, shapes=shapes)
            self._check(ready(**example.feeds), example)
            ready.close()
            ready.close()
            with pytest.raises(DeviceClosed):
                ready(**example.feeds)
            self._check(model(**example.feeds, device=opened), example)

    def test_saved_and_loaded(self, opened: Device, tmp_path: Path) -> None:
        """A saved model is loaded by the device and gives the very same; a device whose code
        cannot be saved says so and leaves no file."""
        from packhorse.artifact import load_artifact
        from packhorse.executable import Executable

        example, path = GRAPHS["cnn"](), tmp_path / "model.packhorse"
        with _model(example) as model:
            shapes = {name: array.shape for name, array in example.feeds.items()}
            ready = model.compile(opened, shapes=shapes)
            if not _can_be_saved(ready.module, opened):
                with pytest.raises(CompileError, match="save"):
                    ready.save(path)
                assert not list(tmp_path.iterdir())
                return
            ready.save(path)
            wanted = ready(**example.feeds)
        with Executable.from_artifact(load_artifact(path), opened) as loaded:
            found = loaded(*example.feeds.values())
        for ours, theirs in zip(_tuple(found), _tuple(wanted), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_nothing_is_left_behind(self, opened: Device) -> None:
        """100 cycles of compile, run and close leave the device's memory as it was."""
        example = GRAPHS["mlp"](2)
        before = opened.memory()
        for _ in range(_CYCLES):
            with _model(example) as model:
                model(**example.feeds, device=opened)
        gc.collect()
        after = opened.memory()
        assert (after.used, after.live) == (before.used, before.live)

    def _check(self, found: Any, example: Example) -> None:
        results = _tuple(found)
        assert len(results) == len(example.wanted)
        for number, (ours, theirs) in enumerate(zip(results, example.wanted, strict=True)):
            check_equal(ours, theirs, f"output {number}", self.rtol, self.atol)


def _tuple(found: Any) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) else (found,)


def _can_be_saved(module: Module | None, device: Device) -> bool:
    """Whether the backend wrote what saving needs."""
    if module is None:
        return False
    if "load" in device.capabilities:
        return type(module).save_blob is not Module.save_blob
    return device.info.is_host and type(module).export_library is not Module.export_library


def _model(example: Example) -> Any:
    from packhorse.model import Model  # the compiler comes with it

    return Model(example.graph)
