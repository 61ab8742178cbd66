"""The plugins of ``packhorse doctor``: each by itself, then all together, none in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from packhorse.errors import PackhorseError, update_or_remove
from packhorse.plugin import default_manager
from packhorse.plugin.child import Child, ChildFailed
from packhorse.plugin.entries import GROUPS, Entry, damaged

__all__ = ["ask", "rows"]


def ask(what: dict[str, Any], timeout: float, disable: Sequence[str] = ()) -> Child:
    """A check in a child: what crashes when it is imported must not take the report with it."""
    switched_off = [os.environ.get("PACKHORSE_DISABLE", ""), *disable]
    environment = {"PACKHORSE_DISABLE": ",".join(filter(None, switched_off))}
    return Child("packhorse.cli._check", what, environment, timeout)


def rows(timeout: float) -> Iterator[tuple[str, str]]:
    """Every plugin that is installed, and what is wrong with it."""
    manager = default_manager()
    found: dict[tuple[str, str], str] = {}
    children: dict[Entry, Child] = {}
    for key in [(group, name) for group in GROUPS for name in manager.names(group)]:
        try:
            entry = manager.entry(*key)
        except PackhorseError as error:  # two packages offer it
            found[key] = str(error)
            continue
        found[key] = f"ok ({entry.dist} {entry.version})"
        children[entry] = ask({"plugin": vars(entry)}, timeout)
    crashed = []
    for entry, child in children.items():
        problem, answered = _problem(entry, child)
        if problem:
            found[entry.group, entry.name] = problem
        if not answered:
            crashed.append(entry.name)
    for group, name, problem in _together(crashed, timeout):
        if found.get((group, name), "ok (").startswith("ok ("):
            found[group, name] = problem
    for group in GROUPS:
        for name, broken in damaged(manager.unusable, group).items():
            found[group, name] = str(broken)
    for key, switch in manager.refused.items():
        found[key] = f"switched off by {switch}"
    for (group, name), text in found.items():
        yield f"{group.partition('.')[2]}: {name}", text


def _problem(entry: Entry, child: Child) -> tuple[str, bool]:
    """What is wrong with a plugin, and whether it could be asked."""
    try:
        return str(child.result()), True
    except ChildFailed as error:
        return (
            f"its import {error}. {update_or_remove(entry.dist)}, or switch it off: "
            f"PACKHORSE_DISABLE={entry.name}"
        ), False


def _together(crashed: Sequence[str], timeout: float) -> list[tuple[str, str, str]]:
    """What only shows when all plugins are there: functions or operators that several add."""
    try:
        found = ask({}, timeout, crashed).result()
    except ChildFailed as error:
        return [("packhorse.plugins", "all together", f"loading them {error}")]
    return [(group, name, problem) for group, name, problem in found]
