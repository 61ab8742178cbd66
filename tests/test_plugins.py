"""The plugin system with real distributions: discovery, selection, frontends."""

import importlib.metadata
import importlib.util
import sys
import threading

import pytest
from plugin_kit import crashing, good, raised, write_dist, write_wheel

from packhorse._devices import Devices
from packhorse.device import DeviceInfo
from packhorse.errors import (
    DeviceStringError,
    DeviceUnavailable,
    ModelError,
    ModelFormatError,
    PackhorseError,
    UnknownBackend,
)
from packhorse.plugin.entries import GROUPS, KNOWN, Entry, Selection, installed
from packhorse.plugin.manager import BACKENDS, FRONTENDS, PLUGINS, PluginManager


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


def kinds(name, priority, *found):
    """A backend of device memory whose probe finds devices of these kinds."""
    rows = ", ".join(
        f"DeviceInfo({name!r}, {i}, 'card {i}', kind={k!r})" for i, k in enumerate(found)
    )
    source = good(name).replace("dlpack_type=1", "dlpack_type=2")
    source = source.replace("priority=150", f"priority={priority}")
    source = source.replace("return HostDevice(INFO, index", "return Card(INFO, index")
    return source.replace('print("a driver that prints")', f"return [{rows}]") + (
        "\nfrom packhorse.device import DeviceMixin\nclass Card(DeviceMixin):\n"
        "    allocate = copy_from_host = copy_to_host = check = None\n"
        "    copy_from_host = copy_to_host = check = allocate\n"
    )


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        (("cpu", "gpu"), "cards:1"),
        (("gpu", "cpu"), "cards:0"),
        (("cpu", "accelerator"), "cards:1"),
        (("",), "cards:0"),
    ],
)
def test_auto_gpu_takes_no_processor(site, found, chosen):
    """A driver may offer the processor too, as PoCL does."""
    write_dist(site, "packhorse-cards", "ph_cards", kinds("cards", 150, *found))
    assert Devices(PluginManager(only=["cards"])).open("auto:gpu").name == chosen


def test_auto_gpu_says_what_it_passed_over(site):
    write_dist(site, "packhorse-cards", "ph_cards", kinds("cards", 150, "cpu", "cpu"))
    devices = Devices(PluginManager(only=["cards"]))
    text = raised(DeviceUnavailable, devices.open, "auto:gpu")
    assert "cards:1 is a processor: card 1" in text
    assert devices.open("auto:cpu").name == "cpu:0"


def test_auto_prefers_the_compiler_for_the_processor_to_its_opencl_driver(monkeypatch):
    """Priorities decide: llvm-cpu is taken before OpenCL's driver is even asked."""
    devices = Devices(PluginManager())
    order = [info.name for info in devices.manager.backend_infos()]
    if not {"llvm-cpu", "opencl"} <= set(order) or not importlib.util.find_spec("llvmlite"):
        pytest.skip("llvm-cpu or opencl is not installed")
    monkeypatch.setattr(devices, "_ask", lambda info: pytest.fail(f"{info.name} was asked"))
    assert order.index("llvm-cpu") < order.index("opencl")
    assert devices.open("auto").name == "llvm-cpu:0"


def test_an_opencl_device_on_the_processor_says_so():
    pytest.importorskip("pyopencl", reason="the extra opencl is not installed")
    rows = [r for r in Devices(PluginManager()).rows(probe=True) if r.backend == "opencl"]
    for row in rows:
        if row.status == "ok":
            assert row.kind
            assert row.kind == "cpu" or "pthread" not in row.name  # PoCL's name of a processor


def test_a_kind_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="kind 'tpu' of x:0 is unknown; it is one of cpu, gpu"):
        DeviceInfo("x", kind="tpu")


def test_plugins_in_a_zip_file_and_an_egg(site, tmp_path_factory, monkeypatch):
    """What importlib.metadata finds is found here too."""
    folder = tmp_path_factory.mktemp("zip")
    wheel = write_wheel(
        folder,
        "packhorse-zipped",
        {"ph_zipped": good("zipped")},
        {BACKENDS: {"zipped": "ph_zipped"}},
    )
    (folder / "notes.txt").write_text("no zip file")
    for path in (folder / "notes.txt", folder / "not-there", wheel):
        monkeypatch.syspath_prepend(str(path))
    egg = site / "Packhorse_Egg-3.egg-info"
    egg.mkdir()
    (egg / "PKG-INFO").write_text("Name: Packhorse.Egg\nVersion: 3.0\n\nVersion: of the text\n")
    (egg / "entry_points.txt").write_text("[packhorse.backends]\nEgg = ph_egg:plugin [extra]\n")
    found = {entry.name: entry for entry in installed()}
    assert Devices(PluginManager()).open("zipped").name == "zipped:0"
    assert (found["zipped"].dist, found["zipped"].version) == ("packhorse-zipped", "1.2")
    assert found["egg"] == Entry(BACKENDS, "egg", "ph_egg:plugin", "Packhorse.Egg", "3.0")


def test_entry_points_are_those_of_importlib_metadata():
    """Ours is quicker; it must not find anything else."""
    theirs = {
        (group, entry.name.lower(), entry.value)
        for group in GROUPS
        for entry in importlib.metadata.entry_points(group=group)
    }
    assert {(e.group, e.name, e.value) for e in installed()} == theirs


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
        (f"{name}:0", "not installed", f"pip install 'packhorse[{name}]'")
        for name in ("llvm-cpu", "opencl")
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
    assert [list(found) for _, found in manager.ask("packhorse_functions")] == [["seen"]]
    assert list(manager.failures()) == [(PLUGINS, "sick")]


def test_a_tracer_that_fails_harms_no_device(site, caplog):
    source = """
        from packhorse.plugin import hookimpl

        @hookimpl(wrapper=True)
        def packhorse_backend_info(name):
            yield
            raise RuntimeError("the tracer's own")
    """
    write_dist(site, "packhorse-trace", "ph_trace", source, {PLUGINS: {"trace": "ph_trace"}})
    write_dist(site, "packhorse-good", "ph_good", good("good"))
    write_dist(site, "packhorse-lost", "ph_lost", "from packhorse.plugin import hookimpl")
    manager = PluginManager(only=["trace", "good", "lost"])
    devices = Devices(manager)
    assert devices.open("good").name == "good:0"
    assert devices.open("cpu").name == "cpu:0"
    failure = manager.failures()[PLUGINS, "trace"]
    said = "packhorse_backend_info: RuntimeError: the tracer's own"
    assert str(failure).count(said) == 1  # although it failed for both devices
    assert "pip uninstall packhorse-trace" in failure.fix
    assert "'lost' of packhorse-lost" in raised(PackhorseError, devices.open, "lost")


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
