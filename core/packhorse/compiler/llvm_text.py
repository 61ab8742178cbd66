"""A compiled kernel as a whole LLVM module: the loops and the packed functions around them."""

from __future__ import annotations

from packhorse.compiler.abi_text import check_symbol, wrapper_text
from packhorse.compiler.lower_cpu import CpuLowering
from packhorse.compiler.schedule import Schedule
from packhorse.compiler.target import Target
from packhorse.kernel.kernel import Kernel

__all__ = ["emit_llvm"]


def emit_llvm(kernel: Kernel, schedule: Schedule, target: Target, symbol: str) -> str:
    """LLVM module of one kernel.

    Parameters
    ----------
    kernel, schedule, target
        What to compute, how, and on which CPU.
    symbol : str
        Name of the exported packed function, arguments in the order of ``kernel.arguments``;
        see :mod:`packhorse.compiler.abi_text` for its ABIs. The loops themselves are
        ``<symbol>_loop(lo, hi, pointers)``.

    Buffers need the alignment of their elements only; outputs must not overlap inputs.

    Raises
    ------
    CompileError
        The schedule does not fit the kernel, or the kernel uses something undefined for its
        dtypes.
    """
    check_symbol(symbol)
    lowering = CpuLowering(kernel, schedule, target)
    body = lowering.emit()
    count, turns = len(kernel.arguments), lowering.turns
    parameters = ", ".join(["i64 %lo", "i64 %hi", *(f"ptr noalias %p{i}" for i in range(count))])
    parts = [
        f'target triple = "{target.triple}"',
        f"define internal void @{symbol}_body({parameters}) #0 {{\n{body}\n}}",
        _loop(symbol, count),
        wrapper_text(symbol, [kernel.buffers[name] for name in kernel.arguments], turns),
        *lowering.b.declarations,
        _attributes(target),
    ]
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
    return f"define internal void @{symbol}_loop(i64 %lo, i64 %hi, ptr %args) #0 {{\n{body}\n}}"
