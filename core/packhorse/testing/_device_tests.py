"""What a device itself must do: open and close, memory, copies, DLPack, packed functions."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest

import packhorse as ph
from packhorse.device import CAPABILITIES, Device, MemoryStats, parse
from packhorse.device import device as open_device
from packhorse.errors import (
    ArgumentError,
    ArgumentTypeError,
    ArgumentValueError,
    DeviceClosed,
    DeviceError,
    DeviceMemoryError,
    DeviceStringError,
)
from packhorse.plugin import default_manager

__all__ = ["DeviceTests"]

_SIZES = (0, 1, 3, 127, 128, 4096, 1 << 20)
_DTYPES = ("float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool")
_POINTERS = (1, 2, 3, 10, 11, 13)
"""DLDeviceTypes whose addresses are pointers: host, CUDA and ROCm memory."""


class DeviceTests:
    """Tests of the protocols Backend, Device and Memory."""

    device: ClassVar[str] = ""

    @pytest.fixture
    def private(self) -> Iterator[Device]:
        """A device of our own, to be closed: not the one that the process shares."""
        wanted = parse(self.device)
        manager = default_manager()
        info = manager.backend_info(wanted.backend)
        values = {key: info.options[key].parse(text) for key, text in wanted.options}
        made = manager.backend(info.name).open(wanted.index, values)
        yield made
        made.close()

    # ------------------------------------------------------------ naming and opening

    def test_it_is_a_device(self, opened: Device) -> None:
        """It has every attribute of the protocol, and its canonical name leads back to it."""
        assert isinstance(opened, Device)
        assert open_device(opened.name) is opened
        assert opened.dlpack_device[0] == opened.info.dlpack_type
        assert not opened.closed
        assert set(opened.capabilities) <= CAPABILITIES.keys()
        assert all(hasattr(opened, name) for name in opened.capabilities)

    def test_check(self, opened: Device) -> None:
        """Its own check passes, and passes again."""
        opened.check()
        opened.check()

    def test_probe_lists_it(self, opened: Device) -> None:
        """The backend's probe lists the device as usable."""
        rows = list(default_manager().backend(opened.info.name).probe())
        found = [
            row for row in rows if row.device == parse(opened.name.partition("?")[0]).__str__()
        ]
        assert found, f"probe lists {[row.device for row in rows]}, not {opened.name}"
        assert found[0].status == "ok", found[0].reason

    def test_strange_strings_are_refused(self, opened: Device) -> None:
        """Options nobody declared and devices that are not there: DeviceError, with words."""
        base = opened.info.name
        with pytest.raises(DeviceStringError, match="no_such_option"):
            open_device(f"{base}?no_such_option=1")
        with pytest.raises(DeviceError) as caught:
            open_device(f"{base}:4095")
        assert len(str(caught.value)) > 20, "say which devices there are"

    # ------------------------------------------------------------ memory and copies

    @pytest.mark.parametrize("nbytes", _SIZES)
    def test_copies_come_back(self, opened: Device, nbytes: int) -> None:
        """Bytes copied to the device are the bytes copied back."""
        data = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
        block, result = opened.allocate(nbytes), np.zeros(nbytes, np.uint8)
        try:
            assert block.nbytes >= nbytes
            opened.copy_from_host(block, data)
            opened.synchronize()
            opened.copy_to_host(block, result)
        finally:
            block.close()
        np.testing.assert_array_equal(result, data)

    def test_copies_at_an_offset(self, opened: Device) -> None:
        """An offset counts bytes, in both directions, and nothing else is touched."""
        block, whole, part = opened.allocate(64), np.arange(64, dtype=np.uint8), np.empty(3, "<i2")
        try:
            opened.copy_from_host(block, whole)
            opened.copy_from_host(block, np.array([258, -1], "<i2"), offset=10)
            opened.copy_to_host(block, part, offset=8)
            opened.copy_to_host(block, whole)
        finally:
            block.close()
        assert part.tolist() == [8 + 9 * 256, 258, -1]
        assert whole.tolist() == [*range(10), 2, 1, 255, 255, *range(14, 64)]

    def test_copies_that_cannot_be_done(self, opened: Device) -> None:
        """Refused with ArgumentError, and the block is usable afterwards."""
        block = opened.allocate(16)
        try:
            read_only = np.zeros(4, np.uint8)
            read_only.flags.writeable = False
            for array, offset in (
                (np.zeros(17, np.uint8), 0),
                (np.zeros(8, np.uint8), 9),
                (np.zeros(8, np.uint8), -1),
                (np.zeros((4, 4), np.uint8)[:, ::2], 0),
                (np.array([None]), 0),
            ):
                with pytest.raises(ArgumentError):
                    opened.copy_from_host(block, array, offset)
                with pytest.raises(ArgumentError):
                    opened.copy_to_host(block, array, offset)
            with pytest.raises(ArgumentError):
                opened.copy_to_host(block, read_only)
            opened.copy_from_host(block, np.zeros(16, np.uint8))
        finally:
            block.close()

    def test_strange_sizes_are_refused(self, opened: Device) -> None:
        """A negative size, a fraction, a flag."""
        with pytest.raises(ArgumentValueError):
            opened.allocate(-1)
        for size in (1.5, "16", True):
            with pytest.raises(ArgumentTypeError):
                opened.allocate(size)  # type: ignore[arg-type]

    def test_too_much_memory(self, opened: Device) -> None:
        """DeviceMemoryError, and the device is usable afterwards."""
        with pytest.raises(DeviceMemoryError):
            opened.allocate(1 << 60)
        opened.allocate(16).close()
        opened.check()

    def test_blocks_close(self, opened: Device) -> None:
        """Closing is idempotent; a closed block is refused; pointers are aligned to 128 bytes."""
        block = opened.allocate(256)
        if opened.dlpack_device[0] in _POINTERS:
            assert block.address % 128 == 0
        block.close()
        block.close()
        with pytest.raises(DeviceClosed):
            opened.copy_from_host(block, np.zeros(4, np.uint8))

    def test_memory_is_counted_back(self, opened: Device) -> None:
        """What is allocated and closed leaves the counters where they were."""
        before = opened.memory()
        assert isinstance(before, MemoryStats)
        for _ in range(100):
            blocks = [opened.allocate(1000) for _ in range(3)]
            for block in blocks:
                block.close()
        after = opened.memory()
        assert (after.used, after.live) == (before.used, before.live)
        assert opened.trim() >= 0

    # ------------------------------------------------------------ tensors and DLPack

    @pytest.mark.parametrize("dtype", _DTYPES)
    def test_tensors(self, opened: Device, dtype: str) -> None:
        """A tensor on the device holds what it was made of, under every shape."""
        data = (np.arange(24) % 7).reshape(2, 3, 4).astype(dtype)
        with ph.tensor(data, device=opened) as made:
            assert (made.shape, made.dtype.name) == ((2, 3, 4), dtype)
            assert made.device.name == opened.name
            np.testing.assert_array_equal(made.numpy(), data)
            np.testing.assert_array_equal(made.reshape(4, 6).numpy(), data.reshape(4, 6))
            made.copy_from(data[::-1])
            np.testing.assert_array_equal(made.numpy(), data[::-1])
        for shape in ((), (0, 3), (1,)):
            with ph.tensor(np.ones(shape, dtype), device=opened) as made:
                assert made.numpy().shape == shape

    def test_dlpack(self, opened: Device) -> None:
        """Tensors say where they lie, and travel to the host through DLPack."""
        data = np.arange(12, dtype=np.float32).reshape(3, 4)
        made = ph.tensor(data, device=opened)
        assert made.__dlpack_device__() == opened.dlpack_device
        found = ph.from_dlpack(_ToHost(made))
        made.close()
        np.testing.assert_array_equal(found.numpy(), data)

    def test_tensors_free_their_memory(self, opened: Device) -> None:
        """Closed or forgotten: either gives the memory back."""
        before = opened.memory()
        for _ in range(20):
            ph.empty((64, 4), "float32", opened).close()
            ph.empty((64, 4), "float32", opened)
        gc.collect()
        after = opened.memory()
        assert (after.used, after.live) == (before.used, before.live)

    # ------------------------------------------------------------ packed functions

    def test_packed_functions(self, opened: Device) -> None:
        """Devices and tensors pass through packed calls as they are."""
        identity = ph.PackedFunction(lambda value: value, "identity")
        with ph.tensor(np.arange(3.0), device=opened) as made:
            assert identity(made) is made
            assert identity(opened) is opened
            assert ph.PackedFunction(lambda t: float(np.sum(t.numpy())))(made) == 3.0

    # ------------------------------------------------------------ threads and lifetime

    def test_threads_share_the_device(self, opened: Device) -> None:
        """Many threads allocate and copy at once, each finds its own bytes."""

        def work(seed: int) -> bool:
            data = np.random.default_rng(seed).integers(0, 256, 5000, np.uint8)
            result = np.empty_like(data)
            for _ in range(10):
                block = opened.allocate(data.nbytes)
                opened.copy_from_host(block, data)
                opened.synchronize()
                opened.copy_to_host(block, result)
                block.close()
            return bool((result == data).all())

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(8)))

    def test_closed_devices_refuse(self, private: Device) -> None:
        """After close every method raises DeviceClosed; close is idempotent."""
        block = private.allocate(16)
        block.close()
        with private as same:
            assert same is private
        private.close()
        assert private.closed
        data = np.zeros(4, np.uint8)
        calls: Mapping[str, Any] = {
            "allocate": lambda: private.allocate(16),
            "copy_from_host": lambda: private.copy_from_host(block, data),
            "copy_to_host": lambda: private.copy_to_host(block, data),
            "synchronize": private.synchronize,
            "memory": private.memory,
            "trim": private.trim,
        }
        for name, call in calls.items():
            try:
                call()
            except DeviceClosed:
                continue
            pytest.fail(f"{name} of a closed device raised nothing")

    def test_a_closed_device_opens_again(self, opened: Device) -> None:
        """The name opens a new device after the old one was closed."""
        opened.close()
        again = open_device(self.device)
        assert again is not opened
        again.check()


class _ToHost:
    """A DLPack producer that asks for the copy on the host."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **_: Any) -> Any:
        return self._made.__dlpack__(dl_device=(1, 0), max_version=(1, 0))
