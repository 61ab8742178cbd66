"""Writes the blobs TVM appends to libraries: each field as TVM's ``SaveToBinary`` writes it."""

import struct

import numpy as np

from packhorse.dtype import legacy_code


def u64(value):
    return struct.pack("<Q", value)


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return u64(len(raw)) + raw


def listed(items, write=text):
    return u64(len(items)) + b"".join(write(item) for item in items)


def mapped(items, write=text):
    return u64(len(items)) + b"".join(text(k) + write(v) for k, v in items.items())


def info(types=((3, 64, 1), (0, 32, 1)), tags=("blockIdx.x", "threadIdx.x"), name="k", extra=None):
    """A FunctionInfo; ``extra``: the field 0.21 added."""
    made = text(name) + listed(types, lambda t: struct.pack("<BBH", *t)) + listed(tags)
    return made if extra is None else made + listed(extra, lambda i: struct.pack("<i", i))


def ndarray(array):
    head = struct.pack("<QQiii", 0xDD5E40F096B4A13F, 0, 1, 0, array.ndim)
    head += struct.pack("<BBH", *legacy_code(array.dtype))
    return head + struct.pack(f"<{array.ndim + 1}q", *array.shape, array.nbytes) + array.tobytes()


def tree(children):
    """A compressed list of the children of each module."""
    rows = np.cumsum([0, *map(len, children)]).tolist()
    return listed(rows, u64) + listed([c for each in children for c in each], u64)


def sized(content):
    return u64(len(content)) + content


def legacy(*entries, children=None):
    """``__tvm_dev_mblob`` of (kind, payload) pairs."""
    parts = [text(kind) + payload for kind, payload in entries]
    if children is not None:
        parts.append(text("_import_tree") + tree(children))
    return sized(u64(len(parts)) + b"".join(parts))


def modern(*entries, children):
    """``__tvm_ffi__library_bin`` of (kind, payload or None) pairs."""
    parts = [text(kind) + (b"" if data is None else text(data)) for kind, data in entries]
    return sized(tree(children) + b"".join(parts))


LIB = ("_lib", b"")
OPENCL = ("opencl", text("cl") + mapped({"k": info()}, lambda x: x) + text("__kernel void k()"))
WEIGHTS = {"w": np.arange(6, dtype="float32").reshape(2, 3), "b": np.zeros((0, 3), "int8")}
FACTORY = (
    "GraphExecutorFactory",
    text('{"nodes": []}')
    + u64(len(WEIGHTS))
    + listed(list(WEIGHTS))
    + b"".join(ndarray(a) for a in WEIGHTS.values())
    + text("default"),
)
CONSTANTS = (
    "const_loader",
    listed(list(WEIGHTS))
    + u64(len(WEIGHTS))
    + b"".join(ndarray(a) for a in WEIGHTS.values())
    + listed(["f"])
    + listed([["w", "b"]], listed),
)
PAYLOADS = {
    "opencl": OPENCL,
    "cuda": ("cuda", text("ptx") + mapped({"k": info(name="")}, lambda x: x) + text(b"\x7f\xff")),
    "hexagon": ("hexagon", text("so") + mapped({}, lambda x: x) + text("")),
    "metal old": ("metal", text("metal") + mapped({"k": info()}, lambda x: x) + text("kernel")),
    "metal new": (
        "metal",
        text("0.1.0")
        + mapped({"k": "kernel"})
        + mapped({"k": info()}, lambda x: x)
        + text("metal"),
    ),
    "vulkan": (
        "vulkan",
        text("vulkan")
        + mapped({"k": info()}, lambda x: x)
        + mapped({"k": [1, 2]}, lambda w: b"\1\0\0\0" + listed(w, lambda i: struct.pack("<I", i))),
    ),
    "webgpu": ("webgpu", mapped({"k": info()}, lambda x: x) + mapped({"k": "fn main()"})),
    "factory": FACTORY,
    "old factory": ("GraphRuntimeFactory", FACTORY[1]),
    "constants": CONSTANTS,
    "metadata": ("metadata", CONSTANTS[1]),
    "c": ("c", text("int f;") + text("c") + listed(["f"]) + listed(["w"])),
    "vm": ("VMExecutable", text(b"\0bytecode")),
}
"""One of each kind of the legacy ABI."""
