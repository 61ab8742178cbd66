"""Loop normalisation: same results, fewer loops."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from packhorse.compiler.collapse import collapse
from packhorse.kernel.expr import Affine, Index, Load, Reduce, affine, cast
from packhorse.kernel.interpret import interpret
from packhorse.kernel.kernel import Kernel, Store, contiguous
from packhorse.kernel.layout import to_storage
from packhorse.kernel.lowering import axes_of


def elementwise(shape, order=None, halo=None):
    """out = x + x, x in the given order, out with a halo."""
    x = contiguous(shape, "float32", order)
    out = contiguous(shape, "float32", order, halo)
    index = axes_of(len(shape))
    value = Load("x", index, "float32") + Load("x", index, "float32")
    axes = [(f"i{d}", shape[d]) for d in (order or range(len(shape)))]
    return Kernel("k", tuple(axes), (Store("out", index, value),), {"x": x, "out": out})


def test_contiguous_axes_become_one():
    assert [e for _, e in collapse(elementwise((2, 3, 4))).axes] == [24]
    assert [e for _, e in collapse(elementwise((2, 3, 4), order=[0, 2, 1])).axes] == [24]


def test_a_border_keeps_rows_apart():
    kernel = collapse(elementwise((2, 3, 4), halo=[(0, 0), (0, 0), (1, 1)]))
    assert [e for _, e in kernel.axes] == [6, 4]


def test_unit_axes_and_empty_reductions_disappear():
    x, out = contiguous((1, 5, 1), "float32"), contiguous((1, 5), "float32")
    body = Load("x", (affine("i0"), affine("i1"), affine("r")), "float32")
    value = Reduce("sum", (("r", 1),), body, "float32")
    kernel = Kernel("k", (("i0", 1), ("i1", 5)), (Store("out", axes_of(2), value),),
                    {"x": x, "out": out})  # fmt: skip
    small = collapse(kernel)
    assert small.axes == (("i1", 5),)
    assert small.stores[0].value == Load("x", (affine("i1"),), "float32")


def test_index_values_prevent_merging():
    out = contiguous((3, 4), "float32")
    value = cast(Index(affine("i1")), "float32")
    kernel = Kernel("k", (("i0", 3), ("i1", 4)), (Store("out", axes_of(2), value),), {"out": out})
    assert len(collapse(kernel).axes) == 2


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_collapsed_kernels_mean_the_same(data):
    rank = data.draw(st.integers(1, 4))
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank)))
    order = data.draw(st.permutations(range(rank)))
    halo = [(data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1))) for _ in shape]
    x, w = contiguous(shape, "float32", order, halo), contiguous(shape, "float32")
    reduced = data.draw(st.sets(st.sampled_from(range(rank))))
    names = [f"r{d}" if d in reduced else f"i{d}" for d in range(rank)]
    index = tuple(affine(n) for n in names)
    value = Load("x", index, "float32") * Load("w", index, "float32")
    bound = tuple((f"r{d}", shape[d]) for d in sorted(reduced))
    if bound:
        value = Reduce("sum", bound, value, "float32")
    kept = [d for d in range(rank) if d not in reduced]
    out = contiguous([shape[d] for d in kept], "float32")
    axes = tuple((f"i{d}", shape[d]) for d in kept)
    store = Store("out", tuple(affine(f"i{d}") for d in kept), value)
    kernel = Kernel("k", axes, (store,), {"x": x, "w": w, "out": out})
    rng = np.random.default_rng(0)
    arrays = {n: rng.integers(-4, 4, shape).astype(np.float32) for n in "xw"}
    results = []
    for candidate in (kernel, collapse(kernel), collapse(kernel).canonical()[0]):
        names_map = dict(zip(candidate.arguments, kernel.arguments, strict=True))
        storage = {n: to_storage(arrays[o], kernel.buffers[o]) if o in arrays
                   else np.zeros(out.size, np.float32) for n, o in names_map.items()}  # fmt: skip
        interpret(candidate, storage)
        results.append(storage[candidate.arguments[-1]])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_affine_arithmetic():
    a = affine("i") * 3 + affine("j") - 2
    assert (a.coef("i"), a.coef("j"), a.const) == (3, 1, -2)
    assert a - a == Affine()
