"""Makes what the docs show of the reports: ``python docs/make_conformance.py``.

The support matrix, ``_static/matrix.html``, and the tables of ``conformance.md``, both from
``conformance/*.json``. Reports are made with::

    packhorse testing onnx --device DEVICE --report docs/conformance/onnx-DEVICE.json
    pytest --packhorse-device DEVICE --pyargs packhorse.testing --packhorse-report \\
        docs/conformance/conformance-DEVICE.json
"""

import re
from collections.abc import Sequence
from pathlib import Path

from packhorse.testing import matrix, report
from packhorse.testing.matrix_page import to_html
from packhorse.testing.matrix_tables import to_markdown
from packhorse.testing.report import Report

DOCS = Path(__file__).resolve().parent
PAGE, MATRIX = DOCS / "conformance.md", DOCS / "_static" / "matrix.html"
COLUMNS = ("cpu", "llvm-cpu", "opencl", "acme", "acme-c")
"""The devices, in the order of the columns; those of other reports follow."""


def reports() -> list[Report]:
    """The committed reports."""
    found = [report.read(path) for path in sorted((DOCS / "conformance").glob("*.json"))]

    def place(one: Report) -> tuple[int, str]:
        name = one.device.partition(":")[0]
        return (COLUMNS.index(name) if name in COLUMNS else len(COLUMNS)), one.device

    return sorted(found, key=place)


def made(found: Sequence[Report]) -> dict[Path, str]:
    """The files, and what must be in them."""
    table = matrix.build(found)
    page = PAGE.read_text(encoding="utf-8")
    for text in to_markdown(table, found).split("\n\n"):
        head = re.escape(text.partition("|")[2].partition("|")[0].strip())
        page = re.sub(rf"^\| {head} \|(.*\n)(\|.*\n)+", text.strip() + "\n", page, flags=re.M)
    return {MATRIX: to_html(table), PAGE: page}


if __name__ == "__main__":
    for path, text in made(reports()).items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
