"""In which order, with which tiles, vectors and threads a kernel's loops run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packhorse.compiler.access import Fusion

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """How one kernel is run on one CPU. Every field may be overridden with ``dataclasses.replace``.

    Parameters
    ----------
    order : tuple of str
        Output loops, outermost first; sequential ones come first.
    tile : tuple of (axis, int)
        Elements of each loop handled by one unrolled register block; 1 where not named.
    vector : str or None
        The output loop whose neighbours share a vector; None: outputs are written one by one.
    lanes : int
        Elements in a vector along ``vector``.
    parallel : tuple of str
        Leading loops of ``order`` run as one range that threads split; empty: one thread.
    unroll : tuple of (axis, int)
        Reduce loops written out: the whole extent, or that many turns of the innermost one.
    accumulators : int
        Independent partial results of a reduction (hides the latency of the adder where the
        register block alone is too small to).
    fuse : tuple of tuples of str
        Axes run as one loop; the loop has the name of the last.
    """

    order: tuple[str, ...]
    tile: tuple[tuple[str, int], ...] = ()
    vector: str | None = None
    lanes: int = 1
    parallel: tuple[str, ...] = ()
    unroll: tuple[tuple[str, int], ...] = ()
    accumulators: int = 1
    fuse: Fusion = ()

    @property
    def tiles(self) -> Mapping[str, int]:
        """Tile of each loop that has one."""
        return dict(self.tile)

    @property
    def unrolls(self) -> Mapping[str, int]:
        """Unroll factor of each reduce loop that has one."""
        return dict(self.unroll)
