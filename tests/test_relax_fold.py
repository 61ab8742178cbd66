"""Calls that only read constants: made once, if nobody writes into what they made."""

from collections import Counter

import numpy as np
import pytest
from relax_kit import VM, Assembler, imm, reg, tensor, with_kernels

from packhorse.graph.relax import load_relax

RET = 2
W = np.arange(6, dtype=np.float32).reshape(2, 3)
X = np.linspace(1, 2, 6, dtype=np.float32).reshape(3, 2)


class Kernels:
    """Kernels that count their calls."""

    def __init__(self):
        self.calls = Counter()

    def of(self, **functions):
        def counted(name, function):
            def run(*arrays):
                self.calls[name] += 1
                function(*arrays)

            return run

        return {name: counted(name, function) for name, function in functions.items()}


def transpose(x, out):
    out[...] = x.T


def add(x, y, out):
    np.add(x, y, out=out)


def accumulate(total, x):
    total += x


def accumulate_and_copy(total, x, out):
    total += x
    out[...] = total


def program(second):
    """w = transpose(W), in a storage used before and after; then ``second(made, main)``."""
    made = Assembler()
    main = made.function("main", "x", 12)
    tensor(made, main, 1, (64,))
    scope, u8 = made.const("global"), made.const(np.dtype(np.uint8))
    made.call(main, "alloc_storage", reg(VM), made.const((64,)), imm(0), u8, scope, dst=2)
    tensor(made, main, 3, (3, 2), storage=2)
    made.call(main, "test.add", reg(0), reg(0), reg(3))
    tensor(made, main, 4, (3, 2))
    made.call(main, "test.add", reg(3), reg(0), reg(4))  # 3 x
    tensor(made, main, 5, (3, 2), storage=2)
    made.call(main, "test.transpose", made.const(W), reg(5))
    second(made, main)
    return made


def plain(made, main):
    """3 x + w.T"""
    tensor(made, main, 6, (3, 2))
    made.call(main, "test.add", reg(4), reg(5), reg(6))
    main.code.append([RET, 6])


def load(made, **functions):
    kernels = Kernels()
    module = with_kernels(
        made, **kernels.of(transpose=transpose, add=add, accumulate=accumulate, **functions)
    )
    return kernels.calls, load_relax(module)


def same(executable, want, inputs=None, runs=4):
    for scale in range(1, runs + 1):
        x = scale * X
        found = executable.run(inputs(x) if inputs else [x])[0]
        np.testing.assert_allclose(found, want(x), rtol=1e-6)


def test_a_transposed_weight_is_made_once():
    calls, executable = load(program(plain))
    same(executable, lambda x: 3 * x + W.T)
    assert calls["transpose"] == 2  # for the trace, and for the plan
    assert calls["add"] == 3 * 5
    assert "3 kernels in 1 native calls" in executable.report()[0]


def test_bound_params_are_constants():
    made = Assembler()
    main = made.function("main", "x w", 8)
    tensor(made, main, 2, (3, 2))
    made.call(main, "test.transpose", reg(1), reg(2))
    tensor(made, main, 3, (3, 2))
    made.call(main, "test.add", reg(0), reg(2), reg(3))
    main.code.append([RET, 3])
    calls, executable = load(made)
    same(executable, lambda x: x + W.T, inputs=lambda x: [x, W])
    assert calls["transpose"] == 4
    for weights in (W, 2 * W):
        executable.set_params({"w": weights})
        calls.clear()
        same(executable, lambda x, weights=weights: x + weights.T)
        assert calls["transpose"] == 2


def test_what_was_made_once_can_be_returned():
    def second(made, main):
        made.call(main, "reshape", reg(5), made.const((6,)), dst=6)
        made.call(main, "make_tuple", reg(4), reg(6), dst=7)
        main.code.append([RET, 7])

    calls, executable = load(program(second))
    for _ in range(3):
        for output, want in zip(executable.run([X]), (3 * X, W.T.reshape(-1)), strict=True):
            np.testing.assert_allclose(output, want, rtol=1e-6)
            output += 1
    assert calls["transpose"] == 2


def test_chains_are_made_once():
    def second(made, main):
        tensor(made, main, 7, (3, 2))
        made.call(main, "test.add", reg(5), reg(5), reg(7))
        tensor(made, main, 6, (3, 2))
        made.call(main, "test.add", reg(4), reg(7), reg(6))
        main.code.append([RET, 6])

    _, executable = load(program(second))
    same(executable, lambda x: 3 * x + 2 * W.T)
    assert "3 kernels in 1 native calls" in executable.report()[0]


def test_plans_share_what_was_made():
    made = Assembler()
    main = made.function("main", "x", 8)
    tensor(made, main, 1, (3, 2))
    made.call(main, "test.transpose", made.const(W), reg(1))
    made.call(main, "make_tuple", reg(0), reg(1), dst=2)
    main.code.append([RET, 2])
    calls, executable = load(made)
    for size in (1, 2, 3):
        for _ in range(2):
            np.testing.assert_array_equal(executable.run([np.zeros(size, "f4")])[1], W.T)
    assert calls["transpose"] == 3 + 1
    assert executable.memory_bytes == W.nbytes


@pytest.mark.parametrize("name", ["accumulate", "accumulate_and_copy"])
def test_kernels_that_work_in_place(name):
    def second(made, main):
        tensor(made, main, 6, (3, 2))
        extra = [reg(6)] if name == "accumulate_and_copy" else []
        made.call(main, f"test.{name}", reg(5), reg(4), *extra)
        main.code.append([RET, 5])

    calls, executable = load(program(second), accumulate_and_copy=accumulate_and_copy)
    same(executable, lambda x: 3 * x + W.T)
    assert calls["transpose"] >= 4
    assert "4 kernels in 1 native calls" in executable.report()[0]
