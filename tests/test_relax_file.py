"""Relax executables as bytes: whatever is wrong with them is an ArtifactError with its place."""

import struct
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from relax_kit import DATA, VM, VOID, Assembler, const, embedded, func, imm, reg

from packhorse.errors import ArtifactError
from packhorse.graph.relax import load_relax
from packhorse.graph.relax_file import ArgKind, FunctionKind, Opcode, parse_relax
from packhorse.graph.relax_text import as_text
from packhorse.module import PythonModule, load_module

NAMES = ("convnet", "convnet_params", "dyn_bytecode", "dyn_compiled", "control")


def payload(name):
    return load_module(DATA / f"relax_{name}" / "deploy.so").payload.data


FILES = {name: payload(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_files_of_tvm(name):
    file = parse_relax(FILES[name])
    assert as_text(file) == (DATA / f"relax_{name}" / "vm.txt").read_text()
    for constant in file.constants:
        if isinstance(constant, np.ndarray):
            assert constant.ctypes.data % 64 == 0
            assert not constant.flags.writeable


def small():
    """One function of each instruction, one constant of each type."""
    made = Assembler()
    main = made.function("main", "x", registers=3)
    for value in (np.arange(3.0), np.dtype(np.int8), (2, -1), "text", 7, 1.5, True):
        made.const(value)
    made.call(main, "read_if_cond", reg(0), dst=1)
    main.code.append([4, 1, 2])
    main.code.append([3, 1])
    made.call(main, "make_tuple", reg(0), imm(-5), const(1), func(0), reg(VOID), dst=2)
    main.code.append([2, 2])
    return made


@pytest.mark.parametrize("magic", [0xD225DE2F4214151D, 0xD225DE2F4214151E])
def test_everything_is_read(magic):
    file = parse_relax(small().bytes(magic))
    assert [f.kind for f in file.functions] == [1, 0, 0]
    assert file.functions[0].kind is FunctionKind.VM
    assert file.functions[0].params == ("x",)
    assert [type(c).__name__ for c in file.constants[1:]] == [
        *("Int8DType", "tuple", "str", "int", "float", "bool")
    ]
    np.testing.assert_array_equal(file.constants[0], np.arange(3.0))
    assert file.constants[2:] == ((2, -1), "text", 7, 1.5, True)
    steps = [file.decode(i) for i in range(file.size)]
    assert [s.opcode for s in steps] == [1, 4, 3, 1, 2]
    assert steps[3].args[1] == (ArgKind.IMMEDIATE, -5)
    assert steps[1].opcode is Opcode.IF
    assert "vm.builtin.make_tuple in: %0, i-5, c[1], f[main], %void dst: %2" in as_text(file)
    assert "goto  1" in as_text(file)
    assert "If    %1, 2" in as_text(file)
    assert file.find("main") == 0
    assert file.find("vm.builtin.make_tuple") is None


def spoiled(change):
    made = small()
    change(made)
    return made.bytes()


def step(index, *words):
    def change(made):
        made.rows[0].code[index] = list(words)

    return change


def row(**fields):
    def change(made):
        for name, value in fields.items():
            setattr(made.rows[0], name, value)

    return change


DAMAGE = {
    "opcode": (step(2, 9, 1), "instruction 2.*9"),
    "empty instruction": (step(2), "offsets do not rise"),
    "count of arguments": (step(3, 1, 2, 2, 9, 0), "instruction 3.*9 arguments are announced"),
    "short call": (step(3, 1, 2), "instruction 3"),
    "long jump": (step(2, 3, 100), "instruction 2.*goes on at instruction 102"),
    "jump before the start": (step(2, 3, -3), "goes on at instruction -1"),
    "no return": (step(4, 3, 1), "goes on at instruction 5"),
    "branch": (step(1, 4, 1, 9), "goes on at instruction 10"),
    "function": (step(3, 1, 2, 77, 0), "function 77 of 3"),
    "register": (step(3, 1, 2, 2, 1, reg(3)), "register 3 of 3"),
    "negative register": (step(4, 2, -1), "register -1 of 3"),
    "result to the machine": (step(3, 1, VM, 2, 0), "register 18014398509481985 of 3"),
    "result of the machine": (step(4, 2, VM), "register 18014398509481985 of 3"),
    "condition of nothing": (step(1, 4, VOID, 2), "register 18014398509481984 of 3"),
    "constant": (step(3, 1, 2, 2, 1, const(7)), "constant 7 of 7"),
    "function argument": (step(3, 1, 2, 2, 1, func(3)), "function 3 of 3"),
    "kind of argument": (step(3, 1, 2, 2, 1, 9 << 56), "instruction 3"),
    "registers": (row(registers=1 << 40), "registers"),
    "too few registers": (row(registers=0), "0 registers"),
    "kind of function": (row(kind=5), "of kind 5"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_code(name):
    change, words = DAMAGE[name]
    with pytest.raises(ArtifactError, match=words):
        parse_relax(spoiled(change))


def test_other_versions_and_files():
    with pytest.raises(ArtifactError, match=r"format version '0\.15'.*0\.14"):
        parse_relax(small().bytes(version="0.15"))
    with pytest.raises(ArtifactError, match="no Relax executable: at offset 0"):
        parse_relax(small().bytes(magic=1))
    with pytest.raises(ArtifactError, match="offset 0"):
        parse_relax(b"")
    with pytest.raises(ArtifactError, match="1 bytes are left over"):
        parse_relax(small().bytes() + b"\0")


def patched(old, new):
    data = small().bytes()
    assert data.count(old) == 1
    return data.replace(old, new)


TENSOR = struct.pack("<iBBHq", 1, 2, 64, 1, 3)  # rank, float64, the extent


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (TENSOR, struct.pack("<iBBHq", 1, 2, 64, 1, 4), r"24 bytes for float64\[4\]"),
        (TENSOR, struct.pack("<iBBHq", 1, 2, 64, 1, -3), r"float64\[-3\]"),
        (TENSOR, struct.pack("<iBBHq", 99, 2, 64, 1, 3), "99 dimensions"),
        (TENSOR, struct.pack("<iBBHq", 1, 77, 64, 1, 3), "code 77"),
        (struct.pack("<Q", 0xDD5E40F096B4A13F), bytes(8), "a tensor has magic 0x0"),
        (struct.pack("<i", 69), struct.pack("<i", 72), "constant 2 is of type 72"),
        (struct.pack("<Q", 4) + b"text", struct.pack("<Q", 4) + b"te\xff\xff", "not UTF-8"),
    ],
)
def test_damaged_constants(old, new, words):
    with pytest.raises(ArtifactError, match=f"(?s)offset [0-9]+.*{words}"):
        parse_relax(patched(old, new))


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation(name):
    data = FILES[name]
    for end in [*range(0, len(data), 1 + len(data) // 200), len(data) - 1]:
        with pytest.raises(ArtifactError, match="offset"):
            parse_relax(data[:end])


def test_modules_without_an_executable():
    with pytest.raises(ArtifactError, match="'bare' holds no Relax executable, but python"):
        load_relax(PythonModule({}, "bare"))
    importing = PythonModule({}, "outer")
    importing.import_module(embedded(SMALL))
    assert load_relax(importing).functions == ["main"]


# ---------------------------------------------------------------- fuzz


def check(data):
    """Whatever the bytes are: parsed and listed, or an ArtifactError."""
    with suppress(ArtifactError):
        as_text(parse_relax(data))


SMALL = small().bytes()
SEEDS = [SMALL, FILES["dyn_bytecode"], FILES["control"]]
FLIPS = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=6)
NUMBERS = st.sampled_from([0, 1, 2, 255, 1 << 31, 1 << 32, 1 << 54, (1 << 63) - 1, (1 << 64) - 1])
PATCHES = st.lists(st.tuples(st.integers(0, 1 << 20), NUMBERS), max_size=3)


def mutate(seed, flips, patches, cut):
    data = bytearray(seed)
    for at, bits in flips:
        data[at % len(data)] ^= bits
    for at, number in patches:
        at = at % max(1, len(data) - 8)
        data[at : at + 8] = struct.pack("<Q", number)
    return bytes(data[: len(data) - cut % len(data)] if cut else data)


MUTANTS = st.builds(
    mutate, st.sampled_from(SEEDS), FLIPS, PATCHES, st.one_of(st.just(0), st.integers(1, 1 << 20))
)
QUICK = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=100_000, database=None)


@QUICK
@given(MUTANTS)
@example(SMALL)
def test_mutants(data):
    check(data)


@QUICK
@given(st.binary(max_size=200))
def test_noise(data):
    check(data)
    check(SMALL[:16] + data)


@pytest.mark.fuzz
@pytest.mark.slow
@LONG
@given(MUTANTS)
def test_many_mutants(data):
    check(data)


def test_no_allocation_beyond_the_size_of_the_file():
    bombs = [SMALL[:20] + struct.pack("<Q", 1 << n) + bytes(1000) for n in (10, 31, 50, 63)]
    for data in [FILES["convnet"], *bombs, FILES["convnet"][:-8] + struct.pack("<Q", 1 << 40)]:
        tracemalloc.start()
        with suppress(ArtifactError):
            parse_relax(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * len(data) + 100_000
