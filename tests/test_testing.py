"""The conformance kit on our own devices, and the kit itself: lists, reports, the plugin."""

import json
from collections import Counter
from importlib.util import find_spec

import pytest
from gpu_kit import opencl
from hypothesis import given
from hypothesis import strategies as st

from packhorse import ops
from packhorse.errors import ArtifactError
from packhorse.testing import BackendConformance, op_cases, report
from packhorse.testing.compare import check_equal
from packhorse.testing.report import Result
from packhorse.testing.sampling import spread

pytest_plugins = ("pytester",)


class TestCpu(BackendConformance):
    device = "cpu"


@pytest.mark.skipif(find_spec("llvmlite") is None, reason="llvmlite is not installed")
class TestLlvmCpu(BackendConformance):
    device = "llvm-cpu"


class TestOpenCl(BackendConformance):
    """A fixed sample of the operators, everything else in full: the driver takes a third of a
    second to compile each."""

    device = "opencl:0"
    sample = 100

    @pytest.fixture(autouse=True)
    def _driver(self):
        opencl()


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


SAMPLE = """
from packhorse.testing import BackendConformance


class TestSome(BackendConformance):
    device = "cpu"
    sample = 9
    xfail = {"test_operator[[]no_such_operator*": "names no test"}
"""


def test_a_sample_of_the_operators(pytester):
    chosen = ("-k", "test_operator or test_check or lists_name_tests")
    result = run_kit(pytester, SAMPLE, *chosen)
    result.assert_outcomes(passed=10, failed=1, deselected=result.parseoutcomes()["deselected"])
    line = ("--pyargs", "packhorse.testing", *chosen, "--packhorse-device", "cpu")
    result = run_kit(pytester, "", *line, "--packhorse-sample", "7")
    result.assert_outcomes(passed=9, deselected=result.parseoutcomes()["deselected"])
    result = run_kit(pytester, "", *line, "--packhorse-sample", "0")
    result.stdout.fnmatch_lines(["*a sample has at least 1 test, not 0*"])


def test_samples_have_every_operator_once():
    names = op_cases.names()
    operators = sorted({op_cases.find(name).op for name in names})
    chosen = op_cases.sample(len(operators))
    assert sorted(op_cases.find(name).op for name in chosen) == operators
    assert set(op_cases.sample(20)) <= set(chosen)
    assert op_cases.sample(10**6) == names


@given(
    st.lists(st.tuples(st.text(), st.sampled_from("abc")), unique_by=lambda case: case[0]),
    st.integers(1, 30),
)
def test_samples_are_fixed_and_even(cases, count):
    def sample(count, cases=cases):
        return spread(cases, count, kind=lambda case: case[1], name=lambda case: case[0])

    chosen = sample(count)
    assert len(chosen) == min(count, len(cases))
    assert [case for case in cases if case in chosen] == chosen
    assert set(sample(max(1, count - 1))) <= set(chosen)
    assert set(sample(count, cases[::-1])) == set(chosen)
    taken = Counter(kind for _, kind in chosen)
    for kind, number in Counter(kind for _, kind in cases).items():
        assert taken[kind] == number or taken[kind] >= max(taken.values()) - 1


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
