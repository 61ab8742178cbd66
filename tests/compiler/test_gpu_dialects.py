"""The dialects of the C family: their words, and CUDA's numbers through a shim on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from codegen_kit import at, dense, to
from gpu_kit import check
from gpu_shim import NEEDS_CXX, runner

from packhorse.compiler.c_dialects import DIALECTS, dialect
from packhorse.compiler.c_text_ops import Helpers, call_text, cast_text, literal, neutral
from packhorse.compiler.gpu_schedule import GpuSchedule, GpuTarget, gpu_schedule, pack_gpu
from packhorse.compiler.lower_gpu import gpu_program
from packhorse.errors import CompileError
from packhorse.kernel import Kernel
from packhorse.kernel.expr import Reduce, bitcast, call, cast, select

F32 = "float32"


def softmax(rows: int, n: int) -> Kernel:
    top = Reduce("max", (("r", n),), at("x", "i", "r"), F32)
    power = lambda j: call("exp", at("x", "i", j) - top)  # noqa: E731
    value = power("j") / Reduce("sum", (("q", n),), power("q"), F32)
    buffers = {name: dense(rows, n) for name in ("x", "y")}
    return Kernel("softmax", (("i", rows), ("j", n)), (to("y", ("i", "j"), value),), buffers)


def product(m: int, n: int, k: int) -> Kernel:
    body = at("a", "m", "k") * at("b", "n", "k")
    value = Reduce("sum", (("k", k),), body, F32)
    return Kernel(
        "product", (("m", m), ("n", n)), (to("y", ("m", "n"), value),),
        {"a": dense(m, k), "b": dense(n, k, constant=True), "y": dense(m, n)},
    )  # fmt: skip


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_writes_its_own_words(name):
    kernel = softmax(3, 20)
    text = gpu_program([("f", kernel, gpu_schedule(kernel, GpuTarget(name)))], name)
    found = {
        word
        for word in ("__kernel", "__global__", "__local", "__shared__", "barrier(CLK_LOCAL",
                     "__syncthreads", "hip_runtime.h")
        if word in text
    }  # fmt: skip
    cuda = {"__global__", "__shared__", "__syncthreads"}
    assert found == {"opencl": {"__kernel", "__local", "barrier(CLK_LOCAL"}, "cuda": cuda,
                     "hip": {*cuda, "hip_runtime.h"}}[name]  # fmt: skip


def test_an_unknown_dialect_names_those_there_are():
    with pytest.raises(CompileError, match="Known are: cuda, hip, opencl"):
        dialect("msl")


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [(-(2**63), "int64", "(-9223372036854775807L - 1)"), (2**64 - 1, "uint64",
      "18446744073709551615UL"), (-(2**31), "int32", "(-2147483647 - 1)"), (-5, "int8", "(-5)"),
     ("inf", F32, "as_float(0x7f800000U)"), (1, "bool", "true"), (-0.0, F32, "(-0.0f)"),
     ("-inf", "float64", "as_double(0xfff0000000000000UL)"), (0.1, F32, "1.e-01f")],
)  # fmt: skip
def test_literals_are_exact(value, dtype, text):
    assert literal(value, dtype, DIALECTS["opencl"]) == text


def test_what_c_has_no_words_for():
    helpers = Helpers(DIALECTS["opencl"])
    with pytest.raises(CompileError, match="no operation 'exp' of int32"):
        call_text("exp", "int32", ["int32"], ["a"], helpers)
    with pytest.raises(CompileError, match="no operation 'exp' of bool"):
        call_text("exp", "bool", ["bool"], ["a"], helpers)
    with pytest.raises(CompileError, match="no operation 'and' of float32"):
        call_text("and", F32, [F32, F32], ["a", "b"], helpers)
    with pytest.raises(CompileError, match="no type for dtype 'float8'"):
        helpers.ctype("float8")
    assert neutral("max", "uint8", helpers.dialect) == "0"
    assert cast_text("a", F32, F32, helpers) == "a"


def test_helpers_are_emitted_once():
    value = call("div", at("x", "i", dtype="int32"), at("z", "i", dtype="int32"))
    kernel = Kernel("d", (("i", 3),), (to("y", ("i",), value),),
                    {n: dense(3, dtype="int32") for n in "xyz"})  # fmt: skip
    plan = gpu_schedule(kernel, GpuTarget())
    text = gpu_program([("f", kernel, plan), ("g", kernel, plan)], "opencl")
    assert text.count("f_div_int32(int a, int b)") == 1
    assert "double" not in text


def test_schedules_fit_the_work():
    target = GpuTarget(max_group=128)
    rows = gpu_schedule(softmax(4, 1000), target)
    assert (rows.mode, rows.rows, rows.group) == ("rows", ("i",), 128)
    assert rows.launch(softmax(4, 1000)) == (512, 128)
    assert gpu_schedule(product(30, 40, 5), target).mode != "rows"


def test_weights_lie_as_neighbouring_items_read_them():
    kernel = product(70, 40, 5)
    moved = pack_gpu(kernel, GpuSchedule("points", ("m", "n")))
    assert [d.step for d in moved["b"].dims] == [1, 40]
    assert pack_gpu(kernel, GpuSchedule("rows", ("m", "n"), ("m",))) == {}


def test_far_addresses_are_64_bit():
    far = Kernel("far", (("i", 1 << 20),), (to("y", ("i",), at("x", "i", 0)),),
                 {"x": dense(1 << 20, 4096), "y": dense(1 << 20)})  # fmt: skip
    near = product(3, 4, 5)
    assert "const long " in gpu_program([("f", far, gpu_schedule(far, GpuTarget()))], "opencl")
    assert "long" not in gpu_program([("f", near, GpuSchedule("points", ("m", "n")))], "opencl")


@NEEDS_CXX
def test_cuda_text_shares_rows(tmp_path):
    check(softmax(3, 21), GpuSchedule("rows", ("i", "j"), ("i",), 8), runner=runner(tmp_path))


@NEEDS_CXX
def test_cuda_text_of_points_and_odd_values(tmp_path):
    x = at("x", "i")
    values = [cast(x, "int8"), cast(x, "uint64"), cast(x, "float16"), call("max", x, 1.0),
              select(call("isnan", x), 1.0, x), call("div", cast(x, "int32"), 3),
              call("round", x), call("erf", x), call("sigmoid", x), bitcast(x, "int32"),
              bitcast(cast(x, "float64"), "uint64"),
              bitcast(bitcast(x, "uint32"), F32),
              bitcast(bitcast(cast(x, "float64"), "int64"), "float64")]  # fmt: skip
    stores = tuple(to(f"y{i}", ("i",), v) for i, v in enumerate(values))
    buffers = {f"y{i}": dense(12, dtype=v.dtype) for i, v in enumerate(values)}
    odd = [np.nan, np.inf, -np.inf, 1e30, -1e30, 0.5, -0.5, 127.9, -128.9, 1.5, 2.5, 1e-7]
    kernel = Kernel("odd", (("i", 12),), stores, {**buffers, "x": dense(12)})
    arrays = {"x": np.array(odd, np.float32)}
    check(kernel, GpuSchedule("points", ("i",), group=4), arrays, runner=runner(tmp_path))


@NEEDS_CXX
def test_cuda_text_of_products(tmp_path):
    kernel = product(5, 6, 7)
    check(kernel, GpuSchedule("points", ("m", "n"), group=8), runner=runner(tmp_path))


@NEEDS_CXX
def test_cuda_text_of_tiles(tmp_path):
    plan = GpuSchedule("tiles", ("m", "n"), ("m",), 4, ("n",), (4, 4, 4), (2, 2))
    check(product(5, 6, 7), plan, runner=runner(tmp_path))
