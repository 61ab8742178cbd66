"""Progress of long steps: a bar on a terminal with rich, log lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator

__all__ = ["progress"]

_log = logging.getLogger("packhorse.cli")
_PATIENCE = 1.0
_REPEAT = 5.0


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """Show that ``what`` goes on, once it has taken longer than a second.

    Without a terminal or rich a line at level info is logged every few seconds instead
    (``PACKHORSE_LOG=info``). Output goes to stderr, so that stdout stays parseable.
    """
    done = threading.Event()
    shower = threading.Thread(target=_show, args=(what, done), daemon=True)
    shower.start()
    try:
        yield
    finally:
        done.set()
        shower.join()


def _show(what: str, done: threading.Event) -> None:
    if done.wait(_PATIENCE) or (sys.stderr.isatty() and _show_bar(what, done)):
        return
    started = time.monotonic() - _PATIENCE
    while not done.wait(_REPEAT):
        _log.info("%s, %.0f s so far", what, time.monotonic() - started)


def _show_bar(what: str, done: threading.Event) -> bool:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        return False
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    # transient: the line is gone when the result is printed
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task(what, total=None)
        done.wait()
    return True
