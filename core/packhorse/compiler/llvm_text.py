"""A compiled kernel as a whole LLVM module: the loops and the packed function around them."""

from __future__ import annotations

import re

from packhorse.compiler.lower_cpu import CpuLowering
from packhorse.compiler.schedule import Schedule
from packhorse.compiler.target import Target
from packhorse.errors import CompileError
from packhorse.kernel.kernel import Kernel

__all__ = ["PARALLEL_SLOT", "emit_llvm"]

PARALLEL_SLOT = "__TVMBackendParallelLaunch"
"""Pointer slot the loader fills; NULL means: run serially."""

_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_.$]*")


def emit_llvm(kernel: Kernel, schedule: Schedule, target: Target, symbol: str) -> str:
    """LLVM module of one kernel.

    Parameters
    ----------
    kernel, schedule, target
        What to compute, how, and on which CPU.
    symbol : str
        Name of the exported packed function (TVM legacy ABI, arguments in the order of
        ``kernel.arguments``). The loops themselves are ``<symbol>_loop(lo, hi, pointers)``.

    Buffers need the alignment of their elements only; outputs must not overlap inputs.

    Raises
    ------
    CompileError
        The schedule does not fit the kernel, or the kernel uses something undefined for its
        dtypes.
    """
    if not _SYMBOL.fullmatch(symbol):
        raise CompileError(f"'{symbol}' is no symbol name. Use letters, digits and underscores")
    lowering = CpuLowering(kernel, schedule, target)
    body = lowering.emit()
    count, turns = len(kernel.arguments), lowering.turns
    parameters = ", ".join(["i64 %lo", "i64 %hi", *(f"ptr noalias %p{i}" for i in range(count))])
    parts = [
        f'target triple = "{target.triple}"',
        f"define internal void @{symbol}_body({parameters}) #0 {{\n{body}\n}}",
        _loop(symbol, count),
        _packed(symbol, count, turns),
        *lowering.b.declarations,
        _attributes(target),
    ]
    if turns > 1:
        parts.insert(1, f"@{PARALLEL_SLOT} = weak global ptr null, align 8")
        parts.append(_task(symbol, turns))
    return "\n\n".join(parts) + "\n"


def _attributes(target: Target) -> str:
    wide = f'"prefer-vector-width"="{8 * target.vector_bytes}" "min-legal-vector-width"="512"'
    cpu = f'"target-cpu"="{target.cpu}" "target-features"="{target.feature_string}"'
    return f'attributes #0 = {{ nounwind "no-trapping-math"="true" {wide} {cpu} }}'


def _loop(symbol: str, count: int) -> str:
    """``void loop(i64 lo, i64 hi, ptr pointers)``: unpacks the data pointers."""
    lines = []
    for i in range(count):
        lines += [f"%s{i} = getelementptr ptr, ptr %args, i64 {i}",
                  f"%d{i} = load ptr, ptr %s{i}, align 8"]  # fmt: skip
    call = ", ".join(["i64 %lo", "i64 %hi", *(f"ptr %d{i}" for i in range(count))])
    body = "\n".join([*lines, f"call void @{symbol}_body({call})", "ret void"])
    return (
        f"define internal void @{symbol}_loop(i64 %lo, i64 %hi, ptr %args) #0 {{\n{body}\n}}"
    )


def _packed(symbol: str, count: int, turns: int) -> str:
    """The exported function of TVM's legacy ABI: data + byte_offset of each DLTensor."""
    lines = [f"%data = alloca [{max(count, 1)} x ptr], align 8"]
    for i in range(count):
        lines += [
            f"%v{i} = getelementptr i64, ptr %args, i64 {i}",
            f"%t{i} = load ptr, ptr %v{i}, align 8",
            f"%b{i} = load ptr, ptr %t{i}, align 8",
            f"%q{i} = getelementptr i8, ptr %t{i}, i64 40",
            f"%o{i} = load i64, ptr %q{i}, align 8",
            f"%d{i} = getelementptr i8, ptr %b{i}, i64 %o{i}",
            f"%s{i} = getelementptr ptr, ptr %data, i64 {i}",
            f"store ptr %d{i}, ptr %s{i}, align 8",
        ]
    serial = [f"call void @{symbol}_loop(i64 0, i64 {turns}, ptr %data)", "ret i32 0"]
    if turns > 1:
        lines += [
            f"%launch = load ptr, ptr @{PARALLEL_SLOT}, align 8",
            "%alone = icmp eq ptr %launch, null",
            "br i1 %alone, label %serial, label %threads",
            "threads:",
            f"%code = call i32 %launch(ptr @{symbol}_task, ptr %data, i32 0)",
            "ret i32 %code",
            "serial:",
        ]
    body = "\n".join([*lines, *serial])
    parameters = "ptr %args, ptr %codes, i32 %n, ptr %ret, ptr %rcode, ptr %res"
    return f"define i32 @{symbol}({parameters}) #0 {{\n{body}\n}}"


def _task(symbol: str, turns: int) -> str:
    """The lambda of TVMBackendParallelLaunch: its share of the outermost range."""
    return f"""define internal i32 @{symbol}_task(i32 %id, ptr %env, ptr %data) #0 {{
%where = getelementptr i8, ptr %env, i64 8
%count = load i32, ptr %where, align 4
%n = sext i32 %count to i64
%i = sext i32 %id to i64
%a = mul i64 %i, {turns}
%lo = sdiv i64 %a, %n
%next = add i64 %i, 1
%c = mul i64 %next, {turns}
%hi = sdiv i64 %c, %n
call void @{symbol}_loop(i64 %lo, i64 %hi, ptr %data)
ret i32 0
}}"""
