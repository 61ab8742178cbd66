"""The rows behind :mod:`packhorse.testing.op_cases`: (operator, inputs, attributes, options)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from packhorse.testing.op_table_rare import Row, rare_rows

__all__ = ["Row", "rows"]

_FLOATS, _WHOLE = ("f16", "f32", "f64"), ("i8", "i32", "i64", "u8")
_SHAPES = ("", "1", "7", "33", "3x5", "2x3x17", "2x3x4x5", "0x3")
_UNARY = (
    "Abs Ceil Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Mish Neg "
    "Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Tanh ThresholdedRelu Atan "
    "Sinh Cosh Asinh Celu Shrink Tan"
).split()
_UNARY_MARKED = {"Sqrt": "+", "Log": "+", "Acosh": "+", "Acos": "u", "Asin": "u", "Atanh": "u"}
_REDUCE = (
    "ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare"
).split()
_PAIRS = (("3x5", "3x5"), ("2x3x5", "5"), ("4x1", "1x7"), ("", "6"), ("2x3x4x5", "3x1x1"))


def _maps() -> Iterator[Row]:
    for op, shape in product(_UNARY, _SHAPES):
        yield op, [f"f32 {shape}"], {}, {}
    for op, dtype in product(_UNARY, ("f16", "f64")):
        yield op, [f"{dtype} 2x9"], {}, {}
    for op, mark in _UNARY_MARKED.items():
        for dtype, shape in product(_FLOATS, ("5", "2x3x4")):
            base = np.abs(np.linspace(1.0, 4.0, 5)) if op == "Acosh" else None
            if base is None:
                yield op, [f"{dtype}{mark} {shape}"], {}, {}
            elif shape == "5":
                yield op, [base.astype({"f16": "e", "f32": "f", "f64": "d"}[dtype])], {}, {}
    for op in ("Relu", "Abs", "Sign", "Round", "Floor", "Sigmoid", "Tanh", "Exp"):
        yield op, ["f32n 11"], {}, {}
    yield from ((op, ["f32n 2x6"], {}, {}) for op in ("IsNaN", "IsInf"))
    for op, dtype in product(("Abs", "Neg", "Sign", "Identity"), ("i8", "i32", "i64")):
        yield op, [f"{dtype} 3x7"], {}, {}
    yield "Not", ["b 3x7"], {}, {}
    yield from (("BitwiseNot", [f"{d} 3x7"], {}, {}) for d in _WHOLE)
    for dtype, mode in product(("u8", "u32", "i32"), ("LEFT", "RIGHT")):
        yield "BitShift", [f"{dtype} 5", f"{dtype} 5"], {"direction": mode}, {}
    yield "Gelu", ["f32 2x9"], {"approximate": "tanh"}, {}
    for low, high in ((-0.5, 0.5), (None, 0.25), (0.0, None)):
        limits = [None if v is None else np.array(v, np.float32) for v in (low, high)]
        yield "Clip", ["f32 4x9", *limits], {}, {"constant": (1, 2)}
    yield "PRelu", ["f32 2x3x4", "f32 3x1"], {}, {"constant": (1,)}


def _pairs() -> Iterator[Row]:
    for op, (a, b) in product(("Add", "Sub", "Mul", "Div", "Max", "Min"), _PAIRS):
        yield op, [f"f32 {a}", f"f32+ {b}"], {}, {}
    for op, dtype in product(("Add", "Sub", "Mul", "Div", "Max", "Min"), ("f16", "f64", *_WHOLE)):
        yield op, [f"{dtype} 3x5", f"{dtype}+ 5"], {}, {}
    for dtype in ("f32", "f64"):
        yield "Pow", [f"{dtype}+ 3x5", f"{dtype} 5"], {}, {}
    yield from (("Mod", [f"{d} 3x5", f"{d}+ 5"], {}, {}) for d in ("i32", "i64", "u8"))
    yield "Mod", ["f32 3x5", "f32+ 5"], {"fmod": 1}, {}
    for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        yield from ((op, [f"{d} 3x5", f"{d} 5"], {}, {}) for d in ("f32", "i32", "i64", "u8"))
        yield op, ["f32n 2x6", "f32n 6"], {}, {}
    yield from ((op, ["b 3x5", "b 5"], {}, {}) for op in ("And", "Or", "Xor"))
    for op, dtype in product(("BitwiseAnd", "BitwiseOr", "BitwiseXor"), ("i32", "u8")):
        yield op, [f"{dtype} 3x5", f"{dtype} 5"], {}, {}
    yield from ((op, ["f32 3x5", "f32 5", "f32 3x1"], {}, {}) for op in ("Sum", "Mean", "Max"))
    for dtype in ("f16", "f32", "i64", "u8", "b"):
        yield "Where", ["b 3x1", f"{dtype} 3x5", f"{dtype} 5"], {}, {}
    for source, target in product(("f32", "f64", "i32", "u8", "b"), (1, 6, 7, 9, 10, 11)):
        yield "Cast", [f"{source} 3x7"], {"to": target}, {}
    yield "CastLike", ["f32 3x7", "i32 1"], {}, {}
    same_size = (("f32", 6), ("i32", 1), ("f64", 7), ("i64", 11), ("u32", 1), ("i8", 2), ("b", 2))
    yield from (("BitCast", [f"{source} 3x7"], {"to": target}, {}) for source, target in same_size)


def _reductions() -> Iterator[Row]:
    for op, shape in product(_REDUCE, ("3x5x7", "2x33")):
        last = shape.count("x")
        for axes, keep in (([last], 1), ([0], 0), ([0, last], 1), (None, 0)):
            yield op, [f"f32+ {shape}", axes], {"keepdims": keep}, {}
    yield "ReduceLogSum", ["f32+ 3x5", [1]], {}, {}
    yield from ((op, ["b 3x5", [1]], {}, {}) for op in ("ReduceMax", "ReduceMin"))
    yield from ((op, ["f32 3x0x2", [1]], {}, {}) for op in ("ReduceSum", "ReduceProd", "ReduceMax"))
    for op, dtype in product(("ReduceSum", "ReduceMax", "ReduceMin"), ("f16", "f64", "i32", "i64")):
        yield op, [f"{dtype} 4x9", [1]], {}, {}
    for op, axis, keep in product(("ArgMax", "ArgMin"), (0, 1, -1), (0, 1)):
        yield op, ["f32 3x5x7"], {"axis": axis, "keepdims": keep}, {}
    for op, axis in product(("Softmax", "LogSoftmax"), (0, 1, -1)):
        yield op, ["f32 3x5x17"], {"axis": axis}, {}
    yield from (("Softmax", [f"{d} 4x33"], {}, {}) for d in ("f16", "f64"))
    for axis in (0, 1, -1):
        yield "Hardmax", ["f32 3x5x17"], {"axis": axis}, {}
    for op, exclusive, reverse in product(("CumSum", "CumProd"), (0, 1), (0, 1)):
        attrs = {"exclusive": exclusive, "reverse": reverse}
        yield op, ["f32 3x7", np.array(1)], attrs, {"constant": (1,)}
        yield op, ["f32u 71x3", np.array(0)], attrs, {"constant": (1,)}
    for op, dtype in product(("CumSum", "CumProd"), ("f64", "i32", "i64")):
        yield op, [f"{dtype} 2x11", np.array(-1)], {}, {"constant": (1,)}
    for k, axis, largest in product((1, 3), (0, -1), (0, 1)):
        attrs = {"axis": axis, "largest": largest}
        yield "TopK", ["f32 5x7", [k]], attrs, {"outputs": 2}
    for dtype in ("f16", "f64", "i32", "u8"):
        yield "TopK", [f"{dtype} 3x40", [5]], {}, {"outputs": 2}
    yield "TopK", ["f32 2x100", [40]], {}, {"outputs": 2}
    for axis in (-1, 1):
        scale = "f32 6" if axis == -1 else "f32 5x6"
        yield "LayerNormalization", ["f32 3x5x6", scale, scale], {"axis": axis}, {}
        yield "RMSNormalization", ["f32 3x5x6", scale], {"axis": axis}, {}
    yield "InstanceNormalization", ["f32 2x3x4x5", "f32 3", "f32 3"], {}, {"constant": (1, 2)}
    yield "GroupNormalization", ["f32 2x6x4x5", "f32 6", "f32 6"], {"num_groups": 3}, {}
    yield "LpNormalization", ["f32 3x5"], {}, {}
    yield "LRN", ["f32 2x7x4x5"], {"size": 3}, {}
    stats = ["f32 3", "f32 3", "f32 3", "f32+ 3"]
    for shape, fixed in product(("2x3x4x5", "2x3"), ((), (1, 2, 3, 4))):
        yield "BatchNormalization", [f"f32 {shape}", *stats], {}, {"constant": fixed}


def _products() -> Iterator[Row]:
    shapes = (
        ("1x1", "1x1"), ("3x4", "4x5"), ("17x33", "33x19"), ("2x3x4", "2x4x5"), ("4", "4x5"),
        ("3x4", "4"), ("2x1x3x4", "5x4x2"), ("1x64", "64x40"), ("7", "7"), ("16x128", "128x32"),
    )  # fmt: skip
    for (a, b), fixed in product(shapes, ((), (1,))):
        yield "MatMul", [f"f32 {a}", f"f32 {b}"], {}, {"constant": fixed}
    yield from (("MatMul", [f"{d} 3x9", f"{d} 9x5"], {}, {}) for d in ("f16", "f64", "i32"))
    for flips, bias, fixed in product(
        ((0, 0), (0, 1), (1, 0), (1, 1)), (None, "f32 5", "f32 3x5", "f32 3x1"), ((), (1, 2))
    ):
        a, b = ("4x3" if flips[0] else "3x4"), ("5x4" if flips[1] else "4x5")
        attrs = {"transA": flips[0], "transB": flips[1]}
        yield "Gemm", [f"f32 {a}", f"f32 {b}", bias], attrs, {"constant": fixed}
    yield "Gemm", ["f32 17x33", "f32 33x40", "f32 40"], {"alpha": 0.5, "beta": 2.0}, {}
    for text in ("ij,jk->ik", "bij,bjk->bik", "ij->ji", "bhid,bhjd->bhij"):
        dims = {"b": 2, "h": 3, "i": 4, "j": 5, "k": 6, "d": 7}
        given = [
            "f32 " + "x".join(str(dims[c]) for c in p) for p in text[: text.index("-")].split(",")
        ]
        yield "Einsum", given, {"equation": text}, {}
    yield "MatMulInteger", ["u8 3x8", "i8 8x5", np.array(3, np.uint8)], {}, {"constant": (2,)}
    yield "ConvInteger", ["u8 1x2x5x5", "u8 3x2x3x3"], {}, {"constant": (1,)}


def _convolutions() -> Iterator[Row]:
    plain: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("1x1x5x5", "1x1x3x3", {}),
        ("1x3x8x8", "4x3x3x3", {"pads": [1, 1, 1, 1]}),
        ("2x3x9x7", "8x3x3x3", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("1x16x6x6", "32x16x1x1", {}),
        ("1x16x14x14", "16x16x3x3", {"pads": [1, 1, 1, 1]}),
        ("1x5x11x13", "7x5x5x3", {"pads": [2, 0, 1, 1]}),
        ("1x4x10x10", "4x4x3x3", {"dilations": [2, 2]}),
        ("1x8x9x9", "8x1x3x3", {"group": 8, "pads": [1, 1, 1, 1]}),
        ("1x8x9x9", "16x1x3x3", {"group": 8, "strides": [2, 2]}),
        ("1x6x7x7", "4x3x3x3", {"group": 2}),
        ("1x3x8x8", "4x3x3x3", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("1x3x8x8", "4x3x3x3", {"auto_pad": "SAME_LOWER"}),
        ("2x4x20", "6x4x3", {"pads": [1, 1]}),
        ("1x2x5x6x7", "3x2x3x3x3", {}),
        ("1x2x1x1", "3x2x3x3", {"pads": [1, 1, 1, 1]}),
    )
    for (x, w, attrs), (bias, fixed) in product(plain, ((False, ()), (True, (1, 2)))):
        inputs = [f"f32 {x}", f"f32 {w}"] + ([f"f32 {w.split('x')[0]}"] if bias else [])
        yield "Conv", inputs, attrs, {"constant": fixed}
    yield from (("Conv", [f"{d} 1x3x6x6", f"{d} 4x3x3x3"], {}, {}) for d in ("f16", "f64"))
    turned: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("1x2x4x4", "2x3x3x3", {}),
        ("1x2x4x4", "2x3x3x3", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("1x2x4x4", "2x3x2x2", {"strides": [2, 2], "output_padding": [1, 1]}),
        ("1x4x4x4", "4x2x3x3", {"group": 2}),
        ("1x2x7", "2x3x3", {"strides": [2]}),
    )
    for (x, w, attrs), fixed in product(turned, ((), (1,))):
        yield "ConvTranspose", [f"f32 {x}", f"f32 {w}"], attrs, {"constant": fixed}


def _pools() -> Iterator[Row]:
    windows: tuple[dict[str, Any], ...] = (
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 2], "strides": [1, 2]},
        {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"},
        {"kernel_shape": [2, 2], "dilations": [2, 2]},
    )
    for op, shape, attrs in product(("MaxPool", "AveragePool"), ("1x2x7x7", "2x16x9x8"), windows):
        yield op, [f"f32 {shape}"], attrs, {}
    pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    yield "AveragePool", ["f32 1x2x7x7"], pads, {}
    for op in ("MaxPool", "AveragePool"):
        yield op, ["f32 2x3x11"], {"kernel_shape": [3]}, {}
        yield op, ["f32 1x2x5x5x5"], {"kernel_shape": [2, 2, 2]}, {}
        yield op, ["f16 1x2x6x6"], {"kernel_shape": [2, 2]}, {}
    padded = {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1]}
    for attrs in ({"kernel_shape": [2, 2]}, padded):
        yield "MaxPool", ["f32 2x2x6x6"], attrs, {"outputs": 2}
    yield "MaxPool", ["u8 1x2x6x6"], {"kernel_shape": [2, 2]}, {}
    yield "LpPool", ["f32 1x2x7x7"], {"kernel_shape": [2, 2]}, {}
    for op, shape in product(
        ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), ("1x3x7x7", "2x33x5")
    ):
        yield op, [f"f32 {shape}"], {}, {}


def _shapes() -> Iterator[Row]:
    for dtype in ("f32", "f16", "i64", "u8", "b"):
        yield "Transpose", [f"{dtype} 2x3x4"], {"perm": [2, 0, 1]}, {}
        yield "Reshape", [f"{dtype} 2x3x4", [4, -1]], {}, {}
        yield "Concat", [f"{dtype} 2x3", f"{dtype} 2x4"], {"axis": 1}, {}
        yield "Slice", [f"{dtype} 5x7", [1, 5], [4, 0], [0, 1], [1, -2]], {}, {}
        yield "Expand", [f"{dtype} 3x1", [2, 3, 4]], {}, {}
        yield "Gather", [f"{dtype} 5x7", [4, 0, -1]], {"axis": 1}, {}
        yield "Pad", [f"{dtype} 3x4", [1, 0, 2, 1]], {}, {}
    for mode in ("reflect", "edge", "wrap"):
        yield "Pad", ["f32 3x4", [1, 2, 2, 1]], {"mode": mode}, {}
    yield "Gather", ["f32 5x7", np.array([[1, 2], [0, 4]])], {}, {}
    yield "GatherElements", ["f32 3x4", np.array([[0, 1], [3, 2], [1, 1]])], {"axis": 1}, {}
    yield "GatherND", ["f32 3x4x2", np.array([[0, 1], [2, 3]])], {}, {}
    yield "ScatterElements", ["f32 3x4", np.array([[0, 3]]), "f32 1x2"], {"axis": 1}, {}
    yield "ScatterND", ["f32 5x3", np.array([[1], [4]]), "f32 2x3"], {}, {}
    for how, fixed in product(("none", "add", "mul", "max", "min"), ((), (1,))):
        attrs, options = {"reduction": how}, {"constant": fixed}
        places = np.array([[0, -1, 2], [2, 1, 0]])
        yield "ScatterElements", ["f32 3x4", places, "f32 2x3"], {"axis": 1, **attrs}, options
        places = np.array([[[0, 1]], [[2, -3]]])
        yield "ScatterND", ["f32 3x4x5", places, "f32 2x1x5"], attrs, options
    yield "ScatterND", ["f16 9x3", np.array([[4], [-1], [4]]), "f16 3x3"], {"reduction": "add"}, {}
    yield "ScatterND", ["i64 9x3", np.array([[4], [-1]]), "i64 2x3"], {"reduction": "max"}, {}
    yield "Squeeze", ["f32 1x3x1x4", [0, 2]], {}, {}
    yield "Unsqueeze", ["f32 3x4", [0, 3]], {}, {}
    yield from (("Flatten", ["f32 2x3x4"], {"axis": a}, {}) for a in (0, 1, 2))
    yield "Split", ["f32 7x4", [3, 4]], {}, {"outputs": 2}
    yield "Split", ["f32 6x4"], {"num_outputs": 3}, {"outputs": 3}
    yield "Tile", ["f32 2x3", [2, 3]], {}, {}
    yield from (("Trilu", ["f32 5x5"], {"upper": up}, {}) for up in (0, 1))
    yield "DepthToSpace", ["f32 1x8x2x3"], {"blocksize": 2}, {}
    yield "DepthToSpace", ["f32 1x8x2x3"], {"blocksize": 2, "mode": "CRD"}, {}
    yield "SpaceToDepth", ["f32 1x2x4x6"], {"blocksize": 2}, {}
    yield "Shape", ["f32 2x3x4"], {}, {}
    yield "Size", ["f32 2x3x4"], {}, {}
    yield "EyeLike", ["f32 3x4"], {"k": 1}, {}
    yield "Range", [np.array(1), np.array(9), np.array(3)], {}, {"constant": (0, 1, 2)}
    yield "ConstantOfShape", [[2, 3]], {"value": np.array([7], np.float32)}, {}
    yield (
        "OneHot",
        ["i64+ 2x3", np.array(10), np.array([0, 1], np.float32)],
        {},
        {"constant": (1, 2)},
    )
    yield "Dropout", ["f32 3x4"], {}, {}
    training = [np.array(0.4, np.float32), np.array(True)]
    yield "Dropout", ["f32 3x40", *training], {"seed": 3}, {"constant": (1, 2), "outputs": 2}
    yield "OptionalGetElement", ["f32 3x4"], {}, {}
    yield "OptionalHasElement", ["f32 3x4"], {}, {}
    for scale in ([1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 0.5, 1.5]):
        for mode in ("nearest", "linear"):
            yield (
                "Resize",
                ["f32 1x2x4x6", None, np.array(scale, np.float32)],
                {"mode": mode},
                {"constant": (2,)},
            )


def _others() -> Iterator[Row]:
    zero = {"u8": np.array(128, np.uint8), "i8": np.array(0, np.int8)}
    step = np.array(0.05, np.float32)
    for dtype, point in zero.items():
        yield "QuantizeLinear", ["f32 3x7", step, point], {}, {"constant": (1, 2)}
        yield "DequantizeLinear", [f"{dtype} 3x7", step, point], {}, {"constant": (1, 2)}
    yield "DynamicQuantizeLinear", ["f32 3x7"], {}, {"outputs": 3}
    gates: Mapping[str, int] = {"RNN": 1, "GRU": 3, "LSTM": 4}
    for (op, count), way in product(gates.items(), ("forward", "bidirectional")):
        turns = 2 if way == "bidirectional" else 1
        w, r = f"f32 {turns}x{5 * count}x3", f"f32 {turns}x{5 * count}x5"
        attrs = {"hidden_size": 5, "direction": way}
        options = {"outputs": 3 if op == "LSTM" else 2, "constant": (1, 2)}
        yield op, ["f32 4x2x3", w, r], attrs, options


def _sequences() -> Iterator[Row]:
    lengths = np.array([0, 3, 5, 1])
    for dtype in ("f32", "f16", "i64"):
        yield "ReverseSequence", [f"{dtype} 5x4x3", lengths], {}, {}
    yield "ReverseSequence", ["f32 4x5x2", lengths], {"batch_axis": 0, "time_axis": 1}, {}
    for mode, starts in (("linear", [1, 4]), ("circular", [6, 2])):
        inputs = ["f32 2x3x7x4", "f32 2x3x3x4", np.array(starts)]
        yield "TensorScatter", inputs, {"mode": mode}, {}
    yield "TensorScatter", ["f16 2x7x4", "f16 2x3x4"], {"axis": 1}, {}


_SECTIONS = (
    _maps,
    _pairs,
    _reductions,
    _products,
    _convolutions,
    _pools,
    _shapes,
    _sequences,
    _others,
    rare_rows,
)


def rows() -> Iterator[Row]:
    """Every row of the table."""
    for section in _SECTIONS:
        yield from section()
