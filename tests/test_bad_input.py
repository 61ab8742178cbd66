"""Every kind of bad input: a typed error that says what happened, what was found, how to mend it.

The tables hold what a user does wrong, the error it must give and words the message must have.
"""

import errno
import io
import shutil
import struct

import numpy as np
import pytest
from model_kit import (
    DEVICES,
    LLVM,
    NEEDS_LLVM,
    NEEDS_ONNX,
    batch_of,
    linear,
    linear_of,
    pair,
    run_python,
    save_onnx,
    value,
)

import packhorse as ph
from packhorse import errors as e
from packhorse.graph.ir import Graph, Node
from packhorse.model import Model

A = np.ones((2, 3), np.float32)
SHAPES = {"x": (2, 4)}


def refused(kind, call, *words):
    """The call must raise exactly this error, with all of these words in its message."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert isinstance(caught.value, e.PackhorseError)
    for word in words:
        assert word in str(caught.value)


# ---------------------------------------------------------------- inputs of a call

INPUTS = {
    "wrong name": (
        ((A,), {"rigth": A}),
        e.ArgumentValueError,
        ("'rigth'", "did you mean 'right'", "takes left, right"),
    ),
    "missing": (((A,), {}), e.ArgumentValueError, ("'right' is missing", "left, right")),
    "none": (((), {}), e.ArgumentValueError, ("'left' is missing",)),
    "too many": (((A, A, A), {}), e.ArgumentValueError, ("3 inputs", "takes 2: left, right")),
    "twice": (((A, A), {"left": A}), e.ArgumentValueError, ("'left' was given twice",)),
    "rank": (
        ((A[0], A[0]), {}),
        e.ArgumentValueError,
        ("'left' has shape (3,)", "wants (n, 3)", "left[None]"),
    ),
    "shape": (((A[:, :2], A), {}), e.ArgumentValueError, ("'left'", "(2, 2)", "wants (n, 3)")),
    "batches differ": (
        ((A, A[:1]), {}),
        e.ArgumentValueError,
        ("dimension 'n' is 1 in input 'right' but 2 in input 'left'", "equal"),
    ),
    "float64": (
        ((A, A.astype(float)), {}),
        e.ArgumentTypeError,
        ("'right' is float64", "wants float32", "right.astype('float32')"),
    ),
    "int": (((A.astype(int), A), {}), e.ArgumentTypeError, ("int64", ".astype('float32')")),
    "complex": (((A.astype(complex), A), {}), e.ArgumentTypeError, ("complex128", "float32")),
    "other byte order": (
        ((A.astype(">f4"), A), {}),
        e.ArgumentTypeError,
        (">f4", ".astype('float32')"),
    ),
    "text": ((("a.npy", A), {}), e.ArgumentTypeError, ("'left' is str", "NumPy array")),
    "nothing": (((None, A), {}), e.ArgumentTypeError, ("'left' is NoneType", "NumPy array")),
    "objects": (((A, [object()]), {}), e.ArgumentTypeError, ("'right' is list", "__dlpack__")),
    "a file": (((io.BytesIO(), A), {}), e.ArgumentTypeError, ("'left' is BytesIO",)),
    "ragged lists": ((([[1, 2], [3]], A), {}), e.ArgumentTypeError, ("'left' cannot be",)),
    "a misspelt option": (((A, A), {"devise": "cpu"}), e.ArgumentValueError, ("'devise'",)),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("device", DEVICES)
def test_inputs_of_a_model(device, name):
    (args, inputs), kind, words = INPUTS[name]
    refused(kind, lambda: pair()(*args, device=device, **inputs), *words)


EXECUTABLE_SAYS = {  # the executor names the fixed shape, and what to do
    "rank": ("'left'", "(2, 3)", "found (3,)"),
    "shape": ("'left'", "(2, 3)", "found (2, 2)", "compile for that shape"),
    "batches differ": ("'right'", "(2, 3)", "found (1, 3)"),
}


@NEEDS_LLVM
@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_an_executable(name):
    (args, inputs), kind, words = INPUTS[name]
    if kind is e.ArgumentTypeError and "float32" in " ".join(words):
        words = ("float32", "found")
    made = pair(2).compile(LLVM)
    refused(kind, lambda: made(*args, **inputs), *EXECUTABLE_SAYS.get(name, words))


# ---------------------------------------------------------------- devices

FAR = "Installed: "
NAMES = {
    "unknown": ("nope", e.UnknownBackend, ("no backend 'nope'", FAR, "cpu")),
    "misspelt": ("llvmcpu", e.UnknownBackend, ("did you mean 'llvm-cpu'",)),
    "index": ("cpu:1", e.DeviceUnavailable, ("cpu:1", "does not exist", "Use 'cpu:0'")),
    "option": ("cpu?thread=1", e.DeviceStringError, ("'thread'", "did you mean 'threads'")),
    "option value": ("cpu?threads=0", e.DeviceStringError, ("threads=0", "at least 1")),
    "option twice": ("cpu?threads=1&threads=2", e.DeviceStringError, ("given twice",)),
    "empty": ("", e.DeviceStringError, ("empty", "write for example 'cpu'")),
    "a space": ("cpu :0", e.DeviceStringError, ("space", "remove it")),
    "a protocol": ("http://far/cpu", e.DeviceStringError, ("http://", "rpc://")),
    "not text": (3, e.ArgumentTypeError, ("not int",)),
    "none of a list": ("nope,gone", e.DeviceUnavailable, ("none of the devices", "no backend")),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "use",
    [
        lambda device: pair()(A, A, device=device),
        lambda device: pair(2).compile(device),
        lambda device: ph.device(device),
    ],
    ids=["call", "compile", "device"],
)
def test_devices(use, name):
    device, kind, words = NAMES[name]
    refused(kind, lambda: use(device), *words)


def test_an_unfit_default_is_an_error_not_another_device(monkeypatch):
    monkeypatch.setenv("PACKHORSE_DEVICE", "nope:0")
    refused(e.UnknownBackend, lambda: pair()(A, A), "PACKHORSE_DEVICE=nope:0: no backend 'nope'")


def test_a_closed_device_is_refused():
    device = ph.device("cpu?threads=1")
    device.close()
    refused(e.DeviceError, lambda: pair()(A, A, device=device), "closed", "open it again")
    assert pair()(A, A, device="cpu?threads=1")[0].shape == (2, 3)  # by name it is opened again


# ---------------------------------------------------------------- packages that are not there


@NEEDS_LLVM
def test_without_llvmlite():
    out = run_python(
        """
        import numpy as np, packhorse as ph
        from packhorse.errors import MissingExtra
        try:
            ph.device("llvm-cpu")
        except MissingExtra as error:
            print(error)
        row = next(row for row in ph.devices() if row.backend == "llvm-cpu")
        print(row.status, row.fix)
        print(ph.device("auto").name)
        """,
        without=("llvmlite",),
        env={"PACKHORSE_DISABLE": "opencl"},
    )
    message, row, best = out.splitlines()
    assert "'llvmlite', which is not installed" in message
    assert "pip install 'packhorse[llvm-cpu]'" in message
    assert "not installed" in row
    assert "pip install 'packhorse[llvm-cpu]'" in row
    assert best == "cpu:0"


def test_without_onnx(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a")
    out = run_python(
        """
        import packhorse as ph
        from packhorse.errors import MissingExtra
        try:
            ph.load(sys.argv[1])
        except MissingExtra as error:
            print(error)
        """,
        str(tmp_path / "model.onnx"),
        without=("onnx",),
    )
    assert "'onnx', which is not installed" in out
    assert "pip install 'packhorse[onnx]'" in out


PLUGINS = """
    import packhorse as ph
    print([row.backend for row in ph.devices() if row.status != "not installed"])
    try:
        print(ph.device("llvm-cpu").name)
    except ph.PackhorseError as error:
        print(type(error).__name__, error)
"""


@NEEDS_LLVM
@pytest.mark.parametrize(
    ("env", "backends", "words"),
    [
        ({"PACKHORSE_DISABLE": "opencl"}, "['llvm-cpu', 'cpu']", "llvm-cpu:0"),
        ({"PACKHORSE_PLUGINS": "off"}, "['cpu']", "PACKHORSE_PLUGINS switches it off"),
        ({"PACKHORSE_PLUGINS": "llvm-cpu"}, "['llvm-cpu', 'cpu']", "llvm-cpu:0"),
        ({"PACKHORSE_DISABLE": "llvm-cpu,opencl"}, "['cpu']", "PACKHORSE_DISABLE switches it off"),
    ],
)
def test_plugins_switched_off(env, backends, words):
    found, said = run_python(PLUGINS, env=env).splitlines()
    assert found == backends
    assert words in said


def test_a_broken_plugin_does_no_harm(site):
    from plugin_kit import write_dist

    write_dist(site, "ph-broken", "ph_broken", "import no_such_module_anywhere")
    code = """
        import numpy as np, packhorse as ph
        print(next(row.reason for row in ph.devices() if row.backend == "broken"))
        try:
            ph.device("broken")
        except ph.PackhorseError as error:
            print(type(error).__name__, error)
        print(ph.device("cpu").name, ph.device("auto").name != "broken:0")
    """
    row, error, others = run_python(code).splitlines()
    assert "no_such_module_anywhere" in row
    assert error.startswith("PluginLoadError")
    assert "ph-broken 1.2" in error
    assert "pip uninstall ph-broken" in error
    assert others == "cpu:0 True"


# ---------------------------------------------------------------- model files

FILES = {
    "empty": (b"", ("is empty",)),
    "text": (b"this is no model at all, but prose", ("not an ONNX model but text",)),
    "json": (b'{"nodes": []}', ("a JSON file",)),
    "zip": (b"PK\x03\x04" + bytes(60), ("a zip archive",)),
    "elf": (b"\x7fELF" + bytes(60), ("shared library", "load_module")),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", ("Git LFS", "git lfs pull")),
    "announces 2 GB": (b"\x08\x0a\x3a" + b"\xff\xff\xff\xff\x07" + bytes(50), ("announces",)),
}


@NEEDS_ONNX
@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_models(tmp_path, name):
    content, words = FILES[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refused(e.ModelFormatError, lambda: ph.load(path), *words)


@NEEDS_ONNX
def test_truncated_and_damaged_models(tmp_path):
    raw = save_onnx(tmp_path / "good.onnx").read_bytes()
    path = tmp_path / "bad.onnx"
    for cut in range(1, len(raw)):
        path.write_bytes(raw[:cut])
        with pytest.raises(e.ModelError):
            ph.load(path)
    for at in range(len(raw)):  # a flipped byte may go unnoticed; it may not crash
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :])
        try:
            ph.load(path)
        except e.PackhorseError:
            continue


@NEEDS_ONNX
@pytest.mark.parametrize("dims", [(2**40,), (2**31, 2**31, 2**31), (-1,)])
def test_weights_that_declare_more_than_is_there(tmp_path, dims):
    import onnx

    path = save_onnx(tmp_path / "m.onnx", "Add", inputs=(("x", (2, 3)), ("w", (3,))))
    model = onnx.load(path)
    weight = model.graph.initializer.add()
    weight.name, weight.data_type, weight.raw_data = "w", 1, bytes(12)
    weight.dims.extend(dims)
    del model.graph.input[1]
    onnx.save(model, path)
    refused(e.ModelFormatError, lambda: ph.load(path), "'w'")


@NEEDS_ONNX
@pytest.mark.parametrize(
    ("op", "domain", "words"),
    [
        ("Relut", "", ("Relut", "'only'", "did you mean 'Relu'")),
        ("FancyNorm", "com.acme", ("com.acme::FancyNorm", "'only'")),
    ],
)
def test_operators_nothing_can_run(tmp_path, op, domain, words):
    path = save_onnx(tmp_path / "m.onnx", op, domain)
    refused(e.UnsupportedOperator, lambda: ph.load(path), "does not implement", *words)


def test_paths_that_lead_nowhere(tmp_path):
    refused(
        e.ModelFormatError,
        lambda: ph.load(tmp_path / "gone.onnx"),
        "gone.onnx' does not exist",
        "path of a model file",
    )
    refused(e.ArtifactError, lambda: ph.load(tmp_path), "has no deploy.json")
    refused(e.ArgumentTypeError, lambda: ph.load(None), "path", "None")
    refused(e.ArgumentTypeError, lambda: ph.load(b"model.onnx"), "path", "bytes")
    for name, words in {
        "model.pt": ("no frontend reads 'model.pt'", "format="),
        "deploy.json": ("part of an artifact", "load its folder"),
        "deploy.params": ("part of an artifact", "load its folder"),
    }.items():
        (tmp_path / name).write_bytes(b"x")
        refused(e.ModelFormatError, lambda name=name: ph.load(tmp_path / name), *words)
    (tmp_path / "deploy.so").write_bytes(b"x")
    refused(e.ArtifactError, lambda: ph.load(tmp_path / "deploy.so"), "not an ELF file", "again")
    refused(
        e.ModelError,
        lambda: ph.load(tmp_path / "model.pt", format="no-such-format"),
        "no frontend 'no-such-format'",
    )


# ---------------------------------------------------------------- models that cannot run


@pytest.mark.parametrize("device", DEVICES)
def test_a_node_that_fails_is_named(device):
    nodes = [Node("MatMul", ["x", "z"], ["y"], name="product")]
    graph = Graph("g", [value("x", (2, 3)), value("z", (4, 5))], [value("y", (2, 5))], nodes, {})
    z = np.ones((4, 5), np.float32)
    refused(e.ModelError, lambda: Model(graph)(A, z, device=device), "'product' (MatMul)", "3", "4")


@pytest.mark.parametrize("device", DEVICES)
def test_an_operator_nobody_knows_is_named(device):
    nodes = [Node("Relut", ["x"], ["y"], name="act")]
    graph = Graph("g", [value("x", (2, 3))], [value("y", (2, 3))], nodes, {})
    refused(
        e.UnsupportedOperator,
        lambda: Model(graph)(A, device=device),
        "'act' (Relut)",
        "did you mean 'Relu'",
    )


@pytest.mark.parametrize("device", DEVICES)
def test_shapes_too_large_for_any_machine(device):
    nodes = [Node("Expand", ["x", "shape"], ["y"], name="bomb")]
    for size in (2**44, 2**62):
        graph = Graph("g", [value("x", (1,))], [value("y", ("n",))], nodes, {})
        graph.constants["shape"] = np.array([size])
        kind, words = e.ModelError, ("'bomb' (Expand)",)
        if device == LLVM:  # known before anything is compiled
            kind, words = e.DeviceMemoryError, ("GiB", "Use smaller inputs")
        call = Model(graph)
        refused(kind, lambda call=call: call(np.ones(1, np.float32), device=device), *words)
    refused(
        e.ArgumentValueError,
        lambda: linear().compile(device, shapes={"x": (2**62, 4)}),
        "'x' cannot have the shape",
    )


@pytest.mark.parametrize("shapes", [{"x": 5}, {"x": None}, [(5, 4)], "x", 5])
def test_shapes_that_are_none(shapes):
    refused(
        e.ArgumentTypeError,
        lambda: linear().compile("cpu", shapes=shapes),
        "give sizes by name of the input",
    )


@NEEDS_LLVM
def test_save_without_a_path():
    with linear().compile(LLVM, shapes=SHAPES) as made:
        refused(e.ArgumentTypeError, lambda: made.save(None), "takes a path, not NoneType")


# ---------------------------------------------------------------- artifacts


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder and a file of the same model."""
    folder = tmp_path_factory.mktemp("saved")
    made = linear().compile(LLVM, shapes=SHAPES)
    made.save(folder / "deploy")
    made.save(folder / "model.packhorse")
    return folder


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


CHANGES = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "one byte less": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "one byte changed": flipped,
    "zeros": lambda data: bytes(len(data)),
    "other": lambda data: b"\x7fELF" * 100,
}


@NEEDS_LLVM
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["deploy.json", "deploy.params", "deploy.so"])
def test_damage_to_a_folder(saved, tmp_path, name, change):
    shutil.copytree(saved / "deploy", tmp_path / "deploy")
    path = tmp_path / "deploy" / name
    path.write_bytes(CHANGES[change](path.read_bytes()))
    refused(e.ArtifactError, lambda: ph.load(tmp_path / "deploy"), name)
    path.unlink()
    refused(e.ArtifactError, lambda: ph.load(tmp_path / "deploy"), name)


@NEEDS_LLVM
@pytest.mark.parametrize("change", CHANGES)
def test_damage_to_a_file(saved, tmp_path, change):
    path = tmp_path / "model.packhorse"
    path.write_bytes(CHANGES[change]((saved / "model.packhorse").read_bytes()))
    refused(e.ArtifactError, lambda: ph.load(path))


@NEEDS_LLVM
@pytest.mark.parametrize("change", [c for c in CHANGES if c != "one byte changed"])
@pytest.mark.parametrize("name", ["deploy.json", "deploy.params", "deploy.so"])
def test_damage_without_hashes(saved, tmp_path, name, change):
    """Folders as TVM writes them: no manifest tells that something is wrong."""
    shutil.copytree(saved / "deploy", tmp_path / "deploy")
    (tmp_path / "deploy" / "deploy.manifest.json").unlink()
    path = tmp_path / "deploy" / name
    path.write_bytes(CHANGES[change](path.read_bytes()))
    try:
        y = ph.load(tmp_path / "deploy")(batch_of(2))
    except e.PackhorseError:
        return
    assert change in ("longer", "one byte less")  # bytes that nothing reads
    np.testing.assert_allclose(y, linear_of(batch_of(2)), rtol=1e-5, atol=1e-6)


@NEEDS_LLVM
def test_an_artifact_of_the_future(saved, tmp_path):
    shutil.copytree(saved / "deploy", tmp_path / "deploy")
    path = tmp_path / "deploy" / "deploy.manifest.json"
    text = path.read_text()
    assert '"format_version": 1' in text
    path.write_text(text.replace('"format_version": 1', '"format_version": 999'))
    refused(e.ArtifactError, lambda: ph.load(tmp_path / "deploy"), "999", "pip install -U")


@NEEDS_LLVM
@pytest.mark.parametrize("name", ["deploy", "model.packhorse"])
def test_a_full_disk_leaves_the_old_artifact(saved, tmp_path, monkeypatch, name):
    if name == "deploy":
        shutil.copytree(saved / name, tmp_path / name)
    else:
        shutil.copy(saved / name, tmp_path / name)
    made = linear().compile(LLVM, shapes={"x": (5, 4)})

    def full(path, chunks, mode):
        path.write_bytes(b"the disk holds so much and no more")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("packhorse.artifact_files._write", full)
    refused(
        e.ArtifactError,
        lambda: made.save(tmp_path / name),
        "No space left",
        "bytes are needed",
        "Free some space",
        "unchanged",
    )
    monkeypatch.undo()
    old = ph.load(tmp_path / name)
    np.testing.assert_allclose(old(batch_of(2)), linear_of(batch_of(2)), rtol=1e-5, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == [name]  # nothing is left lying about
    made.save(tmp_path / name)
    assert (tmp_path / name).exists()


@NEEDS_LLVM
def test_a_full_temporary_folder(tmp_path, monkeypatch):
    made = linear().compile(LLVM, shapes=SHAPES)

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    refused(
        e.ArtifactError,
        lambda: made.save(tmp_path / "deploy"),
        "No space left",
        "nothing was saved",
    )
    assert not list(tmp_path.iterdir())


@NEEDS_LLVM
def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("a file where a folder should be")
    made = linear().compile(LLVM, shapes=SHAPES)
    for where in (tmp_path / "file" / "deploy", tmp_path / "file" / "m.packhorse"):
        refused(e.ArtifactError, lambda where=where: made.save(where), "could not be written")
    assert (tmp_path / "file").read_text().startswith("a file")


# ---------------------------------------------------------------- libraries


@NEEDS_LLVM
def test_libraries_that_are_none(saved, tmp_path):
    code = (saved / "deploy" / "deploy.so").read_bytes()
    refused(e.ArtifactError, lambda: ph.load_module(tmp_path / "no.so"), "Check the path")
    for raw in (b"", b"\x7fELF", code[:64], code[: len(code) // 2], bytes(4096)):
        path = tmp_path / f"lib{len(raw)}.so"
        path.write_bytes(raw)
        refused(e.ArtifactError, lambda path=path: ph.load_module(path), path.name)
    foreign = bytearray(code)
    struct.pack_into("<H", foreign, 18, 0xF3)  # e_machine: RISC-V
    (tmp_path / "foreign.so").write_bytes(foreign)
    refused(e.ArtifactError, lambda: ph.load_module(tmp_path / "foreign.so"), "riscv64")
    refused(
        e.ArtifactError,
        lambda: ph.load_module(saved / "model.packhorse"),
        "load_module takes",
        "packhorse.load",
    )


@NEEDS_ONNX
def test_damaged_files_are_named(tmp_path):
    for name, start in (("m.onnx", b"\x08\x07\x12\xff\xff"), ("a.packhorse", b"PK\x03\x04")):
        path = tmp_path / name
        path.write_bytes(start + b"damaged" * 40)
        with pytest.raises(ph.PackhorseError, match=name):
            ph.load(path)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("llvm_cpu", "did you mean 'llvm-cpu'"),
        pytest.param("llvm-cpu?cpu=quantum", "znver4", marks=NEEDS_LLVM),
    ],
)
def test_device_words_with_hints(text, hint):
    with pytest.raises(e.DeviceStringError, match=hint):
        ph.device(text)
