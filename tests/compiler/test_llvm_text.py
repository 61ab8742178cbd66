"""The emitted module: what it exports, what it does not need, how it is refused."""

from __future__ import annotations

import re
import subprocess

import pytest
from codegen_kit import at, codegen, dense, host, to

from packhorse.compiler.abi_text import SLOTS
from packhorse.compiler.llvm_builder import Builder, float_text
from packhorse.compiler.llvm_text import emit_llvm
from packhorse.compiler.schedule import schedule
from packhorse.compiler.target import Target
from packhorse.errors import CompileError
from packhorse.kernel import Kernel
from packhorse.kernel.expr import CALLS, Expr, Reduce, call
from packhorse.native.library import Library
from packhorse_llvm_cpu.module import link_objects
from packhorse_llvm_cpu.target import host_target


def everything(n: int = 50_000, dtype: str = "float32") -> Kernel:
    """A kernel that uses every floating-point operation at once."""
    x = at("x", "i", dtype=dtype)
    total: Expr = x
    for op, (arity, rule) in CALLS.items():
        if rule == "same" and op not in ("floordiv", "and", "or", "xor", "not", "select"):
            total = total + call(op, *[total if arity == 1 else x, x][:arity])
    buffers = {"x": dense(n, dtype=dtype), "y": dense(n, dtype=dtype)}
    return Kernel("all", (("i", n),), (to("y", ("i",), total),), buffers)


def _targets() -> list[Target]:
    found = [host(2)]
    if host().arch == "x86_64":
        found += [host_target(cpu, 2) for cpu in ("x86-64", "x86-64-v2", "x86-64-v3")]
    return found


@pytest.mark.parametrize("target", _targets(), ids=lambda t: t.cpu)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_no_external_symbols(target, dtype, tmp_path):
    kernel = everything(dtype=dtype)
    text = emit_llvm(kernel, schedule(kernel, target), target, "everything")
    objects = [codegen(target).assemble(text, "everything"), codegen(target).support()]
    library = Library(link_objects(objects, tmp_path / "all.so"))
    assert set(library.symbols()) == {*SLOTS, "everything", "__tvm_ffi_everything"}
    listed = subprocess.run(["nm", "-u", tmp_path / "all.so"], capture_output=True, text=True,
                            check=False)  # fmt: skip
    assert listed.stdout.strip() == ""


def test_same_kernel_same_text():
    kernel = everything(100)
    plan = schedule(kernel, host())
    assert emit_llvm(kernel, plan, host(), "k") == emit_llvm(kernel, plan, host(), "k")


@pytest.mark.parametrize("symbol", ["", "1k", "a b", 'k"', "k\n"])
def test_bad_symbols(symbol):
    kernel = everything(10)
    with pytest.raises(CompileError, match="symbol name"):
        emit_llvm(kernel, schedule(kernel, host()), host(), symbol)


def test_undefined_operations_name_the_dtype():
    value = call("exp", at("x", "i", dtype="int32"))
    kernel = Kernel("e", (("i", 4),), (to("y", ("i",), value),),
                    {"x": dense(4, dtype="int32"), "y": dense(4, dtype="int32")})  # fmt: skip
    with pytest.raises(CompileError, match=r"'exp' is not defined for int32.*Cast"):
        emit_llvm(kernel, schedule(kernel, host()), host(), "k")


def test_unknown_dtype():
    kernel = Kernel(
        "e",
        (("i", 4),),
        (to("y", ("i",), at("x", "i", dtype="complex64")),),
        {"x": dense(4, dtype="complex64"), "y": dense(4, dtype="complex64")},
    )
    with pytest.raises(CompileError, match="complex64"):
        emit_llvm(kernel, schedule(kernel, host()), host(), "k")


def test_refused_text_carries_the_log():
    with pytest.raises(CompileError, match="bug of packhorse") as caught:
        codegen(host()).assemble("define void @f() { nonsense }", "broken")
    assert "nonsense" in caught.value.log or "expected" in caught.value.log


def test_invariants_leave_the_loop():
    total = Reduce("sum", (("k", 64),), at("a", "m", "k") * at("b", "k", "n"), "float32")
    kernel = Kernel("g", (("m", 64), ("n", 64)), (to("y", ("m", "n"), total),),
                    {n: dense(64, 64) for n in "aby"})  # fmt: skip
    text = emit_llvm(kernel, schedule(kernel, host()), host(), "g")
    fused = re.findall(r"call <\d+ x float> @llvm\.fma", text)
    plan = schedule(kernel, host())
    block = 1
    for name, tile in plan.tile:
        block *= -(-tile // plan.lanes) if name == plan.vector else tile
    if host().fused_multiply_add and 64 % dict(plan.tile)["m"] == 0:
        assert len(fused) == block


def test_builder_shares_and_folds():
    b = Builder(host())
    one, two = b.integer(1), b.integer(2)
    assert b.add(one, two).const == 3
    with b.loop(b.integer(0), b.integer(8)) as index:
        first = b.mul(index, 4)
        assert b.mul(index, 4) is first
    with b.loop(b.integer(0), b.integer(8)) as other:
        assert b.mul(other, 4).name != first.name


def test_float_literals():
    assert float_text(1.0, "float") == "0x3FF0000000000000"
    assert float_text(0.1, "float") == "0x3FB99999A0000000"
    assert float_text(1e300, "float") == "0x7FF0000000000000"
