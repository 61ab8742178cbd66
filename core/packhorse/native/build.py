"""Builds the C core: ``python -m packhorse.native.build`` in a checkout, setup.py for wheels."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from cffi import FFI

__all__ = ["build_in_place", "describe"]

SOURCES = (
    *("dlpack.c", "error.c", "fast.c", "ffi.c", "plan.c", "platform_posix.c", "pool.c"),
    *("runtime.c", "workspace.c"),
)
FLAGS = ("-std=gnu11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread")
CALLBACKS = """
extern "Python+C" int ph_py_call(uintptr_t, ph_value *, int *, int, ph_value *, int *);
extern "Python+C" int ph_py_call_ffi(uintptr_t, ph_any *, int, ph_any *);
extern "Python+C" int ph_py_lookup(uintptr_t, const char *, int32_t, uintptr_t *);
extern "Python+C" int ph_py_symbol(const char *, uintptr_t);
extern "Python+C" int ph_py_release(uintptr_t);
extern "Python+C" uintptr_t ph_py_workspace(int, int, uint64_t);
extern "Python+C" int ph_py_workspace_free(uintptr_t);
"""


def describe(folder: Path, macros: tuple[tuple[str, str | None], ...] = ()) -> FFI:
    """The extension ``packhorse.native._core`` with its C sources in ``folder``.

    What Python sees is the part of core.h between its two cffi marks. The module uses the
    stable ABI, so one build serves every supported Python. Headers are found beside this file.
    """
    here = Path(__file__).resolve().parent
    header = (here / "core.h").read_text(encoding="utf-8")
    visible = header.split("/* cffi: begin */")[1].split("/* cffi: end */")[0]
    made = FFI()
    made.cdef(visible + CALLBACKS)
    made.set_source(
        "packhorse.native._core",
        '#include "core.h"',
        sources=[str(folder / name) for name in SOURCES],
        include_dirs=[str(here)],
        define_macros=list(macros),
        extra_compile_args=list(FLAGS),
        extra_link_args=["-pthread"],
        libraries=["dl"] if sys.platform.startswith("linux") else [],
    )
    return made


def build_in_place(
    target: Path | None = None, macros: tuple[tuple[str, str | None], ...] = ()
) -> Path:
    """Compile and put the extension beside this file (or into ``target``); its path.

    Written under a temporary name and renamed, so a running process keeps its old copy.
    """
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(describe(here, macros).compile(tmpdir=scratch))
        final = (target or here) / built.name
        partial = final.with_name(f".{built.name}.new")
        shutil.copyfile(built, partial)
        partial.replace(final)
    return final


if __name__ == "__main__":
    print(build_in_place())
else:
    ffi = describe(Path("core/packhorse/native"))
