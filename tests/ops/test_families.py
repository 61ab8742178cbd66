"""The operator table as a whole."""

from __future__ import annotations

import pytest

from packhorse import ops
from packhorse.errors import UnsupportedOperator
from packhorse.graph.ir import Node


@pytest.mark.parametrize("name", ops.names())
def test_every_operator_is_documented(name: str) -> None:
    domain, _, op = name.rpartition("::")
    entry = ops.get(Node(op, [], ["y"], domain=domain))
    assert (entry.name, entry.domain) == (op, domain)
    assert entry.reference.__doc__, f"{name} has no docstring"


def test_unknown_operator_suggests_a_known_one() -> None:
    with pytest.raises(UnsupportedOperator, match="did you mean 'Softmax'"):
        ops.get(Node("SoftMax", ["x"], ["y"]))
