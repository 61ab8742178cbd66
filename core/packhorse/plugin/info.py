"""What plugins say about themselves: plain data, no driver, nothing heavy imported.

:mod:`packhorse.device` re-exports the device side; plugins may import from either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

if TYPE_CHECKING:  # `import packhorse` pays for what is imported here
    import logging
    from pathlib import Path

__all__ = [
    "API",
    "BackendInfo",
    "DeviceInfo",
    "FrontendInfo",
    "Kind",
    "OptionSpec",
    "PluginContext",
    "Status",
]

API: tuple[int, int] = (1, 0)
"""Version of the plugin API, (major, minor). Additions raise minor, breaks raise major."""

Status: TypeAlias = Literal[
    "ok", "not probed", "not installed", "no driver", "no device", "denied", "error"
]
"""What is known of a device; ``not probed``: the plugin is there, nobody asked its driver."""

Kind: TypeAlias = Literal["", "cpu", "gpu", "accelerator"]
"""What a device is; empty when its driver was not asked, or does not say."""

_WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def _bool(text: str) -> bool:
    if text.lower() not in _WORDS:
        raise ValueError("expected 1 or 0 (also true/false, yes/no, on/off)")
    return _WORDS[text.lower()]


@dataclass(frozen=True)
class OptionSpec:
    """One option of a device string, ``key=value``.

    Parameters
    ----------
    type : int, float, bool, str or a function
        Turns the text into the value; a ValueError refuses it.
    help : str
        One line for ``packhorse devices --json`` and the docs.
    minimum : float, optional
        Smallest value allowed (numbers only).
    choices : tuple of str
        Texts allowed; empty means any.
    """

    type: Callable[[str], Any]
    help: str
    minimum: float | None = None
    choices: tuple[str, ...] = ()

    def parse(self, text: str) -> Any:
        """The value of an option's text.

        Raises
        ------
        ValueError
            The text does not fit; the message says what was expected.
        """
        if self.choices and text not in self.choices:
            raise ValueError(f"expected one of {', '.join(self.choices)}")
        try:
            value = _bool(text) if self.type is bool else self.type(text)
        except ValueError as error:
            kind = {int: "a whole number", float: "a number"}.get(self.type)  # type: ignore[call-overload]
            raise ValueError(f"expected {kind}" if kind else str(error)) from None
        if self.minimum is not None and not value >= self.minimum:
            raise ValueError(f"must be at least {self.minimum:g}")
        return value

    def format(self, value: Any) -> str:
        """Canonical text of a value: what :meth:`parse` reads back as the same value."""
        return str(int(value)) if isinstance(value, bool) else str(value)


def _pip_line(extra: str | None, package: str | None) -> str:
    if extra:
        return f"pip install 'packhorse[{extra}]'"
    return f"pip install {package}" if package else ""


@dataclass(frozen=True)
class BackendInfo:
    """Static description of a backend: what can be said without touching a driver.

    Parameters
    ----------
    name : str
        The word in device strings; equal to the entry-point name.
    summary : str
        One line.
    dlpack_type : int
        DLDeviceType of its memory (1 CPU, 2 CUDA, 4 OpenCL, ... of dlpack.h).
    api : (major, minor)
        The plugin API it was written for.
    aliases : tuple of str
        Other words that mean this backend.
    extra : str, optional
        Extra of the ``packhorse`` distribution that brings what it needs.
    package : str, optional
        What to ``pip install`` instead, for plugins of other distributions.
    requires : tuple of str
        Import names it needs; looked up without importing, to say "not installed" early.
    needs_driver : bool
        False when the device is the host itself, so it exists wherever the plugin is installed.
    options : mapping of str to OptionSpec
        The options its device strings take.
    priority : int
        Order in ``auto``, higher first: cpu 0, plugins 100, vendor GPUs 200.
    """

    name: str
    summary: str
    dlpack_type: int
    api: tuple[int, int] = API
    aliases: tuple[str, ...] = ()
    extra: str | None = None
    package: str | None = None
    requires: tuple[str, ...] = ()
    needs_driver: bool = True
    options: Mapping[str, OptionSpec] = field(default_factory=dict)
    priority: int = 100

    @property
    def is_host(self) -> bool:
        """True when its memory is host memory (DLPack device type 1)."""
        return self.dlpack_type == 1

    @property
    def fix(self) -> str:
        """The pip line that brings what the backend needs, or an empty string."""
        return _pip_line(self.extra, self.package)


@dataclass(frozen=True)
class DeviceInfo:
    """One row of ``packhorse devices``.

    Parameters
    ----------
    backend, index : str, int
        Together the device string ``backend:index``.
    name : str
        What the driver calls it.
    memory : int, optional
        Bytes of its memory.
    status : Status
        ``ok`` or the first thing that is missing.
    reason, fix : str
        Why it is not ok, and what to do about it.
    driver : str
        Version of the driver, where there is one.
    kind : Kind
        What computes: ``cpu``, ``gpu`` or ``accelerator`` (anything else); empty while unknown.
        ``auto:gpu`` passes over a driver's devices of kind ``cpu``.
    """

    backend: str
    index: int = 0
    name: str = ""
    memory: int | None = None
    status: Status = "ok"
    reason: str = ""
    fix: str = ""
    driver: str = ""
    kind: Kind = ""

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise ValueError(
                f"status '{self.status}' of {self.backend}:{self.index} is unknown; "
                f"it is one of {', '.join(get_args(Status))}"
            )
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"kind '{self.kind}' of {self.backend}:{self.index} is unknown; it is one of "
                f"{', '.join(filter(None, get_args(Kind)))}, or empty"
            )

    @property
    def device(self) -> str:
        """The device string."""
        return f"{self.backend}:{self.index}"

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON values; ``DeviceInfo(**row)`` gives the object back."""
        return asdict(self)


@dataclass(frozen=True)
class FrontendInfo:
    """Static description of a frontend.

    Parameters
    ----------
    name : str
        The format's word (``load(path, format=name)``); equal to the entry-point name.
    suffixes : tuple of str
        File name endings it reads, lower case with the dot.
    summary : str
        One line.
    extra, package, requires, api
        As in :class:`BackendInfo`.
    """

    name: str
    suffixes: tuple[str, ...]
    summary: str = ""
    extra: str | None = None
    package: str | None = None
    requires: tuple[str, ...] = ()
    api: tuple[int, int] = API

    @property
    def fix(self) -> str:
        """The pip line that brings what the frontend needs, or an empty string."""
        return _pip_line(self.extra, self.package)


@dataclass(frozen=True)
class PluginContext:
    """What a plugin is told about itself when it is opened.

    Parameters
    ----------
    dist, version : str
        The distribution the plugin came from.
    path : Path
        Folder of the plugin's module: its own data files and libraries lie there.
    cache_dir : Path
        Where it may keep files; not created yet.
    logger : logging.Logger
        ``packhorse.plugin.<name>``; the application decides about handlers.
    """

    dist: str
    version: str
    path: Path
    cache_dir: Path
    logger: logging.Logger
