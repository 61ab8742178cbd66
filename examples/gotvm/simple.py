"""A function of a library that TVM compiled: load, allocate, call. gotvm's simple.go.

python examples/gotvm/simple.py [deploy.so]
"""

import sys
from pathlib import Path

import numpy as np

import packhorse as ph

LIBRARY = Path(__file__).parent / "data" / "legacy_myadd" / "deploy.so"


def main(library: str | Path = LIBRARY) -> None:
    print("packhorse version:", ph.__version__)
    print("DLPack version:   ", "{}.{}".format(*ph.__dlpack_version__))

    module = ph.load_module(library)
    print("Module imported:", module.functions)

    x = ph.empty((4,), "float32", "cpu:0")  # type and device said
    y = ph.empty((4,), "float32")  # host memory by default
    out = ph.empty((4,))  # float32 by default
    print("Input and output tensors allocated")

    rng = np.random.default_rng(0)
    x.copy_from(rng.random(4, np.float32))
    y.copy_from(rng.random(4, np.float32))
    print("X:", x.numpy())
    print("Y:", y.numpy())

    add = module["myadd"]
    add(x, y, out)
    print("Module function myadd executed")

    print("Result:", out.numpy())  # the same memory, not a copy
    print("Equal to X + Y:", np.array_equal(out, x.numpy() + y.numpy()))


if __name__ == "__main__":
    main(*sys.argv[1:])
