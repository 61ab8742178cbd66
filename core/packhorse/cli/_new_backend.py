"""``packhorse new-backend``: a package that adds a device, ready to install and to test."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from packhorse.errors import ArgumentValueError, PackhorseError
from packhorse.plugin import default_manager
from packhorse.plugin.entries import KNOWN
from packhorse.plugin.manager import BACKENDS

__all__ = ["KINDS", "configure", "create", "run"]

_WORD = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_RESERVED = frozenset({"auto", "rpc"})
KINDS = {
    "numpy": "memory is a NumPy array, kernels are interpreted: the shortest complete device",
    "codegen": "kernels become C text, built by the system compiler and called in native code",
}
"""What the package shows: kind -> one line of help. Each is a folder of templates."""
_PLACES = {
    "README.md": "README.md",
    "pyproject.toml": "pyproject.toml",
    "tox.ini": "tox.ini",
    "test.py": "tests/test_@word@.py",
}
"""Where templates go that are no module of the package."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("name", metavar="NAME", help="the word in device strings, such as acme")
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default="numpy",
        help="; ".join(f"{kind}: {text}" for kind, text in KINDS.items()) + " (default: numpy)",
    )
    parser.add_argument(
        "--dir", default=".", metavar="FOLDER", help="where packhorse-NAME is made (default: here)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the package and say what to do with it."""
    folder = create(arguments.name, Path(arguments.dir), arguments.kind)
    shown = folder if folder.is_absolute() else f"./{folder}"  # a path for pip, not a name
    print(f"wrote {shown}")
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(f"  {file.relative_to(folder)}")
    print(f"\ninstall it:  pip install -e '{shown}[test]'")
    print(f"use it:      packhorse run MODEL --device {arguments.name}")
    print(f"test it:     pytest {shown}")
    return 0


def create(name: str, where: Path, kind: str = "numpy") -> Path:
    """Write the package ``packhorse-<name>`` into a folder.

    Parameters
    ----------
    name : str
        The word in device strings: lower-case letters, digits, single hyphens.
    where : Path
        An existing folder.
    kind : str
        One of :data:`KINDS`.

    Returns
    -------
    Path
        The folder of the package.

    Raises
    ------
    ArgumentValueError
        The name is no such word or is taken, there is no such kind, ``where`` is no folder, or
        the package's folder exists; nothing is written then.
    """
    _check_name(name)
    if kind not in KINDS:
        raise ArgumentValueError(f"there is no kind '{kind}'. Kinds are: {', '.join(KINDS)}")
    folder = where / f"packhorse-{name}"
    if not where.is_dir():
        raise ArgumentValueError(f"'{where}' is no folder. Make it, or give another with --dir")
    if folder.exists():
        raise ArgumentValueError(
            f"'{folder}' exists already and is left as it is. Remove it, or choose another name "
            "or --dir"
        )
    words = _words(name)
    texts = {
        _filled(_PLACES.get(file, f"@module@/{file}"), words): _filled(text, words)
        for folder_name in ("common", kind)
        for file, text in _templates(folder_name)
    }
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


def _templates(folder: str) -> Iterator[tuple[str, str]]:
    """The templates of a folder: the name of what each becomes, and its text."""
    for path in (files("packhorse.cli") / "templates" / folder).iterdir():
        if path.name.endswith(".tmpl"):
            yield path.name.removesuffix(".tmpl"), path.read_text(encoding="utf-8")


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
