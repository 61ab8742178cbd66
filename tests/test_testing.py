"""The conformance kit on our own devices, and the kit itself: lists, reports, the plugin."""

import json
from importlib.util import find_spec

import pytest

from packhorse import ops
from packhorse.errors import ArtifactError
from packhorse.testing import BackendConformance, op_cases, report
from packhorse.testing.compare import check_equal
from packhorse.testing.report import Result

pytest_plugins = ("pytester",)


class TestCpu(BackendConformance):
    device = "cpu"


@pytest.mark.skipif(find_spec("llvmlite") is None, reason="llvmlite is not installed")
class TestLlvmCpu(BackendConformance):
    device = "llvm-cpu"


LISTS = """
from packhorse.errors import DeviceError
from packhorse.testing import BackendConformance


class TestLists(BackendConformance):
    device = "cpu"
    unsupported = {
        "test_check": "refuses",
        "test_dlpack": "gives wrong results",
        "test_probe_lists_it": "works after all",
    }
    xfail = {"test_strided_inputs": "a bug", "test_operator[[]Abs*": "no such pattern"}

    def test_check(self):
        raise DeviceError("not here")

    def test_dlpack(self):
        raise AssertionError("1 is not 2")

    def test_strided_inputs(self):
        raise AssertionError("known")
"""


def run_kit(pytester, text, *arguments):
    pytester.makepyfile(text)
    return pytester.runpytest_inprocess(
        "-p", "packhorse.testing.plugin", "-p", "no:cacheprovider", "-q", *arguments
    )


def test_lists_stay_true(pytester):
    chosen = "test_check or test_dlpack or probe_lists_it or test_strided or lists_name_tests"
    result = run_kit(pytester, LISTS, "-k", chosen, "--packhorse-report", "out/report.json")
    result.assert_outcomes(xfailed=2, failed=3)
    found = report.read(pytester.path / "out" / "report.json")
    assert (found.device, found.suite) == ("cpu:0", "conformance")
    outcomes = {r.name: (r.outcome, r.reason) for r in found.results}
    assert outcomes["test_check"] == ("unsupported", "refuses")
    assert outcomes["test_strided_inputs"] == ("xfailed", "a bug")
    assert outcomes["test_dlpack"][0] == "failed"
    assert outcomes["test_probe_lists_it"][0] == "failed"  # an unexpected pass
    assert outcomes["test_the_lists_name_tests"][0] == "failed"
    assert [found.counts[o] for o in ("passed", "unsupported", "xfailed", "failed")] == [0, 1, 1, 3]


def test_a_class_without_a_device(pytester):
    text = """
        from packhorse.testing import BackendConformance
        class TestNothing(BackendConformance):
            pass
    """
    result = run_kit(pytester, text, "-k", "check")
    result.stdout.fnmatch_lines(['*TestNothing names no device; write: device = "acme:0"*'])


def test_the_command_line(pytester):
    arguments = ("--pyargs", "packhorse.testing", "-k", "test_check or test_graph")
    result = run_kit(pytester, "", *arguments, "--packhorse-device", "cpu")
    result.assert_outcomes(passed=7, deselected=result.parseoutcomes()["deselected"])
    result = run_kit(pytester, "", *arguments, "-rs")
    result.stdout.fnmatch_lines(["*no device was named: pytest --packhorse-device acme:0*"])
    result.assert_outcomes(skipped=7, deselected=result.parseoutcomes()["deselected"])


def test_the_plugin_is_inert(pytester):
    text = """
        import sys
        def test_nothing_heavy():
            heavy = ("packhorse.compiler", "packhorse.ops", "packhorse.model", "cffi", "onnx")
            assert not [name for name in sys.modules if name.startswith(heavy)]
    """
    pytester.makepyfile(text)
    result = pytester.runpytest_subprocess("-p", "packhorse.testing.plugin")
    result.assert_outcomes(passed=1)


def test_the_table_of_operators():
    names = op_cases.names()
    covered = {op_cases.find(name).op for name in names}
    known = {name.rpartition("::")[2] for name in ops.names()}
    assert covered <= known
    assert len(covered) >= 100
    for word in ("Conv", "Gemm", "MatMul", "MaxPool", "AveragePool"):
        assert sum(op_cases.find(name).op == word for name in names) >= 14, word
    first = op_cases.find(names[0])
    for one, other in zip(first.arrays(), first.arrays(), strict=True):
        check_equal(one, other, "the same in every run")


def test_reports_are_read_back(tmp_path):
    results = [Result("a", "passed", tier="dense"), Result("b", "failed", "why", 2.0, "small", 3)]
    written = report.write(tmp_path / "new" / "r.json", "cpu:0", "onnx", results)
    assert report.read(tmp_path / "new" / "r.json") == written
    assert written.failed == results[1:]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "could not be read"),
        ("{", "no conformance report"),
        ("[]", "no conformance report"),
        ('{"format": 1}', "no conformance report"),
        ('{"format": 7}', "is of format 7"),
    ],
)
def test_what_is_no_report(tmp_path, text, words):
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ArtifactError, match=words):
        report.read(path)


def test_reports_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="could not be written"):
        report.write(tmp_path / "file" / "r.json", "cpu:0", "onnx", [])


def test_reports_are_json(tmp_path):
    report.write(tmp_path / "r.json", "cpu:0", "onnx", [Result("a", "passed")])
    assert json.loads((tmp_path / "r.json").read_text())["counts"]["passed"] == 1
