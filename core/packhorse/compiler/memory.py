"""Loads and stores as LLVM text: scalars, vectors, masked tails, gathers and scatters."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.compiler.llvm_builder import LOAD, PINNED, Builder, Val, vector_type
from packhorse.compiler.llvm_ops import MEMORY, from_memory, size_of
from packhorse.kernel.kernel import Kernel

__all__ = ["Address", "Memory"]


@dataclass(frozen=True)
class Address:
    """``buffer[sum(index * factor) + const + sum(extra) + lane * stride]`` in elements."""

    buffer: str
    terms: list[tuple[Val, int]]
    const: int
    stride: int
    extra: list[Val]
    width: int

    @property
    def vector(self) -> bool:
        """True when lanes lie at different places."""
        return self.stride != 0 or any(v.lanes for v in self.extra)

    @property
    def dense(self) -> bool:
        """True when lanes are neighbours in memory."""
        return self.stride == 1 and not any(v.lanes for v in self.extra)


class Memory:
    """Emits memory accesses of one kernel."""

    def __init__(self, b: Builder, kernel: Kernel) -> None:
        self.b = b
        self.kernel = kernel
        self.pointers = {n: Val(f"%p{i}", "ptr") for i, n in enumerate(kernel.arguments)}

    def _element(self, address: Address) -> tuple[str, int]:
        dtype = self.kernel.buffers[address.buffer].dtype
        return MEMORY[dtype], size_of(dtype)

    def _pointer(self, address: Address) -> Val:
        """Pointer of lane 0 (scalar), built outermost loop first so that it is hoisted."""
        b, (element, _) = self.b, self._element(address)
        pointer = self.pointers[address.buffer]
        items = [b.mul(v, f) for v, f in address.terms] + [v for v in address.extra if not v.lanes]
        for level in sorted({v.level for v in items}):
            total = b.integer(0)
            for item in items:
                if item.level == level:
                    total = b.add(total, item)
            pointer = b.offset(pointer, total, element)
        return b.offset(pointer, b.integer(address.const), element)

    def _pointers(self, address: Address) -> Val:
        """A vector of pointers, one for each lane."""
        b, (element, _) = self.b, self._element(address)
        offsets = b.integer(0)
        if address.stride:
            offsets = b.iota(address.width, "i64", address.stride)
        for value in address.extra:
            if value.lanes:
                offsets = b.add(offsets, value)
        return b.offset(self._pointer(address), offsets, element)

    # -- loads ------------------------------------------------------------------------------------

    def read(
        self, address: Address, dtype: str, mask: Val | None, when: Val | None, *, written: bool
    ) -> Val:
        """The register value at an address.

        Parameters
        ----------
        mask : Val or None
            Lanes in use (tails); it matters only where lanes lie apart.
        when : Val or None
            Guard of the load: where false nothing is read and the value is 0.
        written : bool
            The kernel also writes this buffer: the load stays where it is.
        """
        move = PINNED if written else LOAD
        lanes = address.width
        if not address.vector and not (when is not None and when.lanes):
            raw = self._scalar(address, when, move)
        else:
            if when is not None:
                when = self.b.splat(when, lanes)
                mask = when if mask is None else self.b.binary("and", when, mask)
            if address.dense:
                raw = self._dense(address, mask, move)
            elif not address.vector:
                raw = self._guarded_splat(address, mask, move)
            else:
                raw = self._gather(address, mask, move)
        return from_memory(self.b, dtype, raw)

    def prefetch(self, address: Address, ahead: int) -> None:
        """Ask for what lies ``ahead`` bytes further on."""
        self.b.prefetch(self._pointer(address), ahead)

    def _scalar(self, address: Address, when: Val | None, move: str) -> Val:
        element, size = self._element(address)
        pointer = self._pointer(address)
        if when is not None:  # a false guard reads the first element instead
            pointer = self.b.select(when, pointer, self.pointers[address.buffer])
        text = f"load {element}, {pointer}, align {size}"
        raw = self.b.inst(text, element, 0, [pointer], move)
        return raw if when is None else self.b.select(when, raw, _zero(self.b, element))

    def _dense(self, address: Address, mask: Val | None, move: str) -> Val:
        element, size = self._element(address)
        pointer, lanes = self._pointer(address), address.width
        kind = vector_type(element, lanes)
        if mask is None:
            return self.b.inst(
                f"load {kind}, {pointer}, align {size}", element, lanes, [pointer], move
            )
        name = f"llvm.masked.load.{_suffix(element, lanes)}.p0"
        self._declare(f"declare {kind} @{name}(ptr, i32, <{lanes} x i1>, {kind})")
        text = f"call {kind} @{name}({pointer}, i32 {size}, {mask}, {kind} zeroinitializer)"
        return self.b.inst(text, element, lanes, [pointer, mask], move)

    def _gather(self, address: Address, mask: Val | None, move: str) -> Val:
        element, size = self._element(address)
        lanes, pointers = address.width, self._pointers(address)
        kind = vector_type(element, lanes)
        mask = mask or self.b.lane_mask(lanes, lanes)
        name = f"llvm.masked.gather.{_suffix(element, lanes)}.v{lanes}p0"
        self._declare(f"declare {kind} @{name}(<{lanes} x ptr>, i32, <{lanes} x i1>, {kind})")
        text = f"call {kind} @{name}({pointers}, i32 {size}, {mask}, {kind} zeroinitializer)"
        return self.b.inst(text, element, lanes, [pointers, mask], move)

    def _guarded_splat(self, address: Address, mask: Val | None, move: str) -> Val:
        """One place for all lanes under a guard that differs between lanes: read it if any
        lane wants it."""
        b, (element, _) = self.b, self._element(address)
        if mask is None:
            return self._scalar(address, None, move)
        any_lane = b.any_lane(mask)
        raw = self._scalar(address, any_lane, move)
        return b.select(mask, b.splat(raw, address.width), _zero(b, element))

    # -- stores -----------------------------------------------------------------------------------

    def write(self, address: Address, dtype: str, value: Val, mask: Val | None) -> None:
        """Store a value (already of the memory type) at an address."""
        element, size = self._element(address)
        if not address.vector:
            if value.lanes:
                text = f"extractelement {value}, i32 0"
                value = self.b.inst(text, element, 0, [value], PINNED)
            self.b.line(f"store {value}, {self._pointer(address)}, align {size}")
            return
        lanes = address.width
        value = self.b.splat(value, lanes)
        if address.dense:
            pointer = self._pointer(address)
            if mask is None:
                self.b.line(f"store {value}, {pointer}, align {size}")
                return
            name = f"llvm.masked.store.{_suffix(element, lanes)}.p0"
            self._declare(f"declare void @{name}({value.full}, ptr, i32, <{lanes} x i1>)")
            self.b.line(f"call void @{name}({value}, {pointer}, i32 {size}, {mask})")
            return
        pointers = self._pointers(address)
        mask = mask or self.b.lane_mask(lanes, lanes)
        name = f"llvm.masked.scatter.{_suffix(element, lanes)}.v{lanes}p0"
        self._declare(f"declare void @{name}({value.full}, <{lanes} x ptr>, i32, <{lanes} x i1>)")
        self.b.line(f"call void @{name}({value}, {pointers}, i32 {size}, {mask})")

    def _declare(self, text: str) -> None:
        self.b.declarations.setdefault(text)


def _zero(b: Builder, element: str) -> Val:
    return b.integer(0, element) if element.startswith("i") else b.real(0.0, element)


def _suffix(element: str, lanes: int) -> str:
    short = {"float": "f32", "double": "f64", "half": "f16"}.get(element, element)
    return f"v{lanes}{short}"
