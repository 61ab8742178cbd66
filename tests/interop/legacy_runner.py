"""Runs in the Python of a TVM that still has the graph executor; the tests talk to it by files.

legacy_runner.py FOLDER: runs deploy/ and deploy.so on inputs.npz, writes triple.npz, factory.npz.
"""

import sys

import numpy as np
import tvm
from tvm.contrib import graph_executor


def outputs(graph, feeds):
    graph.set_input(**feeds)
    graph.run()
    return [graph.get_output(i).numpy() for i in range(graph.get_num_outputs())]


def refusal(function, *args):
    try:
        function(*args)
    except tvm.TVMError as error:
        return str(error)
    return "nothing"


def main(folder):
    feeds = dict(np.load(folder + "/inputs.npz"))
    library = tvm.runtime.load_module(folder + "/deploy/deploy.so")
    with open(folder + "/deploy/deploy.json") as file:
        graph = graph_executor.create(file.read(), library, tvm.cpu())
    with open(folder + "/deploy/deploy.params", "rb") as file:
        graph.load_params(file.read())
    np.savez(folder + "/triple.npz", *outputs(graph, feeds))
    factory = tvm.runtime.load_module(folder + "/deploy.so")
    made = graph_executor.GraphModule(factory["default"](tvm.cpu()))
    np.savez(folder + "/factory.npz", *outputs(made, feeds))
    kernel = tvm.runtime.load_module(folder + "/kernels.so")
    a, b, y = (tvm.nd.array(np.full(1000, v, np.float32)) for v in (1, 2, 0))
    kernel(a, b, y)  # the entry
    assert (y.numpy() == 3).all()
    print(refusal(kernel["add"], a, b))


if __name__ == "__main__":
    main(sys.argv[1])
