"""Single kernels: packhorse's llvm-cpu next to onnxruntime and to the FMA peak of this core.

    python benchmarks/kernels.py [--only gemm] [--rounds 15]

One thread, CPU time of the thread, medians, the two interleaved in one process. Convolutions are
given to onnxruntime in its NCHW form and to packhorse in NHWC with a halo, as each would run them
inside a model; weights are packed beforehand by both. ``%peak`` counts the operations of the
direct algorithm against fused multiply-adds on registers alone, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from packhorse.compiler.schedule import pack_constants, schedule
from packhorse.kernel import Buffer, Kernel, Store, contiguous
from packhorse.kernel.expr import Affine, Expr, Load, Reduce, affine, call
from packhorse.kernel.layout import numpy_dtype, to_storage
from packhorse.native import Plan, Slot, aligned_empty
from packhorse_llvm_cpu.codegen import Codegen
from packhorse_llvm_cpu.target import host_target

F32 = "float32"
Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One comparison. ``feeds`` are the inputs of the onnx nodes; ``work`` in operations (a
    contraction) or elements (anything else)."""

    name: str
    kernel: Kernel
    nodes: tuple[Any, ...]
    inputs: dict[str, tuple[int, ...]]
    weights: dict[str, tuple[int, ...]]
    work: float
    unit: str


def at(buffer: str, *index: str | int | Affine) -> Load:
    return Load(buffer, tuple(affine(i) for i in index), F32)


def dense(*shape: int, **options: Any) -> Buffer:
    return contiguous(shape, F32, **options)


def node(op: str, inputs: Sequence[str], output: str = "y", **attrs: Any) -> Any:
    from onnx import helper

    return helper.make_node(op, list(inputs), [output], **attrs)


# -- cases ----------------------------------------------------------------------------------------


def gemm(m: int, n: int, k: int) -> Case:
    total = Reduce("sum", (("k", k),), at("a", "m", "k") * at("b", "k", "n"), F32)
    value = call("max", total + at("c", "n"), 0.0)
    kernel = Kernel(
        "gemm", (("m", m), ("n", n)), (Store("y", (affine("m"), affine("n")), value),),
        {"a": dense(m, k), "b": dense(k, n, constant=True), "c": dense(n, constant=True),
         "y": dense(m, n)},
    )  # fmt: skip
    nodes = (node("Gemm", ["a", "b", "c"], "t"), node("Relu", ["t"]))
    return Case(f"gemm {m}x{n}x{k}", kernel, nodes, {"a": (m, k)}, {"b": (k, n), "c": (n,)},
                2.0 * m * n * k, "GF/s")  # fmt: skip


def conv(size: int, c: int, o: int, k: int, s: int, group: bool = False) -> Case:
    """NHWC with a halo; a 1x1 is the matrix product the compiler makes of it."""
    p, out = k // 2, (size + 2 * (k // 2) - k) // s + 1
    name = f"{'dw' if group else 'conv'} {k}x{k}/{s} {size}x{size} {c}->{o}"
    nodes = (node("Conv", ["x", "w", "c"], "t", kernel_shape=[k, k], strides=[s, s],
                  pads=[p] * 4, group=c if group else 1), node("Relu", ["t"]))  # fmt: skip
    weights = {"w": (o, 1 if group else c, k, k), "c": (o,)}
    if k == 1 and s == 1:
        kernel = gemm(out * out, o, c).kernel
    else:
        kernel = _window(size, c, o, k, s, p, out, group)
    work = 2.0 * out * out * o * k * k * (1 if group else c)
    return Case(name, kernel, nodes, {"x": (1, c, size, size)}, weights, work, "GF/s")


def _window(size: int, c: int, o: int, k: int, s: int, p: int, out: int, group: bool) -> Kernel:
    oh, ow, kh, kw = (affine(n) for n in ("oh", "ow", "kh", "kw"))
    where = (oh * s + kh + -p, ow * s + kw + -p)
    axes = (("kh", k), ("kw", k)) if group else (("kh", k), ("kw", k), ("c", c))
    body = at("x", "o" if group else "c", *where) * at("w", "o", 0 if group else "c", kh, kw)
    value = call("max", Reduce("sum", axes, body, F32) + at("bias", "o"), 0.0)
    return Kernel(
        "conv", (("o", o), ("oh", out), ("ow", out)), (Store("y", (affine("o"), oh, ow), value),),
        {"x": dense(c, size, size, order=(1, 2, 0), halo=((0, 0), (p, p), (p, p))),
         "w": dense(o, 1 if group else c, k, k, constant=True), "bias": dense(o, constant=True),
         "y": dense(o, out, out, order=(1, 2, 0))},
    )  # fmt: skip


def unary(op: str, n: int, value: Callable[[Expr], Expr], **attrs: Any) -> Case:
    kernel = Kernel(op, (("i", n),), (Store("y", (affine("i"),), value(at("x", "i"))),),
                    {"x": dense(n), "y": dense(n)})  # fmt: skip
    return Case(f"{op.lower()} {n}", kernel, (node(op, ["x"], **attrs),), {"x": (n,)}, {}, n,
                "Ge/s")  # fmt: skip


def _rows(name: str, rows: int, n: int, value: Expr, nodes: tuple[Any, ...],
          weights: dict[str, tuple[int, ...]]) -> Case:  # fmt: skip
    buffers = {"x": dense(rows, n), "y": dense(rows, n)}
    buffers |= {w: dense(*shape, constant=True) for w, shape in weights.items()}
    kernel = Kernel(name, (("i", rows), ("j", n)),
                    (Store("y", (affine("i"), affine("j")), value),), buffers)  # fmt: skip
    return Case(f"{name} {rows}x{n}", kernel, nodes, {"x": (rows, n)}, weights, rows * n, "Ge/s")


def softmax(rows: int, n: int) -> Case:
    top = Reduce("max", (("r", n),), at("x", "i", "r"), F32)
    total = Reduce("sum", (("q", n),), call("exp", at("x", "i", "q") - top), F32)
    value = call("exp", at("x", "i", "j") - top) / total
    return _rows("softmax", rows, n, value, (node("Softmax", ["x"]),), {})


def layernorm(rows: int, n: int) -> Case:
    mean = Reduce("sum", (("r", n),), at("x", "i", "r"), F32) * (1 / n)
    centred = at("x", "i", "q") - mean
    spread = Reduce("sum", (("q", n),), centred * centred, F32) * (1 / n)
    value = (at("x", "i", "j") - mean) * call("rsqrt", spread + 1e-5) * at("g", "j") + at("b", "j")
    nodes = (node("LayerNormalization", ["x", "g", "b"]),)
    return _rows("layernorm", rows, n, value, nodes, {"g": (n,), "b": (n,)})


def _gelu(x: Expr) -> Expr:
    return x * 0.5 * (call("erf", x * 0.7071067811865476) + 1.0)


def cases() -> Iterator[Case]:
    for shape in ((64, 64, 64), (256, 256, 256), (1024, 1024, 1024), (128, 768, 768),
                  (128, 3072, 768), (49, 512, 2048), (1, 1000, 2048)):  # fmt: skip
        yield gemm(*shape)
    for window in ((224, 3, 64, 7, 2), (56, 64, 64, 1, 1), (56, 64, 64, 3, 1), (56, 64, 256, 1, 1),
                   (56, 256, 64, 1, 1), (56, 128, 128, 3, 2), (28, 128, 128, 3, 1),
                   (28, 128, 512, 1, 1), (14, 256, 256, 3, 1), (14, 1024, 256, 1, 1),
                   (7, 512, 512, 3, 1), (7, 2048, 512, 1, 1)):  # fmt: skip
        yield conv(*window)
    for size, c, s in ((112, 32, 1), (56, 144, 1), (28, 192, 2), (14, 576, 1)):
        yield conv(size, c, c, 3, s, group=True)
    n = 128 * 3072
    yield unary("Relu", n, lambda x: call("max", x, 0.0))
    yield unary("Exp", n, lambda x: call("exp", x))
    yield unary("Sigmoid", n, lambda x: call("sigmoid", x))
    yield unary("Tanh", n, lambda x: call("tanh", x))
    yield unary("Gelu", n, _gelu)
    yield softmax(1536, 128)
    yield softmax(128, 1000)
    yield layernorm(128, 768)
    yield layernorm(1024, 384)


# -- running --------------------------------------------------------------------------------------


def ours(codegen: Codegen, case: Case) -> Run:
    kernel, rng = case.kernel, np.random.default_rng(0)
    plan = schedule(kernel, codegen.target)
    kernel = replace(kernel, buffers={**kernel.buffers, **pack_constants(kernel, plan)})
    module = codegen.module([("bench", kernel, plan)])
    slots: list[Slot] = []
    keep: list[object] = [module]
    for name in kernel.arguments:
        buffer = kernel.buffers[name]
        flat = aligned_empty(4 * buffer.size).view(numpy_dtype(buffer.dtype))
        data = rng.standard_normal(buffer.shape).astype(flat.dtype)
        flat[:] = to_storage(data, buffer)
        keep.append(flat)
        slots.append(Slot((buffer.size,), buffer.dtype, flat.ctypes.data))
    calls = Plan([(module._addresses["bench"], slots)])
    return _holding(keep, lambda: calls.run(1))


def _holding(what: object, run: Run) -> Run:
    """The same run, keeping the memory it works on."""
    return lambda: (run(), what)[0]


def theirs(case: Case) -> Run:
    ort: Any = importlib.import_module("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in case.weights.items()
    ]
    graph = helper.make_graph(
        list(case.nodes), "bench",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in case.inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options,
                                   providers=["CPUExecutionProvider"])  # fmt: skip
    feeds = {n: rng.standard_normal(s).astype(np.float32) for n, s in case.inputs.items()}
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("y")
    return _holding(feeds, lambda: session.run_with_iobinding(binding))


def peak(codegen: Codegen) -> tuple[Run, float]:
    """Fused multiply-adds on registers: the run and its operations."""
    turns, chains = 20_000, 10
    lanes = codegen.target.vector_bytes // 4
    kind = f"<{lanes} x float>"
    fma = f"call {kind} @llvm.fma.v{lanes}f32({kind} %m, {kind} %m, {kind} %x"
    lines = ["define i32 @bench(ptr %a, ptr %c, i32 %n, ptr %r, ptr %k, ptr %e) {", "entry:",
             "%t = load ptr, ptr %a", "%p = load ptr, ptr %t", f"%m = load {kind}, ptr %p, align 4",
             "br label %loop", "loop:", "%i = phi i64 [0, %entry], [%j, %loop]"]  # fmt: skip
    lines += [f"%x{c} = phi {kind} [zeroinitializer, %entry], [%y{c}, %loop]"
              for c in range(chains)]  # fmt: skip
    lines += [f"%y{c} = {fma}{c})" for c in range(chains)]
    lines += ["%j = add i64 %i, 1", f"%b = icmp slt i64 %j, {turns}",
              "br i1 %b, label %loop, label %end", "end:"]  # fmt: skip
    lines += [f"store volatile {kind} %y{c}, ptr %p, align 4" for c in range(chains)]
    lines += ["ret i32 0", "}", f"declare {kind} @llvm.fma.v{lanes}f32({kind}, {kind}, {kind})"]
    from packhorse_llvm_cpu.module import JitModule

    data = codegen.assemble("\n".join(lines), "peak")
    module = JitModule(codegen._llvm, codegen._jit, ["bench"], [data], codegen)
    memory = aligned_empty(256)
    memory[:] = 0
    calls = Plan([(module._addresses["bench"], [Slot((64,), F32, memory.ctypes.data)])])
    return _holding((module, memory), lambda: calls.run(1)), 2.0 * turns * chains * lanes


def _seconds(run: Run, times: int) -> float:
    start = time.thread_time()
    for _ in range(times):
        run()
    return (time.thread_time() - start) / times


def compare(runs: Sequence[Run], rounds: int) -> list[float]:
    """Median seconds of each run, taking turns; each sample lasts at least 2 ms."""
    counts = []
    for run in runs:
        run()
        counts.append(max(1, int(0.002 / max(_seconds(run, 2), 1e-7))))
    samples: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for series, run, count in zip(samples, runs, counts, strict=True):
            series.append(_seconds(run, count))
    return [median(series) for series in samples]


def main() -> None:
    parser = argparse.ArgumentParser(description="Single kernels beside onnxruntime.")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    codegen = Codegen(host_target("", 1))
    ceiling, ceiling_work = peak(codegen)
    print(f"{'kernel':26} {'packhorse':>10} {'onnxruntime':>12} {'unit':>5} {'ratio':>6} "
          f"{'peak':>6} {'%peak':>6}")  # fmt: skip
    for case in cases():
        if arguments.only not in case.name:
            continue
        times = compare([ours(codegen, case), theirs(case), ceiling], arguments.rounds)
        mine, other = (case.work / t / 1e9 for t in times[:2])
        top = ceiling_work / times[2] / 1e9
        share = f"{100 * mine / top:5.0f}%" if case.unit == "GF/s" else ""
        print(f"{case.name:26} {mine:10.2f} {other:12.2f} {case.unit:>5} {mine / other:6.2f} "
              f"{top:6.0f} {share:>6}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
