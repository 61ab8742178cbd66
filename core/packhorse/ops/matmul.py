"""Matrix products: MatMul, Gemm, Einsum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Affine, Expr, Reduce, affine
from packhorse.kernel.lowering import Lazy, Lowering, Operand, axes_of, lazy
from packhorse.ops._window import narrow, wide
from packhorse.ops.registry import Array, Inference, operator
from packhorse.ops.rules import broadcast, labelled, same_dtype, text

__all__ = ["det", "einsum", "gemm", "matmul", "matmul_shape", "operand_index"]


def matmul_shape(label: str, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of ``a @ b`` by NumPy's rules; ModelError when they do not fit."""
    if not a or not b:
        raise ModelError(f"{label}: operands {a} and {b} must have at least one dimension")
    inner = b[-2] if len(b) > 1 else b[0]
    if a[-1] != inner:
        raise ModelError(
            f"{label}: the last dimension of {a} is {a[-1]}, but {b} needs {inner} there"
        )
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    return (*broadcast(a[:-2], b[:-2]), *rows, *columns)


@labelled
def infer_matmul(ctx: Inference) -> list[TensorType]:
    """Shape rule of MatMul: batch dimensions broadcast, 1-D operands are vectors."""
    shape = matmul_shape(ctx.node.label, ctx.shape(0), ctx.shape(1))
    return [TensorType(same_dtype(ctx), shape)]


def operand_index(
    shape: Sequence[int], batch: Sequence[Affine], matrix: Sequence[Affine]
) -> list[Affine]:
    """Index of a MatMul operand: its batch dimensions broadcast, then the matrix indices."""
    count = len(shape) - len(matrix)
    own = batch[len(batch) - count :] if count else ()
    head = [Affine() if n == 1 else i for n, i in zip(shape[:count], own, strict=True)]
    return [*head, *matrix]


def lower_matmul(ctx: Lowering) -> Lazy:
    """``sum over k of a[..., m, k] * b[..., k, n]``."""
    a, b = ctx[0], ctx[1]
    if not a.shape[-1]:
        raise UnsupportedOperator("MatMul over an empty dimension is not compiled")
    axis = ctx.axis(a.shape[-1])
    k, out = affine(axis[0]), list(axes_of(len(ctx.output_types[0][0])))
    column = [out.pop()] if len(b.shape) > 1 else []
    row = [out.pop()] if len(a.shape) > 1 else []
    left = a if a.constant is not None else a.stored(last=len(a.shape) - 1)
    right = b if b.constant is not None else b.stored(last=len(b.shape) - 1)
    x = left.at(operand_index(a.shape, out, [*row, k]))
    y = right.at(operand_index(b.shape, out, [k, *column]))
    return lazy(ctx, Reduce("sum", (axis,), x * y, x.dtype))


@operator("MatMul", infer=infer_matmul, lower=lower_matmul)
def matmul(a: Array, b: Array) -> Array:
    """Matrix product with NumPy's broadcasting (ONNX MatMul-13).

    Parameters
    ----------
    a : float or integer array (..., M, K) or (K,)
    b : same dtype, (..., K, N) or (K,)

    Raises
    ------
    ModelError
        Inner dimensions differ or batch dimensions do not broadcast.
    """
    matmul_shape("MatMul", a.shape, b.shape)
    return narrow(np.asarray(np.matmul(wide(a), wide(b))), a.dtype)


def gemm_shape(
    label: str, a: Sequence[int], b: Sequence[int], flips: tuple[int, int]
) -> tuple[int, int]:
    """(M, N) of a Gemm; ModelError when the operands are no matrices or do not fit."""
    if len(a) != 2 or len(b) != 2:
        raise ModelError(f"{label}: operands {tuple(a)} and {tuple(b)} must be matrices")
    (m, k), (kb, n) = (a[::-1] if flips[0] else a), (b[::-1] if flips[1] else b)
    if k != kb:
        raise ModelError(
            f"{label}: A of shape {tuple(a)} and B of shape {tuple(b)} with transA={flips[0]}, "
            f"transB={flips[1]} give inner dimensions {k} and {kb}. They must be equal"
        )
    return m, n


@labelled
def infer_gemm(ctx: Inference) -> list[TensorType]:
    """Shape rule of Gemm: (M, N), to which C must broadcast."""
    flips = (int(ctx.attr("transA")), int(ctx.attr("transB")))
    shape = gemm_shape(ctx.node.label, ctx.shape(0), ctx.shape(1), flips)
    if ctx.has(2) and broadcast(ctx.shape(2), shape) != shape:
        raise ModelError(f"C of shape {ctx.shape(2)} does not broadcast to {shape}")
    return [TensorType(same_dtype(ctx), shape)]


def scaled(ctx: Lowering, operand: Operand, factor: float) -> tuple[Operand, float]:
    """Fold a factor into a constant operand; returns the factor left to apply."""
    if factor == 1 or operand.constant is None:
        return operand, factor
    return ctx.constant(narrow(wide(operand.constant) * factor, operand.constant.dtype)), 1.0


def lower_gemm(ctx: Lowering) -> Lazy:
    """``sum over k`` with transpositions in the indices and alpha, beta in constants."""
    a, b = ctx[0], ctx[1]
    alpha, beta = float(ctx.attr("alpha")), float(ctx.attr("beta"))
    flip_a, flip_b = bool(ctx.attr("transA")), bool(ctx.attr("transB"))
    axis = ctx.axis(a.shape[0 if flip_a else 1])
    if not axis[1]:
        raise UnsupportedOperator("Gemm over an empty dimension is not compiled")
    row, column, k = affine("i0"), affine("i1"), affine(axis[0])
    b, alpha = scaled(ctx, b, alpha)
    left = a if a.constant is not None else a.stored(last=0 if flip_a else 1)
    right = b if b.constant is not None else b.stored(last=0 if flip_b else 1)
    x = left.at([k, row] if flip_a else [row, k])
    y = right.at([column, k] if flip_b else [k, column])
    value: Expr = Reduce("sum", (axis,), x * y, x.dtype)
    value = value if alpha == 1 else value * alpha
    if ctx.has(2) and beta:
        c, beta = scaled(ctx, ctx[2], beta)
        bias = c.elementwise(ctx.output_types[0][0])
        value = (bias if beta == 1 else bias * beta) + value
    return lazy(ctx, value)


@operator("Gemm", infer=infer_gemm, lower=lower_gemm)
def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 (ONNX attribute name)
    transB: int = 0,  # noqa: N803
) -> Array:
    """``alpha * A' @ B' + beta * C`` (ONNX Gemm-13).

    Parameters
    ----------
    a : float or integer array (M, K), or (K, M) with ``transA``
    b : same dtype, (K, N), or (N, K) with ``transB``
    c : same dtype, broadcast to (M, N), optional

    Raises
    ------
    ModelError
        Operands that are no matrices or whose inner dimensions differ.
    """
    gemm_shape("Gemm", a.shape, b.shape, (transA, transB))
    left, right = (wide(a).T if transA else wide(a)), (wide(b).T if transB else wide(b))
    out = left @ right
    if alpha != 1:
        out = out * np.asarray(alpha).astype(out.dtype)
    if c is not None and beta:
        out = out + (wide(c) if beta == 1 else wide(c) * np.asarray(beta).astype(out.dtype))
    return narrow(out, a.dtype)


@labelled
def infer_einsum(ctx: Inference) -> list[TensorType]:
    """Shape rule of Einsum: evaluated on operands without memory."""
    dtype = same_dtype(ctx)
    shapes = [ctx.shape(i) for i in range(len(ctx.inputs))]
    # broadcast views of one element: no data is made, but einsum checks labels and extents
    probes = [np.broadcast_to(np.zeros((), np.int8), shape) for shape in shapes]
    equation = text(ctx.attr("equation"))
    terms, arrow, result = _equation(equation).partition("->")
    if not arrow:
        letters = sorted(c for c in set(terms) if c.isalpha() and terms.count(c) == 1)
        result = ("..." if "..." in terms else "") + "".join(letters)
    parts = terms.split(",")
    if len(parts) != len(probes):
        raise ModelError(f"equation '{equation}' has {len(parts)} terms for {len(probes)} inputs")
    sizes, ellipsis = _sizes(equation, parts, shapes)
    shape: tuple[int, ...] = ()
    for piece in result.replace("...", "."):
        if piece != "." and piece not in sizes:
            raise ModelError(f"equation '{equation}': '{piece}' occurs in no input")
        shape += ellipsis if piece == "." else (sizes[piece],)
    return [TensorType(dtype, shape)]


def _equation(equation: str) -> str:
    return equation.replace(" ", "")


def _sizes(
    equation: str, parts: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> tuple[dict[str, int], tuple[int, ...]]:
    """Extent of each label, and the broadcast shape of the ellipsis."""
    sizes: dict[str, int] = {}
    ellipsis: tuple[int, ...] = ()
    for part, shape in zip(parts, shapes, strict=True):
        head, dots, tail = part.partition("...")
        spare = len(shape) - len(head) - len(tail)
        if spare < 0 or (spare and not dots):
            raise ModelError(f"equation '{equation}': term '{part}' does not fit shape {shape}")
        ellipsis = broadcast(ellipsis, shape[len(head) : len(head) + spare])
        extents = (*shape[: len(head)], *shape[len(head) + spare :])
        for label, extent in zip(head + tail, extents, strict=True):
            if sizes.setdefault(label, extent) != extent:
                raise ModelError(f"equation '{equation}': '{label}' is {sizes[label]} and {extent}")
    return sizes, ellipsis


def lower_einsum(ctx: Lowering) -> Lazy:
    """Products summed over the labels that the result lacks; explicit labels only."""
    terms, arrow, result = _equation(text(ctx.attr("equation"))).partition("->")
    if not arrow or "." in terms:
        raise UnsupportedOperator("Einsum with an ellipsis or an implicit result is not compiled")
    parts = terms.split(",")
    inputs = [ctx[i] for i in range(len(parts))]
    sizes, _ = _sizes(terms, parts, [x.shape for x in inputs])
    if not all(sizes.values()):
        raise UnsupportedOperator("Einsum over empty dimensions is not compiled")
    where = {label: affine(f"i{d}") for d, label in enumerate(result)}
    summed = {label: ctx.axis(sizes[label]) for label in sizes if label not in where}
    where |= {label: affine(axis[0]) for label, axis in summed.items()}
    value: Expr | None = None
    for part, x in zip(parts, inputs, strict=True):
        source = x if x.constant is not None or not summed else x.stored()
        load = source.at([where[label] for label in part])
        value = load if value is None else value * load
    assert value is not None
    if summed:
        value = Reduce("sum", tuple(summed.values()), value, value.dtype)
    return lazy(ctx, value)


@operator("Einsum", infer=infer_einsum, lower=lower_einsum)
def einsum(*inputs: Array, equation: str) -> Array:
    """Sum of products by index labels (ONNX Einsum-12).

    Parameters
    ----------
    inputs : numeric arrays of one dtype
    equation : str
        Labels per input, ``->`` and labels of the result; ``...`` broadcasts.

    Raises
    ------
    ModelError
        Labels and shapes that do not fit.
    """
    operands = [wide(x) for x in inputs]
    try:
        out = np.einsum(_equation(text(equation)), *operands, optimize=len(operands) > 1)
    except ValueError as error:
        shapes = ", ".join(str(x.shape) for x in inputs)
        raise ModelError(f"Einsum '{equation}' does not fit shapes {shapes}: {error}") from None
    return narrow(np.asarray(out), inputs[0].dtype)


MAX_EXPANDED = 3
"""Largest matrix whose determinant is expanded; beyond, the host eliminates with pivots."""


@labelled
def infer_det(ctx: Inference) -> list[TensorType]:
    """Shape rule of Det: (*batch, n, n) -> batch."""
    x = ctx.shape(0)
    if len(x) < 2 or x[-1] != x[-2]:
        raise ModelError(f"the input has shape {x}, expected square matrices (*batch, n, n)")
    return [TensorType(ctx.type(0).dtype, x[:-2])]


def lower_det(ctx: Lowering) -> Lazy:
    """Expansion along the rows."""
    x = ctx[0]
    size, batch = x.shape[-1], axes_of(len(x.shape) - 2)
    if not 1 <= size <= MAX_EXPANDED:
        raise UnsupportedOperator(f"determinants of {size}x{size} matrices are not compiled")
    source = x.stored()

    def minor(row: int, columns: tuple[int, ...]) -> Expr:
        total: Expr | None = None
        for i, column in enumerate(columns):
            term = source.at([*batch, Affine((), row), Affine((), column)])
            if len(columns) > 1:
                term = term * minor(row + 1, (*columns[:i], *columns[i + 1 :]))
            total = term if total is None else total - term if i % 2 else total + term
        assert total is not None
        return total

    return lazy(ctx, minor(0, tuple(range(size))))


@operator("Det", infer=infer_det, lower=lower_det)
def det(x: Array) -> Array:
    """Determinants of float matrices (*batch, n, n) (ONNX Det-11).

    Raises
    ------
    ModelError
        Matrices that are not square.
    """
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ModelError(f"Det: the input has shape {x.shape}, expected square matrices")
    return narrow(np.asarray(np.linalg.det(wide(x))), x.dtype)
