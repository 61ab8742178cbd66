"""The compilers of GPU vendors without a GPU: NVRTC to sm_90, clang to gfx90a; and what to feed
them with: every kernel of a model."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from packhorse.compiler.build import Builder
from packhorse.compiler.gpu_schedule import GpuSchedule, GpuTarget, gpu_schedule, pack_gpu
from packhorse.compiler.specialize import shape_operands, specialize
from packhorse.graph.ir import TensorType
from packhorse.kernel import Kernel

SM_90 = GpuTarget("cuda", max_group=1024, local_bytes=48 << 10)
GFX_90A = GpuTarget("hip", max_group=1024, local_bytes=64 << 10)


class Usage(NamedTuple):
    """What a kernel takes of a processor, as ptxas says: registers, and bytes of the rest."""

    registers: int
    stack: int
    spilled: int
    shared: int


def model_kernels(
    path: Any, feeds: dict[str, Any], target: GpuTarget
) -> list[tuple[str, Kernel, GpuSchedule]]:
    """Symbol, kernel and schedule of everything a model runs for these inputs."""
    from packhorse_onnx import import_onnx

    def scheduler(kernel: Kernel) -> tuple[GpuSchedule, Any]:
        plan = gpu_schedule(kernel, target)
        return plan, pack_gpu(kernel, plan)

    graph = import_onnx(path)
    arrays = {name: np.asarray(array) for name, array in feeds.items()}
    types = {name: TensorType(a.dtype, a.shape) for name, a in arrays.items()}
    values = {name: arrays[name] for name in shape_operands(graph)}
    build = Builder(specialize(graph, types, values), scheduler).build()
    return [(name, kernel, plan) for name, (kernel, plan) in build.functions.items()]


@functools.cache
def _nvrtc_file() -> str:
    found = importlib.util.find_spec("nvidia")
    folders = list(found.submodule_search_locations or ()) if found else []
    files = [f for folder in folders for f in Path(folder).glob("*/lib/libnvrtc.so*")]
    return str(files[0]) if files else ""


def nvrtc(text: str) -> tuple[bytes, dict[str, Usage]]:
    """The cubin of a program and what each kernel takes; fails with NVRTC's log.

    The test is skipped where the wheel nvidia-cuda-nvrtc is not installed.
    """
    if not _nvrtc_file():
        pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    library, program = ctypes.CDLL(_nvrtc_file()), ctypes.c_void_p()
    source = ctypes.c_char_p(text.encode())
    assert not library.nvrtcCreateProgram(ctypes.byref(program), source, b"k.cu", 0, None, None)
    try:
        options = (ctypes.c_char_p * 2)(b"--gpu-architecture=sm_90", b"--ptxas-options=-v")
        status = library.nvrtcCompileProgram(program, 2, options)
        log = _result(library, program, "ProgramLog").decode()
        assert not status, log
        return _result(library, program, "CUBIN"), _usage(log)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _result(library: Any, program: Any, what: str) -> bytes:
    size = ctypes.c_size_t()
    assert not getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    assert not getattr(library, f"nvrtcGet{what}")(program, buffer)
    return buffer.raw


_PTXAS = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
    re.DOTALL,
)


def _usage(log: str) -> dict[str, Usage]:
    found = {}
    for name, stack, stores, loads, registers, rest in _PTXAS.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        bytes_shared = int(shared[1]) if shared else 0
        found[name] = Usage(int(registers), int(stack), int(stores) + int(loads), bytes_shared)
    return found


# What hip/hip_runtime.h declares, as far as the kernels use it, for a clang without ROCm.
_HIP = """#pragma once
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(n) __attribute__((amdgpu_flat_work_group_size(1, n)))
struct ph_dim { unsigned x; };
#define threadIdx ph_dim{__builtin_amdgcn_workitem_id_x()}
#define blockIdx ph_dim{__builtin_amdgcn_workgroup_id_x()}
#define blockDim ph_dim{__builtin_amdgcn_workgroup_size_x()}
#define __threadfence() __builtin_amdgcn_fence(__ATOMIC_SEQ_CST, "agent")
static __device__ __forceinline__ void __syncthreads() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
#define PH_BITS(N, T, F) static __device__ __forceinline__ T N(F x) { \\
  T y; __builtin_memcpy(&y, &x, sizeof y); return y; }
PH_BITS(__uint_as_float, float, unsigned) PH_BITS(__float_as_uint, unsigned, float)
PH_BITS(__longlong_as_double, double, long long) PH_BITS(__double_as_longlong, long long, double)
#define PH_VECTORS(T, N) typedef T N##2 __attribute__((ext_vector_type(2))); \\
  typedef T N##4 __attribute__((ext_vector_type(4))); \\
  static __device__ __forceinline__ N##2 make_##N##2(T a, T b) { return N##2{a, b}; } \\
  static __device__ __forceinline__ N##4 make_##N##4(T a, T b, T c, T d) { \\
    return N##4{a, b, c, d}; }
PH_VECTORS(signed char, char) PH_VECTORS(unsigned char, uchar) PH_VECTORS(short, short)
PH_VECTORS(unsigned short, ushort) PH_VECTORS(int, int) PH_VECTORS(unsigned, uint)
PH_VECTORS(float, float) PH_VECTORS(double, double) PH_VECTORS(long long, longlong)
PH_VECTORS(unsigned long long, ulonglong)
#define PH_MATH(N) extern "C" __device__ float N##f(float); extern "C" __device__ double N(double);
#define PH_MATH2(N) extern "C" __device__ float N##f(float, float); \\
  extern "C" __device__ double N(double, double);
PH_MATH(exp) PH_MATH(log) PH_MATH(sqrt) PH_MATH(erf) PH_MATH(tanh) PH_MATH(sin) PH_MATH(cos)
PH_MATH(floor) PH_MATH(ceil) PH_MATH(trunc) PH_MATH(rint) PH_MATH(fabs)
PH_MATH2(fmod) PH_MATH2(pow)
"""


@functools.cache
def _no_amdgpu() -> str:
    """Why HIP cannot be compiled here; empty where it can."""
    if shutil.which("clang") is None:
        return "clang is not installed"
    done = subprocess.run(["clang", "--print-targets"], capture_output=True, text=True, check=False)
    return "" if "amdgcn" in done.stdout else "clang has no AMDGPU target"


def hip(text: str, folder: Path) -> str:
    """The assembly of a HIP program for gfx90a; fails with clang's log.

    Functions of the mathematical library stay calls. The test is skipped without such a clang.
    """
    if _no_amdgpu():
        pytest.skip(_no_amdgpu())
    (folder / "hip").mkdir(exist_ok=True)
    (folder / "hip" / "hip_runtime.h").write_text(_HIP)
    (folder / "k.hip").write_text(text)
    options = ["-x", "hip", "--offload-arch=gfx90a", "-nogpulib", "-nogpuinc", "-O2", "-S"]
    options += ["--cuda-device-only", "-Wno-pass-failed", "-I", str(folder)]
    command = ["clang", *options, "-o", str(folder / "k.s"), str(folder / "k.hip")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "k.s").read_text()
