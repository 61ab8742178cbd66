"""Broken plugins as people meet them: wheels installed by pip into a virtual environment.

All are there at once. Each is one row that says why and what to do; nothing else is harmed.
"""

import importlib.util
import json

import pytest
from plugin_kit import Environment, good, info_only, needs_pip, write_wheel

needs_pip()

BACKENDS = "packhorse.backends"
OURS = [name for name, package in (("cpu", "numpy"), ("llvm-cpu", "llvmlite"),
                                   ("opencl", "pyopencl"))
        if importlib.util.find_spec(package)]  # fmt: skip
MARKED = "from packhorse.plugin import hookimpl\n@hookimpl\n"
NOISE = "import os\nprint('noise of print')\nos.write(1, b'noise of a driver')\n"
WARNS = "import warnings\nwarnings.warn('an old way', DeprecationWarning)\n"

SOURCES = {
    # entry name: source of its module
    "missing-import": "import no_such_module_x",
    "syntax": "def (",
    "exits": "import sys\nsys.exit('that was it')",
    "major": info_only("major", ", api=(2, 0)"),
    "minor": info_only("minor", ", api=(1, 9)"),
    "older": info_only("older", ", api=(0, 9)"),
    "oddapi": info_only("oddapi", ", api='newest'"),
    "segfault": info_only("segfault", open="import ctypes; ctypes.string_at(0)"),
    "leaves": info_only("leaves", open="import os; os._exit(7)"),
    "endless": info_only("endless", open="import time\n        while True: time.sleep(9)"),
    "misspelt": info_only("misspelt") + "\n    @hookimpl\n    def packhorse_prob(): pass\n",
    "argument": MARKED + "def packhorse_backend_info(speed): pass",
    "unmarked": "def packhorse_backend_info(): pass",
    "raises": info_only("raises").replace("return INFO", "raise RuntimeError('out of paper')"),
    "nonsense": info_only("nonsense").replace("return INFO", "return 7"),
    "letters": info_only("letters", ", requires='numpy'"),
    "misnamed": info_only("somebody-else"),
    "noopen": info_only("noopen", open="1 / 0"),
    "noisy": NOISE + good("noisy"),
    "warns": WARNS + good("warns"),
}
ERRORS = {
    # entry name: words of its row when no driver is asked
    "missing-import": ["ModuleNotFoundError", "'no_such_module_x'"],
    "syntax": ["SyntaxError"],
    "exits": ["SystemExit: that was it"],
    "major": ["API 2.0", "offers 1.0", "pip install -U packhorse"],
    "minor": ["API 1.9", "offers 1.0", "pip install -U packhorse"],
    "older": ["API 0.9", "pip install -U ph-older"],
    "oddapi": ["api is 'newest'"],
    "misspelt": ["unknown hook 'packhorse_prob' (did you mean 'packhorse_probe'?)"],
    "argument": ["Argument(s) {'speed'} are declared in the hookimpl"],
    "unmarked": ["not marked with @hookimpl"],
    "raises": ["RuntimeError: out of paper"],
    "nonsense": ["returned int, not BackendInfo"],
    "letters": ["requires is 'numpy', expected a tuple of str"],
    "misnamed": ["'somebody-else'", "'misnamed'"],
    "gone": ["ModuleNotFoundError", "'ph_gone'"],
    "twin": ["offered by", "ph-twin-a 1.2", "ph-twin-b 1.2", "PACKHORSE_DISABLE="],
    "ph-thief": ["it offers 'cpu', which is a name of packhorse itself", "pip uninstall ph-thief"],
    "ph-unwritable": ["'my_dev' can be no backend in a device string"],
    "ph-damaged": ["entry_points.txt is damaged", "pip install -U ph-damaged"],
}
ASKED = {
    # entry name: words of its row when drivers are asked
    "segfault": ["its probe crashed with SIGSEGV", "PACKHORSE_DISABLE=segfault"],
    "leaves": ["its probe ended with exit code 7"],
    "noopen": ["ZeroDivisionError"],
}


def wheels(folder):
    """All wheels of this page."""
    found = [
        write_wheel(
            folder, f"ph-{name}", {f"ph_{name.replace('-', '_')}": source},
            {BACKENDS: {name: f"ph_{name.replace('-', '_')}"}},
        )
        for name, source in SOURCES.items()
    ]  # fmt: skip
    for dist, entry, module in (
        ("ph-gone", "gone", "ph_gone"),
        ("ph-twin-a", "twin", "ph_twin_a"),
        ("ph-twin-b", "twin", "ph_twin_b"),
        ("ph-thief", "cpu", "ph_thief"),
        ("ph-unwritable", "my_dev", "ph_unwritable"),
        ("ph-damaged", "damaged", "ph_damaged"),
        ("ph-headless", "headless", "ph_headless"),
    ):
        modules = {} if entry == "gone" else {module: good(entry)}
        found.append(write_wheel(folder, dist, modules, {BACKENDS: {entry: module}}))
    tracer = {"packhorse.plugins": {"tracer": "ph_tracer"}}
    found.append(write_wheel(folder, "ph-tracer", {"ph_tracer": "1 / 0"}, tracer))
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    made = Environment(tmp_path_factory.mktemp("venv"))
    made.install(wheels(folder))
    (made.site / "ph_damaged-1.2.dist-info/entry_points.txt").write_bytes(
        b"[packhorse.backends]\n\xff\xfe\x00damaged = ph_damaged\n"
    )
    (made.site / "ph_headless-1.2.dist-info/METADATA").unlink()
    # what an interrupted pip leaves behind
    left = made.site / "~h_twin_a-1.1.dist-info"
    left.mkdir()
    (left / "entry_points.txt").write_text("[packhorse.backends]\nleft = ph_left\n")
    return made


@pytest.fixture(scope="module")
def listed(environment):
    """What ``packhorse devices --json`` writes, and its stderr."""
    done = environment.call("-m", "packhorse", "devices", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def probed(environment):
    """The same after the drivers were asked, but for the one that never answers."""
    line = ("-m", "packhorse", "devices", "--json", "--probe", "--timeout", "60")
    done = environment.call(*line, PACKHORSE_DISABLE="endless")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def row_of(rows, name):
    found = [row for row in rows if row["backend"] == name]
    assert len(found) == 1, f"{name} has {len(found)} rows"
    return found[0]


@pytest.mark.parametrize("name", ERRORS)
def test_a_broken_plugin_is_one_row(listed, name):
    row = row_of(listed[0], name)
    assert row["status"] == "error"
    assert row["fix"]
    for word in ERRORS[name]:
        assert word in row["reason"] + row["fix"]
    assert "\n" not in row["reason"]


def test_the_others_are_rows_as_always(listed):
    rows = listed[0]
    asked = ("noisy", "warns", "headless", "noopen", "segfault", "leaves", "endless")
    expected = {"cpu": "ok", **dict.fromkeys(asked, "not probed")}
    assert {name: row_of(rows, name)["status"] for name in expected} == expected
    for name in OURS:
        assert row_of(rows, name)["status"] in ("ok", "not probed")
    names = [row["backend"] for row in rows]
    assert not {"left", "damaged", "somebody-else"} & set(names)
    assert names.index("noisy") < names.index("cpu") < names.index("syntax")


def test_what_plugins_print_and_warn_of_goes_to_stderr(listed):
    assert "noise of print" in listed[1]
    assert "noise of a driver" in listed[1]


def test_a_broken_tracer_is_one_line(listed):
    lines = [line for line in listed[1].splitlines() if "'tracer'" in line]
    assert len(lines) == 1
    assert "ZeroDivisionError" in lines[0]


@pytest.mark.parametrize("name", ASKED)
def test_a_driver_that_crashes_is_one_row(probed, name):
    row = row_of(probed, name)
    assert row["status"] == "error"
    for word in ASKED[name]:
        assert word in row["reason"] + row["fix"]


@pytest.mark.parametrize("name", ERRORS)
def test_probing_gives_a_broken_plugin_the_same_row(listed, probed, name):
    assert row_of(probed, name) == row_of(listed[0], name)


def test_probing_finds_the_sound_ones(probed):
    for name in ("noisy", "warns", "headless", "cpu", "llvm-cpu"):
        if name in (*OURS, "noisy", "warns", "headless"):
            assert row_of(probed, name)["status"] == "ok"
    assert row_of(probed, "cpu")["kind"] == "cpu"


def test_devices_work_in_the_process_that_met_every_broken_plugin(environment):
    names = {"ph-thief": "ph-thief", "ph-unwritable": "my_dev"}
    broken = [names.get(name, name) for name in [*ERRORS, "noopen"]]
    out = environment.run(
        f"""
        import packhorse as ph
        for name in {broken!r}:
            try:
                ph.device(name)
            except ph.PackhorseError as error:
                assert str(error), name
            else:
                raise AssertionError(name)
        for name in {OURS!r}:
            try:
                device = ph.device(name)
            except ph.DeviceError as error:
                print(name, type(error).__name__)
                continue
            device.check()
            print(device.name)
        print(ph.device("noisy").name, ph.device("headless").name, ph.device("warns").name)
        """
    ).replace("noise of a driver", "")
    lines = out.splitlines()
    assert "noisy:0 headless:0 warns:0" in lines
    for name in OURS:
        assert f"{name}:0" in lines or f"{name} DeviceUnavailable" in lines
    assert "cpu:0" in lines


def test_a_warning_that_is_an_error_is_a_row(environment):
    done = environment.call("-W", "error", "-m", "packhorse", "devices", "--json")
    row = row_of(json.loads(done.stdout), "warns")
    assert row["status"] == "error"
    assert "DeprecationWarning: an old way" in row["reason"]


def test_doctor_says_all_of_it(environment):
    line = ("-m", "packhorse", "doctor", "--json", "--timeout", "60")
    done = environment.call(*line, PACKHORSE_DISABLE="endless")
    assert done.returncode == 1, done.stderr  # some devices fail
    report = json.loads(done.stdout)
    for name, words in ERRORS.items():
        for word in words:
            assert word in report["Plugins"][f"backends: {name}"]
    assert "ZeroDivisionError" in report["Plugins"]["plugins: tracer"]
    assert report["Plugins"]["backends: noisy"] == "ok (ph-noisy 1.2)"
    assert report["Plugins"]["backends: headless"] == "ok (ph_headless 1.2)"
    verdicts = {row["device"]: row["verdict"] for row in report["Devices"]}
    assert verdicts["cpu:0"] == verdicts["noisy:0"] == "PASS"
    assert {verdicts[f"{name}:0"] for name in ASKED} == {"FAIL"}


CRASHES = {"abort": "import os; os.abort()", "hangs": "import time\nwhile True: time.sleep(9)"}


@pytest.fixture(scope="module")
def crashing(tmp_path_factory):
    """Plugins that take the process with them when they are imported."""
    folder = tmp_path_factory.mktemp("crashing")
    found = [
        write_wheel(folder, f"ph-{n}", {f"ph_{n}": source}, {BACKENDS: {n: f"ph_{n}"}})
        for n, source in CRASHES.items()
    ]
    made = Environment(tmp_path_factory.mktemp("venv"))
    made.install(found)
    return made


def test_a_crash_at_import_is_named_by_doctor_and_probe(crashing):
    done = crashing.call("-m", "packhorse", "doctor", "--json", PACKHORSE_DISABLE="hangs")
    report = json.loads(done.stdout)
    assert "its import crashed with SIGABRT" in report["Plugins"]["backends: abort"]
    assert "PACKHORSE_DISABLE=abort" in report["Plugins"]["backends: abort"]
    assert report["Plugins"]["backends: cpu"].startswith("ok")
    line = ("-m", "packhorse", "devices", "--json", "--probe")
    rows = json.loads(crashing.call(*line, PACKHORSE_DISABLE="hangs").stdout)
    assert "SIGABRT" in row_of(rows, "abort")["reason"]
    assert row_of(rows, "cpu")["status"] == "ok"


@pytest.mark.parametrize("name", ["hangs", "endless"])
def test_what_never_answers_is_named(environment, crashing, name):
    """At import, and when the driver is asked."""
    where = crashing if name == "hangs" else environment
    line = ("-m", "packhorse", "devices", "--json", "--probe", "--timeout", "2")
    rows = json.loads(where.call(*line, PACKHORSE_PLUGINS=name).stdout)
    assert row_of(rows, name)["reason"] == "its probe did not answer within 2 seconds"
    assert f"PACKHORSE_DISABLE={name}" in row_of(rows, name)["fix"]
    assert row_of(rows, "cpu")["status"] == "ok"


def test_doctor_names_an_import_that_never_ends(crashing):
    line = ("-m", "packhorse", "doctor", "--json", "--timeout", "2")
    report = json.loads(crashing.call(*line, PACKHORSE_PLUGINS="hangs").stdout)
    assert "its import did not answer within 2 seconds" in report["Plugins"]["backends: hangs"]


def test_a_device_named_imports_no_other_plugin(crashing):
    """What takes the process with it does so only when all are listed, or it is named."""
    assert crashing.run("import packhorse as ph; print(ph.device('cpu'))") == "cpu:0\n"
    out = crashing.run(
        "import packhorse as ph; print(len(ph.devices()))", PACKHORSE_DISABLE="abort,hangs"
    )
    assert int(out) >= 1
