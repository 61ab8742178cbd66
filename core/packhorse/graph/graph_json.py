"""Graph JSON: a Program as text in the schema of TVM's graph executor (0.4 to 0.19), and back.

Per node one ``null`` (input or param) or ``tvm_op`` (call); entry ``node_row_ptr[nid] + index``
is output ``index`` of node ``nid``; the graph's ``attrs`` give dtype, storage and shape of every
entry. TVM refuses keys it does not know, so ``once`` is a node attribute and everything else of
ours is under ``metadata``, the last key, where TVM stops reading.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from functools import partial
from itertools import pairwise
from typing import Any

from packhorse.errors import ArgumentValueError, ArtifactError
from packhorse.graph import _json as js
from packhorse.graph.program import MAX_STORAGE, NOP, Entry, Program, Step, check

__all__ = ["program_from_json", "program_to_json"]

_TOP = frozenset({"nodes", "arg_nodes", "heads", "node_row_ptr", "attrs", "metadata"})
_NODE = frozenset({"op", "name", "inputs", "attrs", "attr", "control_deps"})
_ONCE, _OURS = "packhorse_once", "packhorse"
_CALL = ("func_name", "num_inputs", "num_outputs", "flatten_data")
_MAX_ENTRIES = 1_000_000
_TVM = {"alignment": "strict"}
"""Metadata of graphs that packhorse did not write: TVM's kernels fault on unaligned tensors. Those
compiled for a device say so: ``device_type``."""
_OUR_METADATA = "metadata.packhorse.metadata"


# ---------------------------------------------------------------- writing


def program_to_json(program: Program) -> str:
    """A program as graph JSON.

    Entries are numbered anew: inputs, params, then what each step writes (a tensor written by
    two steps becomes two entries of one storage). Names of tensors between steps are not kept.

    Raises
    ------
    ArtifactError
        The program is not one that could be run: see :func:`packhorse.graph.program.check`.
    ArgumentValueError
        An attribute of a step has a name that the schema uses itself.
    """
    check(program)
    writer = _Writer(program)
    for number in (*program.inputs, *program.params):
        writer.add(program.entries[number].name, (), (number,), None)
    for step in program.steps:
        writer.add(step.name, step.inputs, step.outputs, _call_attrs(step))
    return _render(writer.document())


class _Writer:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes: list[dict[str, Any]] = []
        self.rows = [0]
        self.entries: list[Entry] = []
        self.place: dict[int, tuple[int, int]] = {}  # entry -> node and index that wrote it last

    def add(
        self, name: str, reads: Iterable[int], writes: tuple[int, ...], attrs: dict[str, str] | None
    ) -> None:
        node: dict[str, Any] = {"op": "null" if attrs is None else "tvm_op", "name": name}
        if attrs is not None:
            node["attrs"] = attrs
        node["inputs"] = [[*self.place[i], 0] for i in reads]
        for index, number in enumerate(writes):
            self.place[number] = (len(self.nodes), index)
            self.entries.append(self.program.entries[number])
        self.nodes.append(node)
        self.rows.append(len(self.entries))

    def document(self) -> dict[str, Any]:
        program, given = self.program, len(self.program.inputs) + len(self.program.params)
        ours = {
            "name": program.name,
            "params": [program.entries[i].name for i in program.params],
            "outputs": list(program.output_names),
            "metadata": dict(program.metadata),
        }
        return {
            "nodes": self.nodes,
            "arg_nodes": list(range(given)),
            "heads": [[*self.place[i], 0] for i in program.outputs],
            "node_row_ptr": self.rows,
            "attrs": {
                "dltype": ["list_str", [e.dtype for e in self.entries]],
                "storage_id": ["list_int", [e.storage for e in self.entries]],
                "shape": ["list_shape", [list(e.shape) for e in self.entries]],
            },
            "metadata": {_OURS: ours},
        }


def _call_attrs(step: Step) -> dict[str, str]:
    clash = [key for key in (*_CALL[:3], _ONCE) if key in step.attrs]
    if clash:
        raise ArgumentValueError(
            f"step '{step.name}' has an attribute called '{clash[0]}', which graph JSON uses "
            "itself; rename it"
        )
    attrs = {
        "func_name": step.function,
        "num_inputs": str(len(step.inputs)),
        "num_outputs": str(len(step.outputs)),
        "flatten_data": "0",
        **step.attrs,
    }
    return {**attrs, _ONCE: "1"} if step.once else attrs


def _render(document: dict[str, Any]) -> str:
    """One line per node: greppable, and small beside indented JSON."""
    # No \\u escapes: TVM's JSON reader knows \\n, \\r, \\t, \\" and \\\\ only.
    dump = partial(json.dumps, ensure_ascii=False)
    lines = ",\n    ".join(map(dump, document.pop("nodes")))
    rest = ",\n  ".join(f"{dump(key)}: {dump(value)}" for key, value in document.items())
    return f'{{\n  "nodes": [\n    {lines}\n  ],\n  {rest}\n}}\n'


# ---------------------------------------------------------------- reading


def program_from_json(
    source: str | bytes,
    params: Collection[str] | None = None,
    *,
    max_storage: int = MAX_STORAGE,
) -> Program:
    """Read graph JSON: what :func:`program_to_json` wrote, or a ``deploy.json`` of TVM.

    Parameters
    ----------
    source : str or bytes
        The text. It may come from anywhere: nothing is allocated before it was checked.
    params : collection of str, optional
        Names of the arguments that are weights (the names in the params file). Without it the
        list that packhorse wrote is used; TVM writes none, all arguments are inputs then.
    max_storage : int
        Most bytes that all storages may need together.

    Raises
    ------
    ArtifactError
        Says what is wrong, and at which node or entry.
    """
    document = js.parse(source, "graph JSON")
    js.only_keys(document, "graph JSON", _TOP)
    for key in sorted(_TOP - {"metadata"}):
        if key not in document:
            raise ArtifactError(f"graph JSON lacks the key '{key}'; is it the graph of a model?")
    reader = _Reader(document)
    program = reader.program(None if params is None else set(params))
    check(program, max_storage)
    return program


class _Reader:
    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.nodes = js.listing(document["nodes"], "nodes")
        if len(self.nodes) > _MAX_ENTRIES:
            raise ArtifactError(f"{len(self.nodes)} nodes are more than {_MAX_ENTRIES}")
        self.rows = self._row_pointers()
        self.entries = self._entries()
        self.steps: list[Step] = []
        self.arguments: dict[int, int] = {}  # node -> entry
        for nid, node in enumerate(self.nodes):
            self._node(nid, js.mapping(node, f"node {nid}"))

    def _row_pointers(self) -> list[int]:
        rows = js.integers(self.document["node_row_ptr"], "node_row_ptr", 0, _MAX_ENTRIES)
        if len(rows) != len(self.nodes) + 1 or rows[0] != 0:
            raise ArtifactError(
                f"node_row_ptr has {len(rows)} items for {len(self.nodes)} nodes; expected one "
                "more than nodes, the first 0"
            )
        for nid, (low, high) in enumerate(pairwise(rows)):
            if high < low:
                raise ArtifactError(f"node_row_ptr falls from {low} to {high} at node {nid}")
        return rows

    def _entries(self) -> list[Entry]:
        attrs = js.mapping(self.document["attrs"], "attrs")
        count = self.rows[-1]
        dtypes = self._column(attrs, "dltype", "list_str", count)
        storages = self._column(attrs, "storage_id", "list_int", count)
        shapes = self._column(attrs, "shape", "list_shape", count)
        self.device_type = _one_device(attrs, count)
        made = []
        for i in range(count):
            dtype = js.text(dtypes[i], f"dltype[{i}]")
            storage = js.integer(storages[i], f"storage_id[{i}]", 0, 1 << 31)
            shape = js.integers(shapes[i], f"shape[{i}]", 0, 1 << 48)
            made.append(Entry("", tuple(shape), dtype, storage))
        return made

    def _column(self, attrs: dict[str, Any], key: str, kind: str, count: int) -> list[Any]:
        pair = js.listing(attrs.get(key), f"attrs.{key}")
        if len(pair) != 2 or pair[0] != kind:
            raise ArtifactError(f'attrs.{key} must be ["{kind}", [...]]')
        column = js.listing(pair[1], f"attrs.{key}")
        if len(column) != count:
            raise ArtifactError(
                f"attrs.{key} has {len(column)} items, node_row_ptr asks for {count}"
            )
        return column

    def _node(self, nid: int, node: dict[str, Any]) -> None:
        js.only_keys(node, f"node {nid}", _NODE)
        name = js.text(node.get("name"), f"name of node {nid}")
        where = f"node {nid} ('{name:.80}')"
        written = tuple(range(self.rows[nid], self.rows[nid + 1]))
        for index, number in enumerate(written):
            old = self.entries[number]
            label = f"{name}:{index}" if index else name
            self.entries[number] = Entry(label, old.shape, old.dtype, old.storage)
        reads = js.listing(node.get("inputs", []), f"inputs of {where}")
        inputs = tuple(self._entry(x, f"inputs[{i}] of {where}", nid) for i, x in enumerate(reads))
        js.integers(node.get("control_deps", []), f"control_deps of {where}", 0, nid)
        if node.get("op") == "null":
            if inputs or len(written) != 1:
                raise ArtifactError(f"{where} is an argument: it must have no inputs, one output")
            self.arguments[nid] = written[0]
        elif node.get("op") == "tvm_op":
            self.steps.append(_step(name, where, node, inputs, written))
        else:
            raise ArtifactError(f"{where} has op {node.get('op')!r:.40}, expected null or tvm_op")

    def _entry(self, value: Any, where: str, before: int) -> int:
        """``[nid, index, version?]`` as an entry number, of a node earlier than ``before``."""
        triple = js.integers(value, where, 0, 1 << 31)
        if not 2 <= len(triple) <= 3:
            raise ArtifactError(f"{where} has {len(triple)} items, expected [node, index, version]")
        nid = js.integer(triple[0], f"node of {where}", 0, before)
        width = self.rows[nid + 1] - self.rows[nid]
        return self.rows[nid] + js.integer(triple[1], f"index of {where}", 0, width)

    def program(self, params: set[str] | None) -> Program:
        ours = js.mapping(self.document.get("metadata", {}), "metadata").get(_OURS, {})
        ours = js.mapping(ours, "metadata.packhorse")
        weights = set(_strings(ours, "params")) if params is None else params
        order = js.integers(self.document["arg_nodes"], "arg_nodes", 0, len(self.nodes))
        if sorted(order) != sorted(self.arguments):
            raise ArtifactError("arg_nodes must list every node with op null exactly once")
        arguments = [self.arguments[nid] for nid in order]
        is_param = [self.entries[i].name in weights for i in arguments]
        heads = js.listing(self.document["heads"], "heads")
        outputs = [self._entry(x, f"heads[{i}]", len(self.nodes)) for i, x in enumerate(heads)]
        names = _strings(ours, "outputs") or [f"output_{i}" for i in range(len(outputs))]
        return Program(
            js.text(ours.get("name", ""), "metadata.packhorse.name"),
            tuple(self.entries),
            tuple(e for e, weight in zip(arguments, is_param, strict=True) if not weight),
            tuple(e for e, weight in zip(arguments, is_param, strict=True) if weight),
            tuple(self.steps),
            tuple(outputs),
            tuple(names),
            _pairs(ours.get("metadata", {} if ours else self._foreign()), _OUR_METADATA),
        )

    def _foreign(self) -> dict[str, str]:
        """Metadata of a graph that TVM wrote."""
        known = self.device_type
        return _TVM if known is None else {**_TVM, "device_type": str(known)}


def _step(
    name: str, where: str, node: dict[str, Any], inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> Step:
    attrs = _pairs(node.get("attrs", node.get("attr")), f"attrs of {where}")
    for key in _CALL:
        if key not in attrs:
            raise ArtifactError(f"{where} lacks the attribute '{key}'")
    for key, count in (("num_inputs", len(inputs)), ("num_outputs", len(outputs))):
        if attrs[key] != str(count):
            raise ArtifactError(f"{where} says {key} {attrs[key]!r:.40}, but has {count}")
    if attrs["flatten_data"] not in ("0", "1") or not attrs["func_name"]:
        raise ArtifactError(f"{where} needs a func_name and flatten_data 0 or 1")
    function, once = attrs["func_name"], attrs.get(_ONCE) == "1"
    if function == NOP and len(inputs) != 1:
        raise ArtifactError(f"{where} is {NOP} of {len(inputs)} inputs, expected one")
    drop = {*_CALL[:3], _ONCE}
    if attrs["flatten_data"] == "0":
        drop.add("flatten_data")
    rest = {key: value for key, value in attrs.items() if key not in drop}
    return Step(function, inputs, outputs, name, once, rest)


def _one_device(attrs: dict[str, Any], count: int) -> int | None:
    """DLPack type of the device that all entries lie on; None where the graph does not say."""
    if "device_index" not in attrs:
        return None
    pair = js.listing(attrs["device_index"], "attrs.device_index")
    if len(pair) != 2 or len(js.listing(pair[1], "attrs.device_index")) != count:
        raise ArtifactError(f'attrs.device_index must be ["list_int", [{count} numbers]]')
    types = sorted(set(js.integers(pair[1], "attrs.device_index", 0, 1 << 16)))
    if len(types) > 1:
        raise ArtifactError(
            f"the graph is spread over devices of types {types}, which is not supported; "
            "compile it for one target"
        )
    return types[0] if types else None


def _strings(ours: dict[str, Any], key: str) -> list[str]:
    where = f"metadata.packhorse.{key}"
    items = js.listing(ours.get(key, []), where)
    return [js.text(item, f"{where}[{i}]") for i, item in enumerate(items)]


def _pairs(found: Any, where: str) -> dict[str, str]:
    pairs = js.mapping(found, where)
    for key, value in pairs.items():
        js.text(value, f"{where}.{js.text(key, f'a key of {where}'):.80}")
    return dict(pairs)
