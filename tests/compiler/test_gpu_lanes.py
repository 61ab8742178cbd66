"""Vectors of neighbours: where they are used, where they must not be, and their numbers."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
from codegen_kit import at, dense, to
from gpu_kit import check, opencl
from gpu_shim import NEEDS_CXX, runner
from hypothesis import given, settings
from hypothesis import strategies as st

from packhorse.compiler.access import View
from packhorse.compiler.gpu_lanes import lanes, widest
from packhorse.compiler.gpu_schedule import (
    _TILES,
    GpuSchedule,
    GpuTarget,
    gpu_schedule,
    pack_gpu,
)
from packhorse.compiler.lower_gpu import gpu_program
from packhorse.errors import CompileError
from packhorse.kernel import Kernel
from packhorse.kernel.expr import Expr, Index, Load, Reduce, affine, call, cast

F32 = "float32"
GPU = GpuTarget("cuda", max_group=1024, local_bytes=48 << 10)


def text_of(kernel: Kernel, plan: GpuSchedule | None = None, language: str = "cuda") -> str:
    plan = plan or gpu_schedule(kernel, replace(GPU, dialect=language))
    kernel = replace(kernel, buffers={**kernel.buffers, **pack_gpu(kernel, plan)})
    return gpu_program([("f", kernel, plan)], language)


def relu(*shape: int, dtype: str = F32, shift: int = 0) -> Kernel:
    names = tuple(f"i{d}" for d in range(len(shape)))
    where = (*names[:-1], affine(names[-1]) + shift)
    wide = (*shape[:-1], shape[-1] + shift)
    return Kernel(
        "relu", tuple(zip(names, shape, strict=True)),
        (to("y", names, call("max", at("x", *where, dtype=dtype), 0)),),
        {"x": dense(*wide, dtype=dtype), "y": dense(*shape, dtype=dtype)},
    )  # fmt: skip


def depthwise(size: int, c: int, k: int = 3, s: int = 1) -> Kernel:
    out = (size - k) // s + 1
    where = (affine("h") * s + affine("u"), affine("w") * s + affine("v"))
    body = at("x", *where, "c") * at("k", "c", "u", "v")
    value = call("min", Reduce("sum", (("u", k), ("v", k)), body, F32) + at("b", "c"), 6.0)
    return Kernel(
        "depthwise", (("h", out), ("w", out), ("c", c)), (to("y", ("h", "w", "c"), value),),
        {"x": dense(size, size, c), "k": dense(c, k, k, constant=True),
         "b": dense(c, constant=True), "y": dense(out, out, c)},
    )  # fmt: skip


def gemm(m: int, n: int, k: int, *, turned: bool = False) -> Kernel:
    second = at("b", "n", "k") if turned else at("b", "k", "n")
    total = Reduce("sum", (("k", k),), at("a", "m", "k") * second, F32)
    return Kernel(
        "gemm", (("m", m), ("n", n)),
        (to("y", ("m", "n"), call("max", total + at("c", "n"), 0) + at("r", "m", "n")),),
        {"a": dense(m, k), "b": dense(n, k) if turned else dense(k, n), "c": dense(n),
         "r": dense(m, n), "y": dense(m, n)},
    )  # fmt: skip


# -- the choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "count"),
    [(F32, 4), ("int32", 4), ("float16", 4), ("uint8", 4), ("bool", 4), ("int64", 2),
     ("float64", 2)],
)  # fmt: skip
def test_vectors_are_of_16_bytes_at_most(dtype, count):
    assert widest(dtype) == count


def loaded(kernel: Kernel, axis: str) -> int:
    return lanes(View(kernel), [s.value for s in kernel.stores], kernel.stores, axis)


def test_vectors_start_at_multiples_of_their_length():
    assert loaded(relu(6, 8), "i1") == 4
    assert loaded(relu(6, 10), "i1") == 2  # rows begin at multiples of 2
    assert loaded(relu(6, 9), "i1") == 1
    assert loaded(relu(8, shift=4), "i0") == 4
    assert loaded(relu(8, shift=2), "i0") == 2
    assert loaded(relu(8, shift=1), "i0") == 1
    assert loaded(relu(8, dtype="int64"), "i0") == 2


def test_strided_guarded_and_gathered_loads_are_no_vectors():
    def kernel(value: Expr) -> Kernel:
        buffers = {"x": dense(8, 8), "z": dense(8), "n": dense(8, dtype="int64"), "y": dense(8, 8)}
        return Kernel("k", (("i", 8), ("j", 8)), (to("y", ("i", "j"), value),), buffers)

    assert loaded(kernel(at("x", "i", "j")), "j") == 4
    assert loaded(kernel(at("x", "j", "i")), "j") == 1
    assert loaded(kernel(at("x", "i", affine("j") * -1 + 7)), "j") == 1
    moving = call("lt", Index(affine("j")), 5)
    assert loaded(kernel(at("x", "i", "j", when=moving)), "j") == 1
    steady = call("lt", Index(affine("i")), 5)
    assert loaded(kernel(at("x", "i", "j", when=steady)), "j") == 4
    assert loaded(kernel(at("x", at("n", "i", dtype="int64"), "j")), "j") == 4
    assert loaded(kernel(at("z", at("n", "j", dtype="int64"))), "j") == 1


def test_few_points_are_not_made_fewer():
    assert gpu_schedule(relu(1000), GPU).lanes == 1
    assert gpu_schedule(relu(1 << 20), GPU).lanes == 4
    assert gpu_schedule(relu(1 << 20), replace(GPU, lanes=1)).lanes == 1


def test_a_language_without_vectors_gets_none():
    from packhorse.compiler.c_dialects import DIALECTS

    plain = replace(DIALECTS["cuda"], vectors={})
    target = replace(GPU, dialect=plain)
    assert gpu_schedule(relu(1 << 20), target).lanes == 1
    forced = GpuSchedule("points", ("i0",), lanes=4)
    assert "float4" not in gpu_program([("f", relu(64), forced)], plain)


# -- the text -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "load"),
    [("cuda", "*(const float4*)("), ("opencl", "*(__global const float4*)("),
     ("hip", "*(const float4*)(")],
)  # fmt: skip
def test_maps_load_and_store_vectors(language, load):
    text = text_of(relu(256, 1024), language=language)
    assert text.count(load) == 1
    assert len(re.findall(r"\[v\d+\]", text)) == 0  # no single element is touched
    assert "float4" not in text_of(relu(256, 1023), language=language)


def test_an_odd_end_is_done_one_by_one():
    text = text_of(relu((1 << 18) + 3))
    assert text.count("*(const float4*)(") == 1
    assert len(re.findall(r"p0\[v\d+\]", text)) == 1
    assert f"< {1 << 18}" in text


def test_depthwise_convolutions_read_vectors_of_channels():
    plan = gpu_schedule(depthwise(58, 96), GPU)
    assert (plan.mode, plan.lanes, plan.order[-1]) == ("points", 4, "c")
    text = text_of(depthwise(58, 96), plan)
    assert text.count("*(const float4*)(") == 3  # data, weights, bias
    assert text.count("for (") == 2  # the window once, for all lanes
    assert not re.search(r"p\d\[", text)


def test_tiles_are_staged_multiplied_and_stored_as_vectors():
    kernel = gemm(256, 256, 128, turned=True)
    plan = gpu_schedule(kernel, GPU)
    assert plan.mode == "tiles"
    text = text_of(kernel, plan)
    (inner,) = re.findall(
        r"for \(int (?:k\d+) = 0; k\d+ < \d+; \+\+k\d+\) \{(.*?)\}", text, re.DOTALL
    )
    assert inner.count("float4*)(s") == 2  # four rows, four columns, one read each
    assert "%" not in inner
    assert " / " not in inner
    assert not re.search(r"p\d\[", text)  # device memory is read and written as vectors only


def test_tiles_of_odd_shapes_are_staged_one_by_one():
    text = text_of(gemm(255, 257, 129, turned=True))
    assert "(const float4*)(p" not in text
    assert re.search(r"p\d\[", text)


def test_convolutions_divide_no_index_in_their_loops():
    """Channels fill the chunks: the window is two loops around, nothing is divided in them."""
    body = at("x", affine("h") + affine("u"), affine("w") + affine("v"), "c")
    total = Reduce("sum", (("u", 3), ("v", 3), ("c", 64)), body * at("k", "o", "c", "u", "v"), F32)
    kernel = Kernel(
        "conv", (("h", 28), ("w", 28), ("o", 128)), (to("y", ("h", "w", "o"), total),),
        {"x": dense(30, 30, 64), "k": dense(128, 64, 3, 3, constant=True),
         "y": dense(28, 28, 128)},
    )  # fmt: skip
    text = text_of(kernel)
    loops = text[text.index("for (") : text.rindex("__syncthreads")]
    assert " / " not in loops
    assert " % " not in loops
    assert "long" not in text


# -- banks and addresses --------------------------------------------------------------------------


def conflicts(words: list[int], width: int) -> int:
    """Work-items of a warp that wait for a bank: 32 banks of a word, vectors in parts."""
    worst, part = 1, 32 // width
    for first in range(0, len(words), part):
        hit: dict[int, set[int]] = {}
        for word in words[first : first + part]:
            for w in range(word, word + width):
                hit.setdefault(w % 32, set()).add(w)
        worst = max(worst, *(len(found) for found in hit.values()))
    return worst


@pytest.mark.parametrize("tile", _TILES, ids=str)
def test_reading_a_tile_meets_no_bank_conflict(tile):
    rows, columns, _, high, wide = tile
    across = columns // wide
    for size, block, place in ((rows, high, lambda i: i // across),
                               (columns, wide, lambda i: i % across)):  # fmt: skip
        vector = min(4, block)
        for chunk in range(block // vector):
            words = [place(i) * vector + chunk * (size // block * vector) for i in range(32)]
            assert conflicts(words, vector) == 1


@pytest.mark.parametrize("tile", _TILES, ids=str)
def test_turning_a_tile_meets_few_bank_conflicts(tile):
    """Four terms of a row are written to four rows of local memory; padding parts them."""
    for size, block in ((tile[0], tile[3]), (tile[1], tile[4])):
        stride = size + min(4, block)
        for term in range(4):
            places = [(i % (tile[2] // 4) * 4 + term, i // (tile[2] // 4)) for i in range(32)]
            unpadded = conflicts([k * size + row for k, row in places], 1)
            padded = conflicts([k * stride + row for k, row in places], 1)
            assert padded <= min(4, max(2, unpadded))


def test_neighbouring_work_items_read_neighbours():
    for kernel in (relu(64, 4096), depthwise(58, 96), depthwise(58, 90, 5, 2)):
        plan = gpu_schedule(kernel, GPU)
        moved = replace(kernel, buffers={**kernel.buffers, **pack_gpu(kernel, plan)})
        view = View(moved)
        found = [n for s in moved.stores for n in _loads(s.value)]
        assert {view.load(n).stride(plan.order[-1]) for n in found} == {1}


def _loads(value: Expr) -> list[Load]:
    from packhorse.kernel.expr import loads

    return loads(value)


# -- numbers --------------------------------------------------------------------------------------


def wide(kernel: Kernel, **options: object) -> GpuSchedule:
    """The schedule of a GPU, on whatever device there is."""
    target = replace(opencl().target, lanes=4, max_group=256)
    return replace(gpu_schedule(kernel, target), **options)


@pytest.mark.parametrize(
    "dtype",
    [F32, "float16", "bfloat16", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32",
     "int64", "uint64", "bool"],
)  # fmt: skip
@pytest.mark.parametrize("n", [64, 67])
def test_every_dtype_in_vectors(dtype, n):
    opencl()
    first = at("x", "i", dtype=dtype)
    value = cast(first, dtype) if dtype in ("bool", "float16", "bfloat16") else first + first
    kernel = Kernel("m", (("i", n),), (to("y", ("i",), value),),
                    {"x": dense(n, dtype=dtype), "y": dense(n, dtype=dtype)})  # fmt: skip
    check(kernel, GpuSchedule("points", ("i",), group=8, lanes=widest(dtype)))


def test_lanes_must_divide_rows():
    device = opencl()
    with pytest.raises(CompileError, match="axis 'i1' has 9 points"):
        device.compile([("k", relu(4, 9), GpuSchedule("points", ("i0", "i1"), lanes=4))])


@pytest.mark.parametrize("shape", [(64, 64, 32), (61, 64, 32), (64, 66, 32), (64, 61, 30),
                                   (129, 130, 33), (9, 256, 64), (300, 12, 17)])  # fmt: skip
@pytest.mark.parametrize("turned", [False, True])
def test_products_in_vectors(shape, turned):
    kernel = gemm(*shape, turned=turned)
    check(kernel, wide(kernel))


def test_every_tile_there_is():
    opencl()
    for rows, columns, terms, *block in _TILES:
        group = rows * columns // (block[0] * block[1])
        for turned in (False, True):
            plan = GpuSchedule("tiles", ("m", "n"), ("m",), group, ("n",),
                               (rows, columns, terms), (block[0], block[1]), lanes=4)  # fmt: skip
            check(gemm(130, 132, 36, turned=turned), plan)


@pytest.mark.parametrize(("c", "k", "s"), [(8, 3, 1), (6, 3, 2), (5, 5, 1)])
def test_depthwise_in_vectors(c, k, s):
    count = 4 if c % 4 == 0 else 2 if c % 2 == 0 else 1
    kernel = depthwise(11, c, k, s)
    check(kernel, GpuSchedule("points", ("h", "w", "c"), group=16, lanes=count))


def normalised(rows: int, n: int) -> Kernel:
    mean = Reduce("sum", (("r", n),), at("x", "i", "r"), F32) * (1 / n)
    apart = at("x", "i", "q") - mean
    spread = call("rsqrt", Reduce("sum", (("q", n),), apart * apart, F32) * (1 / n) + 1e-5)
    value = (at("x", "i", "j") - mean) * spread * at("g", "j")
    return Kernel(
        "norm", (("i", rows), ("j", n)), (to("y", ("i", "j"), value),),
        {"x": dense(rows, n), "g": dense(n, constant=True), "y": dense(rows, n)},
    )  # fmt: skip


@pytest.mark.parametrize(("rows", "n"), [(7, 16), (3, 18), (5, 33), (1, 384), (70, 8), (2, 1000)])
def test_rows_in_vectors_and_several_to_a_group(rows, n):
    kernel = normalised(rows, n)
    plan = wide(kernel)
    assert (plan.mode, plan.share * plan.many) == ("rows", plan.group)
    check(kernel, plan)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_schedules_of_rows(seed):
    """Any number of rows to a group, either way round, with any number of lanes."""
    opencl()
    r = random.Random(seed)
    rows, n = r.choice([1, 2, 5, 9, 33]), r.choice([1, 4, 6, 7, 64])
    many, share = r.choice([1, 2, 4, 8]), r.choice([1, 2, 8])
    plan = GpuSchedule("rows", ("i", "j"), ("i",), many * share, lanes=r.choice([1, 2, 4]),
                       many=many, across=r.random() < 0.5)  # fmt: skip
    check(normalised(rows, n), plan, tol=1e-4)


@NEEDS_CXX
@pytest.mark.parametrize("across", [False, True])
def test_cuda_text_of_several_rows(tmp_path, across):
    plan = GpuSchedule("rows", ("i", "j"), ("i",), 16, lanes=4, many=4, across=across)
    check(normalised(6, 12), plan, runner=runner(tmp_path))


@NEEDS_CXX
def test_cuda_text_of_vector_tiles(tmp_path):
    plan = GpuSchedule("tiles", ("m", "n"), ("m",), 8, ("n",), (8, 16, 8), (4, 4), lanes=4)
    check(gemm(14, 20, 12, turned=True), plan, runner=runner(tmp_path))


@NEEDS_CXX
@pytest.mark.parametrize(("dtype", "count"), [(F32, 4), ("int64", 2), ("float16", 4)])
def test_cuda_text_of_vector_maps(tmp_path, dtype, count):
    plan = GpuSchedule("points", ("i0",), group=4, lanes=count)
    kernel = relu(41, dtype=dtype)
    if dtype == "float16":
        value = cast(cast(at("x", "i0", dtype=dtype), F32) + 1.0, dtype)
        kernel = replace(kernel, stores=(to("y", ("i0",), value),))
    check(kernel, plan, runner=runner(tmp_path))
