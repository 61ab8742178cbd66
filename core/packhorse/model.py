"""Models: networks that are compiled when called, for the device that the call names."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from packhorse.compiler.placement import Placement
from packhorse.device import Device
from packhorse.device import device as open_device
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
)
from packhorse.executable import DeviceLike, Executable, Outputs
from packhorse.feeds import Array, Feeds, bind, no_such_input
from packhorse.graph.ir import Graph, TensorType, Value
from packhorse.tensor import Tensor

__all__ = ["Executable", "Model"]

_CACHED_SIGNATURES = 64


class Model:
    """A network that is compiled when first called, per device and per input shapes.

    Thread-safe. ``close()`` frees every compiled form; the model can be called again after it.

    Parameters
    ----------
    graph : Graph
        The network; it is not changed.
    device : str or Device, optional
        Where calls run that name no device; default: ``$PACKHORSE_DEVICE``, else the best.
    """

    def __init__(self, graph: Graph, device: str | Device | None = None) -> None:
        self.graph = graph
        self._lock = threading.RLock()
        self._ready: dict[Any, Executable] = {}
        self._names = tuple(value.name for value in graph.inputs)
        self._default = None if device is None else open_device(device)
        self._operands: tuple[str, ...] | None = None

    @property
    def inputs(self) -> dict[str, TensorType]:
        """Name -> dtype and shape of each input; strings are symbolic dimensions."""
        return {value.name: value.type for value in self.graph.inputs}

    @property
    def outputs(self) -> dict[str, TensorType]:
        """Name -> dtype and shape of each output, as far as known before compiling."""
        return {value.name: value.type for value in self.graph.outputs}

    def __call__(self, *args: Any, device: DeviceLike = None, **inputs: Any) -> Outputs:
        """Run the model.

        Parameters
        ----------
        *args, **inputs : array-like
            Inputs by position or by name: NumPy arrays, Tensors, anything with ``__dlpack__``.
        device : str, Device or mapping, optional
            Where to run; default: ``$PACKHORSE_DEVICE`` or the best device that works here.
            Several devices share the work as a mapping says: device -> names of nodes (``*`` and
            ``?`` are wildcards), ``"auto"`` for all it has kernels for, or ``"rest"``:
            ``{"opencl:0": ["conv*"], "llvm-cpu": "rest"}``.

        Returns
        -------
        numpy.ndarray or tuple of numpy.ndarray
            The output, or all of them in the model's order.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            An input of the wrong name, dtype or shape, or a missing one.
        DeviceError
            The device does not exist or cannot be used here.
        """
        feeds = bind(self._names, args, inputs)
        outputs = self._executable(feeds, device)._run(feeds)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def compile(
        self,
        device: DeviceLike = None,
        *,
        shapes: Mapping[str, Sequence[int]] | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> Executable:
        """Compile ahead of the first call.

        Parameters
        ----------
        device : str, Device or mapping, optional
            Target or targets, as in a call.
        shapes : mapping of input name to shape, optional
            Needed for inputs with symbolic dimensions.
        values : mapping of input name to array-like, optional
            Needed for integer inputs that the shapes or conditions depend on.

        Raises
        ------
        ArgumentValueError
            A symbolic dimension has no size, or a shape does not fit.
        ArgumentTypeError
            ``shapes`` is no mapping of names to sequences.
        """
        feeds: Feeds = {}
        given = _sizes(shapes or {})
        fixed = {name: np.asarray(value) for name, value in (values or {}).items()}
        for unknown in (given.keys() | fixed.keys()) - set(self._names):
            raise ArgumentValueError(no_such_input(unknown, self._names))
        for value in self.graph.inputs:
            if value.name in fixed:
                feeds[value.name] = np.asarray(fixed[value.name], value.type.dtype)
                continue
            known = ("?",) if value.type.shape is None else value.type.shape
            shape = tuple(given.get(value.name, known))
            sizes = [int(d) for d in shape if isinstance(d, (int, np.integer))]
            if len(sizes) != len(shape):
                raise ArgumentValueError(
                    f"input '{value.name}' has shape {_text(value.type)}; say which sizes to "
                    f"compile for: compile(..., shapes={{'{value.name}': (...)}})"
                )
            # a broadcast zero stands for the data: only its shape and dtype are looked at
            zero = np.zeros((), value.type.dtype)
            try:
                feeds[value.name] = np.broadcast_to(zero, sizes)
            except ValueError as error:  # negative, or more than an address can count
                raise ArgumentValueError(
                    f"input '{value.name}' cannot have the shape {shape}: {error}; the model "
                    f"wants {_text(value.type)}"
                ) from None
        needed = [n for n in self._value_operands() if n not in fixed]
        target = self._device(device)
        if needed and (isinstance(target, Placement) or "compile" in target.capabilities):
            raise ArgumentValueError(
                f"the shapes inside this model depend on the value of input '{needed[0]}'; "
                f"give it: compile(..., values={{'{needed[0]}': ...}})"
            )
        return self._executable(feeds, target)

    def close(self) -> None:
        """Free every compiled form; idempotent."""
        with self._lock:
            ready, self._ready = self._ready, {}
        for executable in ready.values():
            executable.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        inputs = ", ".join(f"{n}: {t}" for n, t in self.inputs.items())
        return f"<packhorse.Model '{self.graph.name}' ({inputs}), {len(self.graph.nodes)} nodes>"

    def _device(self, wanted: DeviceLike) -> Device | Placement:
        if isinstance(wanted, Mapping):
            return Placement.of(wanted)
        if isinstance(wanted, Placement):
            return wanted
        if wanted is not None:
            return open_device(wanted)
        if self._default is None or self._default.closed:
            self._default = open_device(None if self._default is None else self._default.name)
        return self._default

    def _value_operands(self) -> tuple[str, ...]:
        if self._operands is None:
            from packhorse.compiler.specialize import shape_operands

            self._operands = tuple(sorted(shape_operands(self.graph)))
        return self._operands

    def _executable(self, feeds: Feeds, wanted: DeviceLike) -> Executable:
        target = self._device(wanted)
        key: list[Any] = [target.name]
        for array in feeds.values():
            key.append(array.shape)
            key.append(array.dtype)
        operands = self._operands
        if operands is None:
            operands = self._value_operands()
        for name in operands:
            if name in feeds:
                key.append(_on_host(feeds[name]).tobytes())
        signature = tuple(key)
        found = self._ready.get(signature)
        if found is None or not found.usable:
            found = self._compile(signature, feeds, target, operands)
        return found

    def _compile(
        self, signature: Any, feeds: Feeds, target: Device | Placement, operands: Sequence[str]
    ) -> Executable:
        from packhorse.compiler.compile import compile_graph
        from packhorse.compiler.parts import compile_parts

        with self._lock:
            found = self._ready.pop(signature, None)
            if found is None or not found.usable:
                if found is not None:  # its device was closed or lost: free what is left of it
                    found.close()
                types = _check(self.graph.inputs, feeds)
                values = {name: np.array(_on_host(feeds[name])) for name in operands}
                if isinstance(target, Placement):
                    first = target.devices[0]
                    compiled = compile_parts(self.graph, target, types, values)
                else:
                    first = target
                    compiled = compile_graph(self.graph, target, types, values)
                found = Executable(first, types, tuple(self.outputs), compiled)
            while len(self._ready) >= _CACHED_SIGNATURES:
                self._ready.pop(next(iter(self._ready)))  # its last caller frees it
            self._ready[signature] = found
            return found


def _on_host(value: Array | Tensor) -> Array:
    return value.numpy() if isinstance(value, Tensor) else value


def _sizes(shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[Any, ...]]:
    """``shapes`` of :meth:`Model.compile` as tuples; names and sizes are looked at later."""
    try:
        return {name: tuple(shape) for name, shape in shapes.items()}
    except (AttributeError, TypeError):
        raise ArgumentTypeError(
            f"shapes is {shapes!r:.60}; give sizes by name of the input: "
            "compile(..., shapes={'image': (1, 3, 224, 224)})"
        ) from None


def _check(inputs: Sequence[Value], feeds: Feeds) -> dict[str, TensorType]:
    """Static types of the feeds, after comparing them with what the model declares."""
    sizes: dict[str, tuple[int, str]] = {}
    for value in inputs:
        array, wanted = feeds[value.name], value.type
        if array.dtype != wanted.dtype:
            raise ArgumentTypeError(
                f"input '{value.name}' is {array.dtype}, the model wants {wanted.dtype}; "
                f"convert it: {value.name}.astype('{wanted.dtype}')"
            )
        if wanted.shape is None:
            continue
        fits = len(wanted.shape) == array.ndim
        for dim, size in zip(wanted.shape, array.shape, strict=False):
            if isinstance(dim, str):
                known, where = sizes.setdefault(dim, (size, value.name))
                if known != size:
                    raise ArgumentValueError(
                        f"dimension '{dim}' is {size} in input '{value.name}' but {known} in "
                        f"input '{where}'; they must be equal"
                    )
            elif dim != size:
                fits = False
        if not fits:
            raise ArgumentValueError(
                f"input '{value.name}' has shape {tuple(array.shape)}, the model wants "
                f"{_text(wanted)}{_reshaped(value.name, array, wanted)}"
            )
    return {n: TensorType(a.dtype, tuple(int(d) for d in a.shape)) for n, a in feeds.items()}


def _reshaped(name: str, array: Array | Tensor, wanted: TensorType) -> str:
    """How to make an array fit, where that is likely what was meant."""
    dims = wanted.shape or ()
    if array.ndim + 1 == len(dims) and (isinstance(dims[0], str) or dims[0] == 1):
        return f"; add the first dimension: {name}[None]"
    if wanted.is_static and math.prod(wanted.dims) == array.size:
        return f"; if the order of the elements is right: {name}.reshape{_text(wanted)}"
    return ""


def _text(wanted: TensorType) -> str:
    if wanted.shape is None:
        return "any shape"
    return (
        "("
        + ", ".join(str(d) for d in wanted.shape)
        + ("," if len(wanted.shape) == 1 else "")
        + ")"
    )
