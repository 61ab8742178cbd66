"""The plugin system with real distributions, sound ones and every kind of broken one."""

import sys
import threading

import pytest
from plugin_kit import good, write_dist

from packhorse._devices import Devices
from packhorse.errors import (
    DeviceStringError,
    DeviceUnavailable,
    MissingExtra,
    ModelError,
    ModelFormatError,
    PackhorseError,
    PluginError,
    PluginLoadError,
    PluginTooNew,
    PluginTooOld,
    UnknownBackend,
)
from packhorse.plugin.entries import KNOWN, Selection, installed
from packhorse.plugin.manager import BACKENDS, FRONTENDS, PLUGINS, PluginManager

INFO_ONLY = """
    from packhorse.plugin import BackendInfo, hookimpl
    INFO = BackendInfo("{name}", "x", dlpack_type=12{extra})

    @hookimpl
    def packhorse_backend_info():
        return INFO

    @hookimpl
    def packhorse_open_backend(name):
        {open}
"""


def info_only(name, extra="", open="return None"):
    return INFO_ONLY.format(name=name, extra=extra, open=open)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on sys.path for distributions; modules imported from it are forgotten."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("ph_"):
            del sys.modules[name]


def raised(kind, function, *arguments):
    with pytest.raises(kind) as caught:
        function(*arguments)
    return str(caught.value)


# -- what works -------------------------------------------------------------------------------


def test_names_are_known_without_an_import(site):
    write_dist(site, "packhorse-good", "ph_good", good("good"))
    manager = PluginManager()
    assert {"cpu", "good"} <= set(manager.names(BACKENDS))
    assert "ph_good" not in sys.modules


def test_only_the_backend_used_is_imported(site):
    write_dist(site, "packhorse-good", "ph_good", good("good"))
    write_dist(site, "packhorse-other", "ph_other", good("other"))
    device = Devices(PluginManager()).open("good?level=03&fast=yes")
    assert device.name == "good:0?fast=1&level=3"
    assert device.options == {"level": 3, "fast": True}
    assert "ph_other" not in sys.modules
    device.check()


def test_plugin_context(site):
    write_dist(site, "packhorse-good", "ph_good", good("good"))
    context = PluginManager().backend("good").context
    assert (context.dist, context.version, context.path) == ("packhorse-good", "1.2", site)
    assert context.cache_dir.name == "good"
    assert context.logger.name == "packhorse.plugin.good"


def test_alias(site):
    write_dist(site, "packhorse-good", "ph_good", good("good"))
    assert Devices(PluginManager()).open("good-alias").name == "good:0"


def test_one_module_may_offer_two_backends(site):
    source = good("{name}").replace('BackendInfo("{name}"', "lambda name: BackendInfo(name")
    source = source.replace(
        "def packhorse_backend_info():\n    return INFO",
        "def packhorse_backend_info(name):\n    return INFO(name)",
    )
    entries = {BACKENDS: {"left": "ph_two", "right": "ph_two"}}
    write_dist(site, "packhorse-two", "ph_two", source, entries)
    manager = PluginManager()
    assert manager.backend_info("left").name == "left"
    assert manager.backend_info("right").name == "right"


def test_probe_in_a_child(site):
    write_dist(site, "packhorse-good", "ph_good", good("good"))
    rows = [r for r in Devices(PluginManager()).rows(probe=True) if r.backend == "good"]
    assert [(r.status, r.name, r.memory, r.driver) for r in rows] == [("ok", "probed", 1024, "7.1")]


def test_without_probing_a_driver_is_not_asked(site):
    write_dist(site, "packhorse-good", "ph_good", good("good"))
    rows = [r for r in Devices(PluginManager()).rows() if r.backend == "good"]
    assert [r.status for r in rows] == ["not probed"]


def test_auto_takes_the_highest_priority_that_works(site):
    write_dist(site, "packhorse-good", "ph_good", good("good"))
    write_dist(site, "packhorse-crash", "ph_crash", crashing())
    manager = PluginManager(only=["good", "crash"])
    assert [i.name for i in manager.backend_infos()] == ["crash", "good", "cpu"]
    assert Devices(manager).open("auto").name == "good:0"
    text = raised(DeviceUnavailable, Devices(manager).open, "auto:gpu")
    assert "crash: error (its probe crashed" in text


def test_threads_open_one_device(site):
    write_dist(site, "packhorse-good", "ph_good", good("good"))
    devices, found = Devices(PluginManager()), []
    threads = [threading.Thread(target=lambda: found.append(devices.open("good"))) for _ in "12345"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 5
    assert len(set(map(id, found))) == 1


# -- what is broken ---------------------------------------------------------------------------


def crashing():
    source = good("crash").replace('print("a driver that prints")', "import os; os.abort()")
    return source.replace("priority=150", "priority=200").replace(
        "dlpack_type=1,", "dlpack_type=2,"
    )


MARKED = "from packhorse.plugin import hookimpl\n@hookimpl\n"
BROKEN = {
    # name: (source, error, words of the message)
    "syntax": ("def", PluginLoadError, ["SyntaxError", "pip uninstall packhorse-syntax"]),
    "import": ("import no_such_m", PluginLoadError, ["no_such_m", "packhorse-import 1.2"]),
    "exits": ("raise SystemExit(3)", PluginLoadError, ["SystemExit: 3"]),
    "misspelt": (
        info_only("misspelt") + "\n    @hookimpl\n    def packhorse_open_bakend(): pass\n",
        PluginLoadError,
        ["unknown hook 'packhorse_open_bakend'"],
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
        ("HostDevice(INFO, index, options)", "None", DeviceUnavailable, "AttributeError"),
    ],
)
def test_device_that_does_not_open(site, old, new, kind, word):
    write_dist(site, "packhorse-good", "ph_good", good("good").replace(old, new))
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
    row = next(r for r in Devices(PluginManager(only=["good"])).rows(probe=True))
    assert (row.backend, row.status) == ("good", status)
    assert word in row.reason


def test_probe_that_hangs_is_a_row(site):
    source = good("good").replace("a driver that prints", '"); import time; time.sleep(60); ("')
    write_dist(site, "packhorse-good", "ph_good", source)
    row = next(r for r in Devices(PluginManager(only=["good"])).rows(probe=True, timeout=1.5))
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


# -- unknown words, switches ------------------------------------------------------------------


def test_unknown_backend_lists_what_is_installed(site):
    write_dist(site, "packhorse-good", "ph_good", good("good"))
    devices = Devices(PluginManager(only=["good"]))
    text = raised(UnknownBackend, devices.open, "goood")
    assert "did you mean 'good'?" in text
    assert "Installed: cpu, good." in text
    assert "packhorse.backends" in raised(UnknownBackend, devices.open, "zzz")


def test_known_but_not_installed_gives_the_pip_line():
    devices = Devices(PluginManager([]))
    assert "pip install 'packhorse[llvm-cpu]'" in raised(UnknownBackend, devices.open, "llvm-cpu")
    text = raised(UnknownBackend, devices.open, "lvm-cpu")
    assert "did you mean 'llvm-cpu'?" in text
    assert "pip install 'packhorse[llvm-cpu]'" in text
    rows = devices.rows(probe=True)
    assert [(r.device, r.status, r.fix) for r in rows] == [
        ("llvm-cpu:0", "not installed", "pip install 'packhorse[llvm-cpu]'")
    ]


def test_switches(site, monkeypatch):
    write_dist(site, "packhorse-good", "ph_good", good("good"))
    write_dist(site, "packhorse-other", "ph_other", good("other"))
    monkeypatch.setenv("PACKHORSE_PLUGINS", "good")
    assert PluginManager().names(BACKENDS) == ["cpu", "good"]
    monkeypatch.setenv("PACKHORSE_PLUGINS", "off")
    manager = PluginManager()
    assert manager.names(BACKENDS) == ["cpu"]
    text = raised(UnknownBackend, Devices(manager).open, "good")
    assert "'good' is installed, but PACKHORSE_PLUGINS switches it off" in text
    monkeypatch.delenv("PACKHORSE_PLUGINS")
    monkeypatch.setenv("PACKHORSE_DISABLE", "cpu, Packhorse-Good")
    names = PluginManager().names(BACKENDS)
    assert "other" in names
    assert not {"cpu", "good"} & set(names)
    assert Selection.of(["off"]).only == frozenset()


def test_trace(site, capsys):
    write_dist(site, "packhorse-good", "ph_good", good("good"))
    PluginManager(trace=True).backend_info("good")
    text = capsys.readouterr().err
    assert "packhorse trace: packhorse_backend_info(name='good')" in text
    assert "-> BackendInfo" in text


def test_options_are_checked(site):
    write_dist(site, "packhorse-good", "ph_good", good("good"))
    devices = Devices(PluginManager())
    for text, words in {
        "good?levl=1": "no option 'levl' (did you mean 'level'?). Options it takes: fast, level",
        "good?level=x": "expected a whole number",
        "good?level=0": "must be at least 1",
        "good?fast=2": "expected 1 or 0",
    }.items():
        assert words in raised(DeviceStringError, devices.open, text)


# -- frontends, eager plugins, known table ----------------------------------------------------

FRONTEND = """
    from packhorse.plugin import FrontendInfo, hookimpl

    @hookimpl
    def packhorse_frontend_info():
        return FrontendInfo("{name}", {suffixes!r}, "test models")

    @hookimpl
    def packhorse_import_model(source, options):
        return (source, options) if source != b"bad" else None
"""


def write_frontend(site, name, *suffixes):
    source = FRONTEND.format(name=name, suffixes=suffixes)
    write_dist(site, f"packhorse-{name}", f"ph_{name}", source, {FRONTENDS: {name: f"ph_{name}"}})


def test_frontend_by_name_and_suffix(site):
    write_frontend(site, "toy", ".toy")
    write_frontend(site, "deep", ".x.toy", ".pb")
    write_frontend(site, "deeper", ".pb")
    manager = PluginManager()
    assert manager.frontend_for("a/B.TOY").info.name == "toy"
    assert manager.frontend_for("b.x.toy").info.name == "deep"
    assert "choose one with format=" in raised(ModelFormatError, manager.frontend_for, "a.pb")
    text = raised(ModelFormatError, manager.frontend_for, "a.zip")
    assert "no frontend reads 'a.zip'" in text
    assert ".toy" in text
    frontend = manager.frontend("toy")
    assert frontend.import_model(b"x", options={"a": 1}) == (b"x", {"a": 1})
    assert "bytes is not a model" in raised(ModelFormatError, frontend.import_model, b"bad")
    assert "did you mean 'toy'?" in raised(ModelError, manager.frontend, "tooy")


def test_broken_frontend_is_mentioned_when_no_other_fits(site):
    entries = {FRONTENDS: {"sick": "ph_sick"}}
    write_dist(site, "packhorse-sick", "ph_sick", "import no_such_module", entries)
    text = raised(ModelFormatError, PluginManager(only=["sick"]).frontend_for, "a.sick")
    assert "no_such_module" in text


def test_eager_plugins_load_first_and_a_broken_one_is_logged(site, caplog):
    entries = {PLUGINS: {"eager": "ph_eager"}}
    source = """
        from packhorse.plugin import hookimpl
        SEEN = []

        @hookimpl(wrapper=True)
        def packhorse_backend_info(name):
            SEEN.append(name)
            return (yield)

        @hookimpl
        def packhorse_functions():
            return {"seen": SEEN.copy}
    """
    write_dist(site, "packhorse-eager", "ph_eager", source, entries)
    entries = {PLUGINS: {"sick": "ph_sick"}}
    write_dist(site, "packhorse-sick", "ph_sick", "import no_such_module", entries)
    manager = PluginManager(only=["eager", "sick"])
    assert manager.backend_info("cpu").name == "cpu"
    assert sys.modules["ph_eager"].SEEN == ["cpu"]
    assert "no_such_module" in caplog.text
    assert [list(f) for f in manager.collect("packhorse_functions")()] == [["seen"]]
    assert list(manager.failures()) == [(PLUGINS, "sick")]


def test_the_known_table_agrees_with_the_extras():
    import tomllib
    from pathlib import Path

    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    for (group, name), known in KNOWN.items():
        assert name in project["entry-points"][group]
        assert any(
            r.startswith(known.package) for r in project["optional-dependencies"][known.extra]
        )


def test_unknown_names_of_other_groups_are_plugin_errors():
    with pytest.raises(PackhorseError, match="no format 'nope'"):
        PluginManager([]).load("packhorse.formats", "nope")
