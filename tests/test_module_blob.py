"""The modules within libraries: every kind of payload, the import tree, damage."""

import struct

import numpy as np
import pytest
from blob_kit import (
    FACTORY,
    LIB,
    OPENCL,
    PAYLOADS,
    WEIGHTS,
    info,
    legacy,
    listed,
    mapped,
    modern,
    sized,
    text,
    tree,
    u64,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_kit import compile_c

import packhorse as ph
from packhorse import module as modules
from packhorse.errors import ArgumentTypeError, ArtifactError, MissingExtra
from packhorse.module import DeviceModule, NativeModule, PythonModule, load_module
from packhorse.module_blob import (
    Constants,
    CSource,
    DeviceCode,
    Factory,
    FunctionInfo,
    Node,
    Opaque,
    device_code_bytes,
    read_device_code,
    read_legacy_blob,
    read_modern_blob,
)

K = FunctionInfo("k", ("handle", "int32"), ("blockIdx.x", "threadIdx.x"))
EXPECTED = {
    "opencl": DeviceCode("cl", {"k": K}, b"__kernel void k()"),
    "cuda": DeviceCode("ptx", {"k": K}, b"\x7f\xff"),
    "hexagon": DeviceCode("so", {}, b""),
    "metal old": DeviceCode("metal", {"k": K}, b"kernel"),
    "metal new": DeviceCode("metal", {"k": K}, sources={"k": b"kernel"}),
    "vulkan": DeviceCode("vulkan", {"k": K}, sources={"k": b"\1\0\0\0\2\0\0\0"}),
    "webgpu": DeviceCode("wgsl", {"k": K}, sources={"k": b"fn main()"}),
    "c": CSource("int f;", "c", ("f",), ("w",)),
    "vm": Opaque(b"\0bytecode"),
}


# ---------------------------------------------------------------- payloads


@pytest.mark.parametrize("name", EXPECTED)
def test_payloads(name):
    kind, payload = PAYLOADS[name]
    root, found = read_legacy_blob(legacy(LIB, (kind, payload), children=[[1], []])).nodes
    assert root == Node("_lib", None, (1,))
    assert found == Node(kind, EXPECTED[name], ())


@pytest.mark.parametrize("name", ["factory", "old factory", "constants", "metadata"])
def test_payloads_with_arrays(name):
    nodes = read_legacy_blob(legacy(PAYLOADS[name], LIB, children=[[1], []])).nodes
    payload = nodes[0].payload
    if isinstance(payload, Factory):
        assert (payload.graph_json, payload.module_name) == ('{"nodes": []}', "default")
        arrays = payload.params
    else:
        assert isinstance(payload, Constants)
        assert payload.users == {"f": ("w", "b")}
        arrays = payload.arrays
    assert set(arrays) == set(WEIGHTS)
    for key, array in WEIGHTS.items():
        np.testing.assert_array_equal(arrays[key], array)
        assert arrays[key].dtype == array.dtype
        assert not arrays[key].flags.writeable


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ((0, 8, 1), "int8"),
        ((1, 32, 1), "uint32"),
        ((2, 32, 4), "float32x4"),
        ((1, 1, 1), "bool"),
        ((6, 8, 1), "bool"),
        ((4, 16, 1), "bfloat16"),
        ((9, 8, 1), "type9_8"),
    ],
)
def test_names_of_argument_types(dtype, name):
    functions = mapped({"k": info([dtype])}, lambda x: x)
    blob = legacy(LIB, ("cuda", text("ptx") + functions + text("")), children=[[1], []])
    assert read_legacy_blob(blob).nodes[1].payload.functions["k"].arg_types == (name,)


@pytest.mark.parametrize("kind", ["opencl", "cuda", "rocm", "metal", "vulkan", "webgpu"])
def test_modern_device_code(kind):
    functions = mapped({"k": info(extra=[0, 1])}, lambda x: x)
    whole = kind in ("opencl", "cuda", "rocm")
    data = text("fmt") + functions + (text("code") if whole else mapped({"k": "code"}))
    found = read_device_code(kind, data)
    assert found.functions["k"].extra_tags == (0, 1)
    assert (found.code, found.sources) == ((b"code", {}) if whole else (b"", {"k": b"code"}))
    for cut in range(len(data)):
        with pytest.raises(ArtifactError, match=f"'{kind}' module is damaged at offset"):
            read_device_code(kind, data[:cut])


@pytest.mark.parametrize("kind", ["opencl", "hsaco", "metal"])
def test_device_code_is_written_as_modern_tvm_does(kind):
    types = ("handle", "int32", "bool", "float16x4", "bfloat16", "type9_8", "uint64")
    one = FunctionInfo("name", types, ("blockIdx.x", "threadIdx.y"), (0, -1))
    code = {"code": b"\0text"} if kind != "metal" else {"sources": {"k": b"\xff"}}
    given = DeviceCode("cl", {"k": one, "m": K}, **code)
    assert read_device_code(kind, device_code_bytes(given)) == given
    for cut in range(len(device_code_bytes(given))):
        with pytest.raises(ArtifactError):
            read_device_code(kind, device_code_bytes(given)[:cut])


@pytest.mark.parametrize("name", ["", "float", "int256", "type300_8", "int32x", "void*", "int32 "])
def test_types_of_arguments_that_are_none(name):
    with pytest.raises(ArtifactError, match="which is none"):
        device_code_bytes(DeviceCode("cl", {"k": FunctionInfo("k", (name,), ())}))


def test_modern_modules_that_are_no_device_code():
    with pytest.raises(ArtifactError, match="'npu' hold no device code"):
        read_device_code("npu", b"")


# ---------------------------------------------------------------- trees


def test_a_blob_without_a_tree():
    """Until 0.6 the library imported all that followed."""
    tree = read_legacy_blob(legacy(OPENCL, PAYLOADS["c"]))
    assert [(n.kind, n.imports) for n in tree.nodes] == [
        ("_lib", (1, 2)),
        ("opencl", ()),
        ("c", ()),
    ]
    assert tree.library == 0


def test_modern_trees():
    blob = modern(
        ("relax.VMExecutable", b"code"),
        ("_lib", None),
        ("npu", b"x"),
        children=[[1, 2], [2], []],
    )
    nodes = read_modern_blob(blob).nodes
    assert nodes[0] == Node("relax.VMExecutable", Opaque(b"code"), (1, 2))
    assert [n.imports for n in nodes] == [(1, 2), (2,), ()]


@pytest.mark.parametrize(
    ("blob", "match"),
    [
        (b"", "size needs 8 bytes, 0 are left"),
        (u64(9), "its size is 9, but 0 bytes follow"),
        (sized(u64(0)), "it has 0 modules"),
        (sized(u64(2**60)), r"number of modules is \d+, more than 0 bytes can hold"),
        (legacy(("npu", b"")), "module 0 is of kind 'npu', whose payload has no length; known are"),
        (legacy(LIB, LIB, children=[[], []]), "does not fit 2 modules"),
        (legacy(LIB, OPENCL, children=[[1]]), "does not fit 2 modules"),
        (legacy(LIB, OPENCL, children=[[2], []]), "does not fit 2 modules"),
        (legacy(LIB, OPENCL, children=[[1], [0]]), "import each other"),
        (legacy(LIB, OPENCL, children=[[1], [1]]), "import each other"),
        (legacy(LIB, ("_import_tree", tree([[]])), LIB), "modules follow the import tree"),
        (sized(u64(1) + text("_lib") + b"x"), "1 bytes are left over"),
        (sized(u64(1) + text(b"\xff")), "module kind is not UTF-8"),
        (
            legacy(LIB, (FACTORY[0], FACTORY[1].replace(b"default", b"")), children=[[1], []]),
            "53 are left",
        ),
        (legacy((FACTORY[0], text("{}") + u64(1) + listed([]))), "0 names but 1 arrays"),
        (
            legacy((FACTORY[0], text("{}") + u64(2) + listed(["a", "a"]) + bytes(80))),
            "have the same name",
        ),
        (legacy((FACTORY[0], text("{}") + u64(2) + listed(["a", "b"]))), "more than 18 bytes"),
    ],
)
def test_damaged_legacy_blobs(blob, match):
    with pytest.raises(ArtifactError, match=rf"device blob is damaged at offset \d+: .*{match}"):
        read_legacy_blob(blob)


@pytest.mark.parametrize(
    ("blob", "match"),
    [
        (sized(listed([0], u64) + listed([], u64)), "it has 0 modules"),
        (sized(listed([0, 1], u64) + listed([1], u64) + text("_lib")), "does not fit 1"),
        (sized(listed([1, 1], u64) + listed([], u64) + text("_lib")), "does not fit 1"),
        (sized(listed([0] * 5000, u64) + listed([], u64)), "1 to 4096 are possible"),
        (sized(listed([0, 0], u64) + listed([], u64) + text("npu")), "length of payload needs 8"),
    ],
)
def test_damaged_modern_blobs(blob, match):
    with pytest.raises(ArtifactError, match=rf"library blob is damaged at offset \d+: .*{match}"):
        read_modern_blob(blob)


@pytest.mark.parametrize(
    ("field", "value"), [(0, 1), (16, 2), (24, 33), (24, -1), (28, 77), (32, -1), (48, 3)]
)
def test_damaged_arrays(field, value):
    """Magic, device, rank, dtype, shape and size of an array are checked."""
    payload = bytearray(FACTORY[1])
    start = payload.find(struct.pack("<Q", 0xDD5E40F096B4A13F))
    kind = "<B" if field == 28 else "<i" if field in (16, 24) else "<q"
    struct.pack_into(kind, payload, start + field, value)
    with pytest.raises(ArtifactError, match=r"array 'w'|bytes"):
        read_legacy_blob(legacy((FACTORY[0], bytes(payload))))


# ---------------------------------------------------------------- fuzz

WHOLE = [
    *(legacy(LIB, payload, children=[[1], []]) for payload in PAYLOADS.values()),
    legacy(*PAYLOADS.values()),
]
WHOLE_MODERN = [
    modern(("relax.VMExecutable", b"x" * 50), ("_lib", None), children=[[1], []]),
    modern(("_lib", None), ("opencl", b"abc"), ("npu", b""), children=[[1, 2], [], []]),
]
READERS = [(read_legacy_blob, WHOLE), (read_modern_blob, WHOLE_MODERN)]


@st.composite
def damaged(draw, blobs):
    blob = bytearray(draw(st.sampled_from(blobs)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(blob) - 1))
        if draw(st.booleans()):
            blob[at] = draw(st.integers(0, 255))
        else:
            word = draw(st.sampled_from([0, 1, 7, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
            blob[at : at + 8] = u64(word)
    return bytes(blob[: draw(st.integers(0, len(blob)))] if draw(st.booleans()) else blob)


def read_or_refuse(read, blob):
    """An ArtifactError that names an offset, or a tree whose arrays fit into the blob."""
    try:
        tree = read(blob)
    except (ArtifactError, MissingExtra) as error:
        if isinstance(error, ArtifactError) and "damaged at offset" not in str(error):
            raise
        return
    held = 0
    for node in tree.nodes:
        if isinstance(node.payload, Factory):
            held += sum(a.nbytes for a in node.payload.params.values())
    assert held <= len(blob)


def fuzz(count):
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


@fuzz(300)
@given(damaged(WHOLE))
def test_damaged_blobs_are_refused(blob):
    read_or_refuse(read_legacy_blob, blob)


@fuzz(200)
@given(damaged(WHOLE_MODERN))
def test_damaged_modern_blobs_are_refused(blob):
    read_or_refuse(read_modern_blob, blob)


@pytest.mark.parametrize(
    ("read", "blobs"), [(read_legacy_blob, WHOLE), (read_modern_blob, WHOLE_MODERN)]
)
def test_truncated_at_every_length(read, blobs):
    for blob in blobs:
        read(blob)
        for length in range(len(blob)):
            with pytest.raises(ArtifactError, match="at offset"):
                read(blob[:length])


@pytest.mark.fuzz
@pytest.mark.parametrize(
    ("read", "blobs"), [(read_legacy_blob, WHOLE), (read_modern_blob, WHOLE_MODERN)]
)
def test_many_damaged_blobs(read, blobs):
    """100,000 blobs with a few bytes or words changed, cut at random."""
    random = np.random.default_rng(0)
    words = [0, 1, 7, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
    for _ in range(100_000):
        blob = bytearray(blobs[random.integers(len(blobs))])
        for _ in range(random.integers(1, 5)):
            at = random.integers(len(blob))
            if random.integers(2):
                blob[at] = random.integers(256)
            else:
                blob[at : at + 8] = u64(words[random.integers(len(words))])
        cut = random.integers(len(blob)) if random.integers(2) else len(blob)
        read_or_refuse(read, bytes(blob[:cut]))


# ---------------------------------------------------------------- libraries


def library(tmp_path, blob, symbol="__tvm_dev_mblob", code=""):
    data = ",".join(map(str, blob))
    source = f"const unsigned char {symbol}[] = {{{data}}};\n{code}"
    return compile_c(source, tmp_path / "with_blob.so")


def test_device_kernels(tmp_path):
    lib = load_module(library(tmp_path, legacy(LIB, OPENCL, children=[[1], []])))
    assert isinstance(lib, NativeModule)
    (kernels,) = lib.imports
    assert isinstance(kernels, DeviceModule)
    assert (kernels.functions, kernels.kind) == (["k"], "opencl")
    assert "device kernels: opencl" in lib.describe()
    found = lib.get_function("k", query_imports=True)
    with pytest.raises(ArgumentTypeError, match=r"argument 0 of kernel 'k' .* a device 'opencl'"):
        found(*[0] * len((*kernels.payload.functions["k"].arg_types, *K.launch_tags)))
    assert "x" not in kernels


def test_modern_device_kernels(tmp_path):
    functions = mapped({"k": info(extra=[0, 0])}, lambda x: x)
    blob = modern(
        ("_lib", None), ("cuda", text("cuda") + functions + text("code")), children=[[1], []]
    )
    lib = load_module(library(tmp_path, blob, "__tvm_ffi__library_bin"))
    assert lib.abi == "ffi"
    assert lib.imports[0].functions == ["k"]


def test_kinds_can_be_registered(tmp_path, monkeypatch):
    monkeypatch.setattr(modules, "_makers", dict(modules._makers))

    def make(kind, payload, imports):
        module = PythonModule({"run": lambda: f"{kind} of {len(payload.params)}"})
        for imported in imports:
            module.import_module(imported)
        return module

    path = library(
        tmp_path, legacy(FACTORY, LIB, children=[[1], []]), code="int f(void){return 0;}"
    )
    modules.register_module_kind("GraphExecutorFactory", make)
    root = ph.load_module(path)
    assert root["run"]() == "GraphExecutorFactory of 2"
    assert root.get_function("f", query_imports=True)() is None
    assert root.abi == "legacy"


def test_shared_imports_are_one_module(tmp_path):
    blob = legacy(LIB, OPENCL, PAYLOADS["c"], children=[[1, 2], [2], []])
    root = load_module(library(tmp_path, blob))
    assert root.imports[1] is root.imports[0].imports[0]


def test_a_damaged_library(tmp_path):
    with pytest.raises(ArtifactError, match=r"with_blob\.so' cannot be used: the device blob is"):
        load_module(library(tmp_path, legacy(LIB, OPENCL, children=[[1], []])[:-3]))
