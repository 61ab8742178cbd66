"""Random kernels under random schedules, against the interpreter."""

from __future__ import annotations

import random

import numpy as np
import pytest
from codegen_kit import check
from hypothesis import given, settings
from hypothesis import strategies as st

from packhorse.compiler.schedule import Schedule
from packhorse.compiler.target import Target
from packhorse.kernel import Axis, Buffer, Kernel, Store, contiguous
from packhorse.kernel.expr import Expr, Index, Load, Reduce, affine, call, cast, select
from packhorse_llvm_cpu.target import host_target

OPS = ("add", "sub", "mul", "max", "min")
EXTENTS = (1, 2, 3, 5, 8, 16, 17, 31, 33, 40)


def targets() -> list[Target]:
    found = [host_target("", 2)]
    if found[0].arch == "x86_64":
        found += [host_target("x86-64", 1)]
        found += [host_target("x86-64-v3", 2)] if found[0].has("avx2") else []
    return found


class Maker:
    """Draws one kernel: strided, reversed, shifted and guarded loads over random layouts,
    nested maps and reductions."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.dtype = self.r.choice(["float32", "float32", "float64", "int32"])
        self.buffers: dict[str, Buffer] = {}
        self.reduced: list[str] = []

    def buffer(self, name: str, shape: list[int], halo: int) -> None:
        order = list(range(len(shape)))
        self.r.shuffle(order)
        pads = [(self.r.randint(0, halo), self.r.randint(0, halo)) for _ in shape]
        constant = name != "y" and self.r.random() < 0.4
        self.buffers[name] = contiguous(shape, self.dtype, order, pads, constant)

    def load(self, scope: list[Axis]) -> Expr:
        index, shape, guard = [], [], None
        for name, extent in self.r.sample(scope, self.r.randint(1, min(3, len(scope)))):
            kind = self.r.random()
            i = affine(name)
            if kind < 0.6:
                index.append(i)
                shape.append(extent)
            elif kind < 0.75:
                step = self.r.randint(1, 3)
                index.append(i * step)
                shape.append((extent - 1) * step + 1)
            elif kind < 0.85:
                index.append(i * -1 + (extent - 1))
                shape.append(extent)
            else:
                index.append(i + self.r.randint(-2, 2))
                shape.append(max(1, extent - 1))
                at = Index(index[-1])
                inside = call("and", call("ge", at, 0), call("lt", at, shape[-1]))
                guard = inside if guard is None else call("and", guard, inside)
        name = f"b{len(self.buffers)}"
        self.buffer(name, shape, 2)
        return Load(name, tuple(index), self.dtype, guard)

    def expr(self, scope: list[Axis], depth: int, reduces: bool) -> Expr:
        kind = self.r.random()
        if depth == 0 or kind < 0.2:
            return self.load(scope)
        if kind < 0.6:
            return call(self.r.choice(OPS), *(self.expr(scope, depth - 1, reduces)
                                              for _ in range(2)))  # fmt: skip
        if kind < 0.7:
            condition = call(self.r.choice(["lt", "ge"]), self.load(scope), self.load(scope))
            return select(condition, *(self.expr(scope, depth - 1, reduces) for _ in range(2)))
        if kind < 0.78:
            return cast(Index(affine(self.r.choice(scope)[0]) * 2 + 1), self.dtype)
        return self.reduce(scope, depth) if reduces else self.load(scope)

    def reduce(self, scope: list[Axis], depth: int) -> Expr:
        axes: list[Axis] = []
        for _ in range(self.r.randint(1, 2)):
            axes.append((f"r{len(self.reduced)}", self.r.choice([1, 2, 3, 7, 16, 20])))
            self.reduced.append(axes[-1][0])
        outer = self.r.sample(scope, self.r.randint(0, len(scope)))
        body = self.expr([*outer, *axes], depth - 1, False)
        return Reduce(self.r.choice(["sum", "max", "min"]), tuple(axes), body, self.dtype)

    def kernel(self) -> Kernel:
        extents = [self.r.choice(EXTENTS) for _ in range(self.r.randint(1, 3))]
        while np.prod(extents) > 2000:
            extents[extents.index(max(extents))] = 2
        axes = [(f"i{d}", e) for d, e in enumerate(extents)]
        value = self.expr(axes, 3, True)
        self.buffer("y", extents, 1)
        store = Store("y", tuple(affine(n) for n, _ in axes), value)
        kernel = Kernel("random", tuple(axes), (store,), self.buffers)
        used = {n: self.buffers[n] for n in kernel.arguments}
        return Kernel("random", tuple(axes), (store,), used)

    def schedule(self, kernel: Kernel) -> Schedule | None:
        """None (the heuristic's) half of the time."""
        if self.r.random() < 0.5:
            return None
        names = [n for n, _ in kernel.axes]
        self.r.shuffle(names)
        tile = tuple((n, self.r.randint(1, 20)) for n in names if self.r.random() < 0.7)
        unroll = tuple((n, self.r.randint(1, 3)) for n in self.reduced if self.r.random() < 0.4)
        return Schedule(
            tuple(names), tile, self.r.choice([*names, None]), self.r.choice([4, 8, 16]),
            tuple(names[: self.r.randint(0, len(names))]), unroll, self.r.randint(1, 3),
            self.r.choice([0, 4096]),
        )  # fmt: skip


@pytest.mark.parametrize("target", targets(), ids=lambda t: t.cpu)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_kernels(target, seed):
    maker = Maker(seed)
    kernel = maker.kernel()
    tol = 1e-5 if maker.dtype != "float64" else 1e-13
    check(kernel, plan=maker.schedule(kernel), target=target, tol=tol, threads=target.threads)
