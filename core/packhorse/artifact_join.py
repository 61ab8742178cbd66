"""Several artifacts of one model as one: code for each device, weights shared where they are equal.

Weights are laid out as the kernels of a device read them, so two targets share those that lie the
same for both. The others are kept for each target, under a name of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from packhorse.artifact import Artifact
from packhorse.errors import ArgumentValueError
from packhorse.graph.params import Array
from packhorse.graph.program import Program

__all__ = ["join_artifacts"]


def join_artifacts(artifacts: Sequence[Artifact]) -> Artifact:
    """One artifact with the targets of all; the first one's come first.

    Parameters
    ----------
    artifacts : sequence of Artifact
        Of the same model and input shapes, each for other targets.

    Raises
    ------
    ArgumentValueError
        None was given, two have the same target, inputs or outputs differ, or a weight is missing.
    """
    if not artifacts:
        raise ArgumentValueError("there is nothing to join; give at least one artifact")
    joined = artifacts[0]
    for other in artifacts[1:]:
        joined = _joined(joined, other)
    return joined


def _joined(one: Artifact, other: Artifact) -> Artifact:
    twice = sorted(set(one.programs) & set(other.programs))
    if twice:
        raise ArgumentValueError(
            f"two artifacts are for the target '{twice[0]}'; one file holds each target once"
        )
    wanted, found = _interface(one.program()), _interface(other.program())
    if wanted != found:
        raise ArgumentValueError(
            f"the artifact for {', '.join(other.targets)} has other inputs or outputs than the "
            f"one for {', '.join(one.targets)}: {found}, not {wanted}. Compile the same model for "
            "the same shapes"
        )
    params, programs = dict(one.params), dict(one.programs)
    for target, program in other.programs.items():
        programs[target] = _adopted(program, target, other.params, params)
    return replace(
        one,
        programs=programs,
        params=params,
        libraries={**one.libraries, **other.libraries},
        kinds={**one.kinds, **other.kinds},
        metadata={**other.metadata, **one.metadata},
        members={},
    )


def _interface(program: Program) -> str:
    """What callers see, as text."""
    entries = program.entries
    inputs = (f"{entries[i].name}: {entries[i]}" for i in program.inputs)
    pairs = zip(program.output_names, program.outputs, strict=True)
    outputs = (f"{name}: {entries[i]}" for name, i in pairs)
    return f"{', '.join(inputs)} -> {', '.join(outputs)}"


def _adopted(
    program: Program, target: str, theirs: Mapping[str, Array], params: dict[str, Array]
) -> Program:
    """The program with its weights among ``params``; those in the way of others are renamed."""
    taken = {entry.name for entry in program.entries} | params.keys()
    names = {}
    for number in program.params:
        name = new = program.entries[number].name
        if name not in theirs:
            raise ArgumentValueError(f"the artifact for {target} lacks the weight '{name}'")
        if name in params and not _equal(params[name], theirs[name]):
            new = _free(f"{name}@{target}", taken)
            taken.add(new)
        params.setdefault(new, theirs[name])
        names[number] = new
    entries = [
        replace(entry, name=names.get(number, entry.name))
        for number, entry in enumerate(program.entries)
    ]
    return replace(program, entries=tuple(entries))


def _free(name: str, taken: set[str]) -> str:
    new, count = name, 1
    while new in taken:
        count += 1
        new = f"{name}.{count}"
    return new


def _equal(a: Array, b: Array) -> bool:
    """The same bytes of the same dtype and shape: a NaN is equal to itself, 0 is not to -0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    left, right = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return np.array_equal(left, right)
