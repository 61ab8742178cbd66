"""apache-tvm 0.27 and packhorse: each runs what the other compiled, bit for bit."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from interop_kit import network, optional, run_program

pytest.importorskip("llvmlite")

from export_kit import LARGE, SMALL, WRONG, library, vectors

import packhorse as ph
from packhorse.graph.relax import load_relax

tvm = optional("tvm")
te, relax = optional("tvm.te"), optional("tvm.relax")

DATA = Path(__file__).resolve().parent.parent / "data" / "tvm"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return library(tmp_path_factory.mktemp("lib"), {"add": SMALL, "large": LARGE}, threads=2)


@pytest.mark.parametrize("name", ["add", "large"])
def test_our_kernels_there(kernels, name):
    a, b, y = vectors(SMALL if name == "add" else LARGE)
    out = tvm.runtime.tensor(y)
    tvm.runtime.load_module(str(kernels))[name](*map(tvm.runtime.tensor, (a, b)), out)
    np.testing.assert_array_equal(out.numpy(), a + b)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls_there(kernels, case):
    change, text = WRONG[case]
    given = [tvm.runtime.tensor(x) if isinstance(x, np.ndarray) else x for x in change(*vectors())]
    with pytest.raises(ValueError if case == "size" else TypeError) as caught:
        tvm.runtime.load_module(str(kernels))["add"](*given)
    assert text in str(caught.value)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_network_kernel_by_kernel(tmp_path, threads):
    model, x = network()
    executable = model.compile(f"llvm-cpu?threads={threads}")
    expected = executable(x)
    executable.save(tmp_path / "deploy.so")
    # TVM knows no graph executor any more: it skips the factory and sees the kernels
    module = tvm.runtime.load_module(str(tmp_path / "deploy.so"))
    program, params = executable._compiled.program, executable._compiled.params
    got = run_program(program, params, [x], module.__getitem__, tvm.runtime.from_dlpack)
    for ours, theirs in zip(expected, got, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_network_in_the_relax_machine(tmp_path, threads, batch):
    model, x = network(batch)
    executable = model.compile(f"llvm-cpu?threads={threads}")
    expected = executable(x)
    executable.save(tmp_path / "deploy.so", form="relax")
    library = tvm.runtime.load_module(str(tmp_path / "deploy.so"))
    machine = relax.VirtualMachine(library, tvm.cpu())
    for _ in range(2):
        found = machine["main"](tvm.runtime.tensor(x))
        for ours, theirs in zip(expected, found, strict=True):
            np.testing.assert_array_equal(ours, theirs.numpy())
    for wrong in (x.astype(np.float64), x[:, :2], x[0]):
        with pytest.raises((TypeError, ValueError, RuntimeError), match="input 'x'"):
            machine["main"](tvm.runtime.tensor(np.ascontiguousarray(wrong)))


# -- theirs here --------------------------------------------------------------------------------


def compiled_by_tvm(folder: Path, parallel: bool) -> Path:
    n = 4096
    a, b = (te.placeholder((n,), "float32", name) for name in "ab")
    y = te.compute((n,), lambda i: te.exp(a[i]) * b[i], "y")
    function = te.create_prim_func([a, b, y])
    if parallel:
        schedule = tvm.s_tir.Schedule(function)
        (loop,) = schedule.get_loops(schedule.get_sblock("y"))
        schedule.parallel(loop)
        function = schedule.mod["main"]
    module = tvm.IRModule({"expmul": function.with_attr("global_symbol", "expmul")})
    tvm.compile(module, target="llvm").export_library(str(folder / "theirs.so"))
    return folder / "theirs.so"


@pytest.mark.parametrize("parallel", [False, True])
def test_their_kernel_here(tmp_path, parallel):
    path = compiled_by_tvm(tmp_path, parallel)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(4096, np.float32) for _ in range(2))
    theirs = tvm.runtime.tensor(np.zeros(4096, np.float32))
    tvm.runtime.load_module(str(path))["expmul"](*map(tvm.runtime.tensor, (a, b)), theirs)
    ours = ph.empty((4096,), "float32")
    ph.load_module(path)["expmul"](ph.tensor(a), ph.tensor(b), ours)
    np.testing.assert_array_equal(np.asarray(ours), theirs.numpy())


@pytest.mark.parametrize("name", ["relax_convnet", "relax_convnet_params"])
def test_their_networks_in_both(name):
    folder = DATA / name
    inputs = [np.load(folder / "in_data.npy")]
    inputs += [np.load(path) for path in sorted(folder.glob("param_*.npy"))]
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(folder / "deploy.so")), tvm.cpu())
    theirs = machine["main"](*map(tvm.runtime.tensor, inputs))
    with load_relax(ph.load_module(folder / "deploy.so")) as executable:
        ours = executable.run(inputs)
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        np.testing.assert_array_equal(one, other.numpy())
        np.testing.assert_array_equal(one, np.load(folder / f"out_{i}.npy"))


def test_a_network_compiled_now(tmp_path):
    onnx, parser = optional("onnx"), optional("onnx.parser")
    frontend = optional("tvm.relax.frontend.onnx")
    source = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[2, 3, 8, 8] x) => (float[2, 10] y)
    <float[4, 3, 3, 3] w, float[144, 10] v>
    { c = Conv(x, w)  r = Relu(c)  f = Flatten(r)  m = MatMul(f, v)  y = Softmax(m) }
    """
    model = parser.parse_model(source)
    rng = np.random.default_rng(1)
    weights = {"w": (4, 3, 3, 3), "v": (144, 10)}
    arrays = [
        onnx.numpy_helper.from_array(rng.standard_normal(dims, np.float32), name)
        for name, dims in weights.items()
    ]
    del model.graph.initializer[:]
    model.graph.initializer.extend(arrays)
    module = frontend.from_onnx(model, keep_params_in_input=False)
    tvm.compile(module, target="llvm").export_library(str(tmp_path / "net.so"))
    x = rng.standard_normal((2, 3, 8, 8), np.float32)
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(tmp_path / "net.so")), tvm.cpu())
    theirs = machine["main"](tvm.runtime.tensor(x))
    (ours,) = load_relax(ph.load_module(tmp_path / "net.so")).run([x])
    np.testing.assert_array_equal(ours, theirs.numpy())


# -- one process --------------------------------------------------------------------------------

PROCESS = """
import sys
sys.path[:0] = {paths!r}
import numpy as np
{imports}

def ours():
    a, b, y = (np.full(1000, v, np.float32) for v in (1, 2, 0))
    function = ph.load_module({kernels!r})["add"]
    function(a, b, y)
    assert (y == 3).all()
    try:
        function(a, b)
    except ph.PackhorseError as error:
        assert "add: 2 arguments were given; it takes 3" in str(error)
    else:
        raise SystemExit("not refused")

def theirs():
    a, b, y = (tvm.runtime.tensor(np.full(4096, v, np.float32)) for v in (0, 2, 0))
    function = tvm.runtime.load_module({theirs!r})["expmul"]
    function(a, b, y)
    assert (y.numpy() == 2).all()
    try:
        function(a, b)
    except TypeError as error:
        assert "expmul" in str(error)
    else:
        raise SystemExit("not refused")
    x, z = np.full(4096, 2, np.float32), np.zeros(4096, np.float32)
    ph.load_module({theirs!r})["expmul"](np.zeros(4096, np.float32), x, z)
    assert (z == 2).all()
    kernel = tvm.runtime.load_module({kernels!r})["add"]
    a, b, y = (tvm.runtime.tensor(np.full(1000, v, np.float32)) for v in (1, 2, 0))
    kernel(a, b, y)
    assert (y.numpy() == 3).all()

for _ in range(2):
    {order}
print("both")
"""
ORDERS = {
    "TVM first": ("import tvm\nimport packhorse as ph", "theirs(); ours()"),
    "TVM last": ("import packhorse as ph\nimport tvm", "ours(); theirs()"),
    "TVM last, after use": (
        "import packhorse as ph\nph.load_module({kernels!r})\nimport tvm", "theirs(); ours()",
    ),
    "TVM first, used later": ("import tvm\nimport packhorse as ph", "ours(); theirs()"),
}  # fmt: skip


@pytest.mark.parametrize("case", ORDERS)
def test_imported_in_any_order(tmp_path, kernels, case):
    imports, order = ORDERS[case]
    names = {"kernels": str(kernels), "theirs": str(compiled_by_tvm(tmp_path, parallel=True))}
    paths = [p for p in sys.path if p]
    code = PROCESS.format(paths=paths, imports=imports.format(**names), order=order, **names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "both"
