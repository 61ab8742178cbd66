"""The elementary functions over dense ranges, in units in the last place."""

from __future__ import annotations

import math

import numpy as np
import pytest
from codegen_kit import at, dense, host, run, to

from packhorse.compiler.schedule import schedule
from packhorse.kernel import Kernel
from packhorse.kernel.expr import call
from packhorse_llvm_cpu.target import host_target

TARGETS = [host()]
if host().arch == "x86_64":
    TARGETS.append(host_target("x86-64", 1))


def apply(op, dtype, *args, target=None):
    target = target or host()
    n = len(args[0])
    names = ["x", "z"][: len(args)]
    value = call(op, *(at(name, "i", dtype=dtype) for name in names))
    buffers = {name: dense(n, dtype=dtype) for name in [*names, "y"]}
    kernel = Kernel(op, (("i", n),), (to("y", ("i",), value),), buffers)
    flats = {name: np.ascontiguousarray(a, dtype) for name, a in zip(names, args, strict=True)}
    flats["y"] = np.zeros(n, dtype)
    run(kernel, schedule(kernel, target), target, flats)
    return flats["y"]


def ulps(got, want, dtype):
    """Distance in units of the last place of the rounded exact result."""
    with np.errstate(all="ignore"):
        rounded = want.astype(dtype)
        unit = np.spacing(np.abs(rounded)).astype(want.dtype)
        error = np.abs(got.astype(want.dtype) - want) / unit
    same = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
    return float(np.max(np.where(same, 0, error)))


def _sigmoid(x):
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def _erf(x):
    return np.array([math.erf(v) for v in x.astype(np.float64)], np.float64)


EXACT = {"exp": np.exp, "log": np.log, "tanh": np.tanh, "sigmoid": _sigmoid, "erf": _erf,
         "sin": np.sin, "cos": np.cos}  # fmt: skip
SPECIAL = [np.inf, -np.inf, np.nan, 0.0, -0.0]


def _inputs(op, dtype):
    tiny, huge = (1e-45, 3e38) if dtype == "float32" else (5e-324, 1e308)
    wide = 105.0 if dtype == "float32" else 746.0
    spread = np.geomspace(tiny, huge, 8001)
    x = np.concatenate([np.linspace(-wide, wide, 20001), np.linspace(-3, 3, 20001), spread,
                        -spread, SPECIAL]).astype(dtype)  # fmt: skip
    if op in ("sin", "cos"):
        x = x[~(np.abs(x) > 2**20)]
    return x


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.cpu)
@pytest.mark.parametrize("op", EXACT)
@pytest.mark.parametrize(("dtype", "limit"), [("float32", 2.5), ("float64", 3.0)])
def test_accuracy(op, dtype, limit, target):
    x = _inputs(op, dtype)
    with np.errstate(all="ignore"):
        wider = np.float64 if dtype == "float32" or op == "erf" else np.longdouble
        want = EXACT[op](x.astype(wider))
        got = apply(op, dtype, x, target=target)
    assert not np.any(np.isnan(got) != np.isnan(want))
    # without fused multiply-add the polynomials lose one more bit
    assert ulps(got, want, dtype) <= limit * (1 if target.fused_multiply_add else 3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pow_edges_and_accuracy(dtype):
    grid = np.array([0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 0.5, -0.5, 2, -2, 3, -3, 2.5,
                     -2.5, 1e30, -1e30, 1e-30, 7, 8, -7], dtype)  # fmt: skip
    x, y = (a.ravel() for a in np.meshgrid(grid, grid))
    with np.errstate(all="ignore"):
        want = np.power(x, y)
    np.testing.assert_allclose(apply("pow", dtype, x, y), want, rtol=1e-6 if dtype == "float32"
                               else 1e-15)  # fmt: skip
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(-10, 10, 20000)).astype(dtype)
    y = rng.uniform(-8, 8, 20000).astype(dtype)
    want = np.power(x.astype(np.longdouble), y.astype(np.longdouble))
    np.testing.assert_allclose(apply("pow", dtype, x, y), want.astype(np.float64),
                               rtol=1e-7 if dtype == "float32" else 1e-15, atol=1e-37)  # fmt: skip


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.0, -1.0])
def test_pow_with_known_exponents(power):
    x = np.array([0.0, 1.0, 2.5, 1e10, np.inf, 3.0], np.float32)
    value = call("pow", at("x", "i"), power)
    kernel = Kernel("p", (("i", 6),), (to("y", ("i",), value),), {"x": dense(6), "y": dense(6)})
    flats = {"x": x, "y": np.zeros(6, np.float32)}
    run(kernel, schedule(kernel, host()), host(), flats)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(flats["y"], np.power(x, np.float32(power)), rtol=2e-7)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.cpu)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", ["floor", "ceil", "trunc", "round"])
def test_rounding_is_exact(op, dtype, target):
    x = np.concatenate([np.linspace(-9, 9, 1441), [2.0**23 + 1, -(2.0**52), 0.49999997, 1e30],
                        SPECIAL]).astype(dtype)  # fmt: skip
    numpy_op = {"round": np.rint}.get(op) or getattr(np, op)
    got = apply(op, dtype, x, target=target)
    np.testing.assert_array_equal(got, numpy_op(x))
    finite = ~np.isnan(x)
    np.testing.assert_array_equal(np.signbit(got[finite]), np.signbit(numpy_op(x)[finite]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fmod(dtype):
    rng = np.random.default_rng(0)
    x, y = (rng.uniform(-100, 100, 5000).astype(dtype) for _ in range(2))
    x[:100] = np.round(x[:100])
    y[:50] = np.round(y[:50]) + 1
    with np.errstate(all="ignore"):
        want = np.fmod(x, y)
    got = apply("mod", dtype, x, y)
    np.testing.assert_allclose(got, want, rtol=1e-13 if dtype == "float64" else 1e-6, atol=0)
