"""The C-family text builder: lines of kernels, names of values, and the program around them."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

from packhorse.compiler.c_dialects import Dialect
from packhorse.compiler.c_text_ops import Helpers, register

__all__ = ["CBuilder", "emit_c"]


class CBuilder:
    """Writes the body of one kernel.

    Values are constants of C with names of their own, so equal texts in a scope are one value.
    A scope ends with its block: what was computed in a loop is unknown after it.
    """

    def __init__(self, dialect: Dialect, helpers: Helpers) -> None:
        self.dialect, self.helpers = dialect, helpers
        self.lines: list[str] = []
        self._scopes: list[dict[Hashable, str]] = [{}]
        self._count = 0

    def line(self, text: str) -> None:
        """One statement, indented as deep as the blocks it is in."""
        self.lines.append("  " * len(self._scopes) + text)

    def fresh(self, prefix: str = "v") -> str:
        """A name not used before."""
        self._count += 1
        return f"{prefix}{self._count}"

    def let(self, dtype: str, text: str) -> str:
        """Name a value; the name it has already where the same text was named before."""
        known = self.known((dtype, text))
        if known is None:
            known = self.fresh()
            self.line(f"const {self.helpers.ctype(dtype)} {known} = {text};")
            self.remember((dtype, text), known)
        return known

    def known(self, key: Hashable) -> str | None:
        """What was remembered in this scope or around it."""
        return next((s[key] for s in reversed(self._scopes) if key in s), None)

    def remember(self, key: Hashable, name: str) -> None:
        """Remember until the scope ends."""
        self._scopes[-1][key] = name

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """``head { ... }``, a scope."""
        self.line(head + " {")
        self._scopes.append({})
        yield
        self._scopes.pop()
        self.line("}")

    def memory_type(self, dtype: str) -> str:
        """C type of an element in memory."""
        types = self.dialect.types
        halves = {"float16": types["uint16"], "bfloat16": types["uint16"], "bool": types["uint8"]}
        return halves.get(dtype) or self.helpers.ctype(register(dtype))


def emit_c(functions: Sequence[str], helpers: Helpers) -> str:
    """One program: header, the helpers needed, and the kernels."""
    dialect, body = helpers.dialect, "\n\n".join(functions)
    parts = [dialect.header, *helpers.texts.values(), body]
    if dialect.float64 and any(re.search(r"\bdouble\b", p) for p in parts):
        parts.insert(1, dialect.float64)
    return "\n\n".join(part for part in parts if part) + "\n"
