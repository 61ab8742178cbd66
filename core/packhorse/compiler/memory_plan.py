"""The memory plan: which work buffers may share storage."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

__all__ = ["Interval", "assign_storage"]


@dataclass(frozen=True)
class Interval:
    """A buffer that is live from step ``first`` to step ``last``, both included.

    Buffers share storage only within one ``group``: zero borders must stay where they are, so
    each halo geometry is a group of its own.
    """

    name: str
    nbytes: int
    first: int
    last: int
    group: Hashable = None


def assign_storage(intervals: Sequence[Interval]) -> tuple[dict[str, int], list[int]]:
    """Greedy first-come plan.

    Returns the storage number of each buffer and the size in bytes of each storage. Of the free
    storages that fit, the one freed last is taken (it is still in the cache); else the largest
    one is grown; storages are numbered from 0.
    """
    sizes: list[int] = []
    owner: dict[str, int] = {}
    free: dict[Hashable, list[int]] = {}
    live: list[tuple[int, int, Hashable]] = []
    for item in sorted(intervals, key=lambda i: (i.first, i.last)):
        for entry in sorted(e for e in live if e[0] < item.first):
            live.remove(entry)
            free.setdefault(entry[2], []).append(entry[1])
        pool = free.setdefault(item.group, [])
        fitting = [s for s in pool if item.nbytes <= sizes[s] <= 4 * item.nbytes]
        if fitting:
            storage = fitting[-1]
        elif pool:
            storage = max(pool, key=lambda s: sizes[s])
        else:
            storage = len(sizes)
            sizes.append(0)
        if storage in pool:
            pool.remove(storage)
        sizes[storage] = max(sizes[storage], item.nbytes)
        owner[item.name] = storage
        live.append((item.last, storage, item.group))
    return owner, sizes
