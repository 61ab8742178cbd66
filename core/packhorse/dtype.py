"""Data types: names <-> ``numpy.dtype`` <-> DLPack (code, bits, lanes).

Names are NumPy's and ml_dtypes': ``"float32"``, ``"bool"``, ``"bfloat16"``, ``"int4"``.
ml_dtypes is loaded only when a type NumPy lacks is asked for. Types narrower than a byte take
a byte per element in memory, as in ml_dtypes.
"""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

import numpy as np

from packhorse.errors import ArgumentTypeError, MissingExtra, did_you_mean

__all__ = ["DTypeLike", "dlpack_code", "dtype", "dtype_name", "from_dlpack_code", "legacy_code"]

DTypeLike: TypeAlias = str | np.dtype[Any] | type

_INT, _UINT, _FLOAT, _BFLOAT, _COMPLEX, _BOOL = 0, 1, 2, 4, 5, 6

_NUMPY: dict[str, tuple[int, int]] = {
    "bool": (_BOOL, 8),
    **{f"int{bits}": (_INT, bits) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (_UINT, bits) for bits in (8, 16, 32, 64)},
    **{f"float{bits}": (_FLOAT, bits) for bits in (16, 32, 64)},
    **{f"complex{bits}": (_COMPLEX, bits) for bits in (64, 128)},
}
# DLPack 1.1, enum DLDataTypeCode; ONNX names the same types float8e4m3fn and so on.
_ML_DTYPES: dict[str, tuple[int, int]] = {
    "bfloat16": (_BFLOAT, 16),
    "int4": (_INT, 4),
    "uint4": (_UINT, 4),
    "int2": (_INT, 2),
    "uint2": (_UINT, 2),
    "float8_e3m4": (7, 8),
    "float8_e4m3": (8, 8),
    "float8_e4m3b11fnuz": (9, 8),
    "float8_e4m3fn": (10, 8),
    "float8_e4m3fnuz": (11, 8),
    "float8_e5m2": (12, 8),
    "float8_e5m2fnuz": (13, 8),
    "float8_e8m0fnu": (14, 8),
    "float6_e2m3fn": (15, 6),
    "float6_e3m2fn": (16, 6),
    "float4_e2m1fn": (17, 4),
}
_CODES = {**_NUMPY, **_ML_DTYPES}
_NAMES = {pair: name for name, pair in _CODES.items()} | {(_UINT, 1): "bool"}


@functools.cache
def _named(name: str) -> np.dtype[Any]:
    if name in _NUMPY:
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        raise MissingExtra("ml_dtypes", "onnx", f"dtype '{name}'") from None
    if not hasattr(ml_dtypes, name):
        raise ArgumentTypeError(
            f"dtype '{name}' is not in the installed ml_dtypes {ml_dtypes.__version__}; "
            "update it: pip install -U ml_dtypes"
        )
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return found


def dtype(value: DTypeLike) -> np.dtype[Any]:
    """The ``numpy.dtype`` of a name, of a dtype, or of a type such as ``np.float32`` or ``float``.

    Raises
    ------
    ArgumentTypeError
        packhorse has no such dtype (objects, strings, dates, structures, big-endian numbers).
    MissingExtra
        The dtype needs ml_dtypes, which is not installed.
    """
    if isinstance(value, str):
        if value in _CODES:
            return _named(value)
        raise ArgumentTypeError(_unknown(value))
    try:
        found: np.dtype[Any] = np.dtype(value)
    except TypeError:
        raise ArgumentTypeError(_unknown(str(value))) from None
    dtype_name(found)
    return found


@functools.lru_cache(256)
def dtype_name(value: np.dtype[Any]) -> str:
    """Name of a dtype: ``"float32"``, ``"bfloat16"``. Raises :class:`ArgumentTypeError`."""
    name = value.name
    if name not in _CODES:
        raise ArgumentTypeError(_unknown(name))
    if not value.isnative:
        raise ArgumentTypeError(
            f"dtype '{name}' in foreign byte order is not supported; convert the array with "
            "array.astype(array.dtype.newbyteorder('='))"
        )
    return name


def dlpack_code(value: DTypeLike) -> tuple[int, int, int]:
    """DLPack's (code, bits, lanes); lanes is 1. Raises as :func:`dtype`."""
    name = value if isinstance(value, str) else dtype_name(dtype(value))
    if name not in _CODES:
        raise ArgumentTypeError(_unknown(name))
    return (*_CODES[name], 1)


@functools.lru_cache(256)
def legacy_code(value: DTypeLike) -> tuple[int, int, int]:
    """The same as TVM's legacy ABI writes it: bool is an unsigned integer of 1 bit."""
    code = dlpack_code(value)
    return code if code[0] != _BOOL else (_UINT, 1, 1)


def from_dlpack_code(code: int, bits: int, lanes: int = 1) -> np.dtype[Any]:
    """The dtype of DLPack's or TVM's (code, bits, lanes).

    Raises
    ------
    ArgumentTypeError
        No such dtype, or a vector type (lanes other than 1), which NumPy lacks.
    MissingExtra
        The dtype needs ml_dtypes, which is not installed.
    """
    name = _NAMES.get((code, bits)) if lanes == 1 else None
    if name is None:
        raise ArgumentTypeError(
            f"DLPack type (code {code}, bits {bits}, lanes {lanes}) has no packhorse dtype; "
            f"known are: {', '.join(_CODES)}"
        )
    return _named(name)


def _unknown(name: str) -> str:
    return f"unknown dtype '{name}'{did_you_mean(name, _CODES)}; known are: {', '.join(_CODES)}"
