"""Tensors: memory, views, conversions, DLPack both ways, end of life."""

import ctypes
import gc
import weakref

import ml_dtypes
import numpy as np
import pytest

import packhorse as ph
from packhorse.device import device
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DeviceClosed,
    UnknownBackend,
)
from packhorse.native.dlpack import import_array
from packhorse.tensor import HOST, Tensor


class FakeMemory:
    """Device memory the host cannot see: bytes behind an opaque handle."""

    def __init__(self, nbytes):
        self.data, self.nbytes, self.address, self.closed = bytearray(nbytes), nbytes, 42, 0

    def close(self):
        self.closed += 1


class FakeDevice:
    name, dlpack_device = "fake:1", (12, 1)

    def __init__(self):
        self.blocks, self.synchronized = [], 0

    def allocate(self, nbytes):
        self.blocks.append(FakeMemory(nbytes))
        return self.blocks[-1]

    def copy_from_host(self, memory, data, offset=0):
        assert data.flags.c_contiguous
        memory.data[offset : offset + data.nbytes] = data.tobytes()

    def copy_to_host(self, memory, data, offset=0):
        data.reshape(-1).view(np.uint8)[:] = memory.data[offset : offset + data.nbytes]

    def synchronize(self):
        self.synchronized += 1


def where(array):
    return array.__array_interface__["data"][0]


# ---------------------------------------------------------------- making


def test_attributes():
    t = ph.empty((2, 3))
    assert (t.shape, t.dtype, t.ndim, t.size, t.nbytes) == ((2, 3), np.float32, 2, 6, 24)
    assert t.device is HOST
    assert (t.device.name, t.__dlpack_device__()) == ("cpu:0", (1, 0))
    assert t.address == where(t.numpy())
    assert t.address % 128 == 0
    assert len(t) == 2
    assert ph.empty(4, "int8").shape == (4,)
    assert ph.empty((), "int8").shape == ()
    assert ph.empty((np.int64(2), 0)).nbytes == 0


@pytest.mark.parametrize(
    ("obj", "dtype", "expected"),
    [
        ([[1, 2], [3, 4]], None, "int64"),
        ([1, 2], "float32", "float32"),
        (2.5, None, "float64"),
        (True, None, "bool"),
        (np.float32(1), None, "float32"),
        (np.arange(6, dtype=np.int8).reshape(2, 3).T, None, "int8"),
        ([1.5, 2], "bfloat16", "bfloat16"),
        ([1, -2], "int4", "int4"),
        (ph.tensor([1, 2]), "uint8", "uint8"),
    ],
)
def test_tensor_copies(obj, dtype, expected):
    t = ph.tensor(obj, dtype)
    assert t.dtype.name == expected
    assert (t.numpy() == np.asarray(obj)).all()
    assert t.numpy().flags.c_contiguous
    assert t.address % 128 == 0
    assert not np.shares_memory(t.numpy(), np.asarray(obj))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: ph.tensor(["a"]), ArgumentTypeError, "unknown dtype"),
        (lambda: ph.tensor([object()]), ArgumentTypeError, "unknown dtype 'object'"),
        (lambda: ph.tensor([[1], [2, 3]]), ArgumentValueError, "equal lengths"),
        (lambda: ph.tensor([1], "flaot32"), ArgumentTypeError, "did you mean 'float32'"),
        (lambda: ph.empty((2, -1)), ArgumentValueError, "negative dimension"),
        (lambda: ph.empty((2, 1.5)), ArgumentTypeError, "a shape holds integers"),
        (lambda: ph.empty("23"), ArgumentTypeError, "a shape holds integers"),
        (lambda: ph.empty(2, device="nonesuch"), UnknownBackend, "nonesuch"),
        (lambda: ph.empty(2, device=3), ArgumentTypeError, "device string or a Device"),
        (lambda: len(ph.tensor(1)), ArgumentTypeError, "no length"),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_host_devices_share_host_memory():
    cpu = device("cpu")
    t = ph.tensor([1.0, 2.0], device=cpu)
    assert t.device is cpu
    assert ph.tensor([1.0], device="CPU").device.name == "cpu:0"
    t.numpy()[0] = 5
    assert t.numpy().tolist() == [5, 2]


# ---------------------------------------------------------------- NumPy


def test_numpy_is_the_same_memory():
    t = ph.tensor([1, 2, 3])
    t.numpy()[1] = 7
    assert t.numpy() is t.numpy()
    assert np.asarray(t).tolist() == [1, 7, 3]
    assert where(np.asarray(t)) == t.address
    assert np.array(t).tolist() == [1, 7, 3]
    assert where(np.array(t)) != t.address
    assert np.asarray(t, dtype=np.float32).dtype == np.float32
    assert np.add(t, 1).tolist() == [2, 8, 4]


def test_array_protocol_copy_argument():
    t = ph.tensor([1, 2, 3])
    assert where(t.__array__(copy=False)) == t.address
    assert where(t.__array__(copy=True)) != t.address
    with pytest.raises(ValueError, match="needs a copy"):
        t.__array__(np.float32, copy=False)


def test_copies_check_shape_and_dtype():
    t, u = ph.tensor([1, 2, 3]), ph.empty(3, "int64")
    assert u.copy_from(t) is u
    target = np.zeros(3, np.int64)
    u.copy_to(target)
    assert target.tolist() == [1, 2, 3]
    with pytest.raises(ArgumentTypeError, match="holds int64, found float32"):
        u.copy_from(np.zeros(3, np.float32))
    with pytest.raises(ArgumentValueError, match=r"shape \(3,\), found \(4,\)"):
        u.copy_from(np.zeros(4, np.int64))
    target.flags.writeable = False
    with pytest.raises(ArgumentValueError, match="read-only"):
        u.copy_to(target)


def test_reshape_is_a_view():
    t = ph.tensor(np.arange(6))
    v = t.reshape(2, -1)
    assert v.shape == (2, 3)
    v.numpy()[1, 2] = 9
    assert t.numpy()[5] == 9
    assert t.reshape((3, 2)).address == t.address
    assert ph.empty((0, 3)).reshape(0).shape == (0,)
    for bad in ((4,), (-1, 4), (-1, -1), (-2, -3), (0, -1)):
        with pytest.raises(ArgumentValueError, match="6 elements cannot be reshaped"):
            t.reshape(*bad)
    with pytest.raises(ArgumentValueError, match="strided"):
        Tensor(np.zeros((4, 4))[:, ::2]).reshape(8)


def test_repr():
    assert repr(ph.tensor([1, 2])) == "Tensor(int64[2], 'cpu:0', [1 2])"
    assert repr(ph.tensor([[1], [2]])) == "Tensor(int64[2, 1], 'cpu:0',\n  [[1]\n   [2]])"
    assert len(repr(ph.empty((100, 100)))) < 1000
    t = ph.tensor([1])
    t.close()
    assert repr(t) == "Tensor(int64[1], 'cpu:0', closed)"


# ---------------------------------------------------------------- end of life


def test_close_is_idempotent_and_final():
    with ph.tensor([1, 2]) as t:
        kept = t.numpy()
    t.close()
    assert t.closed
    assert kept.tolist() == [1, 2]
    for use in (t.numpy, t.__dlpack__, lambda: t.reshape(2), lambda: t.address, t.__array__):
        with pytest.raises(DeviceClosed, match="used after close"):
            use()


def test_memory_lives_as_long_as_any_view():
    array = np.arange(3)
    t = Tensor(array)
    view, alive = t.reshape(3, 1), weakref.ref(array)
    del array
    t.close()
    assert view.numpy().ravel().tolist() == [0, 1, 2]
    del view, t
    assert alive() is None


# ---------------------------------------------------------------- device memory


def test_device_tensor():
    fake = FakeDevice()
    t = ph.tensor([[1, 2], [3, 4]], "float32", fake)
    assert (t.device, t.address, t.__dlpack_device__()) == (fake, 42, (12, 1))
    assert t.numpy().tolist() == [[1, 2], [3, 4]]
    assert repr(t) == "Tensor(float32[2, 2], 'fake:1')"
    t.copy_from(np.full((2, 2), 5, np.float32).T)
    assert ph.tensor(t).numpy().tolist() == [[5, 5], [5, 5]]
    assert np.asarray(t).sum() == 20
    with pytest.raises(ValueError, match="needs a copy"):
        t.__array__(copy=False)
    host = ph.empty((2, 2))
    t.copy_to(host)
    assert host.numpy().sum() == 20


def test_device_memory_is_closed_with_its_last_view():
    fake = FakeDevice()
    t = ph.empty((2, 3), device=fake)
    view = t.reshape(6)
    t.close()
    assert fake.blocks[0].closed == 0
    with pytest.raises(DeviceClosed):
        t.numpy()
    del view
    assert fake.blocks[0].closed == 1


def test_device_memory_too_small():
    with pytest.raises(ArgumentValueError, match="needs 16 bytes, the block has 8"):
        Tensor.from_memory(FakeMemory(8), FakeDevice(), (4,), "float32")


def test_device_dlpack():
    fake = FakeDevice()
    t = ph.tensor([1.0, 2.0], device=fake)
    capsule = t.__dlpack__(max_version=(1, 0))
    assert fake.synchronized == 1
    t.close()
    assert fake.blocks[0].closed == 0
    del capsule
    gc.collect()
    assert fake.blocks[0].closed == 1
    t = ph.tensor([1.0, 2.0], device=fake)
    assert import_array(t.__dlpack__(dl_device=(1, 0))).tolist() == [1, 2]
    for bad in ({"dl_device": (2, 0)}, {"copy": True}, {"dl_device": (1, 0), "copy": False}):
        with pytest.raises(BufferError):
            t.__dlpack__(**bad)
    with pytest.raises(ArgumentTypeError, match="DLPack device type 12"):
        np.testing.assert_equal(ph.from_dlpack(Foreign(t)), None)


class Foreign:
    """Another library's tensor: DLPack only, optionally of an older protocol."""

    def __init__(self, source, **fixed):
        self.source, self.fixed, self.asked = source, fixed, []

    def __dlpack__(self, **wanted):
        self.asked.append(wanted)
        return self.source.__dlpack__(**{**wanted, **self.fixed})

    def __dlpack_device__(self):
        return self.source.__dlpack_device__()


class Old(Foreign):
    def __dlpack__(self, stream=None):
        return self.source.__dlpack__()


# ---------------------------------------------------------------- DLPack on the host

ARRAYS = [
    np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    np.arange(24, dtype=np.int16).reshape(4, 6).T,
    np.arange(24, dtype=np.uint8)[::-3],
    np.array(3.5),
    np.array([True, False]),
    np.arange(3) * 1j,
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
@pytest.mark.parametrize("wrap", [lambda x: x, Foreign, Old])
def test_import_from_numpy_is_zero_copy(array, wrap):
    t = ph.from_dlpack(wrap(array))
    assert t.address == where(array)
    assert (t.shape, t.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(t.numpy(), array)


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
@pytest.mark.parametrize("wrap", [lambda x: x, Old])
def test_export_to_numpy_is_zero_copy(array, wrap):
    found = np.from_dlpack(wrap(Tensor(array)))
    assert where(found) == where(array)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("version", [None, (0, 8), (1, 0), (1, 1), (1, 7), (2, 0)])
def test_versions(version):
    t = ph.tensor([1, 2, 3])
    capsule = t.__dlpack__(max_version=version)
    named = "dltensor_versioned" if version and version[0] >= 1 else "dltensor"
    assert f'"{named}"' in repr(capsule)
    found = import_array(capsule)
    assert where(found) == t.address
    assert f'"used_{named}"' in repr(capsule)


class Header(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("owner", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
    )


def header(capsule):
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return Header.from_address(get(capsule, b"dltensor_versioned"))


@pytest.mark.parametrize(("asked", "made"), [((1, 0), (1, 0)), ((1, 1), (1, 1)), ((3, 2), (1, 1))])
def test_version_and_flags_of_a_capsule(asked, made):
    array = np.arange(3)
    plain = Tensor(array).__dlpack__(max_version=asked)
    assert (header(plain).major, header(plain).minor) == made
    copied = Tensor(array).__dlpack__(max_version=asked, copy=True)
    array.flags.writeable = False
    fixed = Tensor(array).__dlpack__(max_version=asked)
    narrow = ph.tensor([1], "int4").__dlpack__(max_version=asked)
    assert [header(c).flags for c in (plain, copied, fixed, narrow)] == [0, 2, 1, 4]


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int4", "float4_e2m1fn"])
def test_types_numpy_cannot_export(dtype):
    t = ph.tensor([0.5 if "float" in dtype else 1, -1], dtype)
    found = ph.from_dlpack(Foreign(t))
    assert found.address == t.address
    assert found.dtype == t.dtype == np.dtype(getattr(ml_dtypes, dtype))
    np.testing.assert_array_equal(found.numpy(), t.numpy())


def test_unversioned_narrow_types_are_refused():
    with pytest.raises(BufferError, match="padded int4 elements"):
        ph.tensor([1], "int4").__dlpack__()


def test_empty_tensors():
    t = ph.from_dlpack(Foreign(ph.empty((3, 0, 2), "int8")))
    assert (t.shape, t.dtype) == ((3, 0, 2), np.int8)
    assert np.from_dlpack(ph.empty((3, 0))).shape == (3, 0)


def test_from_dlpack_of_a_tensor_is_a_view():
    t = ph.tensor([1, 2])
    view = ph.from_dlpack(t)
    t.close()
    assert view.numpy().tolist() == [1, 2]
    with pytest.raises(DeviceClosed):
        ph.from_dlpack(t)


def test_consumers_keep_the_memory_alive():
    array = np.arange(1000)
    alive = weakref.ref(array)
    found = np.from_dlpack(Tensor(array))
    del array
    gc.collect()
    assert alive() is not None
    assert found.sum() == 499500
    del found
    assert alive() is None


def test_imports_keep_the_producer_alive():
    array = np.arange(1000)
    alive = weakref.ref(array)
    t = ph.from_dlpack(Foreign(array))
    part = t.numpy()[10:20]
    del array, t
    gc.collect()
    assert part.sum() == 145
    assert alive() is not None
    del part
    assert alive() is None


@pytest.mark.parametrize("version", [None, (1, 1)])
def test_unused_capsules_free_their_tensor(version):
    array = np.arange(3)
    alive = weakref.ref(array)
    capsule = Tensor(array).__dlpack__(max_version=version)
    del array
    assert alive() is not None
    del capsule
    assert alive() is None


def test_a_capsule_is_used_once():
    capsule = ph.tensor([1]).__dlpack__()
    assert ph.from_dlpack(capsule).numpy().tolist() == [1]
    with pytest.raises(BufferError, match="used before"):
        ph.from_dlpack(capsule)


def test_newer_dlpack_is_refused():
    capsule = ph.tensor([1]).__dlpack__(max_version=(1, 0))
    header(capsule).major = 2
    with pytest.raises(BufferError, match=r"made DLPack 2\.0"):
        ph.from_dlpack(capsule)


def test_packed_elements_are_refused():
    capsule = ph.tensor([1, 2], "int4").__dlpack__(max_version=(1, 1))
    header(capsule).flags = 0
    with pytest.raises(BufferError, match="4 bits packed"):
        ph.from_dlpack(capsule)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda t: ph.from_dlpack([1, 2]), ArgumentTypeError, "__dlpack__, found list"),
        (lambda t: t.__dlpack__(stream=1), ArgumentValueError, "stream must be None"),
        (lambda t: t.__dlpack__(dl_device=(2, 0)), BufferError, r"not on \(2, 0\)"),
    ],
)
def test_dlpack_errors(call, error, match):
    with pytest.raises(error, match=match):
        call(ph.tensor([1]))


def test_strides_that_are_no_multiple_of_the_element():
    odd = np.zeros(4, np.dtype([("a", "u1"), ("b", "<u4")]))["b"]
    with pytest.raises(BufferError, match="no multiple"):
        Tensor(odd).__dlpack__()


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "bfloat16"])
def test_torch(dtype):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    source = torch.ones((3, 4), dtype=getattr(torch, dtype))
    t = ph.from_dlpack(source)
    assert t.address == source.data_ptr()
    assert t.dtype.name == dtype
    t.numpy()[1, 2] = 0
    assert source[1, 2] == 0
    back = torch.from_dlpack(ph.tensor([[1, 0], [1, 1]], dtype))
    assert back.sum() == 3
    mine = ph.tensor([1, 0], dtype)
    shared = torch.from_dlpack(mine)
    assert shared.data_ptr() == mine.address
    mine.close()
    gc.collect()
    assert shared.tolist() == [1, 0]
    transposed = ph.from_dlpack(source.T)
    assert transposed.shape == (4, 3)
    assert transposed.address == source.data_ptr()
