"""Small compiled libraries for tests of what other runtimes load."""

from pathlib import Path

import numpy as np
from codegen_kit import at, dense, to

from packhorse.compiler.schedule import schedule
from packhorse.kernel import Kernel
from packhorse_llvm_cpu.device import LlvmCpuDevice
from packhorse_llvm_cpu.module import JitModule
from packhorse_llvm_cpu.plugin import LlvmCpuBackend

SMALL, LARGE = 1000, 200_000
"""Elements of the vectors: run on one thread; split over threads."""


def open_device(threads: int = 1) -> LlvmCpuDevice:
    return LlvmCpuBackend().open(0, {"threads": threads})


def adding(name: str, n: int, dtype: str = "float32") -> Kernel:
    value = at("a", "i", dtype=dtype) + at("b", "i", dtype=dtype)
    return Kernel(name, (("i", n),), (to("y", ("i",), value),),
                  {k: dense(n, dtype=dtype) for k in "aby"})  # fmt: skip


def compiled(names: dict[str, int], threads: int = 1, dtype: str = "float32") -> JitModule:
    """A module of functions y = a + b: name -> elements."""
    device = open_device(threads)
    kernels = [(name, adding(name, n, dtype)) for name, n in names.items()]
    return device.compile([(n, k, schedule(k, device.target)) for n, k in kernels])


def library(folder: Path, names: dict[str, int], threads: int = 1, dtype: str = "float32") -> Path:
    return compiled(names, threads, dtype).export_library(folder / "kernels.so")


def vectors(n: int = SMALL, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    a, b = (rng.integers(0, 100, n).astype(dtype) for _ in range(2))
    return a, b, np.zeros(n, dtype)


WRONG = {
    "count": (lambda a, b, y: (a, b), "add: 2 arguments were given; it takes 3"),
    "kind": (lambda a, b, y: (a, b, 7), "argument 2 is no tensor but a value of type code"),
    "none": (lambda a, b, y: (a, None, y), "argument 1 is no tensor but a value of type code"),
    "dtype": (
        lambda a, b, y: (a, b, y.astype("float64")),
        "argument 2 has elements of DLPack type code 2 and bits 64; pass a contiguous tensor in "
        "host memory of float32, 1000 elements",
    ),
    "size": (
        lambda a, b, y: (a[:10].copy(), b, y),
        "argument 0 has another number of elements: 10",
    ),
}
"""Arguments that a function of :func:`library` refuses, and what it says."""
