"""Runs what the builder produced with the NumPy interpreter of kernels: no code generator."""

from __future__ import annotations

import numpy as np

from packhorse.compiler.build import Builder
from packhorse.compiler.host import run_step
from packhorse.compiler.link import link, pack_params
from packhorse.graph.ir import Graph, Node, TensorType, Value
from packhorse.kernel.expr import Affine, Load, walk
from packhorse.kernel.interpret import interpret
from packhorse.kernel.kernel import Buffer, Dim, Kernel
from packhorse.kernel.layout import numpy_dtype
from packhorse.ops import registry


def graph_of(nodes, inputs, outputs, constants=None):
    """A static graph with types inferred; ``inputs`` maps names to (dtype, shape)."""
    constants = {k: np.asarray(v) for k, v in (constants or {}).items()}
    types = {n: TensorType(np.dtype(d), tuple(s)) for n, (d, s) in inputs.items()}
    types |= {n: TensorType(a.dtype, a.shape) for n, a in constants.items()}
    graph = Graph("test", [Value(n, types[n]) for n in inputs], [], list(nodes), constants, types)
    for node in graph.nodes:
        operator = registry.get(node)
        seen = registry.Inference(
            node,
            tuple(types.get(i) for i in node.inputs),
            tuple(constants.get(i) for i in node.inputs),
            operator,
        )
        types.update(zip(node.outputs, operator.infer(seen), strict=False))
    graph.outputs = [Value(n, types[n]) for n in outputs]
    return graph


def reference(graph, feeds):
    """The graph by its operators' references."""
    values = {**graph.constants, **feeds}
    for node in graph.nodes:
        results = registry.get(node).run(node, [values[i] if i else None for i in node.inputs])
        values.update(zip(node.outputs, results, strict=False))
    return [values[v.name] for v in graph.outputs]


def block_packer(kernel: Kernel):
    """A scheduler that packs constants in blocks of 4 along their last axis."""
    packed = {}
    for store in kernel.stores:
        for load in (n for n in walk(store.value) if isinstance(n, Load)):
            buffer = kernel.buffers[load.buffer]
            if not buffer.constant or not all(isinstance(i, Affine) for i in load.index):
                continue
            *outer, last = buffer.shape
            rows = int(np.prod(outer))
            steps, step = [], 4
            for extent in reversed(outer):
                steps.insert(0, Dim(step))
                step *= extent
            blocks = -(-last // 4)
            packed[load.buffer] = Buffer(
                buffer.shape,
                buffer.dtype,
                (*steps, Dim(1, 4, rows * 4)),
                0,
                blocks * rows * 4,
                True,
            )
    return None, packed


def run_build(graph, feeds, scheduler=block_packer, refuses=None):
    """Build, link and interpret; returns (outputs, build, program)."""
    build = Builder(graph, scheduler, refuses).build()
    program = link(build, {})
    params = pack_params(build)
    sizes: dict[int, int] = {}
    for entry in program.entries:
        nbytes = int(np.prod(entry.shape)) * numpy_dtype(entry.dtype).itemsize
        sizes[entry.storage] = max(sizes.get(entry.storage, 0), nbytes)
    rng = np.random.default_rng(0)
    storages = {s: rng.integers(0, 255, n, np.uint8) for s, n in sizes.items()}

    def flat(e):
        entry = program.entries[e]
        count = int(np.prod(entry.shape))
        dtype = numpy_dtype(entry.dtype)
        return storages[entry.storage][: count * dtype.itemsize].view(dtype)

    for e in program.inputs:
        flat(e)[:] = feeds[program.entries[e].name].ravel()
    for e in program.params:
        flat(e)[:] = params[program.entries[e].name].ravel()
    for once in (True, False):
        for step in program.steps:
            if step.once != once:
                continue
            if step.function.startswith("packhorse.op."):
                shaped = [flat(e).reshape(program.entries[e].shape) for e in step.inputs]
                outs = [flat(e).reshape(program.entries[e].shape) for e in step.outputs]
                run_step(step, shaped, outs)
                continue
            kernel, _ = build.functions[step.function]
            arguments = dict(
                zip(kernel.arguments, map(flat, (*step.inputs, *step.outputs)), strict=True)
            )
            interpret(kernel, arguments)
    outputs = [flat(e).reshape(program.entries[e].shape).copy() for e in program.outputs]
    return outputs, build, program


def node(op, inputs, outputs, **attrs):
    """Shorthand for a Node with space-separated names ('-' for an elided input)."""
    return Node(op, ["" if i == "-" else i for i in inputs.split()], outputs.split(), attrs, op)
