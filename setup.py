"""Builds the C core; everything else is said in pyproject.toml."""

import sysconfig

from setuptools import setup

# The C core uses the stable ABI: one wheel serves every Python from 3.11 on.
stable = not sysconfig.get_config_var("Py_GIL_DISABLED")
setup(
    cffi_modules=["core/packhorse/native/build.py:ffi"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if stable else {},
)
