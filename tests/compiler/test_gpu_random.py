"""Random kernels, and random products under random tiles, on an OpenCL device."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from codegen_kit import at, dense, to
from gpu_kit import check, opencl
from hypothesis import given, settings
from hypothesis import strategies as st

from packhorse.compiler.gpu_schedule import GpuSchedule
from packhorse.kernel import Buffer, Kernel
from packhorse.kernel.expr import Load, Reduce, call

sys.path.append(str(Path(__file__).parent))  # the maker of random kernels is in a test file

from test_lower_random import Maker

F32 = "float32"


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_kernels(seed):
    opencl()
    maker = Maker(seed)
    kernel = maker.kernel()
    check(kernel, tol=1e-9 if maker.dtype == "float64" else 1e-4)


def product(r: random.Random) -> Kernel:
    """Some axes of rows, columns, batch and terms; layouts in any order; a guard, an epilogue."""
    names = {side: [f"{side}{i}" for i in range(r.randint(1, 2))] for side in "mnk"}
    names["z"] = ["z0"] * r.randint(0, 1)
    extent = {n: r.choice([1, 2, 3, 5, 9]) for group in names.values() for n in group}

    def factor(buffer: str, side: str, guarded: bool) -> tuple[Load, Buffer]:
        axes = [*names["z"], *names[side], *names["k"]]
        r.shuffle(axes)
        order = r.sample(range(len(axes)), len(axes))
        when = call("lt", at("c", names[side][0]), 0.5) if guarded else None
        load = at(buffer, *axes, when=when)
        return load, dense(*(extent[n] for n in axes), order=order, constant=r.random() < 0.5)

    a, of_a = factor("a", "m", r.random() < 0.5)
    b, of_b = factor("b", "n", False)
    terms = tuple((n, extent[n]) for n in names["k"])
    value = Reduce("sum", terms, a * b if r.random() < 0.5 else b * call("abs", a), F32)
    axes = [*names["z"], *names["m"], *names["n"]]
    r.shuffle(axes)
    value = call("tanh", value) + at("c", names["m"][0])
    return Kernel(
        "product", tuple((n, extent[n]) for n in axes), (to("y", tuple(axes), value),),
        {"a": of_a, "b": of_b, "c": dense(extent[names["m"][0]]),
         "y": dense(*(extent[n] for n in axes))},
    )  # fmt: skip


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_products_in_tiles(seed):
    opencl()
    r = random.Random(seed)
    kernel = product(r)
    order = [n for n, _ in kernel.axes]
    r.shuffle(order)
    rows, columns = (tuple(n for n in order if n[0] == side) for side in "mn")
    block = (r.choice([1, 2]), r.choice([1, 2]))
    tile = (4 * block[0], 2 * block[1], r.choice([1, 4]))
    plan = GpuSchedule("tiles", tuple(order), rows, 8, columns, tile, block)
    check(kernel, plan, tol=1e-4)
