"""packhorse carries deep-learning models to any device named by a string.

>>> import packhorse as ph
>>> [row.device for row in ph.devices()][-1:]  # doctest: +SKIP
['cpu:0']

Everything public is listed in ``__all__`` and loaded when first used: ``import packhorse`` itself
imports no compiler, no plugin and no driver.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from packhorse._version import __version__

if TYPE_CHECKING:
    from packhorse.device import Device, DeviceInfo, device, devices
    from packhorse.device_type import DeviceType
    from packhorse.errors import PackhorseError
    from packhorse.function import (
        DLDevice,
        PackedFunction,
        TypeCode,
        convert,
        get_global_func,
        list_global_func_names,
        register_func,
        remove_global_func,
    )
    from packhorse.loading import compile, load
    from packhorse.model import Executable, Model
    from packhorse.module import Module, load_module
    from packhorse.tensor import Tensor, empty, from_dlpack, tensor
    from packhorse.tvm_ffi_bridge import from_tvm_ffi

    __dlpack_version__: tuple[int, int]

__all__ = [
    "DLDevice",
    "Device",
    "DeviceInfo",
    "DeviceType",
    "Executable",
    "Model",
    "Module",
    "PackedFunction",
    "PackhorseError",
    "Tensor",
    "TypeCode",
    "__dlpack_version__",
    "__version__",
    "compile",
    "convert",
    "device",
    "devices",
    "empty",
    "from_dlpack",
    "from_tvm_ffi",
    "get_global_func",
    "list_global_func_names",
    "load",
    "load_module",
    "register_func",
    "remove_global_func",
    "tensor",
]

_HOME = {
    **dict.fromkeys(("Device", "DeviceInfo", "device", "devices"), "device"),
    "DeviceType": "device_type",
    "PackhorseError": "errors",
    "__dlpack_version__": "native.dlpack:VERSION",
    **dict.fromkeys(("Tensor", "empty", "from_dlpack", "tensor"), "tensor"),
    **dict.fromkeys(("Executable", "Model"), "model"),
    **dict.fromkeys(("compile", "load"), "loading"),
    **dict.fromkeys(("Module", "load_module"), "module"),
    "from_tvm_ffi": "tvm_ffi_bridge",
    **dict.fromkeys(
        (
            "DLDevice",
            "PackedFunction",
            "TypeCode",
            "convert",
            "get_global_func",
            "list_global_func_names",
            "register_func",
            "remove_global_func",
        ),
        "function",
    ),
}
"""Name -> its module; ``module:name`` where it has another name there."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'packhorse' has no attribute '{name}'")
    from importlib import import_module

    module, _, other = _HOME[name].partition(":")
    value = getattr(import_module(f"packhorse.{module}"), other or name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps ``packhorse.device`` and ``packhorse.tensor`` the functions of that name, also after
    something imported the modules of that name: imports bind a module to its package."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in ("device", "tensor") and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
