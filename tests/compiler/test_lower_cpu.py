"""Every construct of the kernel language, compiled, against the NumPy interpreter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from codegen_kit import F32, at, check, dense, host, to
from hypothesis import given, settings
from hypothesis import strategies as st

from packhorse.compiler.lower_cpu import CpuLowering
from packhorse.compiler.schedule import Schedule, pack_constants, schedule
from packhorse.compiler.target import Target
from packhorse.errors import CompileError
from packhorse.kernel import Dim, Kernel
from packhorse.kernel.expr import (
    CALLS,
    Call,
    Expr,
    Index,
    Reduce,
    affine,
    bitcast,
    call,
    cast,
    const,
    select,
)
from packhorse.kernel.kernel import Buffer
from packhorse_llvm_cpu.target import host_target

TARGETS = {
    "host": host(),
    "avx2": host_target("x86-64-v3", 1) if host().has("avx2") else host(),
    "plain": host_target("x86-64", 1) if host().arch == "x86_64" else host(),
}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param]


def gemm(m: int, n: int, k: int, dtype: str = F32, constant: bool = True) -> Kernel:
    total = Reduce(
        "sum", (("k", k),), at("a", "m", "k", dtype=dtype) * at("b", "k", "n", dtype=dtype), dtype
    )
    return Kernel(
        "gemm", (("m", m), ("n", n)),
        (to("y", ("m", "n"), call("max", total + at("bias", "n", dtype=dtype), 0)),),
        {"a": dense(m, k, dtype=dtype), "b": dense(k, n, dtype=dtype, constant=constant),
         "bias": dense(n, dtype=dtype, constant=True), "y": dense(m, n, dtype=dtype)},
    )  # fmt: skip


def conv(size: int, c: int, o: int, k: int = 3, s: int = 1, p: int = 1, group: bool = False
         ) -> Kernel:  # fmt: skip
    """NHWC convolution with a halo; depthwise when ``group``."""
    out = (size + 2 * p - k) // s + 1
    oh, ow, kh, kw = map(affine, ("oh", "ow", "kh", "kw"))
    where = (oh * s + kh + -p, ow * s + kw + -p)
    if group:
        axes, o = (("kh", k), ("kw", k)), c
        body = at("x", "o", *where) * at("w", "o", 0, kh, kw)
    else:
        axes = (("kh", k), ("kw", k), ("c", c))
        body = at("x", "c", *where) * at("w", "o", "c", kh, kw)
    value = Reduce("sum", axes, body, F32) + at("bias", "o")
    halo = ((0, 0), (p, p), (p, p))
    return Kernel(
        "conv", (("o", o), ("oh", out), ("ow", out)), (to("y", ("o", "oh", "ow"), value),),
        {"x": dense(c, size, size, order=(1, 2, 0), halo=halo),
         "w": dense(o, 1 if group else c, k, k, constant=True),
         "bias": dense(o, constant=True), "y": dense(o, out, out, order=(1, 2, 0))},
    )  # fmt: skip


def softmax(rows: int, n: int, dtype: str = F32) -> Kernel:
    top = Reduce("max", (("r", n),), at("x", "i", "r", dtype=dtype), dtype)
    power = lambda j: call("exp", at("x", "i", j, dtype=dtype) - top)  # noqa: E731
    value = power("j") / Reduce("sum", (("q", n),), power("q"), dtype)
    buffers = {name: dense(rows, n, dtype=dtype) for name in ("x", "y")}
    return Kernel("softmax", (("i", rows), ("j", n)), (to("y", ("i", "j"), value),), buffers)


def layernorm(rows: int, n: int) -> Kernel:
    mean = Reduce("sum", (("r", n),), at("x", "i", "r"), F32) * (1 / n)
    off = lambda j: at("x", "i", j) - mean  # noqa: E731
    spread = Reduce("sum", (("q", n),), off("q") * off("q"), F32) * (1 / n)
    value = off("j") * call("rsqrt", spread + 1e-5) * at("g", "j") + at("b", "j")
    return Kernel(
        "layernorm", (("i", rows), ("j", n)), (to("y", ("i", "j"), value),),
        {"x": dense(rows, n), "g": dense(n, constant=True), "b": dense(n, constant=True),
         "y": dense(rows, n)},
    )  # fmt: skip


def maxpool(size: int, c: int, s: int) -> Kernel:
    out = (size + 2 - 3) // s + 1
    h = affine("oh") * s + affine("kh") + -1
    w = affine("ow") * s + affine("kw") + -1
    inside = call("and", *(
        call("and", call("ge", Index(i), 0), call("lt", Index(i), size)) for i in (h, w)
    ))  # fmt: skip
    body = select(inside, at("x", "c", h, w, when=inside), -np.inf)
    value = Reduce("max", (("kh", 3), ("kw", 3)), body, F32)
    return Kernel(
        "maxpool", (("c", c), ("oh", out), ("ow", out)), (to("y", ("c", "oh", "ow"), value),),
        {"x": dense(c, size, size, order=(1, 2, 0)), "y": dense(c, out, out, order=(1, 2, 0))},
    )  # fmt: skip


def unary(n: int, value: Expr, dtype: str, out: str) -> Kernel:
    buffers = {"x": dense(n, dtype=dtype), "z": dense(n, dtype=dtype), "y": dense(n, dtype=out)}
    return Kernel("map", (("i", n),), (to("y", ("i",), value),), buffers)


SHAPES = [(8, 32, 16), (7, 10, 5), (33, 70, 19), (1, 100, 64), (1, 1, 1), (49, 64, 3), (3, 17, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_gemm(shape, target):
    check(gemm(*shape), target=target)


@pytest.mark.parametrize("dtype", ["float64", "int32", "int8", "uint8", "int64"])
def test_gemm_dtypes(dtype):
    check(gemm(5, 37, 11, dtype), tol=1e-13)


def test_gemm_of_activations():
    check(gemm(6, 40, 9, constant=False))


CONVS = [(8, 5, 20), (14, 16, 32), (7, 3, 33, 1, 1, 0), (11, 3, 24, 7, 2, 3), (5, 8, 8, 3, 2, 1)]


@pytest.mark.parametrize("case", CONVS)
def test_conv(case, target):
    check(conv(*case), target=target)


@pytest.mark.parametrize("case", [(8, 24, 0), (9, 40, 0, 3, 2), (5, 3, 0)])
def test_depthwise(case, target):
    check(conv(*case, group=True), target=target)


@pytest.mark.parametrize("shape", [(5, 37), (3, 200), (1, 1000), (4, 3), (2, 64), (1, 1)])
def test_softmax_and_layernorm(shape, target):
    check(softmax(*shape), target=target)
    check(layernorm(*shape), target=target)


def test_softmax_float64_and_threads():
    check(softmax(300, 129, "float64"), tol=1e-14, threads=2)


@pytest.mark.parametrize("case", [(8, 21, 2), (7, 64, 1), (6, 3, 2)])
def test_maxpool_reads_nothing_outside(case, target):
    check(maxpool(*case), target=target)


@pytest.mark.parametrize("combine", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("dtype", [F32, "float64", "int32", "uint8", "int8"])
def test_reductions_along_rows_and_columns(combine, dtype):
    for index, axes in ((("i", "k"), ("i", 6)), (("k", "i"), ("i", 45))):
        value = Reduce(
            combine, (("k", 45 if axes[1] == 6 else 6),), at("x", *index, dtype=dtype), dtype
        )
        shape = (6, 45)
        buffers = {"x": dense(*shape, dtype=dtype), "y": dense(axes[1], dtype=dtype)}
        check(Kernel("r", (axes,), (to("y", ("i",), value),), buffers), tol=1e-5)


def test_reduction_to_a_scalar_and_over_nothing():
    value = Reduce("sum", (("k", 1000),), at("x", "k"), F32)
    check(Kernel("all", (), (to("y", (), value),), {"x": dense(1000), "y": dense()}), tol=1e-5)
    empty = Reduce("max", (("k", 0),), at("x", "k"), F32)
    kernel = Kernel("none", (("i", 5),), (to("y", ("i",), empty),), {"x": dense(1), "y": dense(5)})
    assert (check(kernel)["y"] == -np.inf).all()


def test_nan_in_a_maximum():
    x = np.ones((2, 40), np.float32)
    x[0, 3] = x[1, 39] = np.nan
    value = Reduce("max", (("k", 40),), at("x", "i", "k"), F32)
    kernel = Kernel("m", (("i", 2),), (to("y", ("i",), value),),
                    {"x": dense(2, 40), "y": dense(2)})  # fmt: skip
    assert np.isnan(check(kernel, {"x": x})["y"]).all()


def test_sums_in_another_dtype():
    body = cast(at("a", "m", "k", dtype="int8"), "int32") * cast(
        at("b", "k", "n", dtype="uint8"), "int32"
    )
    value = cast(Reduce("sum", (("k", 33),), body, "int32"), F32) * 0.25
    check(Kernel("q", (("m", 5), ("n", 23)), (to("y", ("m", "n"), value),),
                 {"a": dense(5, 33, dtype="int8"), "b": dense(33, 23, dtype="uint8", constant=True),
                  "y": dense(5, 23)}))  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype, target):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    x = cast(at("x", "i", dtype=dtype), F32)
    kernel = unary(77, call("exp", x) * 0.5, dtype, dtype)
    kernel = replace(kernel, buffers={n: kernel.buffers[n] for n in ("x", "y")})
    values = np.linspace(-12, 12, 77).astype(np.float32)
    values[:4] = [np.inf, -np.inf, np.nan, -0.0]
    from packhorse.kernel.layout import numpy_dtype

    check(kernel, {"x": values.astype(numpy_dtype(dtype))}, target=target, tol=8e-3)


FLOATS = sorted(CALLS.keys() - {"floordiv", "and", "or", "xor", "not", "cast", "bitcast", "select"})


@pytest.mark.parametrize("op", FLOATS)
@pytest.mark.parametrize("dtype", [F32, "float64"])
def test_float_operations(op, dtype, target):
    arity, rule = CALLS[op]
    args = [at(n, "i", dtype=dtype) for n in ("x", "z")[:arity]]
    out = "bool" if rule == "bool" else dtype
    kernel = unary(83, call(op, *args), dtype, out)
    grid = [0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 0.5, 3.0, np.nan, np.inf, -np.inf]
    rng = np.random.default_rng(0)
    x = np.concatenate([grid, rng.uniform(-4, 4, 72)]).astype(dtype)
    z = np.concatenate([grid[::-1], rng.uniform(-4, 4, 72)]).astype(dtype)
    z[40:50] = x[40:50]
    if op == "rsqrt":
        x[1] = 0.0  # the sign of 1 / sqrt(-0) is nobody's business
    kernel = replace(kernel, buffers={n: kernel.buffers[n] for n in kernel.arguments})
    tol = 1e-6 if dtype == F32 else 1e-14
    check(kernel, {"x": x, "z": z}, target=target, tol=tol)


INTS = ["add", "sub", "mul", "div", "floordiv", "mod", "max", "min", "pow", "neg", "abs", "sign",
        "lt", "le", "eq", "ne", "gt", "ge", "and", "or", "xor", "not"]  # fmt: skip


@pytest.mark.parametrize("op", INTS)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint32"])
def test_integer_operations(op, dtype):
    arity, rule = CALLS[op]
    args = [at(n, "i", dtype=dtype) for n in ("x", "z")[:arity]]
    kernel = unary(90, call(op, *args), dtype, "bool" if rule == "bool" else dtype)
    kernel = replace(kernel, buffers={n: kernel.buffers[n] for n in kernel.arguments})
    info = np.iinfo(dtype)
    rng = np.random.default_rng(1)
    low = info.min + (op == "div" and info.min < 0)  # the oracle takes absolute values
    x = np.concatenate([[low, info.max, 7], rng.integers(0, 90, 87)]).astype(dtype)
    z = rng.integers(1, 6, 90).astype(dtype)
    check(kernel, {"x": x, "z": z})


def test_integer_division_never_traps():
    x = np.array([-(2**31), 5, -5, 0] * 8, np.int32)
    z = np.array([-1, 0, 0, 0] * 8, np.int32)
    for op in ("div", "floordiv", "mod"):
        kernel = unary(32, call(op, at("x", "i", dtype="int32"), at("z", "i", dtype="int32")),
                       "int32", "int32")  # fmt: skip
        from codegen_kit import run

        flats = {"x": x, "z": z, "y": np.ones(32, np.int32)}
        run(kernel, schedule(kernel, host()), host(), flats)
        assert (flats["y"][1:4] == 0).all()


CASTS = [
    (F32, "int8"), (F32, "uint8"), (F32, "int32"), (F32, "int64"), (F32, "bool"), (F32, "float64"),
    ("float64", F32), ("float64", "int64"), ("int64", F32), ("uint8", F32), ("int8", "int64"),
    ("int64", "uint8"), ("bool", F32), ("bool", "int64"), ("int32", "bool"), ("uint32", "float64"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "dtype"), CASTS)
def test_casts(source, dtype, target):
    value = Call("cast", (at("x", "i", dtype=source),), dtype)
    kernel = unary(40, value, source, dtype)
    kernel = replace(kernel, buffers={n: kernel.buffers[n] for n in ("x", "y")})
    x = np.linspace(-300, 300, 40)
    if source.startswith(("u", "bool")):
        x = np.abs(x)
    x = x.astype(source)
    if source.startswith("float") and dtype not in ("bool", "float64", F32):
        x[:3] = [np.nan, 1e30, -1e30]
    check(kernel, {"x": x}, target=target)


BITCASTS = [
    (F32, "int32"), ("uint32", F32), ("float64", "uint64"), ("int64", "float64"), ("int8", "uint8"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "dtype"), BITCASTS)
def test_bitcasts(source, dtype, target):
    value = bitcast(at("x", "i", dtype=source), dtype)
    kernel = unary(40, value, source, dtype)
    kernel = replace(kernel, buffers={n: kernel.buffers[n] for n in ("x", "y")})
    check(kernel, {"x": np.linspace(-3, 3, 40).astype(dtype).view(source)}, target=target)


def test_bitcasts_that_would_not_be_exact():
    for source, dtype in (("float16", "int16"), ("uint16", "bfloat16"), ("bool", "uint8")):
        with pytest.raises(TypeError, match=f"from {source} to {dtype} would not be exact"):
            bitcast(at("x", "i", dtype=source), dtype)


def test_transpose_reverse_and_stride(target):
    kernel = Kernel("t", (("m", 19), ("n", 41)), (to("y", ("m", "n"), at("x", "n", "m")),),
                    {"x": dense(41, 19), "y": dense(19, 41)})  # fmt: skip
    check(kernel, target=target)
    back = Kernel("r", (("i", 50),), (to("y", ("i",), at("x", affine("i") * -2 + 98)),),
                  {"x": dense(99), "y": dense(50)})  # fmt: skip
    check(back, target=target)
    spread = Kernel("s", (("i", 50),), (to("y", (affine("i") * 2,), at("x", "i")),),
                    {"x": dense(50), "y": dense(99)})  # fmt: skip
    check(spread, target=target)


def test_gathers(target):
    row = at("rows", "i", dtype="int64")
    ids = np.array([0, 3, 9, 1, 1], np.int64)
    kernel = Kernel("e", (("i", 5), ("j", 50)), (to("y", ("i", "j"), at("t", row, "j")),),
                    {"t": dense(10, 50, constant=True), "rows": dense(5, dtype="int64"),
                     "y": dense(5, 50)})  # fmt: skip
    check(kernel, {"rows": ids}, target=target)
    column = cast(at("rows", "j", dtype="int32"), "int64")
    for dtype in (F32, "int8", "bool"):
        kernel = Kernel(
            "g", (("i", 3), ("j", 21)), (to("y", ("i", "j"), at("t", "i", column, dtype=dtype)),),
            {"t": dense(3, 10, dtype=dtype), "rows": dense(21, dtype="int32"),
             "y": dense(3, 21, dtype=dtype)},
        )  # fmt: skip
        check(kernel, {"rows": np.arange(21, dtype=np.int32) % 10}, target=target)


def test_guards_that_differ_between_lanes(target):
    i = affine("i")
    guard = call("lt", Index(i), 30)
    for index in (i, affine(3), i * 2 + -20):
        fine = guard if index != i * 2 + -20 else call("and", guard, call("ge", Index(index), 0))
        value = at("x", index, when=fine) + 1.0
        kernel = Kernel("w", (("i", 37),), (to("y", ("i",), value),),
                        {"x": dense(41), "y": dense(37)})  # fmt: skip
        check(kernel, target=target)


def test_guard_that_is_never_true():
    value = at("x", affine("i") + 1000, when=const(False, "bool")) + at("x", "i")
    kernel = Kernel("n", (("i", 20),), (to("y", ("i",), value),), {"x": dense(20), "y": dense(20)})
    check(kernel)


def test_index_values_and_bools():
    i, j = affine("i"), affine("j")
    value = select(call("le", Index(j), Index(i)), at("x", "i", "j"), -1.0)
    kernel = Kernel("tril", (("i", 9), ("j", 33)), (to("y", ("i", "j"), value),),
                    {"x": dense(9, 33), "y": dense(9, 33)})  # fmt: skip
    check(kernel)
    odd = call("eq", call("mod", Index(i * 3 + j), const(2, "int64")), const(1, "int64"))
    kernel = Kernel("b", (("i", 4), ("j", 70)), (to("y", ("i", "j"), call("not", odd)),),
                    {"y": dense(4, 70, dtype="bool")})  # fmt: skip
    check(kernel)


def test_sequential_recurrence_with_two_outputs():
    """h[t+1] = tanh(x[t] + R h[t]); c[t] = sum of gates that share their loops."""
    steps, n = 5, 19
    t1 = affine("t") + 1
    dot = lambda w: Reduce("sum", (("k", n),), at(w, "j", "k") * at("h", "t", "k"), F32)  # noqa: E731
    value = call("tanh", at("x", "t", "j") + dot("r"))
    other = call("sigmoid", dot("r") + dot("s"))
    kernel = Kernel(
        "rnn", (("t", steps), ("j", n)),
        (to("h", (t1, "j"), value), to("c", ("t", "j"), other)),
        {"x": dense(steps, n), "r": dense(n, n, constant=True), "s": dense(n, n, constant=True),
         "h": dense(steps + 1, n), "c": dense(steps, n)},
        sequential=("t",),
    )  # fmt: skip
    check(kernel, tol=1e-5)


def test_stores_of_different_rank():
    x = at("x", "i", "j")
    total = Reduce("sum", (("r", 33),), at("x", "i", "r"), F32)
    kernel = Kernel("two", (("i", 7), ("j", 33)),
                    (to("y", ("i", "j"), x - total), to("s", ("i",), total * 2.0)),
                    {"x": dense(7, 33), "y": dense(7, 33), "s": dense(7)})  # fmt: skip
    check(kernel, tol=1e-5)


def test_blocked_buffers_not_aligned_to_the_tile():
    blocked = Buffer((40, 6), F32, (Dim(1, 8, 48), Dim(8)), 0, 240, constant=True)
    value = Reduce("sum", (("k", 6),), at("a", "m", "k") * at("w", "n", "k"), F32)
    kernel = Kernel("u", (("m", 3), ("n", 40)), (to("y", ("m", "n"), value),),
                    {"a": dense(3, 6), "w": blocked, "y": dense(3, 40)})  # fmt: skip
    plan = Schedule(("m", "n"), (("n", 32),), "n", 16)
    check(kernel, plan=plan, pack=False)
    check(kernel, plan=replace(plan, tile=(("n", 5),), lanes=4), pack=False)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_give_the_same_result(threads):
    check(gemm(61, 200, 300), threads=threads, tol=1e-5)
    check(conv(29, 16, 40), threads=threads, tol=1e-5)
    check(unary(60_001, call("exp", at("x", "i")), F32, F32), threads=threads)


def test_a_zero_extent_axis_writes_nothing():
    kernel = Kernel(
        "z", (("i", 0),), (to("y", ("i",), at("x", "i")),), {"x": dense(1), "y": dense(1)}
    )
    from codegen_kit import run

    flats = {"x": np.ones(1, np.float32), "y": np.zeros(1, np.float32)}
    run(kernel, schedule(kernel, host()), host(), flats)
    assert flats["y"][0] == 0


def test_wrong_schedules_are_refused():
    kernel = gemm(4, 32, 4)
    good = schedule(kernel, host())
    for plan, words in (
        (replace(good, order=("m",)), "orders the loops"),
        (replace(good, order=("m", "n"), parallel=("n", "m")), "must be the first"),
    ):
        with pytest.raises(CompileError, match=words):
            CpuLowering(kernel, plan, host()).emit()
    rows = softmax(4, 64)
    plan = schedule(rows, host())
    with pytest.raises(CompileError, match="cannot be split over threads"):
        CpuLowering(rows, replace(plan, parallel=plan.order[1:]), host()).emit()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("m", [5, 56, 57])
def test_threads_may_share_an_inner_loop(m, threads):
    kernel = gemm(m, 96, 24)
    plan = schedule(kernel, host())
    inner = replace(plan, order=("n", "m"), parallel=("m",))
    check(kernel, plan=inner, threads=threads, tol=1e-5)


def test_large_activations_are_split_by_rows():
    wide = schedule(gemm(4096, 256, 256), host(2))
    assert wide.parallel == ("m",)
    tall = schedule(gemm(14, 4096, 256), host(2))
    assert tall.parallel[0] == "n"


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 35)] * 3),
    tiles=st.tuples(st.integers(1, 6), st.integers(1, 40)),
    order=st.permutations(["m", "n"]),
    lanes=st.sampled_from([4, 8, 16]),
    vector=st.sampled_from(["m", "n", None]),
    split=st.integers(1, 4),
    unroll=st.integers(1, 5),
)
def test_any_schedule_of_a_matrix_product(sizes, tiles, order, lanes, vector, split, unroll):
    m, n, k = sizes
    plan = Schedule(tuple(order), (("m", tiles[0]), ("n", tiles[1])), vector, lanes, (),
                    (("k", unroll),), split)  # fmt: skip
    kernel = gemm(m, n, k)
    check(kernel, plan=plan, pack=True, tol=1e-5)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_random_broadcasts_and_layouts(data):
    """Elementwise kernels over random layouts: orders, halos, broadcasting."""
    rank = data.draw(st.integers(1, 4))
    shape = [data.draw(st.integers(1, 9)) for _ in range(rank)]
    shape[data.draw(st.integers(0, rank - 1))] = data.draw(st.integers(1, 40))
    names = [f"i{d}" for d in range(rank)]
    buffers = {}
    terms: list[Expr] = []
    for name in ("a", "b"):
        keep = [data.draw(st.booleans()) for _ in range(rank)]
        dims = [n if k else 1 for n, k in zip(shape, keep, strict=True)]
        order = data.draw(st.permutations(range(rank)))
        halo = [(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in dims]
        buffers[name] = dense(*dims, order=order, halo=halo)
        terms.append(at(name, *(n if k else 0 for n, k in zip(names, keep, strict=True))))
    buffers["y"] = dense(*shape, order=data.draw(st.permutations(range(rank))))
    value = call("sigmoid", terms[0]) * terms[1] - terms[0]
    axes = tuple(zip(names, shape, strict=True))
    check(Kernel("e", axes, (to("y", tuple(names), value),), buffers))


@settings(max_examples=20, deadline=None)
@given(
    h=st.integers(3, 12), c=st.integers(1, 20), o=st.integers(1, 40), k=st.integers(1, 3),
    s=st.integers(1, 2), p=st.integers(0, 1), group=st.booleans(),
)  # fmt: skip
def test_random_convolutions(h, c, o, k, s, p, group):
    check(conv(h, c, o, k, s, p, group), tol=1e-5)


def test_packing_layouts():
    kernel = conv(14, 16, 40)
    plan = replace(schedule(kernel, host()), tile=(("ow", 7), ("o", 32)), vector="o", lanes=16)
    packed = pack_constants(kernel, plan)
    assert packed["w"].dims[0] == Dim(1, 32, 9 * 16 * 32)
    assert packed["w"].size == 2 * 9 * 16 * 32
    assert packed["bias"].size == 48
