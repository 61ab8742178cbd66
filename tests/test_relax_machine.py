"""The machine on executables no compiler would write: every built-in, and everything wrong."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from relax_kit import VM, Assembler, embedded, func, imm, module, reg, tensor
from test_relax_file import FLIPS, LONG, PATCHES, QUICK, mutate

from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ArtifactError,
    FunctionNotFound,
    PackhorseError,
)
from packhorse.function import register_func, remove_global_func
from packhorse.graph import relax_machine
from packhorse.graph.relax import load_relax
from packhorse.graph.relax_plan import pack

RET = 2
F32 = np.dtype(np.float32)


def add(x, y, out):
    np.add(x, y, out=out)


def double_size(heap):
    heap[1] = 2 * heap[0]


def size_from_data(x, heap):
    heap[0] = int(x.flat[0])


def fill(x, a, b):
    x.fill(10 * a + b)


def plus_one(x):
    return x + 1


def fails(*args):
    raise ZeroDivisionError("on purpose")


@pytest.fixture(scope="module", autouse=True)
def functions():
    """Global functions named test.*: what the executables here call instead of kernels."""
    made = (add, double_size, size_from_data, fill, plus_one, fails)
    for call in made:
        register_func(f"test.{call.__name__}", call)
    yield
    for call in made:
        remove_global_func(f"test.{call.__name__}")


def one(params="x", registers=8):
    made = Assembler()
    return made, made.function("main", params, registers)


def run(made, *inputs, replayed=True):
    """Outputs, the same when interpreted and when replayed."""
    executable = load_relax(module(made))
    first, second = executable.run(inputs), executable.run(inputs)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert ("interpreted" not in executable.report()[0]) is replayed
    return first


X = np.arange(4, dtype=np.float32)


def test_python_functions_with_tensors_of_every_origin():
    made, main = one()
    tensor(made, main, 1, (4,))
    made.call(main, "test.add", reg(0), made.const(X), reg(1))
    made.call(main, "reshape", reg(1), made.const((2, 2)), dst=2)
    main.code.append([RET, 2])
    np.testing.assert_array_equal(run(made, X)[0], (2 * X).reshape(2, 2))


def test_storage_shared_by_several_tensors():
    made, main = one()
    tensor(made, main, 2, (256,), nbytes=1024)  # register 2 is a tensor now, 3 a storage
    scope, u8 = made.const("global"), made.const(np.dtype(np.uint8))
    made.call(main, "alloc_storage", reg(VM), made.const((1024,)), imm(0), u8, scope, dst=3)
    tensor(made, main, 4, (4,), storage=3)
    tensor(made, main, 5, (4,), storage=3, offset=64)
    made.call(main, "test.add", reg(0), reg(0), reg(4))
    made.call(main, "test.add", reg(4), reg(0), reg(5))
    made.call(main, "make_tuple", reg(4), reg(5), reg(0), dst=6)
    main.code.append([RET, 6])
    for a, b in zip(run(made, X), (2 * X, 3 * X, X), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.shares_memory(a, X)


def test_constants_and_inputs_are_returned_as_copies():
    made, main = one()
    weights = made.const(X)
    made.call(main, "make_tuple", weights, reg(0), weights, dst=1)
    main.code.append([RET, 1])
    for _ in range(2):
        for array in run(made, X):
            np.testing.assert_array_equal(array, X)
            array += 1


def test_functions_that_get_numbers():
    made, main = one()
    tensor(made, main, 1, (3,))
    sizes = made.const((4, 2))
    made.call(main, "call_tir_dyn", func(made.index("test.fill")), reg(1), sizes)
    main.code.append([RET, 1])
    np.testing.assert_array_equal(run(made, X)[0], np.full(3, 42, np.float32))


def test_functions_that_return():
    made, main = one()
    made.call(main, "test.plus_one", reg(0), dst=1)
    made.call(main, "test.plus_one", reg(1), dst=1)
    main.code.append([RET, 1])
    np.testing.assert_array_equal(run(made, X, replayed=False)[0], X + 2)


def test_closures():
    made, main = one()
    inner = made.function("inner", "a b c", 4)
    made.call(inner, "make_tuple", reg(0), reg(1), reg(2), dst=3)
    inner.code.append([RET, 3])
    made.call(main, "make_closure", func(made.index("inner")), imm(3), dst=1)
    made.call(main, "make_closure", reg(1), imm(2), dst=1)
    made.call(main, "check_func_info", reg(1), made.const(""))
    made.call(main, "invoke_closure", reg(VM), reg(1), imm(1), dst=2)
    main.code.append([RET, 2])
    assert [int(v) for v in run(made, X)] == [1, 2, 3]


def heap_program(name, *args, count=3):
    """A heap whose value 0 is the length of x; ``name`` changes it; values 0 and 1 come out."""
    made, main = one()
    made.call(main, "alloc_shape_heap", reg(VM), imm(count), dst=1)
    made.call(main, "match_shape", reg(0), reg(1), imm(1), imm(1), imm(0), made.const(""))
    made.call(main, name, *args)
    made.call(main, "make_shape", reg(1), imm(2), imm(1), imm(0), imm(1), imm(1), dst=2)
    main.code.append([RET, 2])
    return made


def test_sizes_computed_from_sizes_and_from_data():
    assert run(heap_program("test.double_size", reg(1)), X)[0].tolist() == [4, 8]
    made = heap_program("test.size_from_data", reg(0), reg(1))
    executable = load_relax(module(made))
    for first in (7, 9):
        assert executable.run([X + first])[0].tolist() == [first, 0]
    assert "'test.size_from_data' computes sizes from data" in executable.report()[0]


def test_numbers_and_their_place_in_the_heap():
    made, main = one("n")
    made.call(main, "check_prim_value_info", reg(0), made.const(np.dtype(np.int64)))
    made.call(main, "alloc_shape_heap", reg(VM), imm(2), dst=1)
    made.call(main, "match_prim_value", reg(0), reg(1), imm(1), imm(1), made.const("here"))
    made.call(main, "match_prim_value", reg(0), reg(1), imm(3), imm(1), made.const("here"))
    made.call(main, "make_prim_value", reg(1), imm(1), imm(1), dst=2)
    made.call(main, "make_prim_value", reg(1), imm(0), imm(-6), dst=3)
    made.call(main, "make_tuple", reg(2), reg(3), dst=4)
    main.code.append([RET, 4])
    executable = load_relax(module(made))
    for n in (3, 4, 3):
        assert [int(v) for v in executable.run([n])] == [n, -6]
    with pytest.raises(ArgumentTypeError, match="must be a number"):
        executable.run([None])


def test_branches_on_numbers_are_replayed():
    made, main = one("n")
    made.call(main, "check_prim_value_info", reg(0), made.const(np.dtype(np.bool_)))
    made.call(main, "read_if_cond", reg(0), dst=1)
    main.code.append([4, 1, 3])
    made.call(main, "copy", made.const(1), dst=2)
    main.code += [[3, 2]]
    made.call(main, "copy", made.const(2), dst=2)
    main.code.append([RET, 2])
    assert [int(run(made, flag)[0]) for flag in (True, False)] == [1, 2]


def test_tuples():
    made, main = one("t")
    made.call(main, "check_tuple_info", reg(0), imm(2), made.const(""))
    made.call(main, "tuple_getitem", reg(0), imm(1), dst=1)
    made.call(main, "shape_of", reg(1), dst=2)
    made.call(main, "to_device", reg(1), imm(1), imm(0), dst=3)
    made.call(main, "ensure_zero_offset", reg(3), dst=3)
    made.call(main, "make_tuple", reg(2), reg(3), dst=4)
    made.call(main, "tuple_reset_item", reg(0), imm(0))
    main.code.append([RET, 4])
    shape, same = run(made, [X, X.reshape(2, 2)])
    assert shape.tolist() == [2, 2]
    np.testing.assert_array_equal(same, X.reshape(2, 2))


def test_nothing_returned():
    made, main = one()
    main.code.append([RET, 1])
    assert run(made, X) == []


def test_errors_of_python_functions_come_through():
    made, main = one()
    made.call(main, "test.fails", reg(0))
    main.code.append([RET, 0])
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        load_relax(module(made)).run([X])


def test_an_executable_stays_usable_after_an_error():
    made, main = one()
    tensor(made, main, 1, (4,))
    made.call(main, "test.add", reg(0), reg(0), reg(1))
    main.code.append([RET, 1])
    executable = load_relax(module(made))
    executable.run([X])
    register_func("test.add", fails, override=True)
    try:
        other = load_relax(module(made))
        with pytest.raises(ZeroDivisionError):
            other.run([X])
    finally:
        register_func("test.add", add, override=True)
    for each in (executable, load_relax(module(made))):
        np.testing.assert_array_equal(each.run([X])[0], 2 * X)


# ---------------------------------------------------------------- what is wrong

U8 = np.dtype(np.uint8)
BROKEN = {
    "no such builtin": (("kv_state_clear", reg(0)), FunctionNotFound, "does not have this funct"),
    "no such function": (("test.none", reg(0)), FunctionNotFound, "'test.none'.*register_func"),
    "heap too large": (("alloc_shape_heap", reg(VM), imm(1 << 40)), ArtifactError, "a heap of"),
    "count of arguments": (("reshape", reg(0)), ArtifactError, "instruction 0.*reshape"),
    "no tensor": (("shape_of", imm(1)), ArtifactError, "a tensor is needed, not int"),
    "no shape": (("reshape", reg(0), imm(1)), ArtifactError, "a shape is needed"),
    "not a storage": (
        ("alloc_tensor", reg(0), imm(0), (4,), F32),
        ArtifactError,
        "a storage of global memory",
    ),
    "negative storage": (
        ("alloc_storage", reg(VM), (-1,), imm(0), U8, "global"),
        ArtifactError,
        "impossible",
    ),
    "overflowing storage": (
        ("alloc_storage", reg(VM), (1 << 40, 1 << 40), imm(0), U8, "global"),
        ArtifactError,
        "impossible",
    ),
    "other device": (
        ("alloc_storage", reg(VM), (1,), imm(1), U8, "global"),
        ArtifactError,
        "device 1, .* on the CPU alone; compile the model for one target",
    ),
    "other memory": (
        ("alloc_storage", reg(VM), (1,), imm(0), U8, "global.texture"),
        ArtifactError,
        "'global.texture'",
    ),
    "to a device": (("to_device", reg(0), imm(2), imm(0)), ArtifactError, "device type 2"),
    "not a heap": (
        ("match_shape", reg(0), reg(0), imm(1), imm(1), imm(0), ""),
        ArtifactError,
        "a shape heap is needed",
    ),
    "beyond the heap": (
        ("match_shape", reg(0), reg(7), imm(1), imm(1), imm(0), ""),
        ArtifactError,
        "value 0 of a heap of 0",
    ),
    "unknown code": (
        ("match_shape", reg(0), reg(7), imm(1), imm(9), imm(0), ""),
        ArtifactError,
        "match code 9",
    ),
    "shape code": (
        ("make_shape", reg(7), imm(1), imm(5), imm(0)),
        ArtifactError,
        "shape code 5",
    ),
    "counted too many": (
        ("match_shape", reg(0), reg(7), imm(1 << 30), imm(1)),
        ArtifactError,
        "dimensions in 1 arguments",
    ),
    "reshape to another size": (
        ("reshape", reg(0), (5,)),
        ArgumentValueError,
        r"\(4,\) cannot be reshaped to \(5,\)",
    ),
    "condition of floats": (("read_if_cond", reg(0)), ArtifactError, "a condition cannot be read"),
    "shape of floats": (("tensor_to_shape", reg(0)), ArtifactError, "a shape cannot be read"),
    "item of a tensor": (("tuple_getitem", reg(0), imm(0)), ArtifactError, "no item 0"),
    "call of a tensor": (("invoke_closure", reg(VM), reg(0)), ArtifactError, "a function is need"),
    "closure of a tensor": (("make_closure", reg(0)), ArtifactError, "a function is needed"),
    "dynamic call of a tensor": (("call_tir_dyn", reg(0), (1,)), ArtifactError, "a function is"),
    "a tensor, no function": (
        ("check_func_info", reg(0), "f"),
        ArgumentTypeError,
        "must be a function",
    ),
    "rank": (("check_tensor_info", reg(0), imm(2), F32, "here"), ArgumentValueError, "here: a te"),
    "dtype": (("check_tensor_info", reg(0), imm(-1), U8, ""), ArgumentTypeError, "uint8"),
    "own arguments": (("self.main",), ArtifactError, "takes 1 arguments"),
    "endless recursion": (("self.main", reg(0)), ArtifactError, "128 levels deep"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_calls(case):
    (name, *args), error, words = BROKEN[case]
    made, main = one()
    values = [arg if isinstance(arg, int) else made.const(arg) for arg in args]
    made.call(main, name, *values, dst=1)
    main.code.append([RET, 1])
    executable = load_relax(module(made))
    for _ in range(2):
        with pytest.raises(error, match=words):
            executable.run([X])


@pytest.mark.parametrize(
    ("nbytes", "offset"), [(15, 0), (16, 64), (64, 16), (1 << 20, -64), (16, 1 << 50)]
)
def test_tensors_stay_within_their_storage(nbytes, offset):
    made, main = one()
    tensor(made, main, 1, (4,), nbytes=nbytes, offset=offset)
    main.code.append([RET, 1])
    with pytest.raises(ArtifactError, match="in a storage of"):
        load_relax(module(made)).run([X])


def test_endless_loops(monkeypatch):
    monkeypatch.setattr(relax_machine, "_MAX_STEPS", 1000)
    made, main = one()
    made.call(main, "null_value", dst=1)
    main.code += [[3, -1], [RET, 1]]
    with pytest.raises(ArtifactError, match="endless loop"):
        load_relax(module(made)).run([X])


def test_conditions_must_be_numbers():
    made, main = one()
    main.code += [[4, 0, 1], [RET, 0]]
    with pytest.raises(ArtifactError, match=r"instruction 0.*If.*its condition"):
        load_relax(module(made)).run([X])


def test_values_without_a_form_as_array():
    made, main = one()
    made.call(main, "make_tuple", func(0), dst=1)
    main.code.append([RET, 1])
    with pytest.raises(ArtifactError, match="returned a Closure"):
        load_relax(module(made)).run([X])


# ---------------------------------------------------------------- memory, fuzz

USES = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 20), st.integers(0, 20)).map(
        lambda t: (t[0], min(t[1:]), max(t[1:]))
    ),
    max_size=20,
)


@QUICK
@given(USES)
def test_packed_memory_never_overlaps(uses):
    offsets, total = pack(uses)
    rows = [(o, o + size, a, b) for o, (size, a, b) in zip(offsets, uses, strict=True)]
    for i, (start, end, a, b) in enumerate(rows):
        assert start % 128 == 0
        assert end <= total
        for other, stop, c, d in rows[:i]:
            assert end <= other or stop <= start or b < c or d < a
    assert total <= sum(size + 127 for size, _, _ in uses)


def busy():
    """A program with a bit of everything, to be damaged."""
    made, main = one(registers=10)
    made.call(main, "check_tensor_info", reg(0), imm(1), made.const(F32), made.const("x"))
    made.call(main, "alloc_shape_heap", reg(VM), imm(3), dst=1)
    made.call(main, "match_shape", reg(0), reg(1), imm(1), imm(1), imm(0), made.const(""))
    made.call(main, "test.double_size", reg(1))
    made.call(main, "make_shape", reg(1), imm(1), imm(1), imm(0), dst=2)
    scope, f32 = made.const("global"), made.const(F32)
    made.call(main, "alloc_storage", reg(VM), reg(2), imm(0), f32, scope, dst=3)
    made.call(main, "alloc_tensor", reg(3), imm(0), reg(2), f32, dst=4)
    made.call(main, "test.add", reg(0), reg(0), reg(4))
    made.call(main, "read_if_cond", made.const(np.array([1])), dst=5)
    main.code.append([4, 5, 2])
    made.call(main, "reshape", reg(4), made.const((2, 2)), dst=4)
    made.call(main, "make_tuple", reg(4), reg(2), dst=6)
    main.code.append([RET, 6])
    return made.bytes()


def survive(flips, patches):
    data = mutate(BUSY, flips, patches, 0)
    with suppress(PackhorseError, ValueError, TypeError):  # the Python functions raise the latter
        executable = load_relax(embedded(data))
        for function in executable.functions:
            executable.run([X], function)
            executable.run([X], function)


BUSY = busy()


@QUICK
@given(FLIPS, PATCHES)
def test_damaged_programs_run_or_are_refused(flips, patches):
    survive(flips, patches)


@pytest.mark.fuzz
@pytest.mark.slow
@LONG
@given(FLIPS, PATCHES)
def test_many_damaged_programs(flips, patches):
    survive(flips, patches)


def test_the_program_to_be_damaged_runs():
    executable = load_relax(embedded(BUSY))
    for _ in range(2):
        outputs = executable.run([X])
        np.testing.assert_array_equal(outputs[0], (2 * X).reshape(2, 2))
        assert outputs[1].tolist() == [4]
