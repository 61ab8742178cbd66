"""gotvm's samples in Python print what their README says; the page on gotvm knows every name."""

import builtins
import re
import subprocess
import sys
from pathlib import Path

import pytest

import packhorse as ph
from packhorse.errors import ArgumentTypeError

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "examples" / "gotvm"
PAGE = ROOT / "docs" / "gotvm.md"
PROGRAMS = sorted(path.name for path in SAMPLES.glob("*.py"))

GOTVM = """
DLPackVersion TVMVersion
KDLCPU KDLGPU KDLCUDA KDLCPUPinned KDLCUDAHost KDLOpenCL KDLMetal KDLVPI KDLROCM KDLSDAccel
KDLVulkan KOpenGL KExtDev
KHandle KNull KTVMType KTVMContext KDLDevice KArrayHandle KNodeHandle KObjectHandle KModuleHandle
KFuncHandle KStr KBytes KNDArrayContainer KExtBegin KNNVMFirst KNNVMLast KExtReserveEnd KExtEnd
KDLInt KDLUInt KDLFloat
Context Context.DeviceType Context.DeviceID Device Device.DeviceType Device.DeviceID
CPU GPU CUDA CPUPinned CUDAHost OpenCL Metal VPI ROCM SDAccel Vulkan OpenGL
Module LoadModuleFromFile Module.GetFunction
Function GetGlobalFunction FuncListGlobalNames Function.Invoke ConvertFunction RegisterFunction
RemoveFunction
Array Empty Array.CopyFrom Array.AsSlice Array.GetNdim Array.GetShape Array.GetDType Array.GetCtx
Array.GetDevice
Value Value.AsInt64 Value.AsFloat64 Value.AsModule Value.AsFunction Value.AsBytes Value.AsStr
ByteArray err
""".split()
"""What gotvm exports, 2018 to its end: later names beside those that they replaced."""


def rows():
    """(names of gotvm, our expressions, remark) of each row of the page's tables."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            yield (*(re.findall(r"`([^`]+)`", cell) for cell in cells[:2]), cells[2])


@pytest.fixture(scope="module")
def objects():
    """What the first word of our expressions stands for."""
    return {
        "ph": ph,
        "module": ph.load_module(SAMPLES / "data" / "legacy_myadd" / "deploy.so"),
        "function": ph.convert(len),
        "tensor": ph.empty((2,)),
        "device": ph.device("cpu"),
        "number": ph.DLDevice(ph.DeviceType.CPU, 0),
    }


def test_the_page_has_every_name_of_gotvm():
    named = [name for names, _, _ in rows() for name in names]
    assert sorted(named) == sorted(GOTVM)


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: " ".join(row[0]))
def test_ours_exists(row, objects):
    _, ours, remark = row
    assert ours or remark.startswith("None: "), "neither a name of ours nor why there is none"
    for expression in ours:
        path = re.match(r"[\w.]+", expression)
        assert path, expression
        first, *rest = path[0].split(".")
        found = objects[first] if first in objects else getattr(builtins, first)
        for name in rest:
            found = getattr(found, name)
        if first == "ph":
            assert rest[0] in ph.__all__, f"packhorse.{rest[0]} is not public"


# c_runtime_api.h of TVM 0.6 and dlpack.h: the values of gotvm's variables
TYPES = "CPU=1 CUDA=2 CUDA_HOST=3 OPENCL=4 SDACCEL=6 VULKAN=7 METAL=8 VPI=9 ROCM=10 OPENGL=11"
TYPES += " EXT_DEV=12"
CODES = "INT=0 UINT=1 FLOAT=2 HANDLE=3 NULL=4 DTYPE=5 DEVICE=6 TENSOR=7 OBJECT=8 MODULE=9"
CODES += " FUNCTION=10 STR=11 BYTES=12 NDARRAY=13"


@pytest.mark.parametrize(("kind", "values"), [(ph.DeviceType, TYPES), (ph.TypeCode, CODES)])
def test_numbers_are_those_of_tvm(kind, values):
    for pair in values.split():
        name, _, value = pair.partition("=")
        assert kind[name] == int(value)


def test_a_device_by_numbers_is_a_packed_value():
    number = ph.DLDevice(ph.DeviceType.OPENCL, 1)
    assert ph.convert(lambda value: value)(number) == (4, 1)
    assert ph.convert(lambda value: value)(ph.DeviceType.CPU) == ph.device("cpu").dlpack_device[0]
    with pytest.raises(ArgumentTypeError, match="wrap it with packhorse"):
        ph.convert(len)([1, 2])


def expected(program):
    text = (SAMPLES / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(program)}\n\n```text\n(.*?)^```$", text, re.M | re.S)
    assert found, f"the README does not show what {program} prints"
    return found[1]


@pytest.mark.parametrize("program", PROGRAMS)
def test_samples_print_what_the_readme_shows(program):
    if program == "complex.py":
        pytest.importorskip("llvmlite")
        pytest.importorskip("onnx")
    command = [sys.executable, "-W", "error", str(SAMPLES / program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    pattern = re.escape(expected(program)).replace(r"\.\.\.", ".*")
    assert re.fullmatch(pattern, done.stdout), done.stdout


def test_every_sample_of_gotvm_has_its_twin():
    text = (SAMPLES / "README.md").read_text(encoding="utf-8")
    twins = dict(re.findall(r"^\| `(\w+)\.go` \| `(\w+)\.py` \|", text, re.M))
    assert len(twins) == 7
    assert all(name == twin for name, twin in twins.items())
    assert sorted(f"{twin}.py" for twin in twins.values()) == PROGRAMS


def test_simple_takes_another_library():
    command = [sys.executable, str(SAMPLES / "simple.py"), "missing.so"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "ArtifactError" in done.stderr
    assert "missing.so" in done.stderr
