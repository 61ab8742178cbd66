"""Inputs named on the command line: ``--input``, ``--shape``, ``--value``, and what is missing."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from packhorse.errors import ArgumentTypeError, ArgumentValueError, did_you_mean
from packhorse.graph.ir import Dim, TensorType

__all__ = ["add_input_options", "add_shape_options", "read_inputs", "read_shapes", "read_signature"]

Array: TypeAlias = np.ndarray[Any, Any]
Inputs: TypeAlias = Mapping[str, TensorType]

_FORMS = "NAME=FILE.npy, NAME=random, NAME=random:1x3x224x224 or NAME=NUMBER"
_RANDOM = re.compile(r"random(?::(?P<shape>\d+(?:x\d+)*|scalar))?\Z")
_TOKENS = 100
"""Random integers lie below this: small enough for the vocabulary of any language model."""


def add_input_options(parser: argparse.ArgumentParser, default: str) -> None:
    """``--input`` and ``--seed``; ``default`` says what happens to inputs not named."""
    parser.add_argument(
        "--input",
        "-i",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"{_FORMS}; repeat for several inputs; 'random' alone means every input not "
        f"named. {default}",
    )
    parser.add_argument("--seed", type=int, default=0, help="of random inputs (default: 0)")


def add_shape_options(parser: argparse.ArgumentParser) -> None:
    """``--shape`` and ``--value``, for commands that compile without data."""
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=1,3,224,224",
        help="sizes of an input with symbolic dimensions; repeat for several",
    )
    parser.add_argument(
        "--value",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="value of an integer input that shapes depend on; repeat for several",
    )


def read_inputs(
    inputs: Inputs, options: Sequence[str], seed: int = 0, default: str | None = None
) -> dict[str, Array]:
    """One array for each input of a model.

    Parameters
    ----------
    inputs : mapping of name to TensorType
        What the model takes.
    options : sequence of str
        Values of ``--input``.
    seed : int
        Of the random generator; each input has its own stream.
    default : str, optional
        Form for the inputs not named; None makes them an error.

    Raises
    ------
    ArgumentValueError, ArgumentTypeError
        Unknown, missing or repeated names, unreadable files, wrong shapes and dtypes, sizes left
        open: with the option to type.
    """
    named, rest = _split(inputs, options, default)
    missing = [name for name in inputs if name not in named]
    if missing and rest is None:
        lines = "\n".join(f"  {_advice(name, inputs[name])}     {inputs[name]}" for name in missing)
        raise ArgumentValueError(
            f"input '{missing[0]}' has no value. Give {_FORMS}; for random data:\n{lines}"
        )
    feeds = {}
    for position, (name, wanted) in enumerate(inputs.items()):
        generator = np.random.default_rng((seed, position))
        feeds[name] = _value(name, wanted, named.get(name, rest or ""), generator)
    return feeds


def read_signature(
    inputs: Inputs, arguments: argparse.Namespace
) -> tuple[dict[str, Array], dict[str, tuple[int, ...]]]:
    """The values given by ``--value``, and the sizes of all other inputs.

    Raises
    ------
    ArgumentValueError, ArgumentTypeError
        As :func:`read_inputs` and :func:`read_shapes`.
    """
    named, _ = _split(inputs, arguments.value, None)
    generator = np.random.default_rng(0)
    values = {name: _value(name, inputs[name], form, generator) for name, form in named.items()}
    others = {name: kind for name, kind in inputs.items() if name not in named}
    return values, read_shapes(others, arguments.shape)


def read_shapes(inputs: Inputs, options: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Sizes of the inputs named by ``--shape``; asks for those that are still open.

    Raises
    ------
    ArgumentValueError
        Unknown or repeated names, not a shape, or an input whose sizes are open.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for option in options:
        name, equals, text = option.rpartition("=")
        name = _known(name, inputs, option) if equals else _only(inputs, option)
        if name in shapes:
            raise ArgumentValueError(f"the shape of input '{name}' is given twice")
        try:
            sizes = re.split("[,x]", text.removesuffix(",")) if text else []
            shapes[name] = tuple(int(size) for size in sizes)
        except ValueError:
            raise ArgumentValueError(
                f"'{text}' is not a shape; write the sizes with commas: --shape {name}=1,3,224,224"
            ) from None
        _check_shape(name, inputs[name], shapes[name], "--shape")
    open_inputs = [n for n, kind in inputs.items() if not kind.is_static and n not in shapes]
    if open_inputs:
        lines = "\n".join(
            f"  --shape {name}={_example(inputs[name], ',')}     {inputs[name]}"
            for name in open_inputs
        )
        raise ArgumentValueError(
            f"the sizes of input '{open_inputs[0]}' are open. Say for which to compile:\n{lines}"
        )
    return shapes


def _split(
    inputs: Inputs, options: Sequence[str], rest: str | None
) -> tuple[dict[str, str], str | None]:
    """The forms by input name, and the form for inputs not named."""
    named: dict[str, str] = {}
    for option in options:
        # The name may hold "=", a value may not hold an input's name before it: try names first.
        name = next((n for n in inputs if option.startswith(f"{n}=")), None)
        if name is None and option == "random":
            rest = option
            continue
        if name is None:
            before, equals, _ = option.partition("=")
            name = _known(before, inputs, option) if equals else _only(inputs, option)
            option = option if equals else f"{name}={option}"
        if name in named:
            raise ArgumentValueError(f"input '{name}' is given twice")
        named[name] = option[len(name) + 1 :]
    return named, rest


def _known(name: str, inputs: Iterable[str], option: str) -> str:
    if name in inputs:
        return name
    raise ArgumentValueError(
        f"'{option}' names the input '{name}', which the model does not have"
        f"{did_you_mean(name, inputs)}; its inputs: {', '.join(inputs) or 'none'}"
    )


def _only(inputs: Inputs, option: str) -> str:
    if len(inputs) == 1:
        return next(iter(inputs))
    raise ArgumentValueError(
        f"'{option}' does not say for which input: write NAME={option} with one of "
        f"{', '.join(inputs)}"
    )


def _value(name: str, wanted: TensorType, form: str, generator: np.random.Generator) -> Array:
    random = _RANDOM.match(form)
    if random:
        return _random(name, wanted, random["shape"], generator)
    if form.endswith(".npy"):
        return _read(name, wanted, Path(form))
    try:
        number = float(form)
    except ValueError:
        raise ArgumentValueError(
            f"'{form}' is no value for input '{name}'; write {_FORMS}"
        ) from None
    return np.full(_static(name, wanted, f"the number {form}"), number).astype(wanted.dtype)


def _static(name: str, wanted: TensorType, what: str) -> tuple[int, ...]:
    if wanted.is_static:
        return wanted.dims
    raise ArgumentValueError(
        f"input '{name}' is {wanted}: {what} does not say how large the open dimensions are. "
        f"Write for example {_advice(name, wanted)}"
    )


def _advice(name: str, wanted: TensorType) -> str:
    """The option to type for random data."""
    return f"--input {name}=random" + ("" if wanted.is_static else f":{_example(wanted, 'x')}")


def _example(wanted: TensorType, separator: str) -> str:
    """The sizes to type, open ones as 1."""
    dims: Sequence[Dim] = (1,) if wanted.shape is None else wanted.shape
    return separator.join("1" if isinstance(d, str) else str(d) for d in dims) or "scalar"


def _random(
    name: str, wanted: TensorType, text: str | None, generator: np.random.Generator
) -> Array:
    if text is None:
        shape = _static(name, wanted, "'random'")
    else:
        shape = () if text == "scalar" else tuple(int(size) for size in text.split("x"))
        _check_shape(name, wanted, shape, "--input")
    kind = wanted.dtype.kind
    if kind == "f" or wanted.dtype.name == "bfloat16":
        return generator.standard_normal(shape, np.float32).astype(wanted.dtype)
    if kind == "b":
        return generator.integers(0, 2, shape).astype(np.bool_)
    if kind in "iu":
        return generator.integers(0, _TOKENS, shape).astype(wanted.dtype)
    raise ArgumentTypeError(
        f"input '{name}' is {wanted.dtype}, which has no random values. "
        f"Give --input {name}=FILE.npy"
    )


def _read(name: str, wanted: TensorType, path: Path) -> Array:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = (
            "does not exist" if isinstance(error, FileNotFoundError) else f"is not .npy: {error}"
        )
        raise ArgumentValueError(
            f"the file of input '{name}', '{path}', {reason}. Write one with numpy.save"
        ) from None
    found: Array = np.asarray(array)
    if found.dtype != wanted.dtype:
        raise ArgumentTypeError(
            f"'{path}' holds {found.dtype}, input '{name}' wants {wanted.dtype}. Convert it: "
            f"numpy.save('{path}', array.astype('{wanted.dtype}'))"
        )
    _check_shape(name, wanted, found.shape, str(path))
    return found


def _check_shape(name: str, wanted: TensorType, shape: tuple[int, ...], where: str) -> None:
    if wanted.shape is None:
        return
    fits = len(shape) == len(wanted.shape) and all(
        isinstance(want, str) or want == got for want, got in zip(wanted.shape, shape, strict=True)
    )
    if not fits:
        raise ArgumentValueError(
            f"{where}: shape {shape} does not fit input '{name}', which is {wanted}"
        )
