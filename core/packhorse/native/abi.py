"""Which ABI a compiled library has, found by its symbols. A wrong guess would crash.

============================  =====================================================
``__tvm_ffi_<name>``          tvm-ffi ABI, TVM 0.22 and newer
``__TVMFFI*``, ``__tvm_ffi_library_*``  tvm-ffi ABI with plain names, TVM 0.21
``__TVMAPISetLastError`` ...  legacy ABI, TVM 0.2 to 0.20
``ph_<name>``                 legacy ABI, packhorse
none of them                  the caller must say
============================  =====================================================

A library with both ABIs (packhorse can write them) is used through the legacy one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from packhorse.errors import ArgumentValueError, ArtifactError
from packhorse.native.elf import Symbol
from packhorse.native.runtime import Abi

__all__ = ["AbiInfo", "choose_abi", "find_abi"]

PREFIX = "__tvm_ffi_"
_INTERNAL = ("_library_", "_metadata_", "_doc_")
"""What stands behind the prefix in symbols of TVM's own; a name may begin with ``_`` too."""
CONTEXTS = ("__tvm_module_ctx", "__tvm_ffi__library_ctx", "__tvm_ffi_library_ctx")
"""Where a library keeps what it asks for functions with; one with both ABIs has two."""
_OF_0_21 = ("__tvm_ffi_library_ctx", "__tvm_ffi_library_bin", "__tvm_ffi_main__")

_LEGACY_EXACT = frozenset(
    (
        *("__TVMAPISetLastError", "__TVMFuncCall", "TVMAPISetLastError", "TVMFuncCall"),
        *("__tvm_dev_mblob", "__tvm_main__", "__tvm_module_ctx", "_lookup_linked_param"),
        "TVMBackendRegisterSystemLibSymbol",
    )
)
_LEGACY_PREFIX = ("tvmgen_", "ph_")


@dataclass(frozen=True)
class AbiInfo:
    """How a library's functions are called and looked up.

    Attributes
    ----------
    abi : str
        "legacy" or "ffi".
    generation : str
        Which compilers write such files: ``"TVM 0.26 or newer"``.
    prefix : str
        What precedes a function's name in its symbol.
    context, blob, main : str
        Symbols of the module context, of the modules within, and of the entry function.
    certain : bool
        False: the file has no marks, and nobody said.
    """

    abi: Abi
    generation: str
    prefix: str
    context: str
    blob: str
    main: str
    certain: bool = True

    def require_certain(self, path: Path) -> None:
        """Refuse to guess. Raises :class:`ArtifactError` with what to say."""
        if not self.certain:
            raise ArtifactError(
                f"'{path}' does not show which ABI its functions have: it has none of TVM's marks "
                "(a library of the 'c' target may lack them all). Pass abi='legacy' if TVM 0.2 to "
                "0.20 compiled it, abi='ffi' for 0.21 and newer; a wrong answer crashes the process"
            )

    def name_of(self, symbol: str) -> str | None:
        """The name a function symbol is looked up by; None when it is none of the user's."""
        if not symbol.startswith(self.prefix):
            return None
        name = symbol[len(self.prefix) :]
        return None if self.prefix and name.startswith(_INTERNAL) else name


def _legacy(generation: str) -> AbiInfo:
    names = ("__tvm_module_ctx", "__tvm_dev_mblob", "__tvm_main__")
    return AbiInfo("legacy", generation, "", *names)


def _modern(generation: str) -> AbiInfo:
    names = ("__tvm_ffi__library_ctx", "__tvm_ffi__library_bin", "__tvm_ffi_main")
    return AbiInfo("ffi", generation, PREFIX, *names)


_TRANSITIONAL = AbiInfo("ffi", "TVM 0.21", "", *_OF_0_21)


def find_abi(symbols: Mapping[str, Symbol]) -> tuple[AbiInfo, ...]:
    """Every ABI a library can be called by, the one to prefer first; empty when it cannot tell."""
    modern = {n for n, s in symbols.items() if _is_modern(n, s)}
    functions = {n for n, s in symbols.items() if s.defined and s.kind == "function"}
    found = []
    if any(name[len(PREFIX) :] in functions for name in modern) or (
        not modern and not _is_0_21(symbols) and _is_legacy(symbols)
    ):
        found.append(_legacy(_legacy_generation(symbols)))
    if modern:
        found.append(_modern(_modern_generation(symbols)))
    elif _is_0_21(symbols):
        found.append(_TRANSITIONAL)
    # sorted is stable: of two ABIs the one whose modules the library holds within comes first
    return tuple(sorted(found, key=lambda info: info.blob not in symbols))


def choose_abi(path: Path, symbols: Mapping[str, Symbol], abi: str | None) -> AbiInfo:
    """The ABI to call a library by; not ``certain`` when the file cannot tell nor the caller does.

    Parameters
    ----------
    abi : str, optional
        "legacy" or "ffi": what the caller says it is.

    Raises
    ------
    ArtifactError
        The caller says other than the file.
    ArgumentValueError
        ``abi`` is neither.
    """
    found = find_abi(symbols)
    if abi is None:
        return found[0] if found else replace(_legacy("unknown"), certain=False)
    if abi not in ("legacy", "ffi"):
        raise ArgumentValueError(f"abi must be 'legacy' or 'ffi', found {abi!r}")
    said = [info for info in found if info.abi == abi]
    if found and not said:
        raise ArtifactError(
            f"'{path}' was compiled by {found[0].generation} for the {found[0].abi} ABI; "
            f"abi={abi!r} would crash the process. Leave abi out"
        )
    return said[0] if said else _legacy("unknown") if abi == "legacy" else _TRANSITIONAL


def _is_modern(name: str, symbol: Symbol) -> bool:
    if not symbol.defined or not name.startswith(PREFIX) or name in _OF_0_21:
        return False
    return symbol.kind == "function" or name == "__tvm_ffi__library_bin"


def _is_0_21(symbols: Iterable[str]) -> bool:
    return any(n.startswith(("__TVMFFI", "TVMFFI")) or n in _OF_0_21 for n in symbols)


def _is_legacy(symbols: Iterable[str]) -> bool:
    return any(n in _LEGACY_EXACT or n.startswith(_LEGACY_PREFIX) for n in symbols)


def _legacy_generation(symbols: Mapping[str, Symbol]) -> str:
    if "_lookup_linked_param" in symbols:
        return "TVM 0.8 or 0.9"
    if any(n.startswith("tvmgen_") for n in symbols):
        return "TVM 0.8 to 0.19"
    return "packhorse" if any(n.startswith("ph_") for n in symbols) else "TVM 0.2 to 0.20"


def _modern_generation(symbols: Mapping[str, Symbol]) -> str:
    if "__TVMFFIHandleInitOnce" in symbols or "__TVMFFIEnvModLookupFromImports" in symbols:
        return "TVM 0.26 or newer"
    if "TVMFFIErrorSetRaisedFromCStrParts" in symbols:
        return "TVM 0.24 or newer"
    return "TVM 0.22 or newer"
