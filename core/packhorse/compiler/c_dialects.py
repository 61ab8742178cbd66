"""What OpenCL C, CUDA and HIP write differently: one table each, everything else is common C.

A new member of the family is a new :class:`Dialect`; the lowering and the builder stay as they
are. float16 and bfloat16 are storage formats here: registers hold float32, and the conversions
are written with integer operations, so no dialect needs an extension or a header for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from packhorse.errors import CompileError

__all__ = ["DIALECTS", "Dialect", "dialect"]

_CUDA_TYPES = {
    "bool": "bool", "int8": "signed char", "uint8": "unsigned char", "int16": "short",
    "uint16": "unsigned short", "int32": "int", "uint32": "unsigned int", "int64": "long long",
    "uint64": "unsigned long long", "float32": "float", "float64": "double",
}  # fmt: skip
_OPENCL_TYPES = {
    "bool": "bool", "int8": "char", "uint8": "uchar", "int16": "short", "uint16": "ushort",
    "int32": "int", "uint32": "uint", "int64": "long", "uint64": "ulong", "float32": "float",
    "float64": "double",
}  # fmt: skip


@dataclass(frozen=True)
class Dialect:
    """How one language of the family is written.

    Parameters
    ----------
    name : str
        ``opencl``, ``cuda`` or ``hip``.
    types : mapping of dtype to C type
        Types of registers; bool is ``uint8`` in memory.
    header : str
        First lines of every program.
    kernel : str
        How a kernel begins; ``{group}`` is the number of work-items of a group.
    helper : str
        How a function called by kernels begins.
    pointer : str
        A kernel argument, from ``{const}``, ``{type}``, ``{restrict}`` and ``{name}``.
    shared : str
        Storage class of memory shared by a work-group.
    global_id, local_id, group_id : str
        Expressions for the position of a work-item in one dimension.
    local_barrier, global_barrier : str
        Statements after which a work-group sees what it wrote to shared or to device memory.
    long_suffix : str
        Suffix of 64-bit literals.
    bits : mapping of dtype to str
        Expression that reinterprets ``{0}``: float32 from and to uint32, float64 from and
        to uint64.
    float_suffix : str
        What names of mathematical functions of float32 end with.
    float64 : str
        A line that switches float64 on.
    position : str
        Parameters after the buffers, for languages that tell a work-item by them where it is.
    vectors : mapping of dtype to str
        Names of vector types without their number of elements; a dtype that is missing is read
        and written element by element.
    vector : str
        A vector of ``{type}`` from ``{values}``; its elements are ``.x .y .z .w``.
    vector_at, shared_vector_at : str
        The vector of ``{const}{type}`` that lies at ``{address}``, in device memory and in memory
        shared by a work-group.
    """

    name: str
    types: Mapping[str, str]
    header: str
    kernel: str
    helper: str
    pointer: str
    shared: str
    global_id: str
    local_id: str
    group_id: str
    local_barrier: str
    global_barrier: str
    long_suffix: str
    bits: Mapping[str, str]
    float_suffix: str = ""
    float64: str = ""
    position: str = ""
    vectors: Mapping[str, str] = field(default_factory=dict)
    vector: str = ""
    vector_at: str = ""
    shared_vector_at: str = ""


_OPENCL = Dialect(
    name="opencl",
    types=_OPENCL_TYPES,
    header="",
    kernel="__kernel __attribute__((reqd_work_group_size({group}, 1, 1)))\nvoid",
    helper="static",
    pointer="__global {const}{type}* {restrict}{name}",
    shared="__local __attribute__((aligned(16)))",
    global_id="get_global_id(0)",
    local_id="get_local_id(0)",
    group_id="get_group_id(0)",
    local_barrier="barrier(CLK_LOCAL_MEM_FENCE);",
    global_barrier="barrier(CLK_GLOBAL_MEM_FENCE | CLK_LOCAL_MEM_FENCE);",
    long_suffix="L",
    bits={
        "float32": "as_float({0})",
        "uint32": "as_uint({0})",
        "uint64": "as_ulong({0})",
        "float64": "as_double({0})",
    },
    float64="#pragma OPENCL EXTENSION cl_khr_fp64 : enable",
    vectors={name: kind for name, kind in _OPENCL_TYPES.items() if name != "bool"},
    vector="({type})({values})",
    vector_at="*(__global {const}{type}*)({address})",
    shared_vector_at="*(__local {const}{type}*)({address})",
)

_CUDA = Dialect(
    name="cuda",
    types=_CUDA_TYPES,
    header="#define restrict __restrict__",
    kernel='extern "C" __global__ void __launch_bounds__({group})\n',
    helper="static __device__ __forceinline__",
    pointer="{const}{type}* {restrict}{name}",
    shared="__shared__ __attribute__((aligned(16)))",
    global_id="((long long)blockIdx.x * blockDim.x + threadIdx.x)",
    local_id="threadIdx.x",
    group_id="blockIdx.x",
    local_barrier="__syncthreads();",
    global_barrier="__threadfence(); __syncthreads();",
    long_suffix="LL",
    bits={
        "float32": "__uint_as_float({0})",
        "uint32": "__float_as_uint({0})",
        "uint64": "(unsigned long long)__double_as_longlong({0})",
        "float64": "__longlong_as_double((long long){0})",
    },
    float_suffix="f",
    vectors={**_OPENCL.vectors, "int64": "longlong", "uint64": "ulonglong"},
    vector="make_{type}({values})",
    vector_at="*({const}{type}*)({address})",
    shared_vector_at="*({const}{type}*)({address})",
)

_HIP_HEADER = """#define restrict __restrict__
#ifndef __HIPCC_RTC__
#include <hip/hip_runtime.h>
#endif"""

DIALECTS: Mapping[str, Dialect] = {
    "opencl": _OPENCL,
    "cuda": _CUDA,
    "hip": Dialect(**{**_CUDA.__dict__, "name": "hip", "header": _HIP_HEADER}),
}
"""The dialects, by name."""


def dialect(name: str | Dialect) -> Dialect:
    """The dialect of that name; a Dialect is returned as it is.

    Raises
    ------
    CompileError
        There is none; the message lists those there are.
    """
    found = name if isinstance(name, Dialect) else DIALECTS.get(name)
    if found is None:
        raise CompileError(f"no C dialect '{name}'. Known are: {', '.join(sorted(DIALECTS))}")
    return found
