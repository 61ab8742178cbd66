"""Reshapes without copies, and the memory plan."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from packhorse.compiler.memory_plan import Interval, assign_storage
from packhorse.compiler.operands import halo_of
from packhorse.compiler.reshape import reshape_index, reshape_strides
from packhorse.kernel.kernel import contiguous
from packhorse.kernel.layout import from_storage, to_storage


@st.composite
def factored(draw):
    """Two shapes of equal size."""
    primes = draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=6))

    def group():
        shape, current = [], 1
        for p in primes:
            current *= p
            if draw(st.booleans()):
                shape.append(current)
                current = 1
        return (*shape, current)

    return group(), group()


@settings(max_examples=200, deadline=None)
@given(shapes=factored(), data=st.data())
def test_strided_reshape_reads_the_same_elements(shapes, data):
    old, new = shapes
    order = data.draw(st.permutations(range(len(old))))
    buffer = contiguous(old, "int64", order)
    array = np.arange(int(np.prod(old))).reshape(old)
    moved = reshape_strides(buffer, new)
    if list(order) == list(range(len(old))):
        assert moved is not None, "row-major memory always reshapes"
    if moved is not None:
        flat = to_storage(array, buffer)
        np.testing.assert_array_equal(from_storage(flat, moved), array.reshape(new))


@settings(max_examples=200, deadline=None)
@given(shapes=factored())
def test_reshape_as_index_arithmetic(shapes):
    old, new = shapes
    index = reshape_index(old, new)
    if index is None:
        return
    array = np.arange(int(np.prod(old))).reshape(old)
    grid = np.indices(new)
    where = tuple(
        i.const + sum(c * grid[int(n[1:])] for n, c in i.terms) + np.zeros(new, np.int64)
        for i in index
    )
    np.testing.assert_array_equal(array[where], array.reshape(new))


def test_splitting_is_arithmetic_and_merging_is_not():
    assert reshape_index((6, 4), (2, 3, 4)) is not None
    assert reshape_index((2, 3, 4), (6, 4)) is None
    assert reshape_index((2, 1, 4), (2, 4)) is not None


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_halo_is_recovered_from_the_strides(data):
    rank = data.draw(st.integers(1, 4))
    shape = data.draw(st.lists(st.integers(2, 5), min_size=rank, max_size=rank))
    order = data.draw(st.permutations(range(rank)))
    halo = [(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in shape]
    assert halo_of(contiguous(shape, "float32", order, halo)) == halo


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 99), st.integers(0, 20), st.integers(0, 6),
                          st.sampled_from([None, "a"])), max_size=30))  # fmt: skip
def test_live_buffers_never_share(raw):
    items = [Interval(f"b{i}", n, f, f + d, g) for i, (n, f, d, g) in enumerate(raw)]
    owner, sizes = assign_storage(items)
    for a in items:
        assert sizes[owner[a.name]] >= a.nbytes
        for b in items:
            if a is not b and owner[a.name] == owner[b.name]:
                assert a.last < b.first or b.last < a.first
                assert a.group == b.group


def test_storage_is_reused():
    chain = [Interval(f"b{i}", 100, i, i + 1) for i in range(10)]
    assert len(assign_storage(chain)[1]) == 2
