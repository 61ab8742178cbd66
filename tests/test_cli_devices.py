"""The command line: devices, doctor, errors."""

import io
import json
import subprocess
import sys

import pytest
from plugin_kit import good, write_dist

from packhorse import cli
from packhorse.cli import _host, _output
from packhorse.errors import PluginError


@pytest.fixture
def fresh(monkeypatch):
    """Plugins are scanned anew, before and after the test."""
    from packhorse._devices import default_devices
    from packhorse.plugin import default_manager

    def clear():
        default_devices.cache_clear()
        default_manager.cache_clear()

    clear()
    yield
    clear()


def test_devices_table(capsys):
    assert cli.main(["devices"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert " ".join(header.split()) == "device kind installed driver usable memory what"
    cpu = next(row for row in rows if row.startswith("cpu:0"))
    assert cpu.split()[1:5] == ["cpu", "yes", "yes", "yes"]


def test_devices_json(capsys):
    assert cli.main(["devices", "--json", "--probe"]) == 0
    rows = json.loads(capsys.readouterr().out)
    cpu = next(row for row in rows if row["device"] == "cpu:0")
    assert cpu["status"] == "ok"
    assert cpu["memory"] > 0
    assert cpu["kind"] == "cpu"


def test_a_broken_plugin_is_a_row(capsys, tmp_path, monkeypatch, fresh):
    monkeypatch.syspath_prepend(str(tmp_path))
    write_dist(tmp_path, "packhorse-sick", "ph_sick", "import no_such_module")
    write_dist(tmp_path, "packhorse-far", "ph_far", good("far"))
    monkeypatch.setenv("PACKHORSE_PLUGINS", "sick,far")
    assert cli.main(["devices"]) == 0
    out = capsys.readouterr().out
    assert "no_such_module" in out
    assert "pip uninstall packhorse-sick" in out
    assert "packhorse devices --probe" in out  # far was not asked
    assert "PACKHORSE_DISABLE=name switches a plugin off" in out


def test_doctor(capsys, tmp_path, monkeypatch, fresh):
    monkeypatch.syspath_prepend(str(tmp_path))
    source = good("wrong").replace("return HostDevice(INFO", "return Wrong(INFO")
    source += "\nclass Wrong(HostDevice):\n    def check(self):\n        import os; os.abort()\n"
    write_dist(tmp_path, "packhorse-wrong", "ph_wrong", source)
    write_dist(tmp_path, "packhorse-sick", "ph_sick", "import no_such_module")
    monkeypatch.setenv("PACKHORSE_PLUGINS", "wrong,sick")
    monkeypatch.setenv("PACKHORSE_RPC_TOKEN", "hunter2")
    monkeypatch.setenv("PACKHORSE_TYPO", "1")
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert any(line.startswith("cpu:0 PASS") for line in lines)
    assert any(line.startswith("wrong:0 FAIL its check crashed with SIGABRT") for line in lines)
    assert any(line.startswith("sick:0 FAIL") and "no_such_module" in line for line in lines)
    assert any(line.startswith("PACKHORSE_TYPO unknown") for line in lines)
    assert "hunter2" not in out


def test_doctor_json(capsys, monkeypatch, fresh):
    monkeypatch.setenv("PACKHORSE_PLUGINS", "off")
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    checks = {row["device"]: row["verdict"] for row in report["Devices"]}
    assert checks == {"cpu:0": "PASS", "llvm-cpu:0": "skip", "opencl:0": "skip"}
    assert report["Versions"]["packhorse"]
    assert report["Host"]["threads used"].isdigit()


def test_errors_are_one_message_and_exit_code_2(capsys, monkeypatch):
    monkeypatch.setenv("PACKHORSE_LOG", "loud")
    assert cli.main(["devices"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("packhorse: error: PACKHORSE_LOG is 'loud'")
    monkeypatch.setenv("PACKHORSE_DEBUG", "1")
    with pytest.raises(ValueError, match="loud"):
        cli.main(["devices"])


def test_interrupt(capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("packhorse.cli._devices.run", interrupted)
    assert cli.main(["devices"]) == 130


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["devices", "--nonsense"]])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: packhorse" in capsys.readouterr().err


def test_python_m_packhorse():
    command = [sys.executable, "-m", "packhorse", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("packhorse 0.")


COMMAND = """
    from packhorse.plugin import hookimpl

    @hookimpl
    def packhorse_cli(commands):
        def configure(parser):
            parser.add_argument("--twice", action="store_true")

        def run(arguments):
            print("hello" * (2 if arguments.twice else 1))
            return 5

        commands.add("greet", "say hello", configure, run)
"""


def test_commands_of_plugins(tmp_path, monkeypatch, capsys, fresh):
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = {"packhorse.plugins": {"greet": "ph_greet"}}
    write_dist(tmp_path, "packhorse-greet", "ph_greet", COMMAND, entries)
    assert cli.main(["greet", "--twice"]) == 5
    assert capsys.readouterr().out == "hellohello\n"
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "say hello" in capsys.readouterr().out


def test_a_plugin_cannot_take_a_command(tmp_path, monkeypatch, capsys, caplog, fresh):
    commands = cli._PluginCommands()
    with pytest.raises(PluginError, match="'devices', which is taken"):
        commands.add("devices", "", lambda parser: None, lambda arguments: 0)
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = {"packhorse.plugins": {"thief": "ph_thief"}}
    source = COMMAND.replace("greet", "doctor")
    write_dist(tmp_path, "packhorse-thief", "ph_thief", source, entries)
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "plugin 'thief' of packhorse-thief 1.2: packhorse_cli" in caplog.text
    assert "'doctor', which is taken" in caplog.text
    assert "devices" in capsys.readouterr().out


REASON = "needs the package 'acme-driver'; pip install acme-driver"


def a_terminal(monkeypatch):
    """A terminal of 40 columns in place of stdout; for the test's body, where it stays."""
    out = io.StringIO()
    out.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return out


def test_tables_are_whole_where_a_program_reads(capsys):
    _output.print_table(("name", "b"), [("x", "yes"), ("longer", ""), ("y", f"{REASON}\nagain")])
    out = capsys.readouterr().out
    assert out == f"name    b\nx       yes\nlonger\ny       {REASON} again\n"


def test_tables_on_a_terminal_are_folded_and_coloured(monkeypatch):
    terminal = a_terminal(monkeypatch)
    _output.print_table(("a", "ok?", "c"), [("cpu:0", "FAIL", REASON), ("[x]", "PASS", "")])
    assert terminal.getvalue().splitlines() == [
        "a      ok?   c",
        "cpu:0  \x1b[31mFAIL\x1b[0m  needs the package",
        "             'acme-driver'; pip install",
        "             acme-driver",
        "[x]    \x1b[32mPASS\x1b[0m",
    ]


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_tables_without_colour(monkeypatch, name, value):
    terminal = a_terminal(monkeypatch)
    monkeypatch.setenv(name, value)
    _output.print_table(("", ""), [("yes", "b")])
    assert terminal.getvalue() == "yes  b\n"


def test_a_narrow_terminal_folds_by_itself(monkeypatch):
    terminal = a_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "15")
    _output.print_table(("", ""), [("a", REASON)])
    assert terminal.getvalue() == f"a  {REASON}\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, ""), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 50, "1024.0 TiB")],
)
def test_bytes_text(count, text):
    assert _output.bytes_text(count) == text


def test_cpu_features(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nflags\t\t: fpu avx2 sse4_2 fma\n")
    assert _host.cpu_features(info) == ["sse4_2", "fma", "avx2"]
    assert _host.cpu_features(tmp_path / "none") == []


def test_cpu_quota(tmp_path):
    assert _host.cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert _host.cpu_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _host.cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert _host.cpu_quota(tmp_path) == 0.5
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1")
    assert _host.cpu_quota(tmp_path) is None
