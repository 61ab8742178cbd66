"""What a compiler needs to know of the CPU it compiles for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

__all__ = ["Target"]


@dataclass(frozen=True)
class Target:
    """A CPU to compile for.

    Parameters
    ----------
    kind : str
        ``"cpu"``; other kinds have their own lowering.
    triple, cpu : str
        LLVM's names, for example ``x86_64-unknown-linux-gnu`` and ``znver4``.
    features : tuple of str
        LLVM features with their sign: ``+avx2``, ``-avx512f``.
    vector_bytes, vector_registers : int
        Width of a vector register and how many there are.
    l1_bytes, l2_bytes : int
        Data caches of one core.
    threads : int
        How many threads the schedule should feed.
    """

    kind: str = "cpu"
    triple: str = ""
    cpu: str = ""
    features: tuple[str, ...] = field(default=())
    vector_bytes: int = 16
    vector_registers: int = 16
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10
    threads: int = 1

    def has(self, feature: str) -> bool:
        """True when the feature is switched on."""
        return "+" + feature in self.features

    @property
    def arch(self) -> str:
        """First word of the triple: ``x86_64``, ``aarch64`` ..."""
        return self.triple.partition("-")[0]

    @property
    def fused_multiply_add(self) -> bool:
        """True when a fused multiply-add is one instruction (otherwise LLVM would call libm)."""
        return self.has("fma") or self.arch in ("aarch64", "arm64", "riscv64")

    @property
    def feature_string(self) -> str:
        """The features as LLVM wants them: comma separated."""
        return ",".join(self.features)

    def with_threads(self, threads: int) -> Target:
        """The same CPU feeding another number of threads."""
        return replace(self, threads=max(1, threads))
