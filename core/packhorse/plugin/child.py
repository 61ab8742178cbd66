"""A Python function run in a child process, so that a crash or a hang there is only an answer.

The child is ``python -m MODULE JSON``. Its module calls :func:`answer`, which writes one JSON
value to the real standard output; whatever else prints there (drivers do) goes to stderr.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Child", "ChildFailed", "answer"]


class ChildFailed(Exception):
    """The child crashed, hung or answered nothing; the text continues "its probe ..."."""


class Child:
    """A child process that has been started.

    Parameters
    ----------
    module : str
        Module with ``answer(function)`` in its main part.
    argument : JSON value
        What the function is given.
    environment : mapping of str to str
        Changes to the environment.
    timeout : float
        Seconds it may take from now on.
    """

    def __init__(
        self, module: str, argument: Any, environment: Mapping[str, str], timeout: float
    ) -> None:
        self._timeout, self._deadline = timeout, time.monotonic() + timeout
        # The child must find the packages this process finds, whatever changed sys.path here.
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, json.dumps(argument)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, **environment},
            start_new_session=True,  # so that a timeout ends its children too
        )

    def result(self) -> Any:
        """What the function returned.

        Raises
        ------
        ChildFailed
            How the child ended instead, with the last line of its stderr.
        """
        process = self._process
        try:
            left = max(0.1, self._deadline - time.monotonic())
            output, errors = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            self._kill()
            raise ChildFailed(f"did not answer within {self._timeout:g} seconds") from None
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        if process.returncode != 0:
            raise ChildFailed(": ".join([_ending(process.returncode), *last]))
        try:
            return json.loads(output)
        except ValueError:
            raise ChildFailed(": ".join(["gave no answer", *last])) from None

    def _kill(self) -> None:
        if hasattr(os, "killpg"):
            os.killpg(self._process.pid, signal.SIGKILL)  # not reaped yet: the id is still its
        else:
            self._process.kill()
        self._process.communicate()


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"crashed with {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def answer(function: Callable[[Any], Any]) -> None:
    """In the child: call the function with the argument and write what it returns."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as output:
        os.dup2(2, 1)
        json.dump(function(json.loads(sys.argv[1])), output)
