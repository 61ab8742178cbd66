"""Commands on a terminal: coloured tables, a bar while compiling takes longer than a second."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("rich")
pty = pytest.importorskip("pty")


def on_a_terminal(*arguments, **environment):
    """What a terminal shows of a command: its stdout and stderr as they come, escapes included."""
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **environment},
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(master)
    return process.wait(), shown.decode()


def test_tables_are_coloured_and_stay_readable():
    code, shown = on_a_terminal("-m", "packhorse", "devices")
    assert code == 0
    assert "\x1b[" in shown
    assert "cpu:0" in shown


def test_no_color_is_heeded():
    assert "\x1b[3" not in on_a_terminal("-m", "packhorse", "devices", NO_COLOR="1")[1]


SLOW = """
import time
from packhorse.cli import _progress
_progress._PATIENCE = 0.01
with _progress.progress("compiling for llvm-cpu:0"):
    time.sleep(0.5)
print("done")
"""


def test_a_bar_shows_that_it_goes_on():
    code, shown = on_a_terminal("-c", SLOW)
    assert code == 0
    assert "compiling for llvm-cpu:0" in shown
    assert "\x1b[?25l" in shown  # the cursor is hidden while the bar moves,
    assert shown.rstrip().endswith("done")
    assert "\x1b[?25h" in shown  # and comes back
