"""Packed functions around compiled loops: how TVM, tvm-ffi, C and we call a kernel.

Each kernel is exported twice, under its plain name for TVM's legacy ABI (0.2 to 0.20) and as
``__tvm_ffi_<name>`` for tvm-ffi (TVM 0.22 and newer). Both are a few instructions: they hand the
kernel's :func:`signature <wrapper_text>`, a constant table, to code that all kernels of a library
share (:mod:`packhorse.compiler.abi_support`). That code checks the arguments, collects their
addresses and runs the loops, in parallel when whoever loaded the library offers threads.

A wrong call returns -1 and says why through the loader's slots; it never reaches the loops.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from packhorse.compiler.target import Target
from packhorse.dtype import dlpack_code, legacy_code
from packhorse.errors import ArgumentTypeError, CompileError
from packhorse.kernel.kernel import Buffer

__all__ = [
    "ARGUMENT",
    "ARGUMENT_TYPE",
    "FFI_ERROR",
    "FFI_PREFIX",
    "FINDER",
    "LEGACY_ERROR",
    "MAIN",
    "MARK",
    "PARALLEL_SLOT",
    "SLOTS",
    "check_symbol",
    "library_text",
    "llvm_string",
    "wrapper_text",
]

PARALLEL_SLOT = "__TVMBackendParallelLaunch"
"""Pointer slot the loader fills; NULL means: run serially."""
LEGACY_ERROR, FFI_ERROR = "__TVMAPISetLastError", "__TVMFFIErrorSetRaisedFromCStr"
SLOTS = (PARALLEL_SLOT, LEGACY_ERROR, FFI_ERROR)
"""All pointer slots of our libraries. Each may stay NULL."""
FINDER = "ph_find_error"
"""Pointer to a function that finds tvm-ffi's error function in the process; NULL in the JIT."""
FFI_PREFIX = "__tvm_ffi_"
MAIN = "__tvm_main__"
MARK = "__packhorse_abi"
"""Data that only our libraries export: the version of what this module and its kin write."""


ARGUMENT = "%ph_argument"
ARGUMENT_TYPE = f"{ARGUMENT} = type {{ i64, i32, i32, ptr }}"
"""A row of a signature: elements, dtype as DLPack and as the legacy ABI write it, its words."""

_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_.$]*")


def check_symbol(symbol: str) -> None:
    """Make sure that a name can be a symbol.

    Raises
    ------
    CompileError
        It cannot.
    """
    if not _SYMBOL.fullmatch(symbol):
        raise CompileError(f"'{symbol}' is no symbol name. Use letters, digits and underscores")


def llvm_string(value: str) -> str:
    """A zero-terminated LLVM array of the characters, with its type."""
    raw = value.encode("ascii", "replace")
    body = "".join(chr(c) if 32 <= c < 127 and c not in b'"\\' else f"\\{c:02X}" for c in raw)
    return f'[{len(raw) + 1} x i8] c"{body}\\00"'


def _codes(dtype: str) -> tuple[int, int]:
    """The type as DLPack and as the legacy ABI write it, each as one little-endian word."""
    try:
        pairs = dlpack_code(dtype), legacy_code(dtype)
    except ArgumentTypeError as error:
        raise CompileError(f"kernels cannot take {dtype}: {error}") from None
    return tuple(c | bits << 8 | lanes << 16 for c, bits, lanes in pairs)  # type: ignore[return-value]


def wrapper_text(symbol: str, buffers: Sequence[Buffer], turns: int) -> str:
    """The two exported functions of a kernel and its signature.

    Parameters
    ----------
    symbol : str
        Name of the legacy function; ``<symbol>_loop(i64 lo, i64 hi, ptr addresses)`` are the
        loops.
    buffers : sequence of Buffer
        The arguments in order: dtype and number of elements are checked at every call.
    turns : int
        Extent of the outermost loop, which is split over threads.

    Raises
    ------
    CompileError
        A dtype that DLPack cannot express.
    """
    count = len(buffers)
    rows, texts = [], []
    for i, buffer in enumerate(buffers):
        modern, legacy = _codes(buffer.dtype)
        texts.append(
            f"@{symbol}_text{i} = private constant "
            + llvm_string(f"{buffer.dtype}, {buffer.size} elements")
        )
        rows.append(
            f"{ARGUMENT} {{ i64 {buffer.size}, i32 {modern}, i32 {legacy}, ptr @{symbol}_text{i} }}"
        )
    table = f"[{count} x {ARGUMENT}] [{', '.join(rows)}]" if rows else f"[0 x {ARGUMENT}] []"
    kind = f"{{ ptr, ptr, i64, i64, [{count} x {ARGUMENT}] }}"
    head = f"ptr @{symbol}_name, ptr @{symbol}_loop, i64 {turns}, i64 {count}"
    return "\n".join(
        [
            ARGUMENT_TYPE,
            "declare hidden i32 @ph_abi_legacy(ptr, ptr, i32, ptr, ptr)",
            "declare hidden i32 @ph_abi_ffi(ptr, i32, ptr, ptr)",
            f"@{symbol}_name = private constant {llvm_string(symbol)}",
            *texts,
            f"@{symbol}_signature = internal constant {kind} {{ {head}, {table} }}, align 8",
            _entry(symbol, count, "ptr %args, ptr %codes, i32 %n, ptr %ret, ptr %code, ptr %self",
                   "@ph_abi_legacy(ptr %args, ptr %codes, i32 %n,", symbol),
            _entry(FFI_PREFIX + symbol, count, "ptr %self, ptr %args, i32 %n, ptr %ret",
                   "@ph_abi_ffi(ptr %args, i32 %n,", symbol),
        ]
    )  # fmt: skip


def _entry(name: str, count: int, parameters: str, call: str, symbol: str) -> str:
    """One exported function. Its frame holds the signature, then the argument addresses."""
    return f"""define i32 @{name}({parameters}) #0 {{
%frame = alloca [{count + 1} x ptr], align 8
%failed = call i32 {call} ptr %frame, ptr @{symbol}_signature)
ret i32 %failed
}}"""


def library_text(names: Sequence[str], target: Target) -> str:
    """What a library in a file has besides its kernels.

    A single kernel is named as the library's entry: ``__tvm_main__`` is its name as data,
    as in libraries of TVM's llvm target; ``__tvm_ffi_main`` a function.

    Raises
    ------
    CompileError
        A name cannot be a symbol.
    """
    for name in names:
        check_symbol(name)
    lines = [
        f'target triple = "{target.triple}"',
        f"@{MARK} = constant i32 1, align 4",
        _finder(target),
    ]
    if len(names) == 1:
        lines.append(f"@{MAIN} = weak constant {llvm_string(names[0])}")
    if len(names) == 1 and names[0] != "main":
        entry = f"i32 @{FFI_PREFIX}{names[0]}(ptr, ptr, i32, ptr)"
        lines.append(
            f"declare {entry}\ndefine weak i32 @{FFI_PREFIX}main(ptr %s, ptr %a, i32 %n, ptr %r) {{"
            f"\n%failed = call {entry.partition('(')[0]}(ptr %s, ptr %a, i32 %n, ptr %r)"
            "\nret i32 %failed\n}"
        )
    return "\n".join(lines)


def _finder(target: Target) -> str:
    """tvm-ffi without TVM fills no slots: ask the system for its error function, by name.

    Not a weak import of that function: it would be bound to whichever TVM the process loads.
    """
    everywhere = -2 if "apple" in target.triple or "darwin" in target.triple else 0  # RTLD_DEFAULT
    return f"""declare extern_weak ptr @dlsym(ptr, ptr)
@{FINDER} = hidden global ptr @{FINDER}_in_process, align 8
@ph.wanted = private constant {llvm_string(FFI_ERROR.removeprefix("__"))}
define internal ptr @{FINDER}_in_process() noinline cold {{
%alone = icmp eq ptr @dlsym, null
br i1 %alone, label %none, label %ask
ask:
%found = call ptr @dlsym(ptr inttoptr (i64 {everywhere} to ptr), ptr @ph.wanted)
ret ptr %found
none:
ret ptr null
}}"""
