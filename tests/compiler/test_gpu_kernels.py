"""Every construct of the GPU lowering on an OpenCL device, against the NumPy interpreter."""

from __future__ import annotations

import numpy as np
import pytest
from codegen_kit import at, dense, to
from gpu_kit import check, opencl

from packhorse.compiler.gpu_schedule import GpuSchedule, GpuTarget, gpu_schedule
from packhorse.errors import CompileError
from packhorse.kernel import Buffer, Dim, Kernel, Store
from packhorse.kernel.expr import Expr, Index, Reduce, affine, call, cast, const, select
from packhorse.kernel.interpret import interpret

F32 = "float32"
ALL = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", F32, "float64")


@pytest.fixture(autouse=True)
def _device():
    opencl()


def unary(value: Expr, n: int, out: str, **dtypes: str) -> Kernel:
    buffers = {name: dense(n, dtype=dtype) for name, dtype in dtypes.items()}
    stores = (to("y", ("i",), value),)
    return Kernel("map", (("i", n),), stores, {**buffers, "y": dense(n, dtype=out)})


def gemm(m: int, n: int, k: int, dtype: str = F32) -> Kernel:
    body = at("a", "m", "k", dtype=dtype) * at("b", "k", "n", dtype=dtype)
    total = Reduce("sum", (("k", k),), body, dtype)
    return Kernel(
        "gemm", (("m", m), ("n", n)),
        (to("y", ("m", "n"), call("max", total + at("bias", "n", dtype=dtype), 0)),),
        {"a": dense(m, k, dtype=dtype), "b": dense(k, n, dtype=dtype, constant=True),
         "bias": dense(n, dtype=dtype, constant=True), "y": dense(m, n, dtype=dtype)},
    )  # fmt: skip


def softmax(rows: int, n: int) -> Kernel:
    top = Reduce("max", (("r", n),), at("x", "i", "r"), F32)
    power = lambda j: call("exp", at("x", "i", j) - top)  # noqa: E731
    value = power("j") / Reduce("sum", (("q", n),), power("q"), F32)
    buffers = {name: dense(rows, n) for name in ("x", "y")}
    return Kernel("softmax", (("i", rows), ("j", n)), (to("y", ("i", "j"), value),), buffers)


def conv(size: int, c: int, o: int, k: int, s: int, p: int) -> Kernel:
    out = (size + 2 * p - k) // s + 1
    where = (affine("oh") * s + affine("kh") + -p, affine("ow") * s + affine("kw") + -p)
    inside = call("and", *(
        call("and", call("ge", Index(i), 0), call("lt", Index(i), size)) for i in where
    ))  # fmt: skip
    body = at("x", "c", *where, when=inside) * at("w", "o", "c", "kh", "kw")
    value = Reduce("sum", (("c", c), ("kh", k), ("kw", k)), body, F32) + at("bias", "o")
    return Kernel(
        "conv", (("oh", out), ("ow", out), ("o", o)), (to("y", ("o", "oh", "ow"), value),),
        {"x": dense(c, size, size), "w": dense(o, c, k, k, constant=True),
         "bias": dense(o, constant=True), "y": dense(o, out, out, order=(1, 2, 0))},
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(7, 10, 5), (1, 1, 1), (33, 17, 9)])
def test_products(shape):
    assert check(gemm(*shape)).mode == "points"


TILES = GpuSchedule("tiles", ("m", "n"), ("m",), 16, ("n",), (8, 8, 4), (2, 2))


@pytest.mark.parametrize("shape", [(16, 16, 8), (13, 21, 9), (3, 2, 1)])
def test_products_in_tiles(shape):
    check(gemm(*shape), TILES)


@pytest.mark.parametrize("dtype", ["float64", "int32"])
def test_tiles_of_other_dtypes(dtype):
    check(gemm(9, 10, 11, dtype), TILES)


def test_large_products_are_tiled():
    plan = check(gemm(40, 33, 20))
    assert plan.mode == "tiles"
    assert (plan.rows, plan.columns) == (("m",), ("n",))


def batched(half: str) -> Kernel:
    """A batch of products with b transposed, a prologue, and a half-precision factor."""
    first = call("max", at("a", "z", "m", "k"), 0.0)
    value = Reduce("sum", (("k", 12),), first * at("b", "z", "n", "k"), F32)
    return Kernel(
        "batched", (("z", 3), ("m", 20), ("n", 30)),
        (to("y", ("z", "m", "n"), call("tanh", value) + at("r", "m")),),
        {"a": dense(3, 20, 12), "b": dense(3, 30, 12, dtype=half), "r": dense(20),
         "y": dense(3, 20, 30)},
    )  # fmt: skip


@pytest.mark.parametrize("half", ["float16", F32])
def test_batches_in_tiles_with_prologue_and_epilogue(half):
    assert check(batched(half)).mode == "tiles"


def test_convolutions_in_tiles():
    plan = check(conv(9, 5, 24, 3, 1, 1))
    assert (plan.mode, plan.rows, plan.columns) == ("tiles", ("oh", "ow"), ("o",))


def test_tiles_need_one_sum_of_products():
    device = opencl()
    wrong = GpuSchedule("tiles", ("i", "j"), ("i",), 16, ("j",), (8, 8, 4), (2, 2))
    with pytest.raises(CompileError, match="no single sum of products"):
        device.compile([("k", softmax(3, 4), wrong)])
    both = GpuSchedule("tiles", ("m", "n"), ("m", "n"), 16, (), (8, 8, 4), (2, 2))
    with pytest.raises(CompileError, match="no axes of one factor"):
        device.compile([("k", gemm(3, 4, 5), both)])


@pytest.mark.parametrize("dtype", ["float64", "int32", "int8", "uint8", "int64"])
def test_products_of_other_dtypes(dtype):
    check(gemm(5, 13, 11, dtype))


@pytest.mark.parametrize("case", [(8, 5, 20, 3, 1, 1), (9, 3, 6, 5, 2, 2)])
def test_convolutions_with_guards_and_weights_moved(case):
    check(conv(*case))


def test_a_long_sum_takes_a_work_group():
    plan = check(Kernel(
        "total", (("i", 3),),
        (to("y", ("i",), Reduce("sum", (("r", 1000),), at("x", "i", "r"), F32)),),
        {"x": dense(3, 1000), "y": dense(3)},
    ))  # fmt: skip
    assert plan.mode == "rows"


@pytest.mark.parametrize(("rows", "n"), [(5, 33), (1, 1000), (3, 2)])
def test_rows_share_their_reductions(rows, n):
    assert check(softmax(rows, n)).mode == "rows"


def test_rows_with_several_axes_and_a_store_per_row():
    mean = Reduce("sum", (("r", 6), ("q", 7)), at("x", "i", "r", "q"), F32) * (1 / 42)
    kernel = Kernel(
        "norm", (("i", 4), ("j", 6), ("k", 7)),
        (to("y", ("i", "j", "k"), at("x", "i", "j", "k") - mean), to("m", ("i",), mean)),
        {"x": dense(4, 6, 7), "y": dense(4, 6, 7), "m": dense(4)},
    )  # fmt: skip
    assert check(kernel).mode == "rows"


@pytest.mark.parametrize("combine", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("dtype", [F32, "int32", "uint8"])
def test_reductions(combine, dtype):
    body = at("x", "i", "r", dtype=dtype)
    stores = tuple(
        to(y, ("i",), Reduce(combine, (("r", n),), body, dtype)) for y, n in (("y", 5), ("z", 300))
    )
    buffers = {"x": dense(3, 300, dtype=dtype), "y": dense(3, dtype=dtype),
               "z": dense(3, dtype=dtype)}  # fmt: skip
    for mode, rows in (("points", ()), ("rows", ("i",))):
        check(Kernel("r", (("i", 3),), stores, buffers), GpuSchedule(mode, ("i",), rows, 16))


def test_reductions_of_bool_and_of_nothing():
    x = at("x", "i", "r", dtype="bool")
    stores = [to(f"y{c}", ("i",), Reduce(c, (("r", 5),), x, "bool")) for c in ("max", "min")]
    none = Reduce("sum", (("q", 0),), at("f", "q"), F32)
    kernel = Kernel(
        "r", (("i", 9),), (*stores, to("z", ("i",), none)),
        {"x": dense(9, 5, dtype="bool"), "ymax": dense(9, dtype="bool"), "f": dense(1),
         "ymin": dense(9, dtype="bool"), "z": dense(9)},
    )  # fmt: skip
    for mode, rows in (("points", ()), ("rows", ("i",))):
        check(kernel, GpuSchedule(mode, ("i",), rows, 4))


FLOAT_OPS = ("exp", "sqrt", "erf", "tanh", "sigmoid", "sin", "cos", "floor", "ceil", "trunc",
             "round", "abs", "neg", "sign", "log", "rsqrt")  # fmt: skip


@pytest.mark.parametrize("dtype", [F32, "float64"])
def test_float_operations(dtype):
    x = at("x", "i", dtype=dtype)
    positive = call("abs", x) + 0.1
    values = [call(op, positive if op in ("log", "rsqrt", "sqrt") else x) for op in FLOAT_OPS]
    z = at("z", "i", dtype=dtype)
    values += [call(op, x, z) for op in ("add", "sub", "mul", "div", "mod", "max", "min")]
    values += [call("pow", positive, z), select(call("lt", x, z), x, z)]
    _many(values, 40, dtype, tol=1e-5 if dtype == F32 else 1e-12)


@pytest.mark.parametrize("dtype", [d for d in ALL if "int" in d])
def test_integer_operations(dtype):
    x, z = at("x", "i", dtype=dtype), at("z", "i", dtype=dtype)
    other = select(call("eq", z, 0), const(3, dtype), z)  # division by zero has a test of its own
    values = [call(op, x, z) for op in ("add", "sub", "mul", "max", "min", "and", "or", "xor")]
    values += [call(op, x, other) for op in ("div", "floordiv", "mod")]
    values += [call(op, x) for op in ("abs", "neg", "sign", "not")]
    values.append(call("pow", x, call("and", z, 3)))
    info = np.iinfo(dtype)
    edges = np.array([info.min, info.max, 1, 0, info.min, 7], dtype)
    arrays = {"x": np.resize(edges, 36), "z": np.repeat(edges, 6)}
    _many(values, 36, dtype, arrays=arrays)


def test_division_by_zero_is_no_trap():
    x, z = at("x", "i", dtype="int32"), at("z", "i", dtype="int32")
    values = [call(op, x, z) for op in ("div", "floordiv", "mod")]
    stores = tuple(to(f"y{i}", ("i",), v) for i, v in enumerate(values))
    names = ("x", "z", "y0", "y1", "y2")
    kernel = Kernel("m", (("i", 4),), stores, {n: dense(4, dtype="int32") for n in names})
    from gpu_kit import run

    x0 = np.array([5, -(2**31), -7, 0], np.int32)
    for compute in (
        lambda storages: run(opencl(), kernel, gpu_schedule(kernel, GpuTarget()), storages),
        lambda storages: interpret(kernel, storages),
    ):
        storages = {n: np.full(4, 9 * (n != "z"), np.int32) for n in names} | {"x": x0}
        compute(storages)
        for name in ("y0", "y1", "y2"):
            assert storages[name].tolist() == [0, 0, 0, 0]


def _many(values: list[Expr], n: int, dtype: str, tol: float = 2e-5, arrays=None) -> None:
    """Several stores of one kernel: one program, one launch."""
    stores = tuple(to(f"y{i}", ("i",), v) for i, v in enumerate(values))
    buffers = {name: dense(n, dtype=dtype) for name in ("x", "z")}
    buffers |= {f"y{i}": dense(n, dtype=v.dtype) for i, v in enumerate(values)}
    check(Kernel("many", (("i", n),), stores, buffers), arrays=arrays, tol=tol)


@pytest.mark.parametrize("source", [*ALL, "bool"])
def test_casts(source):
    values = [cast(at("x", "i", dtype=source), target) for target in (*ALL, "bool")]
    arrays = None
    if source in (F32, "float64"):
        odd = [np.nan, np.inf, -np.inf, 1e30, -1e30, 0.5, -0.5, 127.9, -128.9, 3e9, -3e9, 255.5]
        arrays = {"x": np.array(odd, source)}
        values = [v for v in values if v.dtype != F32 or source == F32]
    _many(values, 12, source, arrays=arrays)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_in_memory(dtype):
    x = at("x", "i")  # a load may widen
    kernel = unary(cast(x * 3.0 + 1.0, dtype), 64, dtype, x=dtype)
    check(kernel)
    odd = np.array([0, -0.0, 1e-7, 6e-8, 3e-8, 65504, 65519, 65520, np.inf, 1e-5, 2.0**-14, 0.1])
    wide = unary(cast(at("x", "i"), dtype), 12, dtype, x=F32)
    check(wide, arrays={"x": odd.astype(np.float32)})
    rounded = cast(cast(at("x", "i"), dtype), F32)
    check(unary(rounded, 12, F32, x=F32), arrays={"x": odd.astype(np.float32)}, tol=0)
    nan = np.full(12, np.nan, np.float32)
    check(unary(call("isnan", rounded), 12, "bool", x=F32), arrays={"x": nan})


def test_comparisons_and_logic():
    x, z = at("x", "i"), at("z", "i")
    tests = [call(op, x, z) for op in ("lt", "le", "eq", "ne", "gt", "ge")]
    tests += [call(op, tests[0], tests[2]) for op in ("and", "or", "xor")]
    _many([*tests, call("not", tests[0]), call("isnan", x)], 30, F32)


def test_nan_and_infinity():
    x = np.array([np.nan, np.inf, -np.inf, 1, -1, 0], np.float32)
    load, other = at("x", "i"), at("z", "i")
    values = [call("max", load, other), call("min", load, other), call("max", load, -np.inf),
              call("sign", load), call("abs", load), load * 0 + const(np.nan, F32)]  # fmt: skip
    _many(values, 6, F32, arrays={"x": x, "z": x[::-1].copy()})


def test_gather_and_guards():
    row = at("ids", "i", dtype="int64")
    good = call("and", call("ge", row, 0), call("lt", row, 5))
    value = at("table", row, "j", when=good) + cast(Index(affine("j") * 2 + 1), F32)
    kernel = Kernel(
        "gather", (("i", 6), ("j", 4)), (to("y", ("i", "j"), value),),
        {"ids": dense(6, dtype="int64"), "table": dense(5, 4), "y": dense(6, 4)},
    )  # fmt: skip
    check(kernel, arrays={"ids": np.array([0, 4, -1, 5, 2, 10**12], np.int64)})


def test_packed_buffers_and_halos():
    blocked = Buffer((10, 3), F32, (Dim(1, 4, 12), Dim(4)), 0, 36, constant=True)
    halo = dense(3, 8, halo=((0, 0), (1, 1)))
    body = at("w", "n", "k") * at("x", "k", affine("i") + -1)
    kernel = Kernel(
        "packed", (("i", 10), ("n", 10)),
        (to("y", ("n", "i"), Reduce("sum", (("k", 3),), body, F32)),),
        {"w": blocked, "x": halo, "y": dense(10, 10)},
    )  # fmt: skip
    check(kernel, GpuSchedule("points", ("n", "i")))
    ids = cast(at("ids", "n", dtype="int32"), "int64")
    gathered = Kernel(
        "gathered", (("n", 5), ("k", 3)), (to("y", ("n", "k"), at("w", ids, "k")),),
        {"ids": dense(5, dtype="int32"), "w": blocked, "y": dense(5, 3)},
    )  # fmt: skip
    check(gathered, arrays={"ids": np.array([9, 0, 4, 3, 8], np.int32)})


def test_recurrences_run_in_one_group():
    last = affine("t") + -1
    first = call("eq", Index(affine("t")), 0)
    before = at("h", last, "r", when=call("not", first))
    total = Reduce("sum", (("r", 6),), before * at("w", "r", "i"), F32)
    value = call("tanh", total + at("x", "t", "i"))
    kernel = Kernel(
        "rnn", (("t", 7), ("i", 6)), (to("h", ("t", "i"), value),),
        {"w": dense(6, 6, constant=True), "x": dense(7, 6), "h": dense(7, 6)},
        sequential=("t",),
    )  # fmt: skip
    assert check(kernel).mode == "steps"


def test_kernels_of_no_axes_and_wide_indices():
    check(Kernel("one", (), (Store("y", (), at("x") + 1.0),), {"x": dense(), "y": dense()}))
    kernel = unary(cast(Index(affine("i") * (1 << 40)), "int64"), 5, "int64")
    check(kernel)


def test_a_schedule_that_does_not_fit_is_refused():
    device = opencl()
    kernel = softmax(2, 3)
    with pytest.raises(CompileError, match="Name each exactly once"):
        device.compile([("k", kernel, GpuSchedule("points", ("i",)))])
    with pytest.raises(CompileError, match="differs within the row"):
        device.compile([("k", kernel, GpuSchedule("rows", ("i", "j"), ("j",)))])
    with pytest.raises(CompileError, match="smaller group"):
        device.compile([("k", kernel, GpuSchedule("points", ("i", "j"), group=1 << 20))])
