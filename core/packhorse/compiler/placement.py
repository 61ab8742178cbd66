"""Which device runs which node of a model, and the parts that follow from it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

from packhorse.device import Device, device
from packhorse.errors import ArgumentTypeError, ArgumentValueError, did_you_mean
from packhorse.graph.ir import Graph, Node, Value, node_reads, walk

__all__ = ["Choice", "Placement", "partition"]

Rule: TypeAlias = Literal["rest", "auto"] | tuple[str, ...]
Choice: TypeAlias = Mapping[Any, str | Sequence[str]]
"""Device or device string -> names of nodes, ``"auto"`` or ``"rest"``."""
_SIGNS = re.compile("[,;='\"]")


@dataclass(frozen=True)
class Placement:
    """Several devices for one model.

    A node runs on the device whose list names it; else on the first ``"auto"`` device that has a
    kernel for it; else on the ``"rest"`` device.

    Attributes
    ----------
    devices : tuple of Device
    rules : tuple
        For each device: names and patterns (``*`` and ``?``) of nodes, ``"auto"`` or ``"rest"``.
    """

    devices: tuple[Device, ...]
    rules: tuple[Rule, ...]

    @classmethod
    def of(cls, choice: Choice) -> Placement:
        """Open the devices of a choice.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            A rule is none, ``"rest"`` is said twice, a device is named twice, or none at all.
        DeviceError
            A device cannot be had.
        """
        if not choice:
            raise ArgumentValueError(
                "no device was given; give some: {'opencl:0': 'auto', 'llvm-cpu': 'rest'}"
            )
        rules = tuple(_rule(name, rule) for name, rule in choice.items())
        if rules.count("rest") > 1:
            raise ArgumentValueError("two devices are to run the 'rest'; only one can")
        devices = tuple(device(name) for name in choice)
        names = [found.name for found in devices]
        for name in names:
            if names.count(name) > 1:
                raise ArgumentValueError(f"'{name}' is named twice; give each device one list")
        return cls(devices, rules)

    @property
    def name(self) -> str:
        """The choice as one line, which no other choice has."""
        texts = (r if isinstance(r, str) else ",".join(map(_quoted, r)) for r in self.rules)
        return "; ".join(f"{d.name}={t}" for d, t in zip(self.devices, texts, strict=True))

    def check(self, graph: Graph) -> None:
        """Make sure that every name means a node of the model, and none two devices.

        Raises
        ------
        ArgumentValueError
            Says which name, and what may have been meant.
        """
        nodes = dict.fromkeys(node_name(node) for node in walk(graph))
        owner: dict[str, str] = {}
        for where, rule in zip(self.devices, self.rules, strict=True):
            for pattern in () if isinstance(rule, str) else rule:
                found = [name for name in nodes if _matches(name, pattern)]
                if not found:
                    raise ArgumentValueError(
                        f"'{where.name}' is to run '{pattern}', but the model has no such node"
                        f"{did_you_mean(pattern, list(nodes))}; 'packhorse inspect MODEL --nodes "
                        "--device cpu' lists them"
                    )
                for name in found:
                    if owner.setdefault(name, where.name) != where.name:
                        raise ArgumentValueError(
                            f"node '{name}' is to run on '{owner[name]}' and on '{where.name}'; "
                            "name it once"
                        )

    def assign(
        self, static: Graph, able: Mapping[int, Collection[str]], known: Collection[str]
    ) -> list[int]:
        """The device of each node of a specialised graph, as an index of :attr:`devices`.

        Parameters
        ----------
        able : mapping of device index to labels
            What each ``"auto"`` device has kernels for.
        known : collection of str
            Names of the nodes of the model as it was written. Nodes that specialising made go to
            the last device where no rule is for them.

        Raises
        ------
        ArgumentValueError
            No rule is for a node, and none for the rest.
        """
        found = [self._device_of(node, able) for node in static.nodes]
        lost = [node_name(node) for node, k in zip(static.nodes, found, strict=True)
                if k is None and node_name(node) in known]  # fmt: skip
        if lost:
            more = f" and {len(lost) - 1} more nodes" if len(lost) > 1 else ""
            raise ArgumentValueError(
                f"no device is to run node '{lost[0]}'{more} ({self.name}). Add one for the rest: "
                "'llvm-cpu': 'rest'"
            )
        return [len(self.devices) - 1 if k is None else k for k in found]

    def _device_of(self, node: Node, able: Mapping[int, Collection[str]]) -> int | None:
        name = node_name(node)
        for k, rule in enumerate(self.rules):
            if not isinstance(rule, str) and any(_matches(name, pattern) for pattern in rule):
                return k
        for k, labels in able.items():
            if node.label in labels:
                return k
        return self.rules.index("rest") if "rest" in self.rules else None


def node_name(node: Node) -> str:
    """What users call a node: its name, else its first output."""
    return node.name or node.outputs[0]


def _quoted(name: str) -> str:
    """A name, quoted where it could be taken for something else than one name."""
    return repr(name) if name in ("rest", "auto") or _SIGNS.search(name) else name


def _rule(name: Any, rule: Any) -> Rule:
    if isinstance(rule, str) and rule in ("rest", "auto"):
        return "rest" if rule == "rest" else "auto"
    if isinstance(rule, str) or not isinstance(rule, Sequence):
        raise ArgumentTypeError(
            f"'{name}' is to run {rule!r:.60}; give a list of node names, 'auto' for all it has "
            "kernels for, or 'rest'"
        )
    wrong = [item for item in rule if not isinstance(item, str)]
    if wrong:
        raise ArgumentTypeError(f"names of nodes are strings, '{name}' has {wrong[0]!r:.60}")
    return tuple(rule)


def _matches(name: str, pattern: str) -> bool:
    """Whether a name is meant. Brackets, as in ``layers[0]/mul``, are no wildcards."""
    if "*" not in pattern and "?" not in pattern:
        return name == pattern
    return name == pattern or fnmatchcase(name, pattern.replace("[", "[[]"))


def partition(static: Graph, where: Sequence[int]) -> list[tuple[int, Graph]]:
    """Cut a graph into parts of one device each, in an order in which they can run.

    Parameters
    ----------
    static : Graph
        Its nodes are in topological order.
    where : sequence of int
        The device of each node.

    Returns
    -------
    list of (int, Graph)
        Each part reads graph inputs and values of earlier parts as inputs, and gives what later
        parts or the graph's outputs need. As few parts as a greedy order gives.
    """
    starts = sorted(set(where))
    groups = min((_groups(static, where, first) for first in starts), key=len, default=[])
    return [
        (where[group[0]], _part(static, group, f"{static.name}.{k}"))
        for k, group in enumerate(groups)
    ]


def _groups(static: Graph, where: Sequence[int], first: int) -> list[list[int]]:
    """Node numbers in runs of one device: all that is ready there, then the next device."""
    maker = {name: i for i, node in enumerate(static.nodes) for name in node.outputs if name}
    needs = [{maker[n] for n in node_reads(node) if n in maker} for node in static.nodes]
    left = dict.fromkeys(range(len(static.nodes)))
    done: set[int] = set()
    groups: list[list[int]] = []
    current = first
    while left:
        group = []
        for i in left:  # topological order: one pass finds all that this device can do
            if where[i] == current and needs[i] <= done:
                group.append(i)
                done.add(i)
        for i in group:
            del left[i]
        if group:
            groups.append(group)
        ready = [where[i] for i in left if needs[i] <= done]
        current = max(dict.fromkeys(ready), key=ready.count, default=current)
    return groups


def _part(static: Graph, group: Sequence[int], name: str) -> Graph:
    nodes = [static.nodes[i] for i in group]
    made = dict.fromkeys(n for node in nodes for n in node.outputs if n)
    reads = dict.fromkeys(n for node in nodes for n in node_reads(node) if n not in made)
    inside = set(group)
    wanted = {value.name for value in static.outputs}
    for i, node in enumerate(static.nodes):
        if i not in inside:
            wanted.update(node_reads(node))
    known = {*reads, *made}
    return Graph(
        name=name,
        inputs=[Value(n, static.type_of(n)) for n in reads if n not in static.constants],
        outputs=[Value(n, static.type_of(n)) for n in made if n in wanted],
        nodes=nodes,
        constants={n: static.constants[n] for n in reads if n in static.constants},
        types={n: t for n, t in static.types.items() if n in known},
    )
