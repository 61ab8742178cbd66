"""``packhorse new-backend``: a package that adds a device, ready to install and to test."""

from __future__ import annotations

import argparse
import re
from importlib.resources import files
from pathlib import Path

from packhorse.errors import ArgumentValueError, PackhorseError
from packhorse.plugin import default_manager
from packhorse.plugin.entries import KNOWN
from packhorse.plugin.manager import BACKENDS

__all__ = ["configure", "create", "run"]

_WORD = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_RESERVED = frozenset({"auto", "rpc"})
_FILES = {
    "pyproject.toml.tmpl": "pyproject.toml",
    "plugin.py.tmpl": "@module@/plugin.py",
    "backend.py.tmpl": "@module@/backend.py",
    "test.py.tmpl": "tests/test_@word@.py",
    "tox.ini.tmpl": "tox.ini",
    "README.md.tmpl": "README.md",
}
"""Template -> the file it becomes."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("name", metavar="NAME", help="the word in device strings, such as acme")
    parser.add_argument(
        "--dir", default=".", metavar="FOLDER", help="where packhorse-NAME is made (default: here)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the package and say what to do with it."""
    folder = create(arguments.name, Path(arguments.dir))
    print(f"wrote {folder}")
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(f"  {file.relative_to(folder)}")
    print(f"\ninstall it:  pip install -e '{folder}[test]'")
    print(f"use it:      packhorse run MODEL --device {arguments.name}")
    print(f"test it:     pytest {folder}")
    return 0


def create(name: str, where: Path) -> Path:
    """Write the package ``packhorse-<name>`` into a folder.

    Parameters
    ----------
    name : str
        The word in device strings: lower-case letters, digits, single hyphens.
    where : Path
        An existing folder.

    Returns
    -------
    Path
        The folder of the package.

    Raises
    ------
    ArgumentValueError
        The name is no such word or is taken, ``where`` is no folder, or the package's folder
        exists; nothing is written then.
    """
    _check_name(name)
    folder = where / f"packhorse-{name}"
    if not where.is_dir():
        raise ArgumentValueError(f"'{where}' is no folder. Make it, or give another with --dir")
    if folder.exists():
        raise ArgumentValueError(
            f"'{folder}' exists already and is left as it is. Remove it, or choose another name "
            "or --dir"
        )
    words = _words(name)
    templates = files("packhorse.cli") / "templates" / "backend"
    texts = {
        _filled(path, words): _filled((templates / template).read_text(encoding="utf-8"), words)
        for template, path in _FILES.items()
    }
    texts[f"{words['module']}/__init__.py"] = f'"""{words["Name"]} devices for packhorse."""\n'
    try:
        for path, text in texts.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArgumentValueError(
            f"'{folder}' could not be written: {error.strerror or error}. Give another --dir"
        ) from error
    return folder


def _words(name: str) -> dict[str, str]:
    parts = name.split("-")
    return {
        "name": name,
        "Name": " ".join(part.capitalize() for part in parts),
        "Class": "".join(part.capitalize() for part in parts),
        "word": "_".join(parts),
        "module": "packhorse_" + "_".join(parts),
        "dist": f"packhorse-{name}",
    }


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub(r"@(\w+)@", lambda match: words[match[1]], text)


def _check_name(name: str) -> None:
    if not _WORD.fullmatch(name):
        raise ArgumentValueError(
            f"'{name}' cannot name a backend: use lower-case letters, digits and single hyphens, "
            "beginning with a letter, such as acme or acme-npu"
        )
    known = {word for group, word in KNOWN if group == BACKENDS}
    taken = {*known, *_RESERVED, *default_manager().names(BACKENDS)}
    if name in taken:
        raise ArgumentValueError(f"'{name}' is taken ({_owner(name)}). Choose another name")


def _owner(name: str) -> str:
    try:
        entry = default_manager().entry(BACKENDS, name)
    except PackhorseError:
        return "packhorse uses the word itself"
    return f"by {entry.dist} {entry.version}"
