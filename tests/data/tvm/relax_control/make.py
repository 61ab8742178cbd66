# ruff: noqa
# mypy: ignore-errors
"""Makes deploy.so and vm.txt of this folder with apache-tvm 0.27: python make.py FOLDER.

Each function exercises a part of the VM that plain networks leave alone; the asserts are what
TVM itself computes.
"""

import sys
from pathlib import Path

import numpy as np
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T


@I.ir_module
class Control:
    @R.function
    def branch(x: R.Tensor(("n", 4), "float32"), c: R.Tensor((), "bool")) -> R.Tensor(
        ("n", 4), "float32"
    ):
        if c:
            y = R.add(x, x)
        else:
            y = R.multiply(x, x)
        return y

    @R.function(private=True)
    def helper(a: R.Tensor((3, 4), "float32"), b: R.Tensor((3, 4), "float32")) -> R.Tensor(
        (3, 4), "float32"
    ):
        z = R.nn.relu(R.subtract(a, b))
        return z

    @R.function
    def tuples(p: R.Tuple(R.Tensor((3, 4), "float32"), R.Tensor((3, 4), "float32"))) -> R.Tuple(
        R.Tensor((3, 4), "float32"), R.Tuple(R.Tensor((3, 4), "bool"), R.Tensor((3, 4), "float32"))
    ):
        cls = Control
        a = p[0]
        b = p[1]
        h = cls.helper(a, b)
        l = R.less(a, b)
        return (h, (l, a))

    @R.function
    def shapes(s: R.Shape(["m", 2]), x: R.Tensor(("k",), "int64")) -> R.Tensor(("m", 2), "int64"):
        m = T.int64()
        k = T.int64()
        y = R.reshape(x, R.shape([m, 2]))
        return y

    @R.function
    def sizes(x: R.Tensor(("k", "j"), "float16")) -> R.Shape(["k", "j"]):
        k = T.int64()
        j = T.int64()
        return R.shape([k, j * 1])

    @R.function
    def data_shape(x: R.Tensor(("k",), "float32"), s: R.Tensor((2,), "int64")):
        p = T.int64()
        q = T.int64()
        lv: R.Shape(ndim=2) = R.tensor_to_shape(s)
        lw = R.match_cast(lv, R.Shape([p, q]))
        y = R.reshape(x, R.shape([p, q]))
        z = R.add(y, y)
        return z

    @R.function
    def number(x: R.Tensor(("n",), "float32"), a: R.Prim("int64")) -> R.Prim("int64"):
        return a

    @R.function
    def same(x: R.Tensor(("n",), "float32")) -> R.Tuple(
        R.Tensor(("n",), "float32"), R.Tensor(("n",), "float32")
    ):
        y = R.add(x, R.const(1.0, "float32"))
        return (y, y)

    @R.function
    def recur(x: R.Tensor((4,), "float32"), n: R.Tensor((), "int64")) -> R.Tensor((4,), "float32"):
        cls = Control
        c = R.less_equal(n, R.const(0, "int64"))
        if c:
            r = x
        else:
            m = R.subtract(n, R.const(1, "int64"))
            y = R.add(x, R.const(1.0, "float32"))
            r = cls.recur(y, m)
        return r

    @R.function
    def extern(x: R.Tensor(("n", 4), "float32")) -> R.Tensor(("n", 4), "float32"):
        n = T.int64()
        y = R.add(x, x)
        z = R.call_dps_packed("packhorse.test.flip", (y,), out_ty=R.Tensor((n, 4), "float32"))
        w = R.multiply(z, x)
        return w


@tvm.register_global_func("packhorse.test.flip")
def flip(x, out):
    out.copyfrom(x.numpy()[::-1].copy())


def check(folder):
    vm = relax.VirtualMachine(tvm.runtime.load_module(str(folder / "deploy.so")), tvm.cpu())

    def tensor(values, dtype):
        return tvm.runtime.tensor(np.asarray(values, dtype))

    x = np.arange(-4, 8, dtype=np.float32).reshape(3, 4)
    a = tensor(x, "float32")
    for condition, want in ((True, x + x), (False, x * x)):
        np.testing.assert_array_equal(vm["branch"](a, tensor(condition, "bool")).numpy(), want)
    h, (less, same) = vm["tuples"]([a, tensor(-x, "float32")])
    np.testing.assert_array_equal(h.numpy(), np.maximum(x + x, 0))
    np.testing.assert_array_equal(less.numpy(), x < -x)
    np.testing.assert_array_equal(same.numpy(), x)
    np.testing.assert_array_equal(vm["extern"](a).numpy(), (x + x)[::-1] * x)
    four = tensor([1, 2, 3, 4], "float32")
    np.testing.assert_array_equal(vm["recur"](four, tensor(3, "int64")).numpy(), [4, 5, 6, 7])
    got = vm["data_shape"](tensor(np.arange(6), "float32"), tensor([2, 3], "int64"))
    np.testing.assert_array_equal(got.numpy(), np.arange(0, 12, 2).reshape(2, 3))
    assert list(vm["sizes"](tensor(np.zeros((2, 5)), "float16"))) == [2, 5]
    assert vm["number"](four, 7) == 7


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    built = tvm.compile(Control, tvm.target.Target({"kind": "llvm", "mcpu": "x86-64"}))
    built.export_library(str(folder / "deploy.so"))
    (folder / "vm.txt").write_text(built.as_text())
    check(folder)
