"""The ``llvm-cpu`` backend: kernels compiled for this machine's CPU with LLVM.

``plugin`` holds the hooks; ``device`` the device; ``codegen`` turns a kernel into an object file;
``cache`` keeps objects on disk; ``module`` loads them and links them into a shared library.
"""
