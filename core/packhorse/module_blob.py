"""The modules inside a library: kernels for devices, graphs with weights, bytecode.

TVM appends them to a library as one blob. Legacy (``__tvm_dev_mblob``, 0.2 to 0.20)::

    u64 nbytes, u64 n, n * (str kind, payload as the kind has it)

with ``_lib`` where the library itself belongs and ``_import_tree`` (since 0.6) last. Modern
(``__tvm_ffi__library_bin``, 0.21 and newer)::

    u64 nbytes, vec<u64> indptr, vec<u64> children, per module: str kind, str payload

where ``_lib`` has no payload. Source: TVM's ``src/runtime/library_module.cc``, tvm-ffi's
``src/ffi/extra/library_module.cc``. Every length is compared with what is left of the blob before
anything is made of it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from packhorse.errors import ArtifactError
from packhorse.module_blob_reader import (
    SMALLEST_ARRAY,
    Array,
    BlobReader,
    FunctionInfo,
    type_bytes,
)

__all__ = [
    "LIBRARY",
    "CSource",
    "Constants",
    "DeviceCode",
    "Factory",
    "FunctionInfo",
    "ModuleTree",
    "Node",
    "Opaque",
    "Payload",
    "device_code_bytes",
    "read_device_code",
    "read_legacy_blob",
    "read_modern_blob",
]

LIBRARY = "_lib"
"""Kind of the node that stands for the library itself."""
_TREE = "_import_tree"
_MAX_MODULES = 4096
Words: TypeAlias = np.ndarray[Any, np.dtype[np.uint64]]


class Payload:
    """What a module consists of besides its imports."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class DeviceCode(Payload):
    """Kernels for a device.

    Attributes
    ----------
    format : str
        ``cl``, ``ptx``, ``cubin``, ``hsaco``, ``metal``, ``cuda`` (source) ...; may be empty.
    functions : dict
        Name -> how it is launched.
    code : bytes
        The program with all kernels; empty when each has its own.
    sources : dict
        Name -> source or SPIR-V of one kernel.
    """

    format: str
    functions: Mapping[str, FunctionInfo]
    code: bytes = b""
    sources: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Factory(Payload):
    """A graph with its weights. ``params`` are read-only views into the blob."""

    graph_json: str
    params: Mapping[str, Array]
    module_name: str


@dataclass(frozen=True, slots=True)
class Constants(Payload):
    """Constants of other modules, and which of them each module's initialiser takes."""

    arrays: Mapping[str, Array]
    users: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class CSource(Payload):
    """C text that was kept beside the code compiled from it."""

    code: str
    format: str
    functions: tuple[str, ...]
    constants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Opaque(Payload):
    """Bytes of a kind that others read, such as ``relax.VMExecutable``."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Node:
    """One module: its kind, payload (None for the library) and the nodes it imports."""

    kind: str
    payload: Payload | None
    imports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModuleTree:
    """The modules of a library; ``nodes[0]`` is what loading it gives."""

    nodes: tuple[Node, ...]

    @property
    def library(self) -> int | None:
        """Index of the library's own node."""
        return next((i for i, node in enumerate(self.nodes) if node.kind == LIBRARY), None)


# ---------------------------------------------------------------- payloads


def _program(r: BlobReader) -> Payload:
    return DeviceCode(r.text("format"), r.functions(), r.raw("code"))


def _metal(r: BlobReader) -> Payload:
    """Three fields where TVM was built without Metal (and until 0.12), else four."""
    start, first = r.offset, r.text("format or version")
    if first.replace(".", "").isdecimal():
        sources = r.mapping("shader", r.raw)
        functions = r.functions()
        return DeviceCode(r.text("format"), functions, sources=sources)
    r.offset = start
    return _program(r)


def _vulkan(r: BlobReader) -> Payload:
    name, functions = r.text("format"), r.functions()
    return DeviceCode(name, functions, sources=r.mapping("shader", _spirv(r)))


def _spirv(r: BlobReader) -> Callable[[str], bytes]:
    def shader(what: str) -> bytes:
        r.take(4, what)  # flags
        return bytes(r.take(4 * r.count(what, 4), what))

    return shader


def _webgpu(r: BlobReader) -> Payload:
    functions = r.functions()
    return DeviceCode("wgsl", functions, sources=r.mapping("shader", r.raw))


def _factory(r: BlobReader) -> Payload:
    graph = r.text("graph JSON")
    count = r.count("number of parameters", 8)
    params = r.arrays(r.texts("parameter name", SMALLEST_ARRAY), count)
    return Factory(graph, params, r.text("module name"))


def _constants(r: BlobReader) -> Payload:
    constants = r.texts("constant name", SMALLEST_ARRAY)
    arrays = r.arrays(constants, r.count("number of constants", 8))
    names = r.texts("function name")
    count = r.count("number of constant lists", 8)
    if count != len(names):
        raise r.error(f"{len(names)} functions but {count} lists of constants")
    return Constants(arrays, {name: tuple(r.texts(f"constants of {name}")) for name in names})


def _c_source(r: BlobReader) -> Payload:
    code, kind = r.text("C source"), r.text("format")
    return CSource(code, kind, tuple(r.texts("function name")), tuple(r.texts("constant name")))


def _bytes(r: BlobReader) -> Payload:
    return Opaque(r.raw("payload"))


_LEGACY: Mapping[str, Callable[[BlobReader], Payload]] = {
    **dict.fromkeys(("cuda", "opencl", "hip", "hsaco", "rocm", "hexagon"), _program),
    "metal": _metal,
    "vulkan": _vulkan,
    "webgpu": _webgpu,
    **dict.fromkeys(("GraphExecutorFactory", "GraphRuntimeFactory"), _factory),
    **dict.fromkeys(("metadata", "const_loader"), _constants),
    "c": _c_source,
    **dict.fromkeys(("VMExecutable", "relax.Executable", "stackvm", "aot_metadata"), _bytes),
}
"""Kinds whose payload has no length of its own: only what is listed can be read past."""


def read_device_code(kind: str, data: bytes) -> DeviceCode:
    """Kernels of a modern module (0.21 and newer), whose bytes :class:`Opaque` holds.

    Raises
    ------
    ArtifactError
        Not a kind of device code, or damaged.
    """
    r = BlobReader(data, f"'{kind}' module", extra_tags=True)
    if kind in ("opencl", "cuda", "rocm", "hip", "hsaco", "hexagon"):
        made = DeviceCode(r.text("format"), r.functions(), r.raw("code"))
    elif kind in ("metal", "vulkan", "webgpu"):
        name, functions = r.text("format"), r.functions()
        made = DeviceCode(name, functions, sources=r.mapping("shader", r.raw))
    else:
        raise ArtifactError(f"modules of kind '{kind}' hold no device code")
    r.finish()
    return made


def device_code_bytes(code: DeviceCode) -> bytes:
    """Kernels as TVM 0.22 and newer write them, whatever they came from: what
    :func:`read_device_code` reads, and ``Device.load`` takes under the module's kind."""
    parts = [_text(code.format), _map(code.functions, _info)]
    parts.append(_map(code.sources, _text) if code.sources else _text(code.code))
    return b"".join(parts)


def _text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return len(raw).to_bytes(8, "little") + raw


def _map(table: Mapping[str, Any], item: Callable[[Any], bytes]) -> bytes:
    pairs = b"".join(_text(name) + item(value) for name, value in table.items())
    return len(table).to_bytes(8, "little") + pairs


def _info(info: FunctionInfo) -> bytes:
    rows = (
        [type_bytes(name) for name in info.arg_types],
        [_text(tag) for tag in info.launch_tags],
        [struct.pack("<i", tag) for tag in info.extra_tags],
    )
    lists = [len(row).to_bytes(8, "little") + b"".join(row) for row in rows]
    return _text(info.name) + b"".join(lists)


# ---------------------------------------------------------------- blobs


def _content(blob: Any, what: str) -> BlobReader:
    r = BlobReader(blob, what)
    size = r.word("size")
    if size > r.left:
        raise r.error(f"its size is {size}, but {r.left} bytes follow")
    return BlobReader(r.data[: r.offset + size], what, offset=r.offset)


def read_legacy_blob(blob: bytes | memoryview) -> ModuleTree:
    """Read ``__tvm_dev_mblob``, its leading size included.

    Raises
    ------
    ArtifactError
        Truncated, damaged, or with a kind of module whose length nobody knows; says where.
    """
    r = _content(blob, "device blob")
    count = _limited(r, r.count("number of modules", 8))
    nodes: list[Node] = []
    rows: Words | None = None
    children: Words = np.empty(0, np.uint64)
    for i in range(count):
        if rows is not None:
            raise r.error("modules follow the import tree")
        start, kind = r.offset, r.text("module kind")
        if kind == _TREE:
            rows, children = r.words("import tree"), r.words("import tree")
        elif kind == LIBRARY:
            nodes.append(Node(kind, None))
        else:
            read = _LEGACY.get(kind)
            if read is None:
                raise r.error(
                    f"module {i} is of kind '{kind:.60}', whose payload has no length; known are "
                    f"{', '.join(_LEGACY)}",
                    start,
                )
            nodes.append(Node(kind, read(r)))
    r.finish()
    if rows is None:  # until 0.6: the library imports them all
        return ModuleTree((Node(LIBRARY, None, tuple(range(1, len(nodes) + 1))), *nodes))
    return _tree(r, nodes, rows, children)


def read_modern_blob(blob: bytes | memoryview) -> ModuleTree:
    """Read ``__tvm_ffi__library_bin``, its leading size included.

    Kinds are not looked into: every payload is :class:`Opaque`. Raises as
    :func:`read_legacy_blob`.
    """
    r = _content(blob, "library blob")
    rows, children = r.words("import tree"), r.words("import tree")
    count = _limited(r, len(rows) - 1)
    nodes = []
    for _ in range(count):
        kind = r.text("module kind")
        nodes.append(Node(kind, None if kind == LIBRARY else _bytes(r)))
    r.finish()
    return _tree(r, nodes, rows, children)


def _limited(r: BlobReader, count: int) -> int:
    if not 0 < count <= _MAX_MODULES:
        raise r.error(f"it has {count} modules; 1 to {_MAX_MODULES} are possible")
    return count


def _tree(r: BlobReader, nodes: list[Node], rows: Words, children: Words) -> ModuleTree:
    """Nodes with their imports, which may share modules but form no cycle."""
    fits = (
        len(rows) == len(nodes) + 1
        and rows[0] == 0
        and rows[-1] == len(children)
        and bool((rows[:-1] <= rows[1:]).all())
        and bool((children < len(nodes)).all())
        and sum(node.kind == LIBRARY for node in nodes) <= 1
    )
    if not fits or not nodes:
        raise r.error(f"the import tree does not fit {len(nodes)} modules")
    bounds = rows.tolist()
    imports = [tuple(children[a:b].tolist()) for a, b in pairwise(bounds)]
    if _has_cycle(imports):
        raise r.error("modules of the import tree import each other")
    return ModuleTree(
        tuple(Node(n.kind, n.payload, i) for n, i in zip(nodes, imports, strict=True))
    )


def _has_cycle(imports: list[tuple[int, ...]]) -> bool:
    """Whether any node is left when those without imports are taken away again and again."""
    waiting = {i: set(children) for i, children in enumerate(imports)}
    parents: dict[int, list[int]] = {}
    for i, children in enumerate(imports):
        for child in set(children):
            parents.setdefault(child, []).append(i)
    free = [i for i, children in waiting.items() if not children]
    while free:
        done = free.pop()
        waiting.pop(done)
        for parent in parents.get(done, ()):
            waiting[parent].discard(done)
            if not waiting[parent]:
                free.append(parent)
    return bool(waiting)
