"""Fixed samples: small enough for every change, and of every kind of case."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from packhorse.errors import ArgumentValueError

__all__ = ["spread"]

T = TypeVar("T")


def spread(
    cases: Sequence[T], count: int, kind: Callable[[T], str], name: Callable[[T], str]
) -> list[T]:
    """``count`` cases, spread over their kinds as evenly as can be, in their own order.

    Every kind gives one case before any gives two. Which ones is decided by hashes of the names:
    the same on every machine, a smaller sample is part of a larger one, and a new case moves few.

    Raises
    ------
    ArgumentValueError
        ``count`` is not positive.
    """
    if count < 1:
        raise ArgumentValueError(f"a sample has at least 1 test, not {count}")

    def place(i: int) -> bytes:
        return hashlib.sha256(name(cases[i]).encode()).digest()

    taken: dict[str, int] = {}
    turns = {}
    for i in sorted(range(len(cases)), key=place):
        turns[i] = taken[kind(cases[i])] = taken.get(kind(cases[i]), -1) + 1
    chosen = sorted(turns, key=lambda i: (turns[i], place(i)))[:count]
    return [cases[i] for i in sorted(chosen)]
