"""LLVM text, built so that LLVM has little left to do.

A :class:`Builder` writes one function. Pure instructions are numbered by their text (equal ones
are emitted once) and placed at the loop level of their deepest operand, so common subexpressions
and loop invariants need no LLVM pass. Accumulators live in ``alloca`` slots; SROA turns them into
phis, the only pass the text needs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from packhorse.compiler.target import Target

__all__ = ["FREE", "LOAD", "PINNED", "VALUE", "Builder", "Val", "float_text", "vector_type"]

FREE, VALUE, LOAD, PINNED = "free", "value", "load", "pinned"
"""How far an instruction may move out of loops: integers and addresses anywhere; values not above
a register tile (they would be spilled); loads not above a condition either; stores not at all."""


@dataclass(frozen=True, slots=True)
class Val:
    """An SSA value or a literal: its text, element type, lanes (0: scalar) and loop level."""

    name: str
    type: str
    lanes: int = 0
    level: int = 0
    const: float | int | None = None

    @property
    def full(self) -> str:
        """LLVM type of the whole value."""
        return vector_type(self.type, self.lanes)

    def __str__(self) -> str:
        return f"{self.full} {self.name}"


def vector_type(element: str, lanes: int) -> str:
    """``<16 x float>``, or the element type itself for 0 lanes."""
    return f"<{lanes} x {element}>" if lanes else element


def float_text(value: float, element: str) -> str:
    """LLVM literal: hexadecimal double, exactly representable in the element type."""
    if element == "float":
        try:
            value = struct.unpack("<f", struct.pack("<f", value))[0]
        except OverflowError:
            value = float("inf") if value > 0 else float("-inf")
    return "0x" + struct.pack(">d", value).hex().upper()


class _Region:
    """Straight-line text of one loop level, closed loops inside it included."""

    __slots__ = ("barrier", "cache", "guard", "label", "lines")

    def __init__(self, label: str, barrier: bool = False, guard: bool = False) -> None:
        self.lines: list[str] = []
        self.cache: dict[str, Val] = {}
        self.label = label
        self.barrier = barrier
        self.guard = guard


class Builder:
    """Writes one LLVM function body. See the module docstring for what it does by itself."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.stack = [_Region("entry")]
        self.slots: list[str] = []
        self.declarations: dict[str, None] = {}
        self._count = 0

    # -- placing instructions -----------------------------------------------------------------

    def fresh(self) -> int:
        """A number not used before in this function."""
        self._count += 1
        return self._count

    @property
    def level(self) -> int:
        """Depth of the innermost open region."""
        return len(self.stack) - 1

    def _floor(self, move: str) -> int:
        if move == FREE:
            return 0
        for level in range(self.level, 0, -1):
            region = self.stack[level]
            if region.barrier or (move == LOAD and region.guard):
                return level
        return 0

    def inst(self, text: str, element: str, lanes: int, args: Sequence[Val], move: str) -> Val:
        """Emit ``%n = text`` at the outermost level it may stand, or return the equal one."""
        if move == PINNED:
            region, level = self.stack[-1], self.level
        else:
            level = max((a.level for a in args), default=0)
            level = max(level, self._floor(move))
            region = self.stack[level]
            found = region.cache.get(text)
            if found is not None:
                return found
        value = Val(f"%v{self.fresh()}", element, lanes, level)
        region.lines.append(f"{value.name} = {text}")
        if move != PINNED:
            region.cache[text] = value
        return value

    def line(self, text: str) -> None:
        """Emit an instruction without a result at the current level."""
        self.stack[-1].lines.append(text)

    # -- literals, lanes ------------------------------------------------------------------------

    def integer(self, value: int, element: str = "i64", lanes: int = 0) -> Val:
        """An integer literal (wrapped to the type's width)."""
        bits = int(element[1:])
        value &= (1 << bits) - 1
        if bits > 1 and value >> (bits - 1):
            value -= 1 << bits
        text = ("true" if value else "false") if bits == 1 else str(value)
        name = f"splat ({element} {text})" if lanes else text
        return Val(name, element, lanes, 0, value)

    def real(self, value: float, element: str, lanes: int = 0) -> Val:
        """A floating-point literal."""
        text = float_text(value, element)
        return Val(f"splat ({element} {text})" if lanes else text, element, lanes, 0, value)

    def splat(self, value: Val, lanes: int) -> Val:
        """Broadcast a scalar to all lanes."""
        if value.lanes == lanes:
            return value
        if value.const is not None:
            if value.type.startswith("i"):
                return self.integer(int(value.const), value.type, lanes)
            return self.real(value.const, value.type, lanes)
        kind = vector_type(value.type, lanes)
        move = FREE if value.type.startswith("i") and value.type != "i1" else VALUE
        one = self.inst(
            f"insertelement {kind} poison, {value}, i32 0", value.type, lanes, [value], move
        )
        return self.inst(
            f"shufflevector {one}, {kind} poison, <{lanes} x i32> zeroinitializer",
            value.type, lanes, [one], move,
        )  # fmt: skip

    def same_lanes(self, *values: Val) -> list[Val]:
        """All operands as vectors if any of them is one."""
        lanes = max(v.lanes for v in values)
        return [self.splat(v, lanes) if lanes else v for v in values]

    def iota(self, lanes: int, element: str = "i64", scale: int = 1) -> Val:
        """``<0, scale, 2*scale, ...>``."""
        body = ", ".join(f"{element} {i * scale}" for i in range(lanes))
        return Val(f"<{body}>", element, lanes)

    def lane_mask(self, lanes: int, active: int) -> Val:
        """Constant mask whose first ``active`` lanes are on."""
        body = ", ".join(f"i1 {'true' if i < active else 'false'}" for i in range(lanes))
        return Val(f"<{body}>", "i1", lanes)

    # -- arithmetic -----------------------------------------------------------------------------

    def binary(self, op: str, a: Val, b: Val) -> Val:
        """``op a, b``; a scalar operand is broadcast."""
        a, b = self.same_lanes(a, b)
        move = FREE if a.type.startswith("i") and not a.lanes else VALUE
        return self.inst(f"{op} {a}, {b.name}", a.type, a.lanes, [a, b], move)

    def compare(self, op: str, a: Val, b: Val) -> Val:
        """``icmp``/``fcmp``; result is i1 in each lane."""
        a, b = self.same_lanes(a, b)
        move = FREE if a.type.startswith("i") and not a.lanes else VALUE
        return self.inst(f"{op} {a}, {b.name}", "i1", a.lanes, [a, b], move)

    def select(self, condition: Val, a: Val, b: Val) -> Val:
        """Lane-wise choice."""
        if condition.lanes or a.lanes or b.lanes:
            a, b = self.same_lanes(condition, a, b)[1:]
            if not condition.lanes and a.lanes:
                condition = self.splat(condition, a.lanes)
        move = FREE if a.type == "ptr" or (a.type == "i64" and not a.lanes) else VALUE
        text = f"select {condition}, {a}, {b}"
        return self.inst(text, a.type, a.lanes, [condition, a, b], move)

    def convert(self, op: str, value: Val, element: str) -> Val:
        """``sext``, ``fptrunc``, ``bitcast`` ... to another element type."""
        if value.type == element:
            return value
        move = FREE if element.startswith("i") and value.type[0] == "i" else VALUE
        text = f"{op} {value} to {vector_type(element, value.lanes)}"
        return self.inst(text, element, value.lanes, [value], move if not value.lanes else VALUE)

    def intrinsic(self, name: str, *args: Val, element: str = "", extra: str = "") -> Val:
        """Call ``llvm.<name>``, overloaded on the first operand (and the result if it differs)."""
        args = tuple(self.same_lanes(*args))
        first = args[0]
        element = element or first.type
        suffix = _mangle(first.type, first.lanes)
        if element != first.type:
            suffix = _mangle(element, first.lanes) + "." + suffix
        result = vector_type(element, first.lanes)
        return self.call_raw(f"llvm.{name}.{suffix}", args, result, element, first.lanes, extra)

    def any_lane(self, mask: Val) -> Val:
        """True when a lane of the mask is on."""
        name = f"llvm.vector.reduce.or.{_mangle('i1', mask.lanes)}"
        self.declarations.setdefault(f"declare i1 @{name}({mask.full})")
        return self.inst(f"call i1 @{name}({mask})", "i1", 0, [mask], VALUE)

    def call_raw(
        self, name: str, args: Sequence[Val], result: str, element: str, lanes: int, extra: str = ""
    ) -> Val:
        """Call a pure intrinsic by its full name."""
        kinds = ", ".join([a.full for a in args] + ([extra.split()[0]] if extra else []))
        self.declarations.setdefault(f"declare {result} @{name}({kinds})")
        inner = ", ".join([str(a) for a in args] + ([extra] if extra else []))
        return self.inst(f"call {result} @{name}({inner})", element, lanes, args, VALUE)

    def fma(self, a: Val, b: Val, c: Val) -> Val:
        """``a * b + c``, fused where the target has the instruction."""
        if self.target.fused_multiply_add:
            return self.intrinsic("fma", a, b, c)
        return self.binary("fadd", self.binary("fmul", a, b), c)

    # -- integers of addresses --------------------------------------------------------------------

    def add(self, a: Val, b: Val) -> Val:
        """Integer sum with literals folded."""
        if a.const is not None and b.const is not None and not a.lanes and not b.lanes:
            return self.integer(int(a.const) + int(b.const), a.type)
        if a.const == 0 and not (a.lanes and not b.lanes):
            return b
        if b.const == 0 and not (b.lanes and not a.lanes):
            return a
        return self.binary("add", a, b)

    def mul(self, a: Val, factor: int) -> Val:
        """Integer product with a literal."""
        if a.const is not None:
            return self.integer(int(a.const) * factor, a.type, a.lanes)
        if factor in (0, 1):
            return a if factor else self.integer(0, a.type, a.lanes)
        return self.binary("mul", a, self.integer(factor, a.type))

    def offset(self, pointer: Val, index: Val, element: str) -> Val:
        """``&pointer[index]`` in elements."""
        if index.const == 0 and not index.lanes:
            return pointer
        lanes = max(pointer.lanes, index.lanes)
        text = f"getelementptr {element}, {pointer}, {index}"
        return self.inst(text, "ptr", lanes, [pointer, index], FREE)

    def prefetch(self, pointer: Val, ahead: int) -> None:
        """Ask for the line ``ahead`` bytes after a pointer that moves with the innermost loop."""
        region, key = self.stack[-1], f"prefetch {pointer.name}"
        if pointer.level != self.level or key in region.cache:
            return
        place = self.offset(pointer, self.integer(ahead), "i8")
        region.cache[key] = place
        self.declarations.setdefault("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        self.line(f"call void @llvm.prefetch.p0({place}, i32 0, i32 3, i32 1)")

    # -- control --------------------------------------------------------------------------------

    @contextmanager
    def loop(self, lo: Val, hi: Val, *, barrier: bool = False, checked: bool = False
             ) -> Iterator[Val]:  # fmt: skip
        """A counted loop ``lo <= i < hi``; at least one turn unless ``checked``."""
        if checked:
            test = self.inst(f"icmp slt {lo}, {hi.name}", "i1", 0, [lo, hi], FREE)
            with self.branch(test), self.loop(lo, hi, barrier=barrier) as index:
                yield index
            return
        n = self.fresh()
        region = _Region(f"loop{n}", barrier)
        self.stack.append(region)
        yield Val(f"%i{n}", "i64", 0, self.level)
        self.stack.pop()
        parent = self.stack[-1]
        parent.lines += [
            f"br label %loop{n}",
            f"loop{n}:",
            f"%i{n} = phi i64 [{lo.name}, %{parent.label}], [%n{n}, %{region.label}]",
            *region.lines,
            f"%n{n} = add nuw nsw i64 %i{n}, 1",
            f"%c{n} = icmp slt i64 %n{n}, {hi.name}",
            f"br i1 %c{n}, label %loop{n}, label %end{n}",
            f"end{n}:",
        ]
        parent.label = f"end{n}"

    @contextmanager
    def branch(self, condition: Val, otherwise: bool = False) -> Iterator[None]:
        """Code that runs only if the condition holds (or, ``otherwise``, does not)."""
        n = self.fresh()
        region = _Region(f"then{n}", guard=True)
        self.stack.append(region)
        yield
        self.stack.pop()
        parent = self.stack[-1]
        labels = f"label %end{n}, label %then{n}" if otherwise else f"label %then{n}, label %end{n}"
        parent.lines += [
            f"br i1 {condition.name}, {labels}",
            f"then{n}:",
            *region.lines,
            f"br label %end{n}",
            f"end{n}:",
        ]
        parent.label = f"end{n}"

    @contextmanager
    def scope(self, *, barrier: bool = False) -> Iterator[None]:
        """A level without a loop: what is emitted inside is forgotten (not shared) after it."""
        region = _Region(self.stack[-1].label, barrier)
        self.stack.append(region)
        yield
        self.stack.pop()
        self.stack[-1].lines += region.lines
        self.stack[-1].label = region.label

    def slot(self, element: str, lanes: int) -> Val:
        """A stack slot for an accumulator; SROA turns it into registers."""
        name = f"%a{self.fresh()}"
        self.slots.append(f"{name} = alloca {vector_type(element, lanes)}")
        return Val(name, "ptr")

    def get(self, slot: Val, element: str, lanes: int) -> Val:
        """Read a stack slot."""
        text = f"load {vector_type(element, lanes)}, ptr {slot.name}"
        return self.inst(text, element, lanes, [], PINNED)

    def put(self, slot: Val, value: Val) -> None:
        """Write a stack slot."""
        self.line(f"store {value}, ptr {slot.name}")

    def text(self) -> str:
        """The body: entry block with the slots first."""
        return "\n".join(["entry:", *self.slots, *self.stack[0].lines])


def _mangle(element: str, lanes: int) -> str:
    short = {"float": "f32", "double": "f64", "half": "f16", "ptr": "p0"}.get(element, element)
    return f"v{lanes}{short}" if lanes else short
