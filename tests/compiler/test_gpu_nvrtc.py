"""CUDA text is what NVRTC takes for sm_90, HIP text what clang takes for gfx90a; no GPU needed."""

from __future__ import annotations

import re

import pytest
from codegen_kit import at, dense, to
from gpu_offline import GFX_90A, SM_90, hip, nvrtc

from packhorse.compiler.gpu_schedule import _TILES, GpuSchedule, gpu_schedule
from packhorse.compiler.lower_gpu import c_name, gpu_program
from packhorse.kernel import Kernel
from packhorse.kernel.expr import Reduce, call, cast

F32 = "float32"


def product(dtype: str, shape: tuple[int, int, int] = (90, 80, 72)) -> Kernel:
    m, n, k = shape
    value = Reduce("sum", (("k", k),), at("a", "m", "k") * at("b", "n", "k"), F32)
    return Kernel(
        "product", (("m", m), ("n", n)), (to("y", ("m", "n"), cast(value, dtype)),),
        {"a": dense(m, k, dtype=dtype), "b": dense(n, k, dtype=dtype, constant=True),
         "y": dense(m, n, dtype=dtype)},
    )  # fmt: skip


def softmax(n: int) -> Kernel:
    top = Reduce("max", (("r", n),), at("x", "i", "r"), F32)
    power = lambda j: call("exp", at("x", "i", j) - top)  # noqa: E731
    value = power("j") / Reduce("sum", (("q", n),), power("q"), F32)
    buffers = {name: dense(9, n) for name in ("x", "y")}
    return Kernel("softmax", (("i", 9), ("j", n)), (to("y", ("i", "j"), value),), buffers)


def functions(dtype: str) -> Kernel:
    """Every operation of a dtype, and casts."""
    x, z = at("x", "i", dtype=dtype), at("z", "i", dtype=dtype)
    binary = "add sub mul div max min".split() + (["pow", "mod"] if "float" in dtype else ["mod"])
    unary = (
        "exp log sqrt rsqrt erf tanh sigmoid sin cos floor ceil trunc round abs neg sign isnan"
        if "float" in dtype
        else "abs neg sign not"
    )
    values = [call(op, x, z) for op in binary] + [call(op, x) for op in unary.split()]
    values += [cast(x, to_dtype) for to_dtype in ("int8", "uint64", "bool", "float16", "bfloat16")]
    stores = tuple(to(f"y{i}", ("i",), v) for i, v in enumerate(values))
    buffers = {f"y{i}": dense(9, dtype=v.dtype) for i, v in enumerate(values)}
    buffers |= {name: dense(9, dtype=dtype) for name in ("x", "z")}
    return Kernel("functions", (("i", 9),), stores, buffers)


def test_nvrtc_takes_every_mode_and_operation():
    kernels = [product(F32), product("float16"), softmax(500),
               *(functions(d) for d in (F32, "float64", "int32", "uint8", "int64"))]  # fmt: skip
    plans: list[tuple[str, Kernel, GpuSchedule]] = [
        (f"f{i}", kernel, gpu_schedule(kernel, SM_90)) for i, kernel in enumerate(kernels)
    ]
    assert {plan.mode for _, _, plan in plans} == {"tiles", "rows", "points"}
    cubin, usage = nvrtc(gpu_program(plans, "cuda"))
    assert cubin[:4] == b"\x7fELF"
    assert set(usage) == {c_name(name) for name, _, _ in plans}
    assert all(c_name(name).encode() in cubin for name, _, _ in plans)
    assert not any(taken.spilled for taken in usage.values())


@pytest.mark.parametrize("tile", _TILES, ids=str)
def test_no_tile_spills_registers(tile):
    rows, columns, terms, *block = tile
    group = rows * columns // (block[0] * block[1])
    plan = GpuSchedule("tiles", ("m", "n"), ("m",), group, ("n",), tile[:3], tuple(block), lanes=4)
    kernel = product(F32, (256, 256, 128))
    _, usage = nvrtc(gpu_program([("f", kernel, plan)], "cuda"))
    (taken,) = usage.values()
    assert (taken.spilled, taken.stack) == (0, 0)
    assert taken.registers * group <= 65536
    assert taken.shared >= 4 * (rows + columns) * terms


def test_hip_takes_every_mode_and_operation(tmp_path):
    kernels = [product(F32, (512, 512, 64)), product("float16"), softmax(500),
               *(functions(d) for d in (F32, "float64", "int32", "uint8", "int64"))]  # fmt: skip
    plans = [(f"f{i}", k, gpu_schedule(k, GFX_90A)) for i, k in enumerate(kernels)]
    text = hip(gpu_program(plans, "hip"), tmp_path)
    assert all(f".amdhsa_kernel {c_name(name)}" in text for name, _, _ in plans)
    assert re.search(r"global_load_dwordx4", text)
    assert re.search(r"ds_read(_b128|2(st64)?_b64)", text)  # tiles are read as vectors
