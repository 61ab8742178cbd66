"""The builder: fusion, layouts, borders, memory plan; judged by the references."""

from __future__ import annotations

import numpy as np
import pytest
from tests.compiler.harness import graph_of, node, reference, run_build

rng = np.random.default_rng(1)


def check(graph, tolerance=1e-5):
    feeds = {}
    for value in graph.inputs:
        shape, dtype = value.type.dims, value.type.dtype
        data = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 3, shape)
        feeds[value.name] = np.asarray(data, dtype)
    got, build, program = run_build(graph, feeds)
    for actual, wanted in zip(got, reference(graph, feeds), strict=True):
        assert actual.dtype == wanted.dtype
        assert actual.shape == wanted.shape
        np.testing.assert_allclose(actual, wanted, rtol=tolerance, atol=tolerance)
    return build, program


def kernels(build):
    return [s for s in build.steps if not s.once]


def f32(*shape):
    return ("float32", shape)


def weights(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def test_a_chain_of_maps_is_one_kernel():
    graph = graph_of(
        [node("Relu", "x", "a"), node("Mul", "a y", "b"), node("Add", "b c", "out")],
        {"x": f32(3, 5), "y": f32(5)}, ["out"], {"c": weights(3, 1)},
    )  # fmt: skip
    build, _ = check(graph)
    assert len(kernels(build)) == 1


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("outputs", [["out"], ["out", "a"], ["a", "out"]])
def test_an_output_has_its_own_shape_whatever_memory_it_is_a_view_of(rows, outputs):
    graph = graph_of(
        [node("Relu", "x", "a"), node("Flatten", "a", "out")], {"x": f32(rows, 3, 4)}, outputs
    )
    check(graph)


def test_a_value_read_twice_that_meets_again_is_computed_once():
    graph = graph_of(
        [node("MatMul", "x w", "h"), node("Sigmoid", "h", "s"), node("Mul", "h s", "out")],
        {"x": f32(4, 6)}, ["out"], {"w": weights(6, 7)},
    )  # fmt: skip
    build, _ = check(graph)
    assert len(kernels(build)) == 1


def test_a_value_needed_elsewhere_is_stored_once():
    graph = graph_of(
        [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "a"),
         node("Add", "a r", "out")],
        {"x": f32(4, 6)}, ["out"], {"w": weights(6, 7), "v": weights(7, 7)},
    )  # fmt: skip
    build, _ = check(graph)
    assert len(kernels(build)) == 2


def test_decomposed_layer_norm_is_one_kernel():
    graph = graph_of(
        [node("ReduceMean", "x axes", "m", keepdims=1), node("Sub", "x m", "d"),
         node("Mul", "d d", "q"), node("ReduceMean", "q axes", "v", keepdims=1),
         node("Add", "v eps", "ve"), node("Sqrt", "ve", "s"), node("Div", "d s", "n"),
         node("Mul", "n g", "ng"), node("Add", "ng b", "out")],
        {"x": f32(5, 16)}, ["out"],
        {"axes": np.array([-1]), "eps": np.float32(1e-5), "g": weights(16), "b": weights(16)},
    )  # fmt: skip
    build, _ = check(graph)
    assert len(kernels(build)) == 1


def test_softmax_over_a_matrix_product_is_two_kernels():
    graph = graph_of(
        [node("MatMul", "x w", "h"), node("Softmax", "h", "out", axis=-1)],
        {"x": f32(4, 6)}, ["out"], {"w": weights(6, 9)},
    )  # fmt: skip
    build, _ = check(graph)
    assert len(kernels(build)) == 2


def conv_net(size=8):
    return graph_of(
        [node("Conv", "x w1 b1", "a", pads=[1, 1, 1, 1]), node("Relu", "a", "r"),
         node("Conv", "r w2 -", "b", pads=[1, 1, 1, 1], group=8), node("Relu", "b", "s"),
         node("Conv", "s w3 -", "c"), node("Add", "c r", "d"), node("Relu", "d", "e"),
         node("Conv", "e w1b -", "f", pads=[1, 1, 1, 1], strides=[2, 2]),
         node("GlobalAveragePool", "f", "g"), node("Flatten", "g", "h"),
         node("Gemm", "h w4 b4", "out", transB=1)],
        {"x": f32(1, 3, size, size)}, ["out"],
        {"w1": weights(8, 3, 3, 3), "b1": weights(8), "w2": weights(8, 1, 3, 3),
         "w3": weights(8, 8, 1, 1), "w1b": weights(10, 8, 3, 3), "w4": weights(5, 10),
         "b4": weights(5)},
    )  # fmt: skip


def test_a_residual_network_with_borders():
    build, program = check(conv_net(), 1e-4)
    assert all(s.host is None for s in build.steps)
    assert any(s.once for s in program.steps)
    # copy of the input into its border, 4 convolutions, pooling, gemm
    assert len(kernels(build)) == 7


def test_equal_kernels_are_compiled_once():
    nodes = [node("MatMul", "x w0", "a"), node("Relu", "a", "b"), node("MatMul", "b w1", "c"),
             node("Relu", "c", "out")]  # fmt: skip
    graph = graph_of(nodes, {"x": f32(4, 6)}, ["out"], {"w0": weights(6, 6), "w1": weights(6, 6)})
    build, _ = check(graph)
    assert len(build.functions) == 1


def test_attention():
    nodes = [
        node("MatMul", "x wq", "q0"), node("MatMul", "x wk", "k0"), node("MatMul", "x wv", "v0"),
        *(node("Reshape", f"{n}0 heads", f"{n}1") for n in "qkv"),
        node("Transpose", "q1", "q", perm=[0, 2, 1, 3]),
        node("Transpose", "k1", "k", perm=[0, 2, 3, 1]),
        node("Transpose", "v1", "v", perm=[0, 2, 1, 3]),
        node("MatMul", "q k", "s0"), node("Div", "s0 scale", "s1"), node("Add", "s1 mask", "s2"),
        node("Softmax", "s2", "p", axis=-1), node("MatMul", "p v", "c0"),
        node("Transpose", "c0", "c1", perm=[0, 2, 1, 3]), node("Reshape", "c1 flat", "c"),
        node("MatMul", "c wo", "o"), node("Add", "o x", "out"),
    ]  # fmt: skip
    constants = {n: weights(8, 8) for n in ("wq", "wk", "wv", "wo")} | {
        "heads": np.array([1, 5, 2, 4]), "flat": np.array([1, 5, 8]), "scale": np.float32(2.0),
    }  # fmt: skip
    graph = graph_of(nodes, {"x": f32(1, 5, 8), "mask": f32(1, 1, 1, 5)}, ["out"], constants)
    build, _ = check(graph)
    assert len(kernels(build)) <= 9


def test_slices_are_read_where_they_lie():
    graph = graph_of(
        [node("Split", "qkv", "q k v", axis=1, num_outputs=3),
         node("Transpose", "k", "kt", perm=[1, 0]), node("MatMul", "q kt", "s"),
         node("MatMul", "s v", "out")],
        {"qkv": f32(5, 12)}, ["out"],
    )  # fmt: skip
    build, _ = check(graph)
    assert len(kernels(build)) == 3  # k is copied to have its columns adjacent; scores; result


def test_concat_is_written_in_place():
    graph = graph_of(
        [node("Conv", "x w1 -", "a"), node("Relu", "a", "ra"), node("Conv", "x w2 -", "b"),
         node("Concat", "ra b", "c", axis=1), node("Conv", "c w3 -", "out", pads=[1, 1, 1, 1])],
        {"x": f32(1, 9, 5, 5)}, ["out"],
        {"w1": weights(8, 9, 1, 1), "w2": weights(4, 9, 1, 1), "w3": weights(8, 12, 3, 3)},
    )  # fmt: skip
    build, _ = check(graph, 1e-4)
    assert len(kernels(build)) == 3


def test_scale_of_a_squeeze_excite_block_is_not_recomputed_per_pixel():
    graph = graph_of(
        [node("Conv", "x w -", "a"), node("GlobalAveragePool", "a", "g"),
         node("Conv", "g w2 -", "h"), node("Sigmoid", "h", "s"), node("Mul", "a s", "out")],
        {"x": f32(1, 8, 6, 6)}, ["out"], {"w": weights(8, 8, 1, 1), "w2": weights(8, 8, 1, 1)},
    )  # fmt: skip
    build, _ = check(graph, 1e-4)
    assert len(kernels(build)) == 4


def test_float16_is_computed_in_float32():
    graph = graph_of(
        [node("MatMul", "x w", "h"), node("Softmax", "h", "out", axis=-1)],
        {"x": ("float16", (4, 6))}, ["out"], {"w": weights(6, 9).astype(np.float16)},
    )  # fmt: skip
    check(graph, 2e-3)


def test_outputs_that_are_inputs_constants_or_views():
    graph = graph_of(
        [node("Identity", "x", "same"), node("Identity", "k", "const"),
         node("Transpose", "x", "t", perm=[1, 0]), node("Reshape", "x shape", "flat")],
        {"x": f32(3, 4)}, ["same", "const", "t", "flat"],
        {"k": weights(2, 2), "shape": np.array([12])},
    )  # fmt: skip
    check(graph)


def test_host_steps_run_between_kernels():
    graph = graph_of(
        [node("Relu", "x", "a"), node("TopK", "a k", "v i", axis=-1), node("Neg", "v", "out")],
        {"x": f32(3, 77)}, ["out", "i"], {"k": np.array([40])},  # more than kernels look for
    )  # fmt: skip
    build, _ = check(graph)
    assert [s.function for s in build.steps if s.host is not None] == ["packhorse.op.TopK"]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm(direction):
    dirs = 2 if direction == "bidirectional" else 1
    graph = graph_of(
        [node("LSTM", "x w r b", "y h c", hidden_size=4, direction=direction)],
        {"x": f32(5, 2, 3)}, ["y", "h", "c"],
        {"w": weights(dirs, 16, 3), "r": weights(dirs, 16, 4), "b": weights(dirs, 32)},
    )  # fmt: skip
    check(graph)


def test_constants_of_host_steps_keep_their_shape():
    graph = graph_of(
        [node("Relu", "x", "a"),
         node("MaxUnpool", "a where", "out", kernel_shape=[2, 2], strides=[2, 2])],
        {"x": f32(1, 1, 1, 2)}, ["out"], {"where": np.array([[[[1, 6]]]])},
    )  # fmt: skip
    build, _ = check(graph)
    assert any(s.host for s in build.steps)


def test_values_without_elements():
    graph = graph_of(
        [node("Relu", "x", "a"), node("Concat", "a y", "out", axis=0), node("Neg", "x", "none")],
        {"x": f32(0, 3), "y": f32(2, 3)}, ["out", "none"],
    )  # fmt: skip
    check(graph)
