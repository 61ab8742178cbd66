"""Every network TVM compiled for the tests: exact, at one and two threads, four at once.

Four threads make an executor each over one loaded library and run it again and again.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import packhorse as ph
from packhorse.graph.relax import load_relax

DATA = Path(__file__).parent / "data" / "tvm"


def _load(folder, *names):
    return [np.load(DATA / folder / f"{name}.npy") for name in names]


def _graph(folder, lib, threads):
    create = ph.get_global_func("tvm.graph_executor.create")
    text = (DATA / folder / "deploy.json").read_text()
    graph = create(text, lib, ph.device(f"cpu?threads={threads}"))
    graph.load_params((DATA / folder / "deploy.params").read_bytes())
    return _stateful(folder, graph)


def _factory(folder, lib, threads):
    return _stateful(folder, lib["default"](ph.device(f"cpu?threads={threads}")))


def _stateful(folder, graph):
    (data,) = _load(folder, "in_data")

    def run():
        graph.set_input("data", data)
        graph.run()
        return [graph.get_output(i).numpy() for i in range(2)]

    return run, _load(folder, "out_0", "out_1")


def _relax(folder, lib, threads):
    executable = load_relax(lib, threads=threads)
    params = ["param_0", "param_1", "param_2", "param_3"] if folder.endswith("params") else []
    inputs = _load(folder, "in_data", *params)
    return lambda: executable.run(inputs), _load(folder, "out_0", "out_1")


def _batches(folder, lib, threads):
    """Two shapes in turn, each with a plan of its own."""
    executable, inputs = load_relax(lib, threads=threads), _load(folder, "in_1", "in_5")
    return lambda: [executable.run([x])[0] for x in inputs], _load(folder, "out_1", "out_5")


def _add(folder, lib, threads):
    a, b = _load(folder, "a", "b")
    out = np.zeros_like(a)
    bound = lib["myadd_par"].bind(ph.from_dlpack(a), ph.from_dlpack(b), ph.from_dlpack(out))
    bound.threads = threads

    def run():
        out.fill(0)
        bound()
        return [out]

    return run, _load(folder, "c")


CASES = [
    (_graph, "convnet", "deploy.so"),
    (_graph, "convnet_c", "deploy.so"),
    (_factory, "convnet", "deploy_factory.so"),
    (_factory, "convnet_c", "deploy_factory.so"),
    (_relax, "relax_convnet", "deploy.so"),
    (_relax, "relax_convnet_params", "deploy.so"),
    (_batches, "relax_dyn_bytecode", "deploy.so"),
    (_add, "legacy_myadd", "deploy_par.so"),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("make", "folder", "file"), CASES)
def test_exact_in_four_threads(make, folder, file, threads):
    lib, start = ph.load_module(DATA / folder / file), threading.Barrier(4)

    def work(_):
        run, expected = make(folder, lib, threads)
        start.wait()
        for _ in range(20):
            found = run()
            assert len(found) == len(expected)
            for got, wanted in zip(found, expected, strict=True):
                np.testing.assert_array_equal(got, wanted)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
