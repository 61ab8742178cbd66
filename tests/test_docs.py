"""Every snippet of README and docs is run, and what it prints compared with what the page says.

- ``python`` blocks run in order, in one namespace per page; a ``text`` block right after one is
  what it must print. A block that begins with ``# some/file.py`` is that file, and the package of a
  ``# pyproject.toml`` is installed for the page.
- ``console`` blocks: lines starting with ``$ packhorse`` are run, the lines after them compared.
- ``sh``, ``toml`` and other blocks are not run. ``<!-- not run: why -->`` before a block skips it.

Compared modulo numbers, units of time and size, and the width of columns. ``...`` in a line stands
for anything in that line, a line of ``...`` for any lines.
"""

import contextlib
import io
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("llvmlite")

from packhorse import _config, cli
from packhorse._devices import default_devices
from packhorse.plugin import default_manager

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
_FENCE = re.compile(
    r"(?P<skip><!-- not run: [^>]+-->\s*)?^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.M | re.S
)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d.,]*(?:e[-+]?\d+)?(?: ?(?:us|ms|s|B|KiB|MiB|GiB)\b)?%?")


@dataclass
class Block:
    kind: str
    body: str
    line: int
    after: str = ""
    """The text block that follows at once."""


def read_blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    blocks: list[Block] = []
    end = 0
    for match in _FENCE.finditer(text):
        block = Block(match["kind"], match["body"], text.count("\n", 0, match.start("kind")) + 1)
        follows = blocks and not text[end : match.start()].strip()
        end = match.end()
        if match["skip"]:
            continue
        if block.kind == "text" and follows:
            blocks[-1].after = block.body
        else:
            blocks.append(block)
    return blocks


def plain(text: str) -> str:
    """Numbers as ``#``, single spaces, no empty lines."""
    lines = (" ".join(_NUMBER.sub("#", line).split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def matches(expected: str, found: str) -> bool:
    # a line of dots takes the lines it stands for, the line end before it included
    pattern = re.escape(plain(expected)).replace(r"\.\.\.", "[^\n]*")
    pattern = re.sub(r"\\?\n\[\^\n\]\*(?=\\?\n|\Z)", lambda _: r"(?:\n[^\n]*)*", pattern)
    return re.fullmatch(pattern, plain(found)) is not None


def check(expected: str, found: str, where: str) -> None:
    if not matches(expected, found):
        pytest.fail(f"{where}: the page says\n{expected}\nbut the output is\n{found}")


def run_console(block: Block, where: str) -> None:
    parts = re.split(r"^\$ (.*)\n", block.body, flags=re.M)
    assert not parts[0].strip(), f"{where}: output before the first command"
    for command, expected in zip(parts[1::2], parts[2::2], strict=True):
        words = shlex.split(command)
        assert words[0] == "packhorse", f"{where}: only packhorse is run here, not {command}"
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = cli.main(words[1:])
        assert ("error:" in expected) == (code == 2), f"{where}: {command}: exit code {code}"
        check(expected, output.getvalue(), f"{where}: {command}")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A working directory with the files that snippets name; what they write lands there."""
    for name in ("examples", "README.md", "pyproject.toml", ".ci"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fresh_plugins():
    """Plugins are scanned anew, before and after the test."""

    def clear():
        default_devices.cache_clear()
        default_manager.cache_clear()

    clear()
    yield
    clear()


def install_snippets(page, folder, monkeypatch):
    """Blocks that begin with a file name are that file; a pyproject.toml installs its package."""
    for block in read_blocks(page):
        name = re.match(r"# ([\w/]+\.(?:py|toml))\n", block.body)
        if name is None:
            continue
        if name[1] != "pyproject.toml":
            (folder / name[1]).parent.mkdir(exist_ok=True)
            (folder / name[1]).write_text(block.body)
            continue
        project = tomllib.loads(block.body)["project"]
        info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        lines = []
        for group, entries in project["entry-points"].items():
            lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets(page, checkout, tmp_path_factory, fresh_plugins, monkeypatch):
    install_snippets(page, tmp_path_factory.mktemp("packages"), monkeypatch)
    names: dict[str, object] = {"__name__": "snippet"}
    for block in read_blocks(page):
        where = f"{page.name}:{block.line}"
        if block.kind == "console":
            run_console(block, where)
        elif block.kind == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block.body, where, "exec"), names)
            if block.after:
                check(block.after, output.getvalue(), where)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples(example):
    command = [sys.executable, "-W", "error", str(example)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_readme_starts_with_the_two_commands():
    block = read_blocks(ROOT / "README.md")[0]
    lines = [line.partition("#")[0].strip() for line in block.body.splitlines()]
    demo, tests = lines
    assert demo == 'pip install ".[llvm-cpu,onnx,cli]" && packhorse demo'
    assert tests == "pip install tox && tox"
    assert f"\n{tests}\n" in (ROOT / ".ci" / "run").read_text()


def test_every_command_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    missing = [name for name in cli.COMMANDS if f"packhorse {name}" not in text]
    assert not missing


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if not target.startswith(("http://", "https://", "mailto:")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_environment_variables_are_documented_once():
    # The table is made from ENVIRONMENT when the docs are built; other pages may name variables.
    for page in PAGES:
        named = set(re.findall(r"\bPACKHORSE_[A-Z_]+\b", page.read_text()))
        assert named <= set(_config.ENVIRONMENT), page.name


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        ("took 1.2 ms", "took 3 s", True),
        ("a   b", "a b", True),
        ("a\n...\nz", "a\nb\nc\nz", True),
        ("a\n...\nz", "a\nz", True),
        ("a\n...", "a\nb", True),
        ("x ... y", "x 1 2 y", True),
        ("x ... y", "x\ny", False),
        ("type c", "type d", False),
    ],
)
def test_the_comparison(expected, found, same):
    assert matches(expected, found) is same
