"""CUDA text on the CPU: a few lines of C++ turn a work-item into a thread of the standard library.

Barriers are real ones, so what a group shares through ``__shared__`` memory is tested as well.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packhorse.compiler.gpu_schedule import GpuSchedule
from packhorse.compiler.lower_gpu import c_name, gpu_program
from packhorse.kernel import Kernel

PRELUDE = """
#include <barrier>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>
struct ph_dim { long long x; };
static thread_local ph_dim threadIdx, blockIdx;
static ph_dim blockDim;
static std::barrier<>* ph_barrier;
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(n)
#define __shared__ static
#define __threadfence()
#define __syncthreads() ph_barrier->arrive_and_wait()
template <class T> struct alignas(4 * sizeof(T)) ph_four { T x, y, z, w; };
template <class T> struct alignas(2 * sizeof(T)) ph_two { T x, y; };
#define PH_VECTORS(T, N) \
  using N##2 = ph_two<T>; \
  using N##4 = ph_four<T>; \
  static N##2 make_##N##2(T a, T b) { return {a, b}; } \
  static N##4 make_##N##4(T a, T b, T c, T d) { return {a, b, c, d}; }
PH_VECTORS(signed char, char) PH_VECTORS(unsigned char, uchar) PH_VECTORS(short, short)
PH_VECTORS(unsigned short, ushort) PH_VECTORS(int, int) PH_VECTORS(unsigned, uint)
PH_VECTORS(float, float) PH_VECTORS(double, double) PH_VECTORS(long long, longlong)
PH_VECTORS(unsigned long long, ulonglong)
static float __uint_as_float(unsigned u) { float f; std::memcpy(&f, &u, 4); return f; }
static unsigned __float_as_uint(float f) { unsigned u; std::memcpy(&u, &f, 4); return u; }
static long long __double_as_longlong(double d) { long long u; std::memcpy(&u, &d, 8); return u; }
static double __longlong_as_double(long long u) { double d; std::memcpy(&d, &u, 8); return d; }
"""

MAIN = """
extern "C" void ph_launch(long long total, long long group, void** p) {{
  blockDim.x = group;
  for (long long block = 0; block < total / group; ++block) {{
    std::barrier<> meet(group);
    ph_barrier = &meet;
    std::vector<std::thread> items;
    for (long long i = 0; i < group; ++i)
      items.emplace_back([=] {{ threadIdx.x = i; blockIdx.x = block; {name}({arguments}); }});
    for (auto& item : items) item.join();
  }}
}}
"""


def compiler() -> str | None:
    """A C++20 compiler, if there is one."""
    return shutil.which("g++")


def library(kernel: Kernel, plan: GpuSchedule, folder: Path) -> ctypes.CDLL:
    """The CUDA text of a kernel, compiled for the CPU."""
    text = gpu_program([("test", kernel, plan)], "cuda")
    kinds = [p.rsplit(" ", 1)[0].replace("restrict", "") for p in _parameters(text)]
    arguments = ", ".join(f"({kind})p[{i}]" for i, kind in enumerate(kinds))
    source, result = folder / "k.cpp", folder / "k.so"
    main = MAIN.format(name=c_name("test"), arguments=arguments)
    source.write_text(PRELUDE + text + main)
    command = [str(compiler()), "-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread",
               "-fno-strict-aliasing"]  # fmt: skip
    subprocess.run([*command, "-o", str(result), str(source)], check=True)
    return ctypes.CDLL(str(result))


def _parameters(text: str) -> list[str]:
    head = text[text.index(c_name("test") + "(") + len(c_name("test")) + 1 :]
    return head[: head.index(") {")].split(", ")


def runner(folder: Path) -> Any:
    """For ``gpu_kit.check``: run on flat storages, in place."""

    def run(kernel: Kernel, plan: GpuSchedule, storages: dict[str, np.ndarray[Any, Any]]) -> None:
        loaded = library(kernel, plan, folder)
        pointers = [storages[name].ctypes.data for name in kernel.arguments]
        table = (ctypes.c_void_p * len(pointers))(*pointers)
        total, group = plan.launch(kernel)
        loaded.ph_launch(ctypes.c_longlong(total), ctypes.c_longlong(group), table)

    return run


NEEDS_CXX = pytest.mark.skipif(compiler() is None, reason="g++ is not installed")
