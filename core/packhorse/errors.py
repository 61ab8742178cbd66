"""Every exception packhorse raises, in one tree.

::

    PackhorseError
    ├── DeviceError                     something about the device that was named
    │   ├── DeviceStringError           (ValueError) the string does not follow the grammar
    │   ├── UnknownBackend              (LookupError) no plugin of that name
    │   ├── DeviceUnavailable           plugin found, device not usable here: says why
    │   ├── DeviceMemoryError           (MemoryError) the device is out of memory
    │   └── DeviceClosed                used after close()
    ├── PluginError                     something about a plugin package
    │   ├── PluginLoadError             importing or registering it failed
    │   ├── PluginTooNew                it asks for a newer packhorse
    │   └── PluginTooOld                it was written for an older packhorse
    ├── MissingExtra                    (ImportError) an optional package is needed
    ├── ModelError                      (ValueError) a model file or graph is not usable
    │   ├── ModelFormatError            the bytes are not a model, or a damaged one
    │   └── UnsupportedOperator         (NotImplementedError) names node, operator and domain
    ├── ArtifactError                   (ValueError) a compiled artifact is damaged or truncated
    ├── CompileError                    a backend could not compile a kernel: carries its log
    ├── ArgumentError                   what the caller passed does not fit
    │   ├── ArgumentTypeError           (TypeError) wrong kind, dtype or device
    │   └── ArgumentValueError          (ValueError) wrong shape, name, count or value
    ├── FunctionNotFound                (LookupError) no packed function of that name
    └── FunctionExists                  (ValueError) registering a name twice without override

Messages say what happened, what was found instead, and how to mend it, in that order.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "ArgumentValueError",
    "ArtifactError",
    "CompileError",
    "DeviceClosed",
    "DeviceError",
    "DeviceMemoryError",
    "DeviceStringError",
    "DeviceUnavailable",
    "FunctionExists",
    "FunctionNotFound",
    "MissingExtra",
    "ModelError",
    "ModelFormatError",
    "PackhorseError",
    "PluginError",
    "PluginLoadError",
    "PluginTooNew",
    "PluginTooOld",
    "UnknownBackend",
    "UnsupportedOperator",
    "did_you_mean",
    "update_or_remove",
]


class PackhorseError(Exception):
    """Base of every error raised on purpose by packhorse or by one of its plugins."""


class DeviceError(PackhorseError):
    """Something about the device that was named."""


class DeviceStringError(DeviceError, ValueError):
    """The device string does not follow the grammar."""


class UnknownBackend(DeviceError, LookupError):
    """No installed plugin offers a backend of that name."""


class DeviceUnavailable(DeviceError):
    """The backend is known but this device cannot be used here; the message says why."""


class DeviceMemoryError(DeviceError, MemoryError):
    """The device could not allocate the memory asked for."""


class DeviceClosed(DeviceError):
    """The device, tensor, module or executable was used after ``close()``."""


class PluginError(PackhorseError):
    """Something about a plugin package, as opposed to the device it drives.

    Attributes
    ----------
    reason, fix : str
        What happened, and the sentence that says how to mend it; the message is both.
    """

    def __init__(self, reason: str, fix: str = "") -> None:
        self.reason, self.fix = reason, fix
        super().__init__(f"{reason}. {fix}" if fix else reason)


class PluginLoadError(PluginError):
    """Importing or registering a plugin failed.

    Attributes
    ----------
    name, dist, version : str
        Entry-point name, distribution and its version.
    cause : BaseException
        What the plugin raised.
    """

    def __init__(self, name: str, dist: str, version: str, cause: BaseException) -> None:
        self.name, self.dist, self.version, self.cause = name, dist, version, cause
        super().__init__(
            f"plugin '{name}' of {dist} {version} could not be loaded: "
            f"{type(cause).__name__}: {cause}",
            update_or_remove(dist),
        )


class PluginTooNew(PluginError):
    """The plugin was written for a newer plugin API than this packhorse offers."""


class PluginTooOld(PluginError):
    """The plugin was written for a plugin API this packhorse no longer offers."""


class MissingExtra(PackhorseError, ImportError):
    """An optional package is needed; the message gives the pip line that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'packhorse[{extra}]'"
        )


class ModelError(PackhorseError, ValueError):
    """A model file or a graph cannot be used."""


class ModelFormatError(ModelError):
    """The file is not a model of this format, or a damaged one."""


class UnsupportedOperator(ModelError, NotImplementedError):
    """A model uses an operator (or a form of it) that packhorse does not implement."""


class ArtifactError(PackhorseError, ValueError):
    """A compiled artifact is damaged, truncated, or of a version this packhorse cannot read."""


class CompileError(PackhorseError):
    """A backend could not compile a kernel; ``log`` holds what its compiler said."""

    def __init__(self, message: str, log: str = "") -> None:
        self.log = log
        super().__init__(f"{message}\n{log}" if log else message)


class ArgumentError(PackhorseError):
    """What the caller passed does not fit; the message names the argument."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument of the wrong kind, dtype or device."""


class ArgumentValueError(ArgumentError, ValueError):
    """An argument of the wrong shape, name, count or value."""


class FunctionNotFound(PackhorseError, LookupError):
    """No packed function of that name, in the module or in the global registry."""


class FunctionExists(PackhorseError, ValueError):
    """A global function of that name is registered already and ``override=True`` was not given."""


def update_or_remove(dist: str) -> str:
    """How to mend a plugin that is broken, as :class:`PluginError` says it."""
    return f"Update or remove it: pip install -U {dist} | pip uninstall {dist}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known word, or an empty string."""
    import difflib  # 2 ms that only errors need

    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), folded, n=1)
    return f" (did you mean '{folded[close[0]]}'?)" if close else ""
