"""Libraries that TVM itself compiled: what they are, what they compute, what they refuse."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import packhorse as ph
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ArtifactError,
    DeviceClosed,
    FunctionNotFound,
)
from packhorse.module import EmbeddedModule, NativeModule
from packhorse.module_blob import Factory, Opaque

DATA = Path(__file__).parent / "data" / "tvm"
LEGACY, MODERN = DATA / "legacy_myadd", DATA / "modern_myadd"
CONVNET, CONVNET_C = DATA / "convnet", DATA / "convnet_c"
ADDS = [
    (LEGACY / "deploy.so", "myadd"),
    (LEGACY / "deploy_par.so", "myadd_par"),
    (LEGACY / "deploy_c.so", "myadd"),
    (MODERN / "deploy.so", "myadd"),
]
CHECKED = [ADDS[0], ADDS[1], ADDS[3]]
"""Those whose library says what they take, or that check by themselves."""


def vectors(path):
    return (np.load(path.parent / f"{name}.npy") for name in "abc")


# ---------------------------------------------------------------- what they are


@pytest.mark.parametrize(
    ("path", "abi", "generation", "functions", "entry"),
    [
        (LEGACY / "deploy.so", "legacy", "TVM 0.2 to 0.20", ["myadd", "__tvm_main__"], True),
        (LEGACY / "deploy_c.so", "legacy", "TVM 0.2 to 0.20", ["myadd", "__tvm_main__"], True),
        (MODERN / "deploy.so", "ffi", "TVM 0.24 or newer", ["main", "myadd"], True),
        (CONVNET_C / "deploy.so", "legacy", "TVM 0.8 to 0.19", None, False),
        (DATA / "relax_dyn_compiled" / "deploy.so", "ffi", "TVM 0.26 or newer", None, False),
    ],
    ids=lambda value: value.parent.name if isinstance(value, Path) else None,
)
def test_what_a_library_is(path, abi, generation, functions, entry):
    root = ph.load_module(path)
    lib = root if isinstance(root, NativeModule) else root.imports[0]
    assert (root.abi, lib.abi, root.generation) == (abi, abi, generation)
    assert functions is None or sorted(lib.functions) == sorted(functions)
    assert (lib._entry_name() is not None) == entry
    text = "\n".join(root.describe())
    assert f"abi: {abi}\ncompiled by: {generation}\n" in text
    assert all(word in text for word in ("module: ", "entry: ", "functions: ", "imports: "))


def test_describe_shows_what_functions_take():
    text = ph.load_module(LEGACY / "deploy.so").describe()
    assert "  myadd(A: float32[?], B: float32[?], C: float32[?])" in text


def test_modules_within():
    factory = ph.load_module(CONVNET / "deploy_factory.so")
    assert factory.kind in ("GraphExecutorFactory", "factory") or factory.imports
    (lib,) = factory.imports
    assert lib.abi == "legacy"
    assert "tvmgen_default_fused_nn_softmax" in lib
    found = factory.get_function("tvmgen_default_fused_nn_softmax", query_imports=True)
    assert found.address == lib["tvmgen_default_fused_nn_softmax"].address


def test_payloads_within():
    from packhorse.module_blob import read_legacy_blob, read_modern_blob
    from packhorse.native import Library

    blob = Library(CONVNET / "deploy_factory.so").read_blob()
    root, lib = read_legacy_blob(blob).nodes
    assert (root.kind, root.imports, lib.kind, lib.payload) == (
        *("GraphExecutorFactory", (1,), "_lib"),
        None,
    )
    assert isinstance(root.payload, Factory)
    assert root.payload.module_name == "default"
    assert root.payload.graph_json.startswith("{")
    assert len(root.payload.params) == 4
    assert all(not array.flags.writeable for array in root.payload.params.values())
    blob = Library(DATA / "relax_convnet" / "deploy.so").read_blob()
    root, lib = read_modern_blob(blob).nodes
    assert (root.kind, lib.kind) == ("relax.VMExecutable", "_lib")
    assert isinstance(root.payload, Opaque)
    assert (
        root.payload.data[:8]
        in (
            b"\x1d\x15\x14\x42\xde\xf2\x25\xd2",
            b"\x1e\x15\x14\x42\xde\xf2\x25\xd2",
        )
        or root.payload.data
    )


# ---------------------------------------------------------------- what they compute


@pytest.mark.parametrize(("path", "name"), ADDS, ids=lambda v: getattr(v, "stem", v))
@pytest.mark.parametrize("wrap", [ph.tensor, np.asarray, lambda x: np.concatenate([x, x])[100:]])
def test_same_bits_as_tvm(path, name, wrap):
    a, b, expected = vectors(path)
    module = ph.load_module(path)
    for function in (module[name], module.entry, module):
        out = ph.empty(expected.shape)
        function(wrap(a), wrap(b), out)
        np.testing.assert_array_equal(out.numpy(), expected)
    given = wrap(np.zeros_like(expected))
    bound = module[name].bind(a, b, given)
    for threads in (1, 2):
        bound.threads = threads
        bound()
        np.testing.assert_array_equal(np.asarray(given), expected)


def test_targets_agree():
    """The same layer by TVM's llvm and c targets; the c one imports workspace functions."""
    name = "tvmgen_default_fused_nn_softmax"
    x = ph.tensor(np.random.default_rng(0).standard_normal((1, 10)).astype("float32"))
    outs = []
    for folder in (CONVNET, CONVNET_C):
        out = ph.empty(x.shape)
        ph.load_module(folder / "deploy.so")[name](x, out)
        outs.append(out.numpy())
    np.testing.assert_allclose(*outs, rtol=1e-6)
    assert outs[0].sum() == pytest.approx(1)


def test_kernels_of_a_relax_executable():
    root = ph.load_module(DATA / "relax_dyn_bytecode" / "deploy.so")
    (lib,) = root.imports
    x = ph.tensor(np.array([[-1, 2, -3, 4]], "float32"))
    with pytest.raises(ArgumentValueError, match=r"relu"):
        lib["relu"](x, ph.empty((4,)))


def test_compiled_bytecode_lacks_its_builtins():
    (lib,) = ph.load_module(DATA / "relax_dyn_compiled" / "deploy.so").imports
    assert "__vmtir__main" in lib
    with pytest.raises(FunctionNotFound, match=r"calls 'vm\.builtin\.\w+', which is neither"):
        lib["__vmtir__main"](None, None, None, None)


# ---------------------------------------------------------------- what they refuse

A = np.ones(100, "float32")


@pytest.mark.parametrize(("path", "name"), CHECKED, ids=lambda v: getattr(v, "stem", v))
@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((A, A), (ArgumentValueError, ArgumentTypeError)),
        ((A, A, A, A), (ArgumentValueError, ArgumentTypeError)),
        ((A, 1, A), ArgumentTypeError),
        ((A, "x", A), ArgumentTypeError),
        ((None, A, A), (ArgumentTypeError, ArgumentValueError)),
        ((A.astype("float64"), A, A), ArgumentTypeError),
        ((A, A, A.reshape(4, 25)), ArgumentValueError),
    ],
    ids=["few", "many", "int", "str", "none", "dtype", "rank"],
)
def test_wrong_arguments(path, name, args, error):
    function = ph.load_module(path)[name]
    for call in (lambda: function(*args), lambda: function.bind(*args)()):
        with pytest.raises(error, match=name):
            call()
    out = ph.empty(100)
    function(A, A, out)
    assert (out.numpy() == 2).all()


def test_messages_of_wrong_arguments():
    old, new = (ph.load_module(p)["myadd"] for p in (LEGACY / "deploy.so", MODERN / "deploy.so"))
    with pytest.raises(ArgumentValueError, match=r"'myadd' takes 3 arguments \(A, B, C\), found 1"):
        old(A)
    with pytest.raises(ArgumentTypeError, match=r"1 \(B\) of .* must be of dtype float32, found f"):
        old(A, A.astype("f8"), A)
    with pytest.raises(ArgumentTypeError, match=r"0 \(A\) of .* must be a Tensor .*, found int"):
        old(1, A, A)
    with pytest.raises(ArgumentValueError, match=r"2 \(C\) of .* must have 1 dimensions, found sh"):
        old(A, A, ph.empty((100, 1)))
    with pytest.raises(ArgumentValueError, match=r"B.shape\[0\] on argument #1 when calling"):
        new(A, A[:50], A)


def test_closed_tensors_are_refused():
    for path in (LEGACY, MODERN):
        function, x = ph.load_module(path / "deploy.so")["myadd"], ph.tensor(A)
        out = ph.empty(100)
        function(x, x, out)
        x.close()
        with pytest.raises(DeviceClosed, match="after close"):
            function(x, A, out)


@pytest.mark.parametrize(("path", "name"), ADDS, ids=lambda v: getattr(v, "stem", v))
def test_tensors_on_other_devices_are_refused(path, name):
    class Device:
        name, dlpack_device = "far:0", (2, 0)

    class Memory:
        nbytes, address = 400, 128

        def close(self):
            pass

    function = ph.load_module(path)[name]
    far = ph.Tensor.from_memory(Memory(), Device(), (100,), "float32")
    for call in (lambda: function(A, far, A), lambda: function.bind(A, far, A)()):
        with pytest.raises(ArgumentTypeError, match=r"argument 1: .* lies on far:0 .* host code"):
            call()


def test_bound_calls_keep_their_tensors():
    """A bound call keeps its tensors: closing one meanwhile is safe."""
    function, x, out = ph.load_module(MODERN / "deploy.so")["myadd"], ph.tensor(A), ph.empty(100)
    bound, seen = function.bind(x, x, out), out.numpy()
    x.close()
    out.close()
    bound()
    assert (seen == 2).all()


@pytest.mark.parametrize("cut", [0, 8, 20, 100, 1000])
def test_a_damaged_blob_is_an_artifact_error(tmp_path, cut):
    """The library itself is whole; what it has within is not."""
    whole = bytearray((CONVNET / "deploy_factory.so").read_bytes())
    at = whole.find(b"GraphExecutorFactory") - 24
    whole[at + cut : at + cut + 8] = b"\xff" * 8
    path = tmp_path / "f.so"
    path.write_bytes(whole)
    with pytest.raises(ArtifactError, match=r"f\.so' cannot be used: .* at offset \d+"):
        ph.load_module(path)


# ---------------------------------------------------------------- beside TVM

BESIDE = """
import sys
first, second, path = sys.argv[1:]
def load(name):
    if name == "tvm_ffi":
        import tvm_ffi
        def theirs(m):
            import numpy as np
            a = np.ones(100, "float32"); c = np.zeros(100, "float32")
            m["myadd"](tvm_ffi.from_dlpack(a), tvm_ffi.from_dlpack(a), tvm_ffi.from_dlpack(c))
            assert (c == 2).all()
            try: m["myadd"](1, 2, 3)
            except TypeError: pass
            else: raise AssertionError("no error")
        return lambda: theirs(tvm_ffi.load_module(path))
    import packhorse as ph
    def ours(m):
        out = ph.empty(100); one = ph.tensor([1.0] * 100, "float32")
        m["myadd"](one, one, out)
        assert (out.numpy() == 2).all()
        try: m["myadd"](1, 2, 3)
        except TypeError: pass
        else: raise AssertionError("no error")
    return lambda: ours(ph.load_module(path))
calls = [load(first), load(second)]
for call in (*calls, *reversed(calls)): call()
print("both")
"""


@pytest.mark.parametrize("order", [("tvm_ffi", "packhorse"), ("packhorse", "tvm_ffi")])
def test_tvm_in_the_same_process(order):
    pytest.importorskip("tvm_ffi")
    command = [sys.executable, "-c", BESIDE, *order, str(MODERN / "deploy.so")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "both", done.stderr


def test_embedded_modules_without_a_maker():
    module = EmbeddedModule("npu", Opaque(b"x"))
    assert (module.functions, module.abi, module.kind) == ([], None, "npu")
    assert module.describe()[0] == "module: npu (npu)"
