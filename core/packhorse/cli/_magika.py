"""File types by magika's model: what goes in, what comes out, as magika 1.0's Python code does it.

magika (https://github.com/google/magika, Apache-2.0) reads at most one block from each end of a
file, strips white space, and classifies 1024 + 1024 bytes. Tests compare with its own answers.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from packhorse.errors import ArgumentValueError, ModelFormatError

__all__ = ["FileType", "Rules", "find_model"]

Array: TypeAlias = np.ndarray[Any, Any]
_MODEL, _CONFIG, _KINDS = "model.onnx", "config.min.json", "content_types_kb.min.json"


@dataclass(frozen=True)
class FileType:
    """What a file is: magika's label and description, and how sure the model was."""

    label: str
    description: str
    score: float


@dataclass(frozen=True)
class Rules:
    """The model's configuration and the table of known types.

    Parameters
    ----------
    config : mapping
        ``config.min.json`` of the model.
    kinds : mapping
        ``content_types_kb.min.json``: label -> description, is_text, ...
    """

    config: Mapping[str, Any]
    kinds: Mapping[str, Mapping[str, Any]]

    def prepare(self, path: Path) -> Array | FileType:
        """The model's input for a file, int32[2048]; a FileType where no model is needed.

        Raises
        ------
        ArgumentValueError
            The file cannot be read.
        """
        block, fewest = self.config["block_size"], self.config["min_file_size_for_dl"]
        try:
            with path.open("rb") as file:
                start = file.read(block)
                size = file.seek(0, 2)
                file.seek(max(size - block, 0))
                end = file.read(block)
        except OSError as error:
            raise ArgumentValueError(
                f"'{path}' cannot be read: {error.strerror or error}. "
                "Give files: packhorse demo FILE"
            ) from None
        if not size:
            return self._named("empty")
        if size < fewest or len(start.lstrip()) < fewest:
            return self._named("txt" if _is_utf8(start) else "unknown")
        return self._features(start.lstrip(), end.rstrip())

    def _features(self, start: bytes, end: bytes) -> Array:
        """First bytes, padded behind; last bytes, padded before."""
        first, last = self.config["beg_size"], self.config["end_size"]
        features = np.full(first + last, self.config["padding_token"], np.int32)
        head = np.frombuffer(start[:first], np.uint8)
        tail = np.frombuffer(end[-last:], np.uint8)
        features[: len(head)] = head
        features[len(features) - len(tail) :] = tail
        return features

    def decide(self, scores: Array) -> FileType:
        """The file type for the model's output, float32[214]; unsure answers become general."""
        best = int(np.argmax(scores))
        score = float(scores[best])
        guess = self.config["target_labels_space"][best]
        label = self.config["overwrite_map"].get(guess, guess)
        enough = self.config["thresholds"].get(guess, self.config["medium_confidence_threshold"])
        if score < enough:
            label = "txt" if self.kinds[label]["is_text"] else "unknown"
        return self._named(label, score)

    def _named(self, label: str, score: float = 1.0) -> FileType:
        return FileType(label, self.kinds[label]["description"] or label, score)


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def find_model(checkouts: tuple[Path, ...] | None = None) -> tuple[Path, Rules]:
    """Path of magika's model, and its rules.

    Looked for in ``examples/magika`` of the working directory and of the checkout packhorse runs
    from, then in an installed package ``magika`` (which is not imported).

    Raises
    ------
    ModelFormatError
        It is nowhere: says how to get it. Or its configuration is damaged.
    """
    if checkouts is None:
        checkouts = (Path.cwd(), Path(__file__).resolve().parents[3])
    for folder in (root / "examples" / "magika" for root in checkouts):
        if (folder / _MODEL).is_file():
            return folder / _MODEL, _read_rules(folder / _CONFIG, folder / _KINDS)
    spec = importlib.util.find_spec("magika")
    if spec is not None and spec.origin is not None:
        package = Path(spec.origin).parent
        for model in sorted(package.glob(f"models/*/{_MODEL}")):
            rules = _read_rules(model.with_name(_CONFIG), package / "config" / _KINDS)
            return model, rules
    raise ModelFormatError(
        "the model of the demo was not found: neither examples/magika/model.onnx here nor the "
        "package magika. Run the demo in a checkout of packhorse, or get the package with: "
        f"{Path(sys.executable).name} -m pip install magika"
    )


def _read_rules(config: Path, kinds: Path) -> Rules:
    try:
        return Rules(json.loads(config.read_bytes()), json.loads(kinds.read_bytes()))
    except (OSError, ValueError) as error:
        raise ModelFormatError(
            f"the configuration of the demo's model cannot be read: {error}. Restore the folder "
            f"'{config.parent}', or reinstall the package it belongs to"
        ) from None
