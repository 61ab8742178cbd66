from setuptools import setup

setup(cffi_modules=["core/packhorse/native/build.py:ffi"])
