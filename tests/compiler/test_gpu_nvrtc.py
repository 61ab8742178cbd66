"""The CUDA text is what NVIDIA's own compiler takes: NVRTC to sm_90, no GPU and no driver."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import pytest
from codegen_kit import at, dense, to

from packhorse.compiler.gpu_schedule import GpuSchedule, GpuTarget, gpu_schedule
from packhorse.compiler.lower_gpu import c_name, gpu_program
from packhorse.kernel import Kernel
from packhorse.kernel.expr import Reduce, call, cast

F32 = "float32"


def nvrtc() -> ctypes.CDLL:
    """The library of the wheel nvidia-cuda-nvrtc."""
    found = importlib.util.find_spec("nvidia")
    folders = list(found.submodule_search_locations or ()) if found else []
    files = [f for folder in folders for f in Path(folder).glob("*/lib/libnvrtc.so*")]
    if not files:
        pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    return ctypes.CDLL(str(files[0]))


def compiled(text: str) -> bytes:
    """The cubin of a program; fails with NVRTC's log."""
    library, program = nvrtc(), ctypes.c_void_p()
    source = ctypes.c_char_p(text.encode())
    assert not library.nvrtcCreateProgram(ctypes.byref(program), source, b"k.cu", 0, None, None)
    options = (ctypes.c_char_p * 1)(b"--gpu-architecture=sm_90")
    status = library.nvrtcCompileProgram(program, 1, options)
    size = ctypes.c_size_t()
    if status:
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
        pytest.fail(log.value.decode())
    library.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    library.nvrtcGetCUBIN(program, cubin)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin.raw


def product(dtype: str) -> Kernel:
    value = Reduce("sum", (("k", 70),), at("a", "m", "k") * at("b", "n", "k"), F32)
    return Kernel(
        "product", (("m", 90), ("n", 80)), (to("y", ("m", "n"), cast(value, dtype)),),
        {"a": dense(90, 70, dtype=dtype), "b": dense(80, 70, dtype=dtype, constant=True),
         "y": dense(90, 80, dtype=dtype)},
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
    target = GpuTarget("cuda", max_group=1024, local_bytes=48 << 10)
    kernels = [product(F32), product("float16"), softmax(500),
               *(functions(d) for d in (F32, "float64", "int32", "uint8", "int64"))]  # fmt: skip
    plans: list[tuple[str, Kernel, GpuSchedule]] = [
        (f"f{i}", kernel, gpu_schedule(kernel, target)) for i, kernel in enumerate(kernels)
    ]
    assert {plan.mode for _, _, plan in plans} == {"tiles", "rows", "points"}
    cubin = compiled(gpu_program(plans, "cuda"))
    assert cubin[:4] == b"\x7fELF"
    assert all(c_name(name).encode() in cubin for name, _, _ in plans)
