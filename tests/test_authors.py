"""The pages for authors: tables name every hook and member, examples are what is written."""

import importlib
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from packhorse import errors
from packhorse.cli._new_backend import KINDS, create
from packhorse.device import CAPABILITIES, Backend, Device, DeviceMixin, Memory, MemoryStats
from packhorse.module import KernelFunction
from packhorse.plugin import BackendInfo, DeviceInfo, OptionSpec, PluginContext
from packhorse.plugin.entries import GROUPS
from packhorse.plugin.spec import Hooks

DOCS = Path(__file__).resolve().parent.parent / "docs"
REFERENCE = (DOCS / "authors-reference.md").read_text(encoding="utf-8")


def table(after):
    """The rows of the first table after a text, without the head: lists of cells."""
    lines = REFERENCE.partition(after)[2].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---")) + 1
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def shown(name, member):
    """A member as tables write it: its name, and the arguments where it is a method."""
    if isinstance(member, property):
        return f"`{name}`"
    words = []
    for parameter in list(inspect.signature(member).parameters.values())[1:]:
        star = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        default = parameter.default
        words.append(
            f"{star}{parameter.name}" + ("" if default is parameter.empty else f"={default}")
        )
    return f"`{name}({', '.join(words)})`"


def members(protocol):
    return {n: shown(n, m) for n, m in vars(protocol).items() if not n.startswith("_")}


def test_every_hook_is_in_the_table():
    rows = table("## Hooks")
    assert [row[0] for row in rows] == list(members(Hooks).values())
    for row in rows:
        (group,) = re.findall(r"`([\w.]+)`", row[1])
        assert group in GROUPS


@pytest.mark.parametrize(
    ("title", "protocol"),
    [
        ("**`Backend`**, from", Backend),
        ("**`Device`**. ", Device),
        ("**`Memory`**, from", Memory),
    ],
)
def test_every_member_is_in_its_table(title, protocol):
    assert [row[0] for row in table(title)] == list(members(protocol).values())


def test_what_the_mixin_has():
    class Mine(DeviceMixin):
        pass

    made = Mine(BackendInfo("mine", "a test", dlpack_type=12), 0, {})
    marks = {row[0]: row[1] for row in table("**`Device`**. ")}
    for name, text in members(Device).items():
        assert marks[text] == ("yes" if hasattr(made, name) else ""), name


def test_every_optional_member_is_in_the_table():
    rows = [row[0].strip("`") for row in table("**Optional members")]
    assert sorted(rows) == sorted(CAPABILITIES)


def test_what_functions_have():
    rows = {row[0] for row in table("**Functions of a compiled module**")}
    own = {name: getattr(KernelFunction, name) for name in ("prepare", "bind_memory", "bind")}
    assert rows == {shown(name, member) for name, member in own.items()}


@pytest.mark.parametrize(
    "kind",
    [
        BackendInfo, DeviceInfo, OptionSpec, PluginContext,
        MemoryStats,
    ],
)  # fmt: skip
def test_every_field_is_named(kind):
    text = REFERENCE.partition(f"**`{kind.__name__}`**")[2].partition("\n\n")[0]
    named = re.findall(r"`([\w.]+)`", text.partition(":")[2])
    assert named == [field.name for field in fields(kind)]


def public():
    """Module -> the names that the page calls public."""
    found = {}
    for where, names in table("## Public names"):
        module = importlib.import_module(where.strip("`"))
        every = names == "every name"
        found[module.__name__] = list(module.__all__) if every else re.findall(r"`(\w+)`", names)
    return found


def test_public_names_are_public():
    for where, names in public().items():
        module = importlib.import_module(where)
        assert names, where
        for name in names:
            assert name in module.__all__, f"{where}.{name}"
            found = getattr(module, name)
            if inspect.isclass(found) or inspect.isfunction(found):
                assert found.__doc__, f"{where}.{name} says nothing of itself"
    assert "CompileError" in errors.__all__


@pytest.mark.parametrize("kind", KINDS)
def test_packages_import_public_names_only(kind, tmp_path):
    known = public()
    for file in create("acme", tmp_path, kind).rglob("*.py"):
        for where, names in re.findall(
            r"from (packhorse(?:\.[\w.]+)?) import (.+)", file.read_text()
        ):
            for name in names.split(", "):
                if where == "packhorse":
                    assert f"packhorse.{name}" in known, f"{file.name}: {name}"
                else:
                    assert name in known[where], f"{file.name}: {where}.{name}"


@pytest.mark.parametrize(
    ("kind", "name", "page"),
    [("numpy", "acme", "authors.md"), ("codegen", "acme-c", "authors-codegen.md")],
)
def test_the_tutorials_show_what_is_written(kind, name, page, tmp_path):
    package = create(name, tmp_path, kind)
    files = {str(path.relative_to(package)): path.read_text() for path in package.rglob("*.*")
             if path.suffix in (".py", ".toml") and path.name != "__init__.py"}  # fmt: skip
    blocks = re.findall(
        r"^```(?:python|toml)\n# ([\w/]+\.(?:py|toml))\n(.*?)^```$", (DOCS / page).read_text(),
        re.M | re.S,
    )  # fmt: skip
    for file, text in files.items():
        if kind == "codegen" and file.startswith("tests/"):
            continue  # as in the other tutorial
        assert (file, text) in blocks, f"{page} shows another {file}"
