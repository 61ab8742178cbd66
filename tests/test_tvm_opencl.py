"""Kernels inside libraries that TVM compiled for OpenCL: called, run as graphs, refused."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from gpu_kit import opencl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opencl_kit import NO_MEMORY, Failing

import packhorse as ph
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ArtifactError,
    CompileError,
    DeviceClosed,
    DeviceError,
    DeviceMemoryError,
    DeviceUnavailable,
    FunctionNotFound,
)
from packhorse.module import DeviceModule, NativeModule
from packhorse.module_blob import DeviceCode, device_code_bytes, read_device_code
from packhorse.module_blob_reader import FunctionInfo

DATA = Path(__file__).parent / "data" / "tvm"
LEGACY, MODERN = DATA / "opencl" / "legacy", DATA / "opencl" / "modern"
ADDS = [LEGACY / "myadd.so", MODERN / "myadd.so"]
DEVICE = "opencl:0"
X, Y = (np.random.default_rng(seed).standard_normal(200, np.float32) for seed in (1, 2))


@pytest.fixture
def device():
    """A device of the test's own: what it holds is what the test left."""
    opencl()
    from packhorse_opencl.plugin import OpenClBackend

    with OpenClBackend().open(0, {}) as own:
        yield own


def there(device, *arrays):
    return [ph.tensor(array, device=device) for array in arrays]


def adding(device, x=X, y=Y):
    return [*there(device, x, y), ph.empty(x.shape, "float32", device)]


def altered(tmp_path, old, new, source=ADDS[0]):
    """A copy of a library with some of its bytes replaced, as many by as many."""
    data = source.read_bytes()
    assert old in data, f"{source} does not hold {old}"
    assert len(old) == len(new)
    path = tmp_path / source.name
    path.write_bytes(data.replace(old, new))
    return ph.load_module(path)


# ---------------------------------------------------------------- what they compute


@pytest.mark.parametrize("path", ADDS, ids=lambda p: p.parent.name)
@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
def test_vectors_of_any_length(device, path, size):
    x, y = np.arange(size, dtype=np.float32), np.full(size, 0.5, np.float32)
    a, b, c = adding(device, x, y)
    ph.load_module(path)["myadd"](a, b, c)
    assert c.device is device
    assert np.array_equal(c.numpy(), x + y)


def test_two_dimensional_groups_that_share_tiles(device):
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((48, 40), np.float32), rng.standard_normal((40, 32), np.float32)
    a, b = there(device, x, y)
    c = ph.empty((48, 32), "float32", device)
    ph.load_module(LEGACY / "matmul.so")["matmul"](a, b, c)
    np.testing.assert_allclose(c.numpy(), x @ y, rtol=1e-5, atol=1e-5)


def test_scalars_and_temporary_memory_of_the_device(device):
    scale = ph.load_module(LEGACY / "scale.so")["scale"]
    (x,), y = there(device, X), ph.empty(X.shape, "float32", device)
    used = device.memory().used
    for factor, offset in ((2.5, 3), (-1.0, -7), (1e-3, 2**31 - 1)):
        scale(x, factor, offset, y)
        assert np.array_equal(y.numpy(), X * np.float32(factor) + np.float32(offset))
    assert device.memory().used == used


def test_a_call_bound_once_runs_again(device):
    a, b, c = adding(device)
    call = ph.load_module(ADDS[0])["myadd"].bind(a, b, c)
    call()
    a.copy_from(Y)
    call()
    assert np.array_equal(c.numpy(), Y + Y)


def test_calls_from_several_threads(device):
    add, found = ph.load_module(ADDS[0])["myadd"], {}

    def work(number):
        x = np.full(500, number, np.float32)
        a, b, c = adding(device, x, x)
        for _ in range(20):
            add(a, b, c)
            add(c, b, a)
        found[number] = a.numpy()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: set(array) for n, array in found.items()} == {n: {41.0 * n} for n in range(1, 5)}


def test_every_opening_of_a_device_has_its_own_programs(device):
    add = ph.load_module(ADDS[0])["myadd"]
    for where in (device, opencl(), device):
        a, b, c = adding(where)
        add(a, b, c)
        assert np.array_equal(c.numpy(), X + Y)


def test_tensors_are_copied_within_a_device(device):
    a, b = there(device, X, Y)
    assert b.copy_from(a) is b
    assert np.array_equal(b.numpy(), X)
    assert b.copy_from(b.reshape(200)) is b
    for wrong in (ph.empty(201, "float32", device), ph.empty(200, "int32", device)):
        with pytest.raises((ArgumentTypeError, ArgumentValueError), match="the target"):
            b.copy_from(wrong)
    b.copy_from(ph.tensor(Y, device=opencl()))  # through the host
    assert np.array_equal(b.numpy(), Y)
    a.close()
    with pytest.raises(DeviceClosed):
        b.copy_from(a)


# ---------------------------------------------------------------- kernels in files of their own


def test_kernels_in_a_file_of_their_own(device):
    module = ph.load_module(LEGACY / "myadd.cl")
    assert isinstance(module, DeviceModule)
    assert (module.kind, module.functions) == ("opencl", ["myadd_kernel"])
    assert "  myadd_kernel(handle, handle, handle, int32" in "\n".join(module.describe())
    a, b, c = adding(device)
    module["myadd_kernel"](a, b, c, len(X), 1, 1, 1, 4, 64)
    assert np.array_equal(c.numpy(), X + Y)


def test_a_second_try_runs_on_the_arguments_of_its_call(device, monkeypatch):
    from packhorse_opencl.tvm_kernels import TvmKernel

    kernel, sizes = ph.load_module(LEGACY / "myadd.cl")["myadd_kernel"], (len(X), 1, 1, 1, 4, 64)
    before, now = adding(device), adding(device, Y, Y)
    kernel(*before, *sizes)
    device.allocate(1 << 16).close()  # something to give back, so that there is a second try
    failing = Failing(TvmKernel._set, NO_MEMORY)
    monkeypatch.setattr(TvmKernel, "_set", lambda *args: failing(*args))
    kernel(*now, *sizes)
    assert failing.calls == 2
    assert np.array_equal(now[2].numpy(), Y + Y)


def test_sizes_of_nothing_launch_nothing(device):
    module = ph.load_module(LEGACY / "myadd.cl")
    a, b, c = adding(device)
    c.copy_from(X)
    module["myadd_kernel"](a, b, c, len(X), 1, 1, 1, 0, 64)
    assert np.array_equal(c.numpy(), X)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, r"myadd\.tvm_meta\.json.* that TVM saved beside it"),
        ("", "is not a table of kernels"),
        ("[]", "is not a table of kernels"),
        ('{"func_info": {"k": {}}}', "is not a table of kernels"),
        ('{"func_info": {"k": {"name": "", "arg_types": "handle"}}}', "is not a table of kernels"),
        (
            '{"func_info": {"k": {"name": "", "arg_types": [1], "launch_param_tags": []}}}',
            "is not a table of kernels",
        ),
        ("[" * 100_000, "is not a table of kernels"),
    ],
    ids=["none", "empty", "list", "no fields", "text for list", "numbers", "deep"],
)
def test_tables_that_are_missing_or_damaged(tmp_path, table, message):
    shutil.copy(LEGACY / "myadd.cl", tmp_path)
    if table is not None:
        (tmp_path / "myadd.tvm_meta.json").write_text(table)
    with pytest.raises(ArtifactError, match=message):
        ph.load_module(tmp_path / "myadd.cl")


def test_tables_of_older_tvm(tmp_path, device):
    table = json.loads((LEGACY / "myadd.tvm_meta.json").read_text())
    row = table["func_info"]["myadd_kernel"]
    row["thread_axis_tags"] = row.pop("launch_param_tags")
    (tmp_path / "old.tvm_meta.json").write_text(json.dumps(table))
    text = (LEGACY / "myadd.cl").read_text()
    (tmp_path / "old.cl").write_text(text.replace("// Function: myadd_kernel\n", ""))
    a, b, c = adding(device)
    ph.load_module(tmp_path / "old.cl")["myadd_kernel"](a, b, c, len(X), 1, 1, 1, 4, 64)
    assert np.array_equal(c.numpy(), X + Y)


@pytest.mark.parametrize(
    ("suffix", "kind"), [("ptx", "cuda"), ("hsaco", "rocm"), ("metal", "metal"), ("spv", "opencl")]
)
def test_files_of_other_devices_are_read(tmp_path, suffix, kind):
    (tmp_path / f"k.{suffix}").write_bytes(b"\x7fcode")
    shutil.copy(LEGACY / "myadd.tvm_meta.json", tmp_path / "k.tvm_meta.json")
    module = ph.load_module(tmp_path / f"k.{suffix}")
    assert (module.kind, module.payload.format) == (kind, suffix)
    with pytest.raises(ArgumentTypeError, match=f"no memory of a device '{kind}' .*'{kind}:0'"):
        module["myadd_kernel"](*[0] * 9)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("path", ADDS, ids=lambda p: p.parent.name)
def test_memory_of_the_host_is_refused(path):
    add = ph.load_module(path)["myadd"]
    for args in ((X, Y, X.copy()), map(ph.tensor, (X, Y, X))):
        with pytest.raises((ArgumentTypeError, ArgumentValueError), match=r"'opencl:0'\)"):
            add(*args)


@pytest.mark.parametrize("path", ADDS, ids=lambda p: p.parent.name)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_array_of_the_host_is_refused(device, path, which):
    args = adding(device)
    args[which] = X.copy()
    with pytest.raises((ArgumentTypeError, ArgumentValueError), match=r"'opencl:0'\)") as caught:
        ph.load_module(path)["myadd"](*args)
    assert f"argument {which} of kernel" in str(caught.value) or f"#{which}" in str(caught.value)
    assert np.array_equal(args[which], X)


@pytest.mark.parametrize("path", ADDS, ids=lambda p: p.parent.name)
def test_wrong_arguments_are_refused(device, path):
    add = ph.load_module(path)["myadd"]
    a, b, c = adding(device)
    bad = [(a, b), (a, b, c, c), (a, b, None), (a, b, 7)]
    bad += [(a, b, ph.empty(200, "float64", device)), (a, b, ph.empty((20, 10), "float32", device))]
    for args in bad:
        with pytest.raises((ArgumentTypeError, ArgumentValueError)):
            add(*args)
    add(a, b, c)
    assert np.array_equal(c.numpy(), X + Y)


def test_tensors_of_two_devices_are_refused(device):
    a, _, c = adding(device)
    other = ph.tensor(Y, device=opencl())
    with pytest.raises(
        ArgumentTypeError, match=r"argument 1 lies on another opening of 'opencl:0'.*one device"
    ):
        ph.load_module(ADDS[0])["myadd"](a, other, c)


def test_tensors_of_a_device_are_refused_by_code_of_the_host(device):
    a, b, c = adding(device)
    with pytest.raises(ArgumentTypeError, match=r"lies on opencl:0 .* host code; pass tensor"):
        ph.load_module(DATA / "legacy_myadd" / "deploy.so")["myadd"](a, b, c)


def test_closed_tensors_and_devices():
    opencl()
    from packhorse_opencl.plugin import OpenClBackend

    own = OpenClBackend().open(0, {})
    add, (a, b, c) = ph.load_module(ADDS[0])["myadd"], adding(own)
    call = add.bind(a, b, c)
    call()
    kernel = ph.load_module(LEGACY / "myadd.cl")["myadd_kernel"]
    b.close()
    with pytest.raises(DeviceClosed, match="used after close"):
        add(a, b, c)
    own.close()
    with pytest.raises(DeviceClosed, match=r"argument 0 lies on 'opencl:0', which was closed"):
        add(a, a, c)
    with pytest.raises(DeviceClosed):
        call()
    with pytest.raises(DeviceClosed):
        kernel(a, a, c, 1, 1, 1, 1, 1, 1)


def test_arguments_of_kernels_themselves(device):
    kernel = ph.load_module(LEGACY / "myadd.cl")["myadd_kernel"]
    a, b, c = adding(device)
    sizes = (len(X), 1, 1, 1, 4, 64)
    for args, error, message in [
        ((a, b, c), ArgumentValueError, "takes 7 arguments and 2 launch sizes .*, found 3"),
        ((a, b, c, *sizes[:-1], -1), ArgumentValueError, "threadIdx.x .* a size, found -1"),
        ((a, b, c, *sizes[:-1], 1.0), ArgumentValueError, "must be a size, found 1.0"),
        ((a, b, c, "n", *sizes[1:]), ArgumentTypeError, "argument 3 .* must be int32, found str"),
        ((a, b, c, 2**31, *sizes[1:]), ArgumentValueError, "argument 3 .* must be int32"),
        ((a, b, X, *sizes), ArgumentTypeError, "argument 2 .* a device 'opencl'"),
        ((a, b, ph.tensor(X), *sizes), ArgumentTypeError, "argument 2 .* a device 'opencl'"),
        ((a, b, c.address, *sizes), ArgumentTypeError, "argument 2"),
        ((a, b, ph.tensor(X, device=opencl()), *sizes), ArgumentTypeError, "another opening"),
        ((a, b, c, *sizes[:-1], 1 << 30), DeviceError, "wants work-groups of 1073741824"),
    ]:
        with pytest.raises(error, match=message):
            kernel(*args)
    kernel(a, b, c, *sizes)
    assert np.array_equal(c.numpy(), X + Y)


# ---------------------------------------------------------------- altered libraries


def test_a_kernel_that_the_text_lacks(tmp_path, device):
    lib = altered(tmp_path, b"__kernel void myadd_kernel(", b"__kernel void myadd_kernex(")
    with pytest.raises(ArtifactError, match=r"no kernel 'myadd_kernel', .* it has myadd_kernex"):
        lib["myadd"](*adding(device))
    (tmp_path / "b").mkdir()
    lib = altered(tmp_path / "b", b"// Function: myadd_kernel", b"// Function: myadd_kernex")
    with pytest.raises(ArtifactError, match=r"text has no kernel 'myadd_kernel', .*myadd_kernex"):
        lib["myadd"](*adding(device))


def test_text_that_is_no_opencl_c(tmp_path, device):
    lib = altered(tmp_path, b"get_group_id", b"get_grupp_id")
    with pytest.raises(CompileError, match="refused kernel 'myadd_kernel' that TVM") as caught:
        lib["myadd"](*adding(device))
    assert "get_grupp_id" in caught.value.log
    good = ph.load_module(ADDS[0])
    a, b, c = adding(device)
    good["myadd"](a, b, c)
    assert np.array_equal(c.numpy(), X + Y)


def test_text_and_table_that_do_not_fit(tmp_path, device):
    lib = altered(tmp_path, b", int stride_2) ", b"/* nothing  */) ")
    with pytest.raises((ArtifactError, CompileError), match="myadd_kernel"):
        lib["myadd"](*adding(device))


@pytest.mark.parametrize(("old", "new"), [(b"blockIdx.x", b"blockIdy.x"), (b"Idx.x", b"Idx.q")])
def test_launch_tags_that_nobody_knows(tmp_path, device, old, new):
    lib = altered(tmp_path, old, new)
    with pytest.raises(ArtifactError, match=r"launch tag .* which nobody knows"):
        lib["myadd"](*adding(device))


def test_a_kernel_that_the_table_lacks(tmp_path, device):
    data = ADDS[0].read_bytes()
    name = len("myadd_kernel").to_bytes(8, "little") + b"myadd_kernel"
    lib = altered(tmp_path, name, name[:-1] + b"x")
    assert data.count(name) == 1
    with pytest.raises(FunctionNotFound, match=r"'myadd.so' calls 'myadd_kernel'"):
        lib["myadd"](*adding(device))


def code_of(path=ADDS[0]):
    (kernels,) = ph.load_module(path).imports
    return kernels.payload


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"format": "clbin", "code": b"no binary"}, (CompileError, ArtifactError), "clbin"),
        ({"format": "spv", "code": b"\3\2#\7"}, (CompileError, ArtifactError), "spv"),
        ({"format": "ptx"}, ArtifactError, "format 'ptx', which opencl:0 does not take"),
        ({"code": b"\xff\xfe"}, ArtifactError, "not UTF-8 at byte 0"),
        ({"code": b"// Function: x\n\0"}, ArtifactError, "zero bytes"),
        ({"code": b""}, ArtifactError, "no kernel"),
    ],
)
def test_code_that_a_device_cannot_take(device, change, error, message):
    given = code_of()
    code = DeviceCode(**{"format": "cl", "functions": given.functions, "code": given.code} | change)
    with pytest.raises(error, match=message):
        DeviceModule("opencl", code)["myadd_kernel"](*adding(device), 1, 1, 1, 1, 1, 1)


def test_binaries_of_the_driver(device):
    given = code_of()
    program = device.cl.Program(device.context, given.code.decode()).build()
    binary = program.get_info(device.cl.program_info.BINARIES)[0]
    kernels = DeviceModule("opencl", DeviceCode("clbin", given.functions, bytes(binary)))
    a, b, c = adding(device)
    kernels["myadd_kernel"](a, b, c, len(X), 1, 1, 1, 4, 64)
    assert np.array_equal(c.numpy(), X + Y)


@pytest.mark.parametrize("name", ["bool", "bfloat16", "int32x4"])
def test_types_that_kernels_cannot_take(device, name):
    info = FunctionInfo("k", ("handle", name), ("threadIdx.x",))
    code = DeviceCode("cl", {"k": info}, b"__kernel void k(__global float *x, int y) { *x = y; }")
    (x,) = there(device, X)
    with pytest.raises(ArtifactError, match=f"argument of type '{name}'"):
        DeviceModule("opencl", code)["k"](x, 1, 1)


@pytest.mark.parametrize(
    ("name", "text", "value", "seen"),
    [
        ("int8", "char", -100, -100.0),
        ("uint16", "ushort", 65535, 65535.0),
        ("uint32", "uint", 2**32 - 1, 4294967296.0),
        ("int64", "long", -(2**40), -(2.0**40)),
        ("float32", "float", 0.1, np.float32(0.1)),
        ("float32", "float", 3, 3.0),
        ("float64", "double", 0.1, np.float32(0.1)),
    ],
)
def test_numbers_arrive_as_the_table_says(device, name, text, value, seen):
    info = FunctionInfo("k", (name, "handle", "int32"), ("threadIdx.x",))
    source = f"__kernel void k({text} v, __global float *x, int i) {{ x[i] = (float)v; }}"
    (x,) = there(device, X)
    DeviceModule("opencl", DeviceCode("cl", {"k": info}, source.encode()))["k"](value, x, 3, 1)
    assert x.numpy()[3] == seen
    assert np.array_equal(x.numpy()[4:], X[4:])


def test_launch_sizes_reach_the_kernel(device):
    tags = ("blockIdx.z", "threadIdx.y", "blockIdx.x", "threadIdx.x")
    text = b"""__kernel void k(__global int *o) {
        size_t i = get_global_id(0) + 6 * (get_global_id(1) + 2 * get_global_id(2));
        o[i] = get_local_size(0) + 10 * get_local_size(1) + 100 * get_num_groups(2); }"""
    code = DeviceCode("cl", {"k": FunctionInfo("k", ("handle",), tags)}, text)
    (out,) = there(device, np.zeros(5 * 6 * 2, np.int32))
    DeviceModule("opencl", code)["k"](out, 5, 2, 2, 3)
    assert np.array_equal(out.numpy(), np.full(60, 3 + 20 + 500))


def test_local_memory_of_a_size_given_at_launch(device):
    info = FunctionInfo("k", ("handle",), ("threadIdx.x", "tir.use_dyn_shared_memory"))
    code = DeviceCode("cl", {"k": info}, b"__kernel void k(__global float *x) { *x = 1; }")
    kernel, (x,) = DeviceModule("opencl", code)["k"], there(device, X)
    with pytest.raises(ArtifactError, match="wants 64 bytes of local memory at launch"):
        kernel(x, 1, 64)
    kernel(x, 1, 0)
    assert x.numpy()[0] == 1


def test_devices_that_load_no_code_say_so(device, monkeypatch):
    a, b, c = adding(device)
    monkeypatch.setattr(device, "capabilities", device.capabilities - {"load"})
    with pytest.raises(DeviceUnavailable, match=r"'opencl:0' cannot load kernels of kind 'opencl'"):
        ph.load_module(LEGACY / "myadd.cl")["myadd_kernel"](a, b, c, 1, 1, 1, 1, 1, 1)


@pytest.mark.parametrize("kind", ["cuda", "metal", "vulkan", "webgpu", "rocm"])
def test_kernels_of_another_kind_of_device(device, kind):
    info = FunctionInfo("k", ("handle",), ("threadIdx.x",))
    kernel = DeviceModule(kind, DeviceCode("x", {"k": info}, b"x"))["k"]
    (x,) = there(device, X)
    with pytest.raises(ArgumentTypeError, match=f"a device '{kind}', .* lie on 'opencl:0'"):
        kernel(x, 1)
    with pytest.raises(ArgumentTypeError, match=f"'{kind}:0'"):
        kernel(X, 1)


# ---------------------------------------------------------------- hostile code


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_altered_code_is_refused_or_read(data):
    blob = bytearray(device_code_bytes(code_of()))
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(blob)))
    try:
        found = opencl().load(bytes(blob if cut % 2 else blob[:cut]), "opencl")
        names = found.functions
        for name in names:
            found.get_function(name)
    except ArtifactError:
        return
    assert read_device_code("opencl", bytes(blob if cut % 2 else blob[:cut])).functions.keys() == (
        set(names)
    )


def test_a_library_altered_within_its_blob(tmp_path):
    data = ADDS[0].read_bytes()
    start = data.index(len("opencl").to_bytes(8, "little") + b"opencl")
    refused = []
    for at in range(start, start + 120, 3):
        path = tmp_path / f"{at}.so"
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            ph.load_module(path).describe()
        except ArtifactError as error:
            refused.append(str(error))
    assert len(refused) >= 20
    assert all("is damaged at offset" in text for text in refused)


# ---------------------------------------------------------------- lifetime


@pytest.mark.parametrize("path", ADDS, ids=lambda p: p.parent.name)
def test_nothing_is_left_on_the_device(device, path):
    for _ in range(20):
        with ph.load_module(path) as lib:
            a, b, c = adding(device)
            lib["myadd"](a, b, c)
        del a, b, c
    assert (device.memory().used, device.memory().live) == (0, 0)


def test_functions_outlive_their_module(device):
    with ph.load_module(ADDS[0]) as lib:
        add = lib["myadd"]
        a, b, c = adding(device)
        add(a, b, c)
    add(c, b, a)
    assert np.array_equal(a.numpy(), X + Y + Y)


def test_a_device_without_memory_left_goes_on(device, monkeypatch):
    scale = ph.load_module(LEGACY / "scale.so")["scale"]
    (x,), y = there(device, X), ph.empty(X.shape, "float32", device)

    def full(nbytes):
        raise DeviceMemoryError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr(device, "allocate", full)
        with pytest.raises(DeviceMemoryError, match="no memory left"):
            scale(x, 2.0, 1, y)
    scale(x, 2.0, 1, y)
    assert np.array_equal(y.numpy(), X * 2 + 1)


def test_imports_added_later_count(device):
    lib = ph.load_module(DATA / "legacy_myadd" / "deploy.so")
    assert isinstance(lib, NativeModule)
    assert not lib["myadd"].devices
    lib.import_module(ph.load_module(LEGACY / "myadd.cl"))
    assert set(lib["myadd"].devices) == {4}
