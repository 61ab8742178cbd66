"""Every kind of broken plugin, as real distributions: an error that names it, a row, no more."""

import sys

import pytest
from plugin_kit import good, info_only, raised, write_dist

from packhorse._devices import Devices
from packhorse.errors import (
    DeviceUnavailable,
    MissingExtra,
    PluginError,
    PluginLoadError,
    PluginTooNew,
    PluginTooOld,
)
from packhorse.plugin.entries import installed
from packhorse.plugin.manager import BACKENDS, PluginManager

MARKED = "from packhorse.plugin import hookimpl\n@hookimpl\n"
BROKEN = {
    # name: (source, error, words of the message)
    "syntax": ("def", PluginLoadError, ["SyntaxError", "pip uninstall packhorse-syntax"]),
    "import": ("import no_such_m", PluginLoadError, ["no_such_m", "packhorse-import 1.2"]),
    "exits": ("raise SystemExit(3)", PluginLoadError, ["SystemExit: 3"]),
    "misspelt": (
        info_only("misspelt") + "\n    @hookimpl\n    def packhorse_open_bakend(): pass\n",
        PluginLoadError,
        ["unknown hook 'packhorse_open_bakend' (did you mean 'packhorse_open_backend'?)"],
    ),
    "argument": (
        MARKED + "def packhorse_backend_info(gone): pass",
        PluginLoadError,
        ["gone", "packhorse_backend_info"],
    ),
    "unmarked": (
        "def packhorse_backend_info(): pass",
        PluginLoadError,
        ["no hook packhorse_backend_info", "not marked with @hookimpl"],
    ),
    "halfway": (
        MARKED + "def packhorse_backend_info(): pass",
        PluginLoadError,
        ["no hook packhorse_open_backend"],
    ),
    "noinfo": (info_only("noinfo").replace("return INFO", "return 7"), PluginLoadError, ["int"]),
    "misnamed": (info_only("other"), PluginLoadError, ["'other'", "'misnamed'"]),
    "newer": (info_only("newer", ", api=(1, 9)"), PluginTooNew, ["1.9", "-U packhorse"]),
    "newhook": (
        info_only("newhook", ", api=(1, 9)")
        + "\n    @hookimpl\n    def packhorse_of_tomorrow(): pass\n",
        PluginTooNew,
        ["1.9"],
    ),
    "major": (info_only("major", ", api=(2, 0)"), PluginTooNew, ["2.0"]),
    "older": (info_only("older", ", api=(0, 9)"), PluginTooOld, ["0.9", "-U packhorse-older"]),
    "oddapi": (info_only("oddapi", ", api='1'"), PluginLoadError, ["api is '1'"]),
    "lacks": (
        "from packhorse.errors import MissingExtra\nraise MissingExtra('foo', 'bar', 'it')",
        MissingExtra,
        ["packhorse[bar]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_plugin_is_named_and_leaves_the_others_alone(site, name):
    source, kind, words = BROKEN[name]
    write_dist(site, f"packhorse-{name}", f"ph_{name}", source)
    write_dist(site, "packhorse-good", "ph_good", good("good"))
    devices = Devices(PluginManager())
    text = raised(kind, devices.open, name)
    for word in words:
        assert word in text
    assert raised(kind, devices.open, name) == text  # remembered, not imported again
    assert devices.open("good").name == "good:0"
    assert devices.open("cpu").name == "cpu:0"
    status = {row.backend: row.status for row in devices.rows()}
    assert status[name] == ("not installed" if kind is MissingExtra else "error")
    assert status["good"] == "not probed"


@pytest.mark.parametrize(
    ("body", "kind", "word"),
    [
        ("return None", PluginLoadError, "returned None"),
        ("1 / 0", PluginLoadError, "ZeroDivisionError"),
        ("from packhorse.errors import DeviceUnavailable as D; raise D('no card')",
         DeviceUnavailable, "no card"),
    ],
)  # fmt: skip
def test_backend_that_does_not_open(site, body, kind, word):
    write_dist(site, "packhorse-sad", "ph_sad", info_only("sad", open=body))
    assert word in raised(kind, Devices(PluginManager()).open, "sad")


@pytest.mark.parametrize(
    ("old", "new", "kind", "word"),
    [
        ("return HostDevice(INFO, index, options)", "1 / 0", DeviceUnavailable, "ZeroDivision"),
        ("HostDevice(INFO, index, options)", "HostDevice(INFO, 0, {})", PluginError, "keep index"),
        ("HostDevice(INFO, index, options)", "None", PluginError, "opened None"),
        ("HostDevice(INFO, index, options)", "Half()", PluginError, "misspelt as 'copy_tohost'"),
    ],
)
def test_device_that_does_not_open(site, old, new, kind, word):
    half = """
class Half(HostDevice):
    copy_to_host = property()
    copy_tohost = HostDevice.copy_to_host
    def __init__(self):
        super().__init__(INFO, 0, {"level": 2})
"""
    write_dist(site, "packhorse-good", "ph_good", good("good").replace(old, new) + half)
    assert word in raised(kind, Devices(PluginManager()).open, "good?level=2")


PROBES = {
    "crash": ("import os; os.abort()", "error", "crashed with SIGABRT"),
    "exit": ("import os; os._exit(3)", "error", "exit code 3"),
    "quits": ("raise SystemExit(0)", "error", "SystemExit"),
    "raise": ("1 / 0", "error", "ZeroDivisionError"),
    "nothing": ("return []", "no device", "found no device"),
    "type": ("return [1]", "error", "gave int"),
    "status": ("return [DeviceInfo('good', status='fine')]", "error", "'fine'"),
}


@pytest.mark.parametrize("name", PROBES)
def test_probe_that_fails_is_a_row(site, name):
    body, status, word = PROBES[name]
    source = good("good").replace('print("a driver that prints")', body)
    write_dist(site, "packhorse-good", "ph_good", source)
    rows = Devices(PluginManager(only=["good"])).rows(probe=True)
    row = next(r for r in rows if r.backend == "good")
    assert (row.backend, row.status) == ("good", status)
    assert word in row.reason


def test_probe_that_hangs_is_a_row(site):
    source = good("good").replace("a driver that prints", '"); import time; time.sleep(60); ("')
    write_dist(site, "packhorse-good", "ph_good", source)
    rows = Devices(PluginManager(only=["good"])).rows(probe=True, timeout=1.5)
    row = next(r for r in rows if r.backend == "good")
    assert row.status == "error"
    assert "within 1.5 seconds" in row.reason


def test_a_name_in_two_distributions_is_refused(site):
    write_dist(site, "packhorse-good", "ph_good", good("good"))
    write_dist(site, "rival", "ph_rival", good("good"), {BACKENDS: {"good": "ph_rival"}})
    devices = Devices(PluginManager())
    text = raised(PluginError, devices.open, "good")
    for word in ("packhorse-good 1.2", "rival 1.2", "PACKHORSE_DISABLE="):
        assert word in text
    assert "ph_good" not in sys.modules
    assert next(r for r in devices.rows() if r.backend == "good").status == "error"
    assert Devices(PluginManager(disable=["rival"])).open("good").name == "good:0"


def test_damaged_metadata_hides_only_itself(site):
    write_dist(site, "packhorse-good", "ph_good", good("good"))
    for name, text in {"a": b"\xff\xfe", "b": b"[packhorse.backends]\nnonsense\n= x\n"}.items():
        info = site / f"{name}-1.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_bytes(text)
    assert "good" in {entry.name for entry in installed()}


def test_a_missing_package_is_found_without_importing_anything(site):
    extra = ", requires=('no_such_package_x',), package='acme-driver'"
    write_dist(site, "packhorse-acme", "ph_acme", info_only("acme", extra, "raise AssertionError"))
    devices = Devices(PluginManager())
    text = raised(MissingExtra, devices.open, "acme")
    assert "'no_such_package_x'" in text
    assert "pip install acme-driver" in text
    row = next(r for r in devices.rows(probe=True) if r.backend == "acme")
    assert (row.status, row.fix) == ("not installed", "pip install acme-driver")
