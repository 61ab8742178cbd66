"""The ``vm.builtin.*`` functions of the Relax VM that concern shapes, memory, tuples, closures.

Source: TVM 0.27, src/runtime/vm/builtin.cc; which of them exist is :data:`BUILTINS`. Those for
attention caches, sampling, CUDA graphs and several processes are not among them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from packhorse.dtype import dtype_name
from packhorse.errors import ArgumentTypeError, ArgumentValueError, ArtifactError
from packhorse.graph.relax_values import FFI_ALIGNMENT, Buffer, Callee, Closure, Source, View
from packhorse.native.memory import aligned_empty

__all__ = ["BUILTINS", "Builtin", "MachineLike"]

_IMMEDIATE, _STORE, _SKIP, _LOAD = range(4)  # MatchShapeCode
_HEAP_MAX = 1 << 20


class MachineLike(Protocol):
    """What the builtins need of the machine."""

    def call(self, closure: Closure | Callee, args: Sequence[Any], wanted: bool = True) -> Any:
        """Run a function of the table, or a packed one; ``wanted``: what it returns matters."""

    def depend(self, why: str) -> None:
        """Note that what follows depends on the contents of tensors."""

    def storage(self, nbytes: int, device: int, scope: str) -> Buffer:
        """Memory of one of the executable's devices."""

    def device_type(self) -> int:
        """DLPack type of the device that tensors lie on."""


Builtin = Callable[..., Any]
"""``builtin(machine, *args)``; TypeError and the like mean that the file is damaged."""


def _view(value: Any) -> View:
    if not isinstance(value, View):
        raise TypeError(f"a tensor is needed, not {type(value).__name__}")
    return value


def _ints(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple):
        raise TypeError(f"a shape is needed, not {type(value).__name__}")
    return value


def _dtype(value: Any) -> np.dtype[Any]:
    if not isinstance(value, np.dtype):
        raise TypeError(f"a dtype is needed, not {value!r}")
    return value


def _size(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    if any(d < 0 for d in shape) or math.prod(d or 1 for d in shape) * dtype.itemsize >> 62:
        raise ValueError(f"the shape {shape} is impossible")
    return math.prod(shape) * dtype.itemsize


_CONTEXT = re.compile(
    r"ErrorContext\(fn=(.*?), loc=(.*?), (?:param=(.*?), )?annotation=(.*)\)\s*", re.S
)


def _where(context: Any) -> str:
    """The place in the model that TVM wrote down for errors, as the start of a message."""
    if not isinstance(context, str) or not context.strip():
        return ""
    match = _CONTEXT.fullmatch(context)
    if match is None:
        return f"{context.strip()}: "
    function, place, name, annotation = match.groups()
    what = f"input '{name}'" if name else place
    return f"{what} of '{function}', compiled as {annotation}: "


# ---------------------------------------------------------------- shapes


def _alloc_shape_heap(machine: MachineLike, _: Any, size: int) -> View:
    if not 0 <= size <= _HEAP_MAX:
        raise ValueError(f"a heap of {size} values")
    memory = aligned_empty(8 * size)
    memory[...] = 0
    return View(Buffer(memory, Source.HEAP), 0, (size,), np.dtype(np.int64))


def _heap(value: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The sizes a heap holds; there is none where no dimension is symbolic."""
    if value is None:
        return np.empty(0, np.int64)
    view = _view(value)
    if view.buffer.source is not Source.HEAP:
        raise TypeError("a shape heap is needed, not another tensor")
    return view.array


def _slot(heap: np.ndarray[Any, Any], index: int) -> int:
    if not 0 <= index < len(heap):
        raise IndexError(f"value {index} of a heap of {len(heap)}")
    return index


def _match(found: int, heap: Any, code: int, want: int, what: str, context: Any) -> None:
    if code == _STORE:
        heap[_slot(heap, want)] = found
    elif code in (_IMMEDIATE, _LOAD):
        expected = want if code == _IMMEDIATE else int(heap[_slot(heap, want)])
        if found != expected:
            raise ArgumentValueError(
                f"{_where(context)}{what} must be {expected}, found {found}; pass what the model "
                "was compiled for"
            )
    elif code != _SKIP:
        raise ValueError(f"match code {code}")


def _match_shape(machine: MachineLike, value: Any, heap: Any, size: int, *rest: Any) -> None:
    shape, memory = value.shape if isinstance(value, View) else _ints(value), _heap(heap)
    if not 0 <= 2 * size <= len(rest):
        raise ValueError(f"{size} dimensions in {len(rest)} arguments")
    context = rest[2 * size] if len(rest) > 2 * size else ""
    if len(shape) != size:
        raise ArgumentValueError(
            f"{_where(context)}{size} dimensions are expected, found shape {shape}; pass what the "
            "model was compiled for"
        )
    for i, found in enumerate(shape):
        code, want = rest[2 * i : 2 * i + 2]
        _match(found, memory, code, want, f"dimension {i} of shape {shape}", context)


def _match_prim_value(
    machine: MachineLike, value: int, heap: Any, code: int, want: int, context: Any = ""
) -> None:
    if not isinstance(value, int):
        raise ArgumentTypeError(
            f"{_where(context)}an integer is expected, found {type(value).__name__}; pass an int"
        )
    _match(value, _heap(heap), code, want, "the value", context)


def _load(heap: Any, code: int, value: int) -> int:
    if code not in (0, 1):
        raise ValueError(f"shape code {code}")
    return int(heap[_slot(heap, value)]) if code else value


def _make_shape(machine: MachineLike, heap: Any, size: int, *rest: Any) -> tuple[int, ...]:
    memory = _heap(heap)
    if len(rest) != 2 * size:
        raise ValueError(f"{size} dimensions in {len(rest)} arguments")
    return tuple(_load(memory, rest[2 * i], rest[2 * i + 1]) for i in range(size))


def _make_prim_value(machine: MachineLike, heap: Any, code: int, value: int) -> int:
    return _load(_heap(heap), code, value)


def _shape_of(machine: MachineLike, value: Any) -> tuple[int, ...]:
    return _view(value).shape


def _tensor_to_shape(machine: MachineLike, value: Any) -> tuple[int, ...]:
    view = _view(value)
    if len(view.shape) != 1 or view.dtype.kind != "i":
        raise TypeError(f"a shape cannot be read from {view.dtype}{view.shape}")
    if view.buffer.source in (Source.PLANNED, Source.INPUT):
        machine.depend("a shape is read from a tensor (vm.builtin.tensor_to_shape)")
    return tuple(view.array.tolist())


# ---------------------------------------------------------------- checks


def _check_tensor_info(machine: MachineLike, value: Any, rank: int, *rest: Any) -> None:
    dtype, context = rest if len(rest) == 2 else (None, rest[0])
    if not isinstance(value, View):
        raise ArgumentTypeError(
            f"{_where(context)}a tensor is expected, found {_kind(value)}; pass an array"
        )
    if rank not in (-1, len(value.shape)):
        raise ArgumentValueError(
            f"{_where(context)}a tensor of {rank} dimensions is expected, found shape "
            f"{value.shape}; reshape it"
        )
    if dtype is not None and dtype != value.dtype:
        name = dtype_name(_dtype(dtype))
        raise ArgumentTypeError(
            f"{_where(context)}a tensor of {name} is expected, found {value.dtype}; convert it "
            f"with array.astype('{name}')"
        )


def _kind(value: Any) -> str:
    names = {View: "a tensor", tuple: "a shape", list: "a tuple", Closure: "a function"}
    return names.get(type(value), f"a value of type {type(value).__name__}")


def _check_shape_info(machine: MachineLike, value: Any, rank: int, context: Any = "") -> None:
    if not isinstance(value, tuple):
        raise ArgumentTypeError(
            f"{_where(context)}a shape is expected, found {_kind(value)}; pass a tuple of ints"
        )
    if rank not in (-1, len(value)):
        raise ArgumentValueError(
            f"{_where(context)}a shape of {rank} dimensions is expected, found {value}; pass as "
            "many"
        )


def _check_prim_value_info(machine: MachineLike, value: Any, dtype: Any, context: Any = "") -> None:
    allowed: tuple[type, ...] = (int, float) if _dtype(dtype).kind == "f" else (int,)
    if not isinstance(value, allowed):
        raise ArgumentTypeError(
            f"{_where(context)}a number ({dtype}) is expected, found {_kind(value)}; pass an int "
            "or a float"
        )


def _check_tuple_info(machine: MachineLike, value: Any, size: int, context: Any = "") -> None:
    if not isinstance(value, list):
        raise ArgumentTypeError(
            f"{_where(context)}a tuple is expected, found {_kind(value)}; pass a list"
        )
    if len(value) != size:
        raise ArgumentValueError(
            f"{_where(context)}a tuple of {size} is expected, found one of {len(value)}; pass as "
            "many values"
        )


def _check_func_info(machine: MachineLike, value: Any, context: Any = "") -> None:
    if not isinstance(value, Closure | Callee):
        raise ArgumentTypeError(f"{_where(context)}a function is expected, found {_kind(value)}")


# ---------------------------------------------------------------- memory


def _alloc_storage(
    machine: MachineLike, _: Any, shape: Any, device: int, dtype: Any, scope: str = "global"
) -> Buffer:
    return machine.storage(_size(_ints(shape), _dtype(dtype)), device, scope)


def _alloc_tensor(
    machine: MachineLike, storage: Any, offset: int, shape: Any, dtype: Any, scope: str = "global"
) -> View:
    if not isinstance(storage, Buffer) or scope != "global":
        raise TypeError("a storage of global memory is needed")
    nbytes = _size(_ints(shape), _dtype(dtype))
    if offset % FFI_ALIGNMENT or not 0 <= offset <= storage.size - nbytes:
        raise ValueError(
            f"a tensor of {nbytes} bytes at offset {offset} in a storage of {storage.size}"
        )
    return View(storage, offset, shape, dtype)


def _reshape(machine: MachineLike, value: Any, shape: Any) -> View:
    view, wanted = _view(value), _ints(shape)
    if math.prod(wanted) != math.prod(view.shape) or any(d < 0 for d in wanted):
        raise ArgumentValueError(
            f"a tensor of shape {view.shape} cannot be reshaped to {wanted}: the model does not "
            "fit the shapes of its inputs"
        )
    return View(view.buffer, view.offset, wanted, view.dtype, view.root)


def _to_device(
    machine: MachineLike, value: Any, device: int, index: int, scope: str = "global"
) -> View:
    if device != machine.device_type():
        raise ArtifactError(
            f"the executable moves a tensor to device type {device}, index {index}, but its other "
            f"tensors lie on device type {machine.device_type()}; compile the model for one target"
        )
    return _view(value)


def _read_if_cond(machine: MachineLike, value: Any) -> bool:
    if isinstance(value, bool | int):
        return bool(value)
    view = _view(value)
    if view.dtype.kind not in "iub" or not math.prod(view.shape):
        raise TypeError(f"a condition cannot be read from {view.dtype}{view.shape}")
    if view.buffer.source in (Source.PLANNED, Source.INPUT):
        machine.depend("a condition is read from a tensor (vm.builtin.read_if_cond)")
    return bool(view.array.reshape(-1)[0])


# ---------------------------------------------------------------- tuples and functions


def _item(values: Any, index: int) -> int:
    if not isinstance(values, list) or not 0 <= index < len(values):
        raise TypeError(f"there is no item {index}")
    return index


def _tuple_getitem(machine: MachineLike, values: Any, index: int) -> Any:
    return values[_item(values, index)]


def _tuple_reset_item(machine: MachineLike, values: Any, index: int) -> None:
    values[_item(values, index)] = None


def _make_closure(machine: MachineLike, value: Any, *bound: Any) -> Closure:
    if not isinstance(value, Closure):
        raise TypeError(f"a function is needed, not {type(value).__name__}")
    return Closure(value.function, (*bound, *value.bound))


def _invoke_closure(machine: MachineLike, _: Any, closure: Any, *args: Any) -> Any:
    if not isinstance(closure, Closure | Callee):
        raise TypeError(f"a function is needed, not {type(closure).__name__}")
    return machine.call(closure, args)


def _call_tir_dyn(machine: MachineLike, function: Any, *args: Any) -> Any:
    if not isinstance(function, Closure | Callee):
        raise TypeError(f"a function is needed, not {type(function).__name__}")
    return machine.call(function, (*args[:-1], *_ints(args[-1])), False)


_TABLE: dict[str, Builtin] = {
    "alloc_shape_heap": _alloc_shape_heap,
    "alloc_storage": _alloc_storage,
    "alloc_tensor": _alloc_tensor,
    "call_tir_dyn": _call_tir_dyn,
    "check_func_info": _check_func_info,
    "check_prim_value_info": _check_prim_value_info,
    "check_shape_info": _check_shape_info,
    "check_tensor_info": _check_tensor_info,
    "check_tuple_info": _check_tuple_info,
    "copy": lambda machine, value: value,
    "ensure_zero_offset": lambda machine, value: value,  # DLTensors point at the first element
    "invoke_closure": _invoke_closure,
    "make_closure": _make_closure,
    "make_prim_value": _make_prim_value,
    "make_shape": _make_shape,
    "make_tuple": lambda machine, *values: list(values),
    "match_prim_value": _match_prim_value,
    "match_shape": _match_shape,
    "null_value": lambda machine: None,
    "read_if_cond": _read_if_cond,
    "reshape": _reshape,
    "shape_of": _shape_of,
    "tensor_to_shape": _tensor_to_shape,
    "to_device": _to_device,
    "tuple_getitem": _tuple_getitem,
    "tuple_reset_item": _tuple_reset_item,
}
BUILTINS = {f"vm.builtin.{name}": function for name, function in _TABLE.items()}
"""Name -> what it does. Functions of these names run here; others are looked up as packed ones."""
