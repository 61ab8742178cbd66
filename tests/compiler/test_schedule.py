"""The heuristic: legal for anything, and the known good choices for the kernels that matter."""

from __future__ import annotations

from dataclasses import replace

import pytest
from codegen_kit import at, dense, host, to

from packhorse.compiler.packing import pack
from packhorse.compiler.schedule import Schedule, schedule
from packhorse.compiler.target import Target
from packhorse.errors import CompileError
from packhorse.kernel import Dim, Kernel
from packhorse.kernel.expr import Reduce, affine, call
from packhorse_llvm_cpu.target import host_target

WIDE = Target(
    triple="x86_64-unknown-linux-gnu",
    cpu="x86-64-v4",
    features=("+fma", "+avx512f"),
    vector_bytes=64,
    vector_registers=32,
    l1_bytes=48 << 10,
    l2_bytes=1 << 20,
)
NARROW = replace(WIDE, cpu="x86-64-v3", features=("+fma", "+avx2"), vector_bytes=32,
                 vector_registers=16)  # fmt: skip


def product(m: int, n: int, k: int, constant: bool = True) -> Kernel:
    total = Reduce("sum", (("k", k),), at("a", "m", "k") * at("b", "k", "n"), "float32")
    return Kernel(
        "gemm",
        (("m", m), ("n", n)),
        (to("y", ("m", "n"), total),),
        {"a": dense(m, k), "b": dense(k, n, constant=constant), "y": dense(m, n)},
    )


@pytest.mark.parametrize("target", [WIDE, NARROW], ids=["avx512", "avx2"])
@pytest.mark.parametrize("shape", [(1024, 1024, 1024), (49, 512, 2048), (7, 40, 3), (1, 10, 84),
                                   (128, 768, 768)])  # fmt: skip
def test_blocks_fit_the_registers(shape, target):
    plan = schedule(product(*shape), target)
    assert plan.vector == "n"
    assert plan.order == ("n", "m") or shape[0] == 1
    vectors = -(-plan.tiles["n"] // plan.lanes)
    rows = plan.tiles.get("m", 1)
    assert rows * vectors + vectors + 1 <= target.vector_registers
    if shape[0] >= 49:
        assert rows * vectors >= 8  # latency of the multiply-add times two ports


def test_power_of_two_rows_are_not_more_than_eight():
    plan = schedule(product(1024, 1024, 1024), WIDE)
    assert plan.tiles["m"] <= 8


def test_rows_are_split_evenly():
    plan = schedule(product(49, 512, 2040), WIDE)
    assert 49 % plan.tiles["m"] in (0, *range(4, 14))


def test_depthwise_windows_are_unrolled():
    x = at("x", affine("h") + affine("p"), affine("w") + affine("q"), "c")
    total = Reduce("sum", (("p", 3), ("q", 3)), x * at("k", "c", "p", "q"), "float32")
    kernel = Kernel("dw", (("h", 14), ("w", 14), ("c", 64)), (to("y", ("h", "w", "c"), total),),
                    {"x": dense(16, 16, 64), "k": dense(64, 3, 3, constant=True),
                     "y": dense(14, 14, 64)})  # fmt: skip
    plan = schedule(kernel, WIDE)
    assert plan.vector == "c"
    assert dict(plan.unroll) == {"p": 3, "q": 3}
    assert pack(kernel, plan)["k"].dims[0].block == plan.tiles["c"]


def test_dot_products_use_lanes_along_the_sum():
    total = Reduce("sum", (("k", 512),), at("a", "m", "k") * at("b", "n", "k"), "float32")
    kernel = Kernel("qk", (("m", 64), ("n", 64)), (to("y", ("m", "n"), total),),
                    {"a": dense(64, 512), "b": dense(64, 512), "y": dense(64, 64)})  # fmt: skip
    plan = schedule(kernel, WIDE)
    assert plan.vector is None
    assert dict(plan.tile) == {"m": 4, "n": 4}


def test_threads_only_for_enough_work():
    two = WIDE.with_threads(2)
    assert schedule(product(512, 512, 512), two).parallel
    assert not schedule(product(8, 16, 8), two).parallel
    assert not schedule(product(512, 512, 512), WIDE).parallel


def test_rows_are_never_split_inside():
    total = Reduce("sum", (("r", 4096),), call("exp", at("x", "i", "r")), "float32")
    kernel = Kernel("s", (("i", 64), ("j", 4096)),
                    (to("y", ("i", "j"), call("exp", at("x", "i", "j")) / total),),
                    {"x": dense(64, 4096), "y": dense(64, 4096)})  # fmt: skip
    assert schedule(kernel, WIDE.with_threads(2)).parallel == ("i",)


def test_sequential_axes_stay_outermost_and_serial():
    value = at("h", affine("t"), "j") + 1.0
    kernel = Kernel("seq", (("j", 40_000), ("t", 30)), (to("h", (affine("t") + 1, "j"), value),),
                    {"h": dense(31, 40_000)}, sequential=("t",))  # fmt: skip
    plan = schedule(kernel, WIDE.with_threads(2))
    assert plan.order[0] == "t"
    assert plan.parallel == ()


def test_constants_with_several_offsets():
    """Gates of an LSTM: blocks where the offsets allow it, else rows with unit stride."""
    for n, blocked in ((64, True), (20, False)):
        gates = [
            Reduce("sum", (("k", n),), at("h", "k") * at("r", affine("j") + g * n, "k"), "float32")
            for g in range(2)
        ]
        kernel = Kernel(
            "g",
            (("j", n),),
            (to("y", ("j",), gates[0] + gates[1]),),
            {"h": dense(n), "r": dense(2 * n, n, constant=True), "y": dense(n)},
        )
        plan = replace(schedule(kernel, WIDE), tile=(("j", 16),), vector="j", lanes=16)
        dims = pack(kernel, plan)["r"].dims
        assert bool(dims[0].block) is blocked
        assert dims[0].step == 1


def test_embedding_tables_are_left_alone():
    kernel = Kernel("e", (("i", 4), ("j", 32)),
                    (to("y", ("i", "j"), at("t", at("rows", "i", dtype="int64"), "j")),),
                    {"t": dense(100, 32, constant=True), "rows": dense(4, dtype="int64"),
                     "y": dense(4, 32)})  # fmt: skip
    assert pack(kernel, schedule(kernel, WIDE))["t"].dims == (Dim(32), Dim(1))


def test_scalar_kernel():
    kernel = Kernel("one", (), (to("y", (), at("x") + 1.0),), {"x": dense(), "y": dense()})
    assert schedule(kernel, WIDE) == Schedule(())


def test_targets():
    target = host()
    assert target.vector_bytes in (16, 32, 64)
    assert target.with_threads(3).threads == 3
    if target.arch == "x86_64":
        assert host_target("x86-64-v3").vector_bytes == 32
        assert host_target("x86-64").vector_bytes == 16
        with pytest.raises(CompileError, match="unknown CPU 'pentium'"):
            host_target("pentium")


def test_transposes_gather_squares():
    kernel = Kernel("t", (("m", 64), ("n", 3136)), (to("y", ("m", "n"), at("x", "n", "m")),),
                    {"x": dense(3136, 64), "y": dense(64, 3136)})  # fmt: skip
    plan = schedule(kernel, WIDE)
    assert plan.vector == "n"
    assert dict(plan.tile) == {"n": 16, "m": 16}
