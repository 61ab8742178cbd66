"""Compile a kernel, run it, and compare with the NumPy interpreter."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from packhorse.compiler.schedule import Schedule, pack_constants, schedule
from packhorse.compiler.target import Target
from packhorse.kernel import Buffer, Kernel, Store, contiguous
from packhorse.kernel.expr import Expr, Load, affine
from packhorse.kernel.interpret import interpret
from packhorse.kernel.layout import from_storage, numpy_dtype, to_storage
from packhorse.native import Plan, Slot
from packhorse_llvm_cpu.codegen import Codegen
from packhorse_llvm_cpu.target import host_target

Array = np.ndarray[Any, Any]
F32 = "float32"


@functools.lru_cache(maxsize=8)
def codegen(target: Target) -> Codegen:
    return Codegen(target)


def host(threads: int = 1) -> Target:
    return host_target("", threads)


def random_array(buffer: Buffer, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    dtype = numpy_dtype(buffer.dtype)
    if buffer.dtype == "bool":
        return rng.integers(0, 2, buffer.shape).astype(bool)
    if "int" in buffer.dtype:
        low = 0 if buffer.dtype.startswith("u") else -9
        return rng.integers(low, 10, buffer.shape).astype(dtype)
    return rng.standard_normal(buffer.shape).astype(dtype)


def run(
    kernel: Kernel, plan: Schedule, target: Target, storages: dict[str, Array], threads: int = 1
) -> None:
    """Run a kernel on flat storages, in place. Storages start one element off alignment."""
    module = codegen(target).module([("ph_test", kernel, plan)])
    slots, copies = [], {}
    for name in kernel.arguments:
        flat = storages[name]
        loose = np.zeros(flat.size + 8, flat.dtype)[1 : 1 + flat.size]
        loose[:] = flat
        copies[name] = loose
        slot = Slot((flat.size,), kernel.buffers[name].dtype, loose.ctypes.data)
        slots.append(slot)
    Plan([(module._addresses["ph_test"], slots)]).run(threads)
    for name in kernel.arguments:
        if name not in kernel.outputs:
            before, after = (a.view(np.uint8) for a in (storages[name], copies[name]))
            np.testing.assert_array_equal(after, before)
        storages[name][:] = copies[name]


def check(
    kernel: Kernel,
    arrays: dict[str, Array] | None = None,
    plan: Schedule | None = None,
    target: Target | None = None,
    tol: float = 2e-6,
    threads: int = 1,
    pack: bool = True,
) -> dict[str, Array]:
    """Compiled result against the interpreter's; returns the compiled outputs."""
    target = target or host(threads)
    given = arrays or {}
    values = {
        n: given.get(n, random_array(b, i)) for i, (n, b) in enumerate(kernel.buffers.items())
    }
    reference = {n: to_storage(values[n], kernel.buffers[n]) for n in kernel.arguments}
    plan = plan or schedule(kernel, target)
    packed = replace(
        kernel, buffers={**kernel.buffers, **(pack_constants(kernel, plan) if pack else {})}
    )
    got = {n: to_storage(values[n], packed.buffers[n]) for n in kernel.arguments}
    with np.errstate(all="ignore"):
        interpret(kernel, reference)
    run(packed, plan, target, got, threads)
    results = {}
    for name in kernel.outputs:
        flat, want = got[name], reference[name]
        if flat.dtype.kind in "iub":
            np.testing.assert_array_equal(flat, want, err_msg=f"{kernel}\n{plan}")
        else:
            wide, expect = flat.astype(np.float64), want.astype(np.float64)
            finite = np.abs(expect[np.isfinite(expect)])
            scale = max(1.0, float(finite.max())) if finite.size else 1.0
            np.testing.assert_allclose(
                wide, expect, rtol=tol, atol=tol * scale, err_msg=f"{kernel}\n{plan}"
            )
        results[name] = from_storage(flat, packed.buffers[name])
    return results


def at(buffer: str, *index: Any, dtype: str = F32, when: Expr | None = None) -> Load:
    items = tuple(i if isinstance(i, Expr) else affine(i) for i in index)
    return Load(buffer, items, dtype, when)


def to(buffer: str, index: tuple[Any, ...], value: Expr) -> Store:
    return Store(buffer, tuple(affine(i) for i in index), value)


def dense(*shape: int, dtype: str = F32, **kwargs: Any) -> Buffer:
    return contiguous(shape, dtype, **kwargs)
