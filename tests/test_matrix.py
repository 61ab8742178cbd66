"""The support matrix: what cells say, and the page that shows them."""

import importlib.util
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from packhorse import cli
from packhorse.errors import ArgumentValueError
from packhorse.testing import matrix, report
from packhorse.testing.matrix_page import to_html
from packhorse.testing.matrix_tables import to_markdown
from packhorse.testing.report import Report, Result

DOCS = Path(__file__).resolve().parent.parent / "docs"


def onnx(device, *rows, **versions):
    """A report of rows (name, outcome, operator) or results."""
    found = [r if isinstance(r, Result) else Result(r[0], r[1], operator=r[2]) for r in rows]
    return Report(device, "onnx", tuple(found), versions)


def row(found, name):
    (chosen,) = [r for r in found if r.name == name]
    return chosen


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("passed passed", "pass"),
        ("passed skipped", "pass"),
        ("passed unsupported", "partly"),
        ("unsupported unsupported", "none"),
        ("unsupported skipped", "none"),
        ("passed failed", "wrong"),
        ("passed xfailed", "wrong"),
        ("unsupported failed", "wrong"),
        ("skipped", "unrun"),
        ("", "unrun"),
    ],
)
def test_states(outcomes, state):
    cell = matrix.Cell(tuple(Result(f"t{i}", o) for i, o in enumerate(outcomes.split())))
    assert cell.state == state


def test_both_suites_of_a_device_are_one_column():
    kit = [
        Result("test_operator[Conv[f32 1x2]]", "passed", tier="operator"),
        Result("test_dlpack", "passed", tier="dlpack"),
        Result("test_copies_come_back[3]", "failed", "lost", tier="copies_come_back"),
    ]
    found = matrix.build(
        [
            onnx("a:0", ("test_conv", "passed", "Conv"), ("test_abs", "unsupported", "Abs")),
            Report("a:0", "conformance", tuple(kit), {"python": "3.13"}),
            onnx("b:0", ("test_conv", "failed", "Conv"), onnx="1.17"),
        ]
    )
    assert found.devices == ("a:0", "b:0")
    assert [r.name for r in found.operators] == ["Abs", "Conv"]
    conv = row(found.operators, "Conv")
    assert [(c.state, c.passed, len(c.run)) for c in conv.cells] == [
        ("pass", 2, 2),
        ("wrong", 0, 1),
    ]
    assert [c.state for c in row(found.operators, "Abs").cells] == ["none", "unrun"]
    assert [r.name for r in found.behaviour] == ["copies come back", "dlpack"]
    assert row(found.behaviour, "copies come back").cells[0].state == "wrong"
    assert found.count(0) == {"pass": 1, "partly": 0, "none": 1, "wrong": 0, "unrun": 0}
    assert found.versions == ({"python": "3.13"}, {"onnx": "1.17"})


def test_expansions_belong_to_what_they_expand():
    found = matrix.build(
        [
            onnx(
                "a:0",
                ("test_softmax", "passed", "Softmax"),
                ("test_softmax_expanded", "passed", "Div"),
                ("test_softmax_expanded_ver18", "failed", "Exp"),
                ("test_lonely_expanded", "passed", "Mul"),
            )
        ]
    )
    counts = {r.name: len(r.cells[0].run) for r in found.operators}
    assert counts == {"Softmax": 3, "Mul": 1}


def test_no_test_is_lost():
    reports = [report.read(path) for path in sorted((DOCS / "conformance").glob("*.json"))]
    found = matrix.build(reports)
    for column, device in enumerate(found.devices):
        shown = [
            result
            for r in (*found.operators, *found.behaviour)
            for result in r.cells[column].results
        ]
        every = [result for one in reports if one.device == device for result in one.results]
        assert Counter(shown) == Counter(every)
        assert Counter(every) == Counter(
            result for r in found.tiers for result in r.cells[column].results
        )


def test_what_makes_no_matrix():
    with pytest.raises(ArgumentValueError, match="none was given"):
        matrix.build([])
    with pytest.raises(ArgumentValueError, match="two reports are of the suite 'onnx' on a:0"):
        matrix.build([onnx("a:0"), onnx("a:0")])


# ------------------------------------------------------------------------------------ the page


class Page(HTMLParser):
    """Checks that tags nest, and keeps what the tests ask for."""

    VOID = ("meta", "input", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], Counter(), [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        self.text += data


NASTY = "<script>alert('&\"')</script>"


def nasty_page():
    return to_html(
        matrix.build(
            [
                onnx(
                    NASTY,
                    Result(NASTY, "failed", NASTY, tier=NASTY, operator=NASTY),
                    Result("t", "passed", operator="Abs", host=2),
                    packhorse=NASTY,
                ),
                onnx("b:0", Result(NASTY, "failed", NASTY, tier=NASTY, operator=NASTY)),
            ]
        ),
        NASTY,
    )


def test_everything_is_escaped():
    text = nasty_page()
    page = Page(text)
    assert page.tags["script"] == 0
    assert page.text.count(NASTY) >= 8
    assert "<script" not in text
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert ("id", NASTY) in page.attributes


def test_the_page_needs_nothing_else():
    text = nasty_page()
    page = Page(text)
    assert not page.tags.keys() & {"script", "link", "img", "iframe", "object"}
    assert not [value for name, value in page.attributes if name in ("src", "href")]
    assert not re.search(r"url\(|@import|https?:", text)


def test_cells_say_it_in_signs_and_words():
    page = to_html(
        matrix.build(
            [
                onnx(
                    "a:0",
                    Result("t1", "passed", operator="Abs", host=1),
                    Result("t2", "unsupported", "too small", operator="Abs"),
                    Result("t3", "xfailed", "off by one", operator="Cos"),
                ),
                onnx("b:0", Result("t2", "unsupported", "too small", operator="Abs")),
            ]
        )
    )
    assert (
        '<td class="partly" title="partly: 1 of 2 passed, 1 with help of the host">'
        '<span aria-hidden="true">◐</span><span class="vh">partly</span> 1/2'
        '<small class="host">host</small></td>' in page
    )
    assert '<td class="none" title="unsupported: 0 of 1 passed">' in page
    assert '<td class="unrun" title="no test was run">' in page
    assert "<summary>1 refused on every device</summary>" in page
    assert "<summary>1 known to be wrong on a:0</summary>" in page
    assert page.count("too small") == 1  # once for both devices
    assert "off by one" in page


def test_many_devices_scroll():
    reports = [onnx(f"d:{i}", ("t", "passed", "Abs")) for i in range(7)]
    assert 'class="scroll wide"' in to_html(matrix.build(reports))
    assert 'class="scroll wide"' not in to_html(matrix.build(reports[:6]))


def test_the_command(tmp_path, capsys):
    one, page = tmp_path / "r.json", tmp_path / "m.html"
    report.write(one, "a:0", "onnx", [Result("t", "failed", "why", operator="Abs")])
    assert cli.main(["testing", "report", str(one), "--html", str(page)]) == 1  # a wrong result
    assert f"wrote {page}" in capsys.readouterr().out
    assert Page(page.read_text()).text.count("Abs") == 1
    assert cli.main(["testing", "report", str(one), str(one), "--html", str(page)]) == 2
    assert "two reports are of the suite" in capsys.readouterr().err
    tables = tmp_path / "t.md"
    assert cli.main(["testing", "report", str(one), "--markdown", str(tables)]) == 1
    assert tables.read_text().startswith("| tier |")
    nowhere = str(tmp_path / "missing" / "m.html")
    assert cli.main(["testing", "report", str(one), "--html", nowhere]) == 2
    assert "could not be written" in capsys.readouterr().err


def test_the_docs_show_the_committed_reports():
    spec = importlib.util.spec_from_file_location("make_conformance", DOCS / "make_conformance.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    files = script.made(script.reports())
    assert {path.name for path in files} == {"matrix.html", "conformance.md"}
    for path, text in files.items():
        assert path.read_text(encoding="utf-8") == text, "run python docs/make_conformance.py"
    for one in script.reports():
        assert f"`{one.device}`" in files[script.PAGE]


def test_tables():
    reports = [
        onnx(
            "a:0",
            Result("t1", "passed", tier="dense", host=1),
            Result("t2", "failed", tier="small"),
            Result("t3", "unsupported", tier="small"),
        ),
        onnx("b:0", Result("t1", "passed", tier="dense")),
        Report("b:0", "conformance", (Result("k", "xfailed", "why"),), {}),
    ]
    assert (
        to_markdown(matrix.build(reports), reports)
        == """\
| tier | what it needs | tests | `a:0` | `b:0` |
|---|---|---|---|---|
| dense | plain dense tensors: float16 to float64, integers, bool | 1 | 1 | 1 |
| small | bfloat16 and dtypes of 8 bits and less: float8, float4, int4, int2 | 2 | 0 | 0 |
| all | | 3 | 1 | 1 |
| of these with help of the host | | | 1 | 0 |
| refused with a typed error | | | 1 | 0 |
| wrong results | | | 1 | 0 |

| device | tests | passed | unsupported | xfailed | skipped | failed |
|---|---|---|---|---|---|---|
| `b:0` | 1 | 0 | 0 | 1 | 0 | 0 |
"""
    )
    assert to_markdown(matrix.build(reports[2:]), reports[2:]).startswith("| device | tests |")


def test_the_docs_link_to_the_page():
    assert '<a href="_static/matrix.html">' in (DOCS / "conformance.md").read_text()
