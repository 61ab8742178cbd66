"""The register block of contractions and windows: how many outputs are computed at once.

For each candidate block the loads and multiply-adds of one turn of the innermost reduce loop are
counted, a cycle estimate is made of them (two multiply-adds and two loads per cycle, four cycles
latency), and the whole output is summed up, tails included. The cheapest block wins.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from packhorse.compiler.access import View
from packhorse.compiler.llvm_ops import size_of
from packhorse.compiler.schedule import Schedule
from packhorse.compiler.target import Target
from packhorse.kernel.expr import Load, Reduce, walk

__all__ = ["tile_block"]

_LATENCY = 4.0
_L2_BYTES = 24.0
"""Bytes per cycle that come from the second-level cache."""
_L3_BYTES = 30.0
"""The same of the last level, as far as it does not hide behind arithmetic."""
_AHEAD = 4096
"""How far ahead weights are prefetched: they come from L3 when a layer is large."""
_ALIAS_BYTES = 2048
"""Rows a multiple of this apart share L1 sets; more than 8 of them at once evict each other."""


class _Block:
    """Costs of register blocks of one kernel."""

    def __init__(
        self, view: View, target: Target, vector: str, lanes: int, nodes: Sequence[Reduce]
    ) -> None:
        self.view, self.target, self.vector, self.lanes = view, target, vector, lanes
        self.nodes = nodes
        self.loads = list(
            dict.fromkeys(n for r in nodes for n in walk(r.body) if isinstance(n, Load))
        )
        self.deps = [view.free(n) for n in self.loads]
        self.turns = max(self._turns(r) for r in nodes)
        self.stationary = True
        self.names: Sequence[str] = ()

    def _turns(self, node: Reduce) -> int:
        total = 1
        for _, extent in node.axes:
            total *= extent
        return max(total, 1)

    def registers(self, tiles: dict[str, int], vectors: int) -> int:
        """Vector registers a block needs: accumulators, the vectors loaded, one broadcast."""
        accumulators = self.accumulators(tiles, vectors)
        if self.stationary:
            return accumulators + vectors + 1
        # a window: neighbouring outputs share loads if these stay in registers
        return 2 * accumulators + 4 * vectors + 1

    def accumulators(self, tiles: dict[str, int], vectors: int) -> int:
        """Vectors of partial results."""
        count = len(self.nodes) * vectors
        for tile in tiles.values():
            count *= tile
        return count

    def cycles(self, tiles: dict[str, int], vectors: int) -> float:
        """Estimated cycles of one block."""
        work = len(self.nodes) * vectors
        for tile in tiles.values():
            work *= tile
        vector_loads = loads = 0.0
        for load, deps in zip(self.loads, self.deps, strict=True):
            count = vectors if self.vector in deps else 1
            for name, tile in tiles.items():
                count *= tile if name in deps else 1
            loads += count * self._price(load)
            vector_loads += count if self.vector in deps else 0
        step = max(work / 2, loads / 2, _LATENCY, (work + loads + 3) / 6)
        if self.turns * vectors * self.lanes * 4 > self.target.l1_bytes // 2:
            step = max(step, vector_loads * self.target.vector_bytes / _L2_BYTES)
            step += 0.4 * vector_loads
        step += 0.1 * loads  # each is a stream of its own, and now and then a miss
        if self._aliases(tiles):
            step *= 1.5
        return step * self.turns + 2.0 * work + 20.0

    def _price(self, load: Load) -> float:
        buffer = self.view.kernel.buffers[load.buffer]
        stride = self.view.load(load).stride(self.vector)
        if stride in (0, 1) or buffer.constant:
            return 1.0 if load.when is None else 1.5
        return float(self.lanes)

    def _aliases(self, tiles: dict[str, int]) -> bool:
        for load in self.loads:
            where = self.view.load(load)
            size = size_of(self.view.kernel.buffers[load.buffer].dtype)
            for name, tile in tiles.items():
                step = abs(where.linear.coef(name)) * size
                if tile > 8 and step and step % _ALIAS_BYTES == 0:
                    return True
        return False

    def total(self, tiles: dict[str, int], vectors: int) -> float:
        """Estimated cycles for the whole output: full blocks and tails."""
        extents = self.view.extents
        needed = -(-extents[self.vector] // self.lanes)
        choices: list[list[tuple[int, int]]] = []
        for name, tile in tiles.items():
            full, rest = divmod(extents[name], tile)
            choices.append([(full, tile)] * bool(full) + [(1, rest)] * bool(rest))
        full, rest = divmod(needed, vectors)
        choices.append([(full, vectors)] * bool(full) + [(1, rest)] * bool(rest))
        repeats = 1
        for name in self.names:
            repeats *= 1 if name in tiles else extents[name]
        total = 0.0
        for combo in itertools.product(*choices):
            count = 1
            for n, _ in combo:
                count *= n
            shape = dict(zip(tiles, (t for _, t in combo[:-1]), strict=True))
            total += count * self.cycles(shape, combo[-1][1])
        tails = sum(len(c) - 1 for c in choices)  # each doubles the code
        return total * repeats * (1.0 + 0.01 * tails) + self._streams(-(-needed // vectors))

    def _streams(self, passes: int) -> float:
        """Cycles to bring in what every turn of the vector loop reads all over again."""
        total = 0.0
        for name in {n.buffer for n, d in zip(self.loads, self.deps, strict=True)
                     if self.vector not in d}:  # fmt: skip
            buffer = self.view.kernel.buffers[name]
            nbytes = buffer.size * size_of(buffer.dtype)
            if nbytes > self.target.l2_bytes // 2:
                total += passes * nbytes / _L3_BYTES
        return total


def tile_block(
    view: View,
    target: Target,
    axes: Sequence[str],
    vector: str,
    lanes: int,
    nodes: Sequence[Reduce],
) -> Schedule:
    """Schedule of a kernel whose reductions run along its vector axis (gemm, conv, pooling).

    Parameters
    ----------
    axes : sequence of str
        Output axes without sequential ones, largest output stride first.
    nodes : sequence of Reduce
        The reductions that depend on ``vector``.
    """
    extents = view.extents
    others = [n for n in axes if n != vector and extents[n] > 1]
    block = _Block(view, target, vector, lanes, nodes)
    along = [d for d in block.deps if vector in d]
    # axes along which nothing that varies along the vector axis has to be loaded again
    stationary = [n for n in others if not any(n in d for d in along)]
    block.stationary = bool(stationary)
    candidates = [n for n in (stationary or others) if any(n in view.free(r) for r in nodes)]
    candidates = candidates[-2 if stationary else -1 :]
    block.names = candidates
    best: tuple[float, int, dict[str, int]] | None = None
    budget = target.vector_registers - 1
    limit = -(-extents[vector] // lanes)
    for shape in _shapes(candidates, extents):
        for vectors in range(1, min(limit, 8) + 1):
            if block.registers(shape, vectors) > budget:
                break
            cost = block.total(shape, vectors)
            if best is None or cost < best[0] * 0.999:
                best = (cost, vectors, shape)
    assert best is not None or not candidates
    _, vectors, shape = best or (0.0, 1, {})
    tile = [(n, t) for n, t in shape.items() if t > 1]
    tile.append((vector, min(vectors * lanes, limit * lanes)))
    order = _order(axes, vector, list(shape), along, bool(stationary))
    work = block.accumulators(shape, vectors)
    unroll = _unroll(nodes, work)
    split = 1 if work >= 8 else min(4, -(-8 // work))
    panel = block.turns * vectors * lanes * 4
    ahead = _AHEAD if stationary and panel > target.l1_bytes // 4 else 0
    return Schedule(order, tuple(tile), vector, lanes, (), unroll, split, ahead)


def _shapes(names: Sequence[str], extents: dict[str, int]) -> list[dict[str, int]]:
    """Candidate tiles of the axes beside the vector axis."""
    if not names:
        return [{}]
    inner = names[-1]
    shapes = [{inner: t} for t in range(1, min(extents[inner], 30) + 1)]
    if len(names) > 1:
        outer = names[-2]
        for a in (2, 3, 4, 7):
            if a > extents[outer]:
                break
            shapes += [{outer: a, inner: t} for t in range(1, min(extents[inner], 14) + 1)]
    return shapes


def _order(
    axes: Sequence[str],
    vector: str,
    tiled: Sequence[str],
    along: Sequence[frozenset[str]],
    stationary: bool,
) -> tuple[str, ...]:
    """Loop order. What varies along the vector axis (weights) is reused by the loops inside the
    vector loop; with nothing to reuse (depthwise) the output is walked row by row."""
    rest = [n for n in axes if n != vector and n not in tiled]
    if stationary:
        before = [n for n in rest if any(n in d for d in along)]
        after = [n for n in rest if n not in before]
        return (*before, vector, *after, *(n for n in axes if n in tiled))
    return (*rest, vector, *(n for n in axes if n in tiled))


def _unroll(nodes: Sequence[Reduce], work: int) -> tuple[tuple[str, int], ...]:
    """Short reduce loops, innermost first, written out while the code stays small."""
    chosen: list[tuple[str, int]] = []
    size = max(work, 1)
    for axes in dict.fromkeys(r.axes for r in nodes):
        for name, extent in reversed(axes):
            if extent > 7 or size * extent > 300:
                break
            size *= extent
            chosen.append((name, extent))
    return tuple(chosen)
