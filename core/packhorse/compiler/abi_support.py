"""What the kernels of a library share: the code behind every packed function.

It checks arguments against a kernel's signature, runs its loops, and reports what is wrong. All
of it is LLVM text without a call outside: a library needs neither libc nor packhorse. The
frame of a call is its signature followed by the addresses of the arguments' elements.
"""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.compiler.abi_text import (
    ARGUMENT,
    ARGUMENT_TYPE,
    FFI_ERROR,
    FINDER,
    LEGACY_ERROR,
    PARALLEL_SLOT,
    SLOTS,
    llvm_string,
)
from packhorse.compiler.target import Target

__all__ = ["support_text"]

_ROOM = 1024  # bytes of an error message, zero included; names are cut to fit


@dataclass(frozen=True)
class _Abi:
    """Where one ABI keeps an argument's kind and its tensor."""

    name: str
    parameters: str
    kind: str
    """Instructions that put the type code of argument %i into %kind."""
    tensor: str
    """Instructions that put its pointer into %given."""
    tensors: tuple[int, ...]
    """Type codes of a DLTensor*."""
    objects: int
    """Type code of an object with the DLTensor behind its header of 24 bytes; -1: none."""


_ABIS = (
    _Abi(
        "legacy", "ptr %args, ptr %codes, i32 %n",
        "%at = getelementptr i32, ptr %codes, i64 %i\n%kind = load i32, ptr %at, align 4",
        "%from = getelementptr ptr, ptr %args, i64 %i\n%given = load ptr, ptr %from, align 8",
        (7, 3, 13), -1,
    ),
    _Abi(
        "ffi", "ptr %args, i32 %n",
        "%at = getelementptr {i64, ptr}, ptr %args, i64 %i\n%kind = load i32, ptr %at, align 4",
        "%from = getelementptr i8, ptr %at, i64 8\n%given = load ptr, ptr %from, align 8",
        (7, 4), 70,
    ),
)  # fmt: skip

_REASONS = {
    # what is wrong -> (kind of error, before the first number, before the second number)
    "kind": ("TypeError", "is no tensor but a value of type code ", ""),
    "null": ("ValueError", "is NULL (type code ", ")"),
    "data": ("ValueError", "has no memory: its data pointer is NULL; its rank is ", ""),
    "device": ("ValueError", "is in memory of DLPack device type ", ""),
    "dtype": ("TypeError", "has elements of DLPack type code ", " and bits "),
    "size": ("ValueError", "has another number of elements: ", ""),
    "dense": ("ValueError", "is not contiguous; its rank is ", ""),
}


def support_text(target: Target) -> str:
    """LLVM module of what the kernels of a library share: checks, errors, threads, slots.

    Its functions are hidden: two libraries in one process do not see each other's.
    """
    slots = [f"@{name} = weak global ptr null, align 8" for name in SLOTS]
    strings = {f"{key}.{part}": text for key, row in _REASONS.items()
               for part, text in zip(("kind", "a", "b"), row, strict=True)}  # fmt: skip
    strings |= {
        "argument": ": argument ",
        "expected": "; pass a contiguous tensor in host memory of ",
        "given": " arguments were given; it takes ",
        "names": ": ",
        "space": " ",
        "count.kind": "TypeError",
    }
    return "\n".join(
        [
            f'target triple = "{target.triple}"',
            ARGUMENT_TYPE,
            *slots,
            f"@{FINDER} = weak hidden global ptr null, align 8",
            *(f"@ph.{key} = private constant {llvm_string(text)}" for key, text in strings.items()),
            _APPEND,
            _REPORT,
            _COUNT,
            _CHECK,
            _RUN,
            *map(_abi_text, _ABIS),
        ]
    )


def _abi_text(abi: _Abi) -> str:
    """``i32 ph_abi_<name>(<args>, ptr frame, ptr signature)``: check everything, then run."""
    cases = " ".join(f"i32 {code}, label %plain" for code in abi.tensors)
    boxed, wrapped = "", ""
    if abi.objects >= 0:
        cases += f" i32 {abi.objects}, label %object"
        boxed = _UNBOX
        wrapped = ", [ %inner, %object ]"
    ffi = "true" if abi.name == "ffi" else "false"
    return f"""define hidden i32 @ph_abi_{abi.name}({abi.parameters}, ptr %frame, ptr %signature) {{
store ptr %signature, ptr %frame, align 8
%wanted.p = getelementptr i8, ptr %signature, i64 24
%wanted = load i64, ptr %wanted.p, align 8
%found = sext i32 %n to i64
%rows = getelementptr i8, ptr %signature, i64 32
%fits = icmp eq i64 %found, %wanted
br i1 %fits, label %head, label %miscounted
head:
%i = phi i64 [ 0, %0 ], [ %next, %good ]
%more = icmp ult i64 %i, %wanted
br i1 %more, label %look, label %run
look:
{abi.kind}
{abi.tensor}
switch i32 %kind, label %strange [ {cases} ]
{boxed}
plain:
%tensor = phi ptr [ %given, %look ]{", [ %given, %look ]" * (len(abi.tensors) - 1)}{wrapped}
%none = icmp eq ptr %given, null
br i1 %none, label %missing, label %check
check:
%row = getelementptr {ARGUMENT}, ptr %rows, i64 %i
%next = add i64 %i, 1
%slot = getelementptr ptr, ptr %frame, i64 %next
%bad = call i32 @ph_check(ptr %tensor, ptr %row, ptr %slot, ptr %signature, i64 %i, i1 {ffi})
%ok = icmp eq i32 %bad, 0
br i1 %ok, label %good, label %failed
good:
br label %head
run:
%result = call i32 @ph_run(ptr %frame, ptr %signature)
ret i32 %result
strange:
%number = sext i32 %kind to i64
{_report("kind", "%number", 0, ffi)}
ret i32 -1
missing:
%code = sext i32 %kind to i64
{_report("null", "%code", -1, ffi)}
ret i32 -1
miscounted:
call void @ph_count(ptr %signature, i64 %found, i1 {ffi})
ret i32 -1
failed:
ret i32 -1
}}"""


def _report(reason: str, first: str, second: int, ffi: str) -> str:
    """A call of ph_report with two numbers; a negative second one is left out."""
    texts = f"ptr @ph.{reason}.kind, ptr @ph.{reason}.a, i64 {first}, ptr @ph.{reason}.b"
    return f"call void @ph_report(ptr %signature, i64 %i, i1 {ffi}, {texts}, i64 {second})"


_UNBOX = """object:
%nothing = icmp eq ptr %given, null
%behind = getelementptr i8, ptr %given, i64 24
%inner = select i1 %nothing, ptr null, ptr %behind
br label %plain"""

_RUN = f"""define internal i32 @ph_run(ptr %frame, ptr %signature) {{
%turns.p = getelementptr i8, ptr %signature, i64 16
%turns = load i64, ptr %turns.p, align 8
%one = icmp sle i64 %turns, 1
br i1 %one, label %serial, label %ask
ask:
%launch = load ptr, ptr @{PARALLEL_SLOT}, align 8
%alone = icmp eq ptr %launch, null
br i1 %alone, label %serial, label %threads
threads:
%code = call i32 %launch(ptr @ph_task, ptr %frame, i32 0)
ret i32 %code
serial:
%loop.p = getelementptr i8, ptr %signature, i64 8
%loop = load ptr, ptr %loop.p, align 8
%data = getelementptr ptr, ptr %frame, i64 1
call void %loop(i64 0, i64 %turns, ptr %data)
ret i32 0
}}

define internal i32 @ph_task(i32 %id, ptr %env, ptr %frame) {{
%signature = load ptr, ptr %frame, align 8
%turns.p = getelementptr i8, ptr %signature, i64 16
%turns = load i64, ptr %turns.p, align 8
%loop.p = getelementptr i8, ptr %signature, i64 8
%loop = load ptr, ptr %loop.p, align 8
%data = getelementptr ptr, ptr %frame, i64 1
%where = getelementptr i8, ptr %env, i64 8
%count = load i32, ptr %where, align 4
%n = sext i32 %count to i64
%i = sext i32 %id to i64
%a = mul i64 %i, %turns
%lo = sdiv i64 %a, %n
%next = add i64 %i, 1
%c = mul i64 %next, %turns
%hi = sdiv i64 %c, %n
call void %loop(i64 %lo, i64 %hi, ptr %data)
ret i32 0
}}"""
"""Runs the loops: all at once, or each thread its share of the outermost range."""

_FOUND = {
    # what ph_check finds wrong -> the two numbers it reports
    "dtype": ("%code.n", "%bits.n"),
    "device": ("%device.n", "0"),
    "size": ("%total", "0"),
    "dense": ("%dims", "0"),
    "data": ("%dims", "0"),
}


def _choice() -> str:
    """The arguments of ph_report, by the block that control came from."""
    columns = {
        "%kind = phi ptr": {key: f"@ph.{key}.kind" for key in _FOUND},
        "%text = phi ptr": {key: f"@ph.{key}.a" for key in _FOUND},
        "%first = phi i64": {key: row[0] for key, row in _FOUND.items()},
        "%and = phi ptr": {key: f"@ph.{key}.b" for key in _FOUND},
        "%second = phi i64": {key: row[1] for key, row in _FOUND.items()},
    }
    return "\n".join(
        f"{start} " + ", ".join(f"[ {value}, %bad.{key} ]" for key, value in column.items())
        for start, column in columns.items()
    )


_HOST = (1, 3, 11, 13)  # cpu, cuda_host, rocm_host, cuda_managed: memory this processor can read
_CHECK = f"""define internal i32 @ph_check(ptr %tensor, ptr %row, ptr %slot, ptr %signature,
                              i64 %i, i1 %ffi) {{
%data = load ptr, ptr %tensor, align 8
%device.p = getelementptr i8, ptr %tensor, i64 8
%device = load i32, ptr %device.p, align 4
%rank.p = getelementptr i8, ptr %tensor, i64 16
%rank = load i32, ptr %rank.p, align 4
%dtype.p = getelementptr i8, ptr %tensor, i64 20
%dtype = load i32, ptr %dtype.p, align 4
%shape.p = getelementptr i8, ptr %tensor, i64 24
%shape = load ptr, ptr %shape.p, align 8
%strides.p = getelementptr i8, ptr %tensor, i64 32
%strides = load ptr, ptr %strides.p, align 8
%offset.p = getelementptr i8, ptr %tensor, i64 40
%offset = load i64, ptr %offset.p, align 8
%address = getelementptr i8, ptr %data, i64 %offset
store ptr %address, ptr %slot, align 8
%size = load i64, ptr %row, align 8
%modern.p = getelementptr i8, ptr %row, i64 8
%modern = load i32, ptr %modern.p, align 8
%legacy.p = getelementptr i8, ptr %row, i64 12
%legacy = load i32, ptr %legacy.p, align 4
%is.modern = icmp eq i32 %dtype, %modern
%is.legacy = icmp eq i32 %dtype, %legacy
%typed = or i1 %is.modern, %is.legacy
br i1 %typed, label %place, label %bad.dtype
place:
switch i32 %device, label %bad.device [ {" ".join(f"i32 {d}, label %sizes" for d in _HOST)} ]
sizes:
%any = icmp ne ptr %strides, null
%dims = sext i32 %rank to i64
br label %head
head:
%d = phi i64 [ %dims, %sizes ], [ %down, %step ]
%total = phi i64 [ 1, %sizes ], [ %grown, %step ]
%dense = phi i1 [ true, %sizes ], [ %still, %step ]
%more = icmp sgt i64 %d, 0
br i1 %more, label %dim, label %done
dim:
%down = add i64 %d, -1
%extent.p = getelementptr i64, ptr %shape, i64 %down
%extent = load i64, ptr %extent.p, align 8
%grown = mul i64 %total, %extent
br i1 %any, label %stride, label %step
stride:
%step.p = getelementptr i64, ptr %strides, i64 %down
%has = load i64, ptr %step.p, align 8
%same = icmp eq i64 %has, %total
%single = icmp eq i64 %extent, 1
%fine = or i1 %same, %single
%both = and i1 %fine, %dense
br label %step
step:
%still = phi i1 [ %dense, %dim ], [ %both, %stride ]
br label %head
done:
%full = icmp eq i64 %total, %size
br i1 %full, label %filled, label %bad.size
filled:
%empty = icmp eq i64 %size, 0
%regular = or i1 %dense, %empty
br i1 %regular, label %memory, label %bad.dense
memory:
%there = icmp ne ptr %data, null
%usable = or i1 %there, %empty
br i1 %usable, label %good, label %bad.data
good:
ret i32 0
bad.dtype:
%code = and i32 %dtype, 255
%code.n = zext i32 %code to i64
%high = lshr i32 %dtype, 8
%bits = and i32 %high, 255
%bits.n = zext i32 %bits to i64
br label %report
bad.device:
%device.n = sext i32 %device to i64
br label %report
bad.size:
br label %report
bad.dense:
br label %report
bad.data:
br label %report
report:
{_choice()}
call void @ph_report(ptr %signature, i64 %i, i1 %ffi, ptr %kind, ptr %text,
                     i64 %first, ptr %and, i64 %second)
ret i32 -1
}}"""
"""Checks one DLTensor against its row of the signature and stores where its elements begin."""

_COUNT = f"""define internal void @ph_count(ptr %signature, i64 %found, i1 %ffi) noinline cold {{
%buffer = alloca [{_ROOM} x i8], align 8
%end = getelementptr i8, ptr %buffer, i64 {_ROOM - 1}
%name = load ptr, ptr %signature, align 8
%a = call ptr @ph_append(ptr %buffer, ptr %end, ptr %name)
%b = call ptr @ph_append(ptr %a, ptr %end, ptr @ph.names)
%c = call ptr @ph_number(ptr %b, ptr %end, i64 %found)
%d = call ptr @ph_append(ptr %c, ptr %end, ptr @ph.given)
%wanted.p = getelementptr i8, ptr %signature, i64 24
%wanted = load i64, ptr %wanted.p, align 8
%e = call ptr @ph_number(ptr %d, ptr %end, i64 %wanted)
call void @ph_raise(ptr @ph.count.kind, ptr %buffer, i1 %ffi)
ret void
}}"""
"""Says how many arguments were given and how many are taken."""

_REPORT = f"""define internal void @ph_report(ptr %signature, i64 %i, i1 %ffi, ptr %kind, ptr %text,
                                i64 %first, ptr %and, i64 %second) noinline cold {{
%buffer = alloca [{_ROOM} x i8], align 8
%end = getelementptr i8, ptr %buffer, i64 {_ROOM - 1}
%name = load ptr, ptr %signature, align 8
%a = call ptr @ph_append(ptr %buffer, ptr %end, ptr %name)
%b = call ptr @ph_append(ptr %a, ptr %end, ptr @ph.argument)
%c = call ptr @ph_number(ptr %b, ptr %end, i64 %i)
%d = call ptr @ph_append(ptr %c, ptr %end, ptr @ph.space)
%e = call ptr @ph_append(ptr %d, ptr %end, ptr %text)
%f = call ptr @ph_number(ptr %e, ptr %end, i64 %first)
%g = call ptr @ph_append(ptr %f, ptr %end, ptr %and)
%letter = load i8, ptr %and, align 1
%no.word = icmp eq i8 %letter, 0
%no.number = icmp slt i64 %second, 0
%skip = or i1 %no.word, %no.number
br i1 %skip, label %close, label %pair
pair:
%h = call ptr @ph_number(ptr %g, ptr %end, i64 %second)
br label %close
close:
%j = phi ptr [ %g, %0 ], [ %h, %pair ]
%k = call ptr @ph_append(ptr %j, ptr %end, ptr @ph.expected)
%rows = getelementptr i8, ptr %signature, i64 32
%row = getelementptr {ARGUMENT}, ptr %rows, i64 %i
%wanted.p = getelementptr i8, ptr %row, i64 16
%wanted = load ptr, ptr %wanted.p, align 8
%l = call ptr @ph_append(ptr %k, ptr %end, ptr %wanted)
call void @ph_raise(ptr %kind, ptr %buffer, i1 %ffi)
ret void
}}

define internal void @ph_raise(ptr %kind, ptr %message, i1 %ffi) noinline cold {{
br i1 %ffi, label %modern, label %legacy
modern:
%filled = load ptr, ptr @{FFI_ERROR}, align 8
%unset = icmp eq ptr %filled, null
br i1 %unset, label %search, label %tell
tell:
call void %filled(ptr %kind, ptr %message)
br label %search
search:
%finder = load ptr, ptr @{FINDER}, align 8
%blind = icmp eq ptr %finder, null
br i1 %blind, label %done, label %find
find:
%named = call ptr %finder()
%none = icmp eq ptr %named, null
%same = icmp eq ptr %named, %filled
%told = or i1 %none, %same
br i1 %told, label %done, label %raise
raise:
call void %named(ptr %kind, ptr %message)
ret void
legacy:
%last = load ptr, ptr @{LEGACY_ERROR}, align 8
%nowhere = icmp eq ptr %last, null
br i1 %nowhere, label %kinds, label %set
set:
call void %last(ptr %message)
br label %kinds
kinds:
%typed = load ptr, ptr @{FFI_ERROR}, align 8
%plain = icmp eq ptr %typed, null
br i1 %plain, label %done, label %name
name:
call void %typed(ptr %kind, ptr %message)
ret void
done:
ret void
}}"""
"""Puts a message together and hands it to whoever loaded the library, and to tvm-ffi.

Both, since a library may be loaded by one and called by the other; who did not call forgets it.
The legacy ABI's errors have no kind: a loader that fills the other slot too gets it there."""

_APPEND = """define internal ptr @ph_append(ptr %to, ptr %end, ptr %text) noinline cold {
br label %head
head:
%p = phi ptr [ %to, %0 ], [ %p.next, %copy ]
%s = phi ptr [ %text, %0 ], [ %s.next, %copy ]
%c = load i8, ptr %s, align 1
%last = icmp eq i8 %c, 0
%full = icmp uge ptr %p, %end
%stop = or i1 %last, %full
br i1 %stop, label %done, label %copy
copy:
store i8 %c, ptr %p, align 1
%p.next = getelementptr i8, ptr %p, i64 1
%s.next = getelementptr i8, ptr %s, i64 1
br label %head
done:
store i8 0, ptr %p, align 1
ret ptr %p
}

define internal ptr @ph_number(ptr %to, ptr %end, i64 %value) noinline cold {
%digits = alloca [24 x i8], align 8
%tail = getelementptr i8, ptr %digits, i64 23
store i8 0, ptr %tail, align 1
%negative = icmp slt i64 %value, 0
%flipped = sub i64 0, %value
%start = select i1 %negative, i64 %flipped, i64 %value
br label %head
head:
%v = phi i64 [ %start, %0 ], [ %rest, %head ]
%p = phi ptr [ %tail, %0 ], [ %q, %head ]
%rest = udiv i64 %v, 10
%tens = mul i64 %rest, 10
%digit = sub i64 %v, %tens
%small = trunc i64 %digit to i8
%letter = add i8 %small, 48
%q = getelementptr i8, ptr %p, i64 -1
store i8 %letter, ptr %q, align 1
%more = icmp ne i64 %rest, 0
br i1 %more, label %head, label %sign
sign:
br i1 %negative, label %minus, label %write
minus:
%r = getelementptr i8, ptr %q, i64 -1
store i8 45, ptr %r, align 1
br label %write
write:
%first = phi ptr [ %q, %sign ], [ %r, %minus ]
%out = call ptr @ph_append(ptr %to, ptr %end, ptr %first)
ret ptr %out
}"""
"""Text without libc: libraries need nothing but themselves."""
