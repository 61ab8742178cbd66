"""A backend with memory of its own that loads saved code, as a package of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from plugin_kit import write_dist

from packhorse.artifact import Artifact
from packhorse.graph.program import Entry, Program, Step

SOURCE = """
    from functools import partial

    import numpy as np
    from packhorse.cpu import HostDevice
    from packhorse.errors import ArtifactError
    from packhorse.function import PackedFunction
    from packhorse.module import PythonModule
    from packhorse.plugin import BackendInfo, hookimpl

    INFO = BackendInfo("vault", "a test backend", dlpack_type=12, priority={priority})
    FAIL = None  # what opening the device raises
    LOADS = []   # what load was asked for

    class Product(PackedFunction):
        "y = x * w"
        def bind_memory(self, blocks):
            arrays = [block.array[:16].view(np.float32) for block in blocks]
            return partial(np.multiply, *arrays[:2], out=arrays[2])

    class Vault(HostDevice):
        def load(self, blob, kind):
            LOADS.append((blob, kind))
            if kind != "vault-names":
                raise ArtifactError(f"{{self.name}} does not load '{{kind}}'")
            names = blob.decode().split()
            return PythonModule({{name: Product(print, name) for name in names}}, "vault")

    class Backend:
        info = INFO
        def open(self, index, options):
            if FAIL is not None:
                raise FAIL
            return Vault(INFO, index, options)
        def probe(self):
            return []

    @hookimpl
    def packhorse_backend_info():
        return INFO

    @hookimpl
    def packhorse_open_backend(name):
        return Backend()
"""


def install(site: Path, monkeypatch: Any, priority: int = 150) -> Any:
    """Install the backend ``vault`` for this test; returns its module."""
    from packhorse import _devices, plugin
    from packhorse.plugin import manager

    write_dist(site, "ph-vault", "ph_vault", SOURCE.format(priority=priority))
    own = manager.PluginManager()
    devices = _devices.Devices(own)
    for module in (manager, plugin):
        monkeypatch.setattr(module, "default_manager", lambda: own)
    monkeypatch.setattr(_devices, "default_devices", lambda: devices)
    opener = sys.modules["packhorse.device"]  # "packhorse.device" is the function of that name
    monkeypatch.setattr(opener, "_opened", lambda: devices, raising=False)
    devices.open("vault").close()
    return sys.modules["ph_vault"]


def program(*steps: Step) -> Program:
    """y = x * w over four floats; ``steps`` instead of the one kernel."""
    entries = tuple(Entry(name, (4,), "float32", i) for i, name in enumerate("xwy"))
    made = steps or (Step("product", (0, 1), (2,), "product"),)
    return Program("net", entries, (0,), (1,), made, (2,), ("y",), {"device": "vault:0"})


def artifact(**changes: Any) -> Artifact:
    """The program with code for ``vault``."""
    given = {
        "programs": {"vault": program()},
        "params": {"w": np.arange(4, dtype=np.float32)},
        "libraries": {"vault": b"product other"},
        "kinds": {"vault": "vault-names"},
        "device": "vault:0",
    }
    return Artifact(**{**given, **changes})
