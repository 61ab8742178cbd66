"""Artifacts with code for devices that are not host memory, and for several devices."""

from dataclasses import replace

import numpy as np
import pytest
import vault_kit
from model_kit import LLVM, NEEDS_LLVM, batch_of, linear

import packhorse as ph
from packhorse.artifact import load_artifact, save_artifact
from packhorse.artifact_join import join_artifacts
from packhorse.compiler.host import encode
from packhorse.errors import (
    ArgumentValueError,
    ArtifactError,
    CompileError,
    DeviceUnavailable,
    PluginError,
    UnknownBackend,
)
from packhorse.executable import Executable
from packhorse.executable_elsewhere import Elsewhere
from packhorse.graph.ir import Node
from packhorse.graph.program import Step
from packhorse.module import PythonModule

X = np.array([1, 2, 3, 4], np.float32)
Y = X * np.arange(4, dtype=np.float32)
SHAPES = {"x": (2, 4)}


@pytest.fixture
def vault(site, monkeypatch):
    return vault_kit.install(site, monkeypatch)


# ---------------------------------------------------------------- one device


@pytest.mark.parametrize("form", ["deploy", "m.packhorse"])
def test_code_is_loaded_by_the_device_it_is_for(vault, tmp_path, form):
    path = save_artifact(tmp_path / form, vault_kit.artifact())
    with ph.load(path) as loaded:
        assert vault.LOADS == [(b"product other", "vault-names")]
        assert (loaded.device.name, loaded.compiled_for) == ("vault:0", "vault:0")
        assert {row.device for row in loaded.report()} == {"vault:0"}
        np.testing.assert_array_equal(loaded(X), Y)
        np.testing.assert_array_equal(loaded(X, device="vault"), Y)
        again = loaded.save(tmp_path / "again.packhorse")
    found = load_artifact(again)
    assert (found.kinds, found.code()) == ({"vault": "vault-names"}, b"product other")
    assert found.library_path() is None


def test_memory_of_the_device_is_given_back(vault, tmp_path):
    device = ph.device("vault")
    for _ in range(20):
        with Executable.from_artifact(vault_kit.artifact(), device) as loaded:
            loaded(X)
            assert device.memory().live == 3
        assert device.memory().live == 0
    bad = vault_kit.artifact(params={"w": np.zeros(3, np.float32)})
    with pytest.raises(ArtifactError):
        Executable.from_artifact(bad, device)
    assert device.memory().live == 0


def test_steps_of_the_host_run_by_their_references(vault):
    node = Node("Mul", ["x", "w"], ["y"], name="times")
    step = Step("packhorse.op.Mul", (0, 1), (2,), "times", attrs=encode(node))
    found = vault_kit.artifact(programs={"vault": vault_kit.program(step)})
    with Executable.from_artifact(found) as loaded:
        np.testing.assert_array_equal(loaded(X), Y)
        (row,) = loaded.report()
        assert row.device == "host (NumPy reference)"


def entry(program, number, **changes):
    entries = list(program.entries)
    entries[number] = replace(entries[number], **changes)
    return replace(program, entries=tuple(entries))


MISFITS = {
    "no such kernel": ({"libraries": {"vault": b"other"}}, "no function 'product'"),
    "no code at all": ({"libraries": {"vault": b""}}, "no function 'product'"),
    "weight missing": ({"params": {}}, "'w'"),
    "weight of another shape": ({"params": {"w": np.zeros(5, np.float32)}}, "'w'"),
    "weight of another dtype": ({"params": {"w": np.zeros(4, np.int32)}}, "'w'"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_parts_that_do_not_fit_together(vault, tmp_path, name):
    changes, message = MISFITS[name]
    path = save_artifact(tmp_path / "m.packhorse", vault_kit.artifact(**changes))
    with pytest.raises(ArtifactError, match=message) as caught:
        ph.load(path)
    assert "do not fit together" in str(caught.value)
    assert str(path) in str(caught.value)


@NEEDS_LLVM
def test_weights_that_do_not_fit_code_of_the_host():
    with linear().compile(LLVM, shapes=SHAPES) as executable:
        found = executable.artifact()
        with pytest.raises(ArtifactError, match="do not fit together: param 'p0' is missing"):
            Executable.from_artifact(replace(found, params={}), "cpu")


def test_a_weight_that_is_an_output_is_not_the_callers(vault):
    program = vault_kit.program()
    both = replace(program, outputs=(2, 1), output_names=("y", "w"))
    with Executable.from_artifact(vault_kit.artifact(programs={"vault": both})) as loaded:
        for _ in range(2):
            y, w = loaded(X)
            np.testing.assert_array_equal(w, np.arange(4, dtype=np.float32))
            np.testing.assert_array_equal(y, Y)
            w[:] = 7


def test_a_device_that_could_not_be_opened_is_not_taken_for_the_first(two, vault, monkeypatch):
    with Executable.from_artifact(two, "cpu") as loaded:
        monkeypatch.setattr(vault.Vault, "load", lambda *_: None)
        for _ in range(2):
            with pytest.raises(PluginError, match="load"):
                loaded(X, device="vault")


def test_functions_of_the_registry_are_no_kernels(vault):
    step = Step("packhorse.no_such", (0, 1), (2,), "odd")
    found = vault_kit.artifact(programs={"vault": vault_kit.program(step)})
    with pytest.raises(ArtifactError, match=r"packhorse\.no_such"):
        Executable.from_artifact(found)


def test_a_kind_the_device_does_not_know(vault):
    with pytest.raises(ArtifactError, match="vault:0 does not load 'vault-next'"):
        Executable.from_artifact(vault_kit.artifact(kinds={"vault": "vault-next"}))


def test_a_device_that_loads_no_code(vault, monkeypatch):
    device = ph.device("vault")
    monkeypatch.setattr(device, "capabilities", frozenset())
    with pytest.raises(DeviceUnavailable, match=r"none for 'vault:0', which loads no code of the"):
        Executable.from_artifact(vault_kit.artifact(), device)


def test_a_load_that_gives_something_else(vault, monkeypatch):
    monkeypatch.setattr(vault.Vault, "load", lambda self, blob, kind: {})
    with pytest.raises(PluginError, match=r"load\(\) gave a dict, not a packhorse Module"):
        Executable.from_artifact(vault_kit.artifact())


@pytest.mark.parametrize("device", ["cpu", LLVM])
def test_code_of_another_device(vault, device):
    if device == LLVM:
        pytest.importorskip("llvmlite")
    with Executable.from_artifact(vault_kit.artifact()) as loaded:
        with pytest.raises(DeviceUnavailable, match=r"holds code for vault, none for '.*cpu:0"):
            loaded(X, device=device)
        np.testing.assert_array_equal(loaded(X), Y)


def test_the_backend_is_not_installed(tmp_path):
    path = save_artifact(tmp_path / "m.packhorse", vault_kit.artifact())
    with pytest.raises(UnknownBackend, match="'vault'"):
        ph.load(path)


# ---------------------------------------------------------------- saving


def as_compiled():
    """An executable of ``vault`` as if it had been compiled here."""
    loaded = Executable.from_artifact(vault_kit.artifact())
    loaded._artifact, loaded._elsewhere = None, Elsewhere(loaded.device.name)
    return loaded


def test_devices_that_cannot_load_cannot_save(vault, tmp_path, monkeypatch):
    loaded = as_compiled()
    with pytest.raises(CompileError, match=r"module 'vault' \(python\) cannot be saved.*no form"):
        loaded.save(tmp_path / "m.packhorse")
    with pytest.raises(CompileError, match="no form as a shared library"):
        loaded.save(tmp_path / "m.so")
    monkeypatch.setattr(loaded.device, "capabilities", frozenset())
    with pytest.raises(CompileError, match=r"backend of 'vault:0' loads no saved code"):
        loaded.save(tmp_path / "deploy/")
    assert all(path.name.startswith("ph_vault") for path in tmp_path.iterdir())


@NEEDS_LLVM
def test_what_is_linked_is_not_linked_again(tmp_path):
    made = linear().compile(LLVM, shapes=SHAPES)
    for path in (made.save(tmp_path / "m.so"), made.save(tmp_path / "m.packhorse")):
        before = {file: file.read_bytes() for file in tmp_path.iterdir()}
        with (
            ph.load(path) as loaded,
            pytest.raises(CompileError, match=r"linked already\. Copy the file"),
        ):
            loaded.save(tmp_path / "again.so")
        with ph.load(tmp_path / "m.so") as loaded, pytest.raises(CompileError, match="linked"):
            loaded.save(tmp_path / "again.packhorse")
        assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_what_a_module_gives_is_what_is_saved(vault, tmp_path, monkeypatch):
    monkeypatch.setattr(PythonModule, "save_blob", lambda self: ("vault-names", b"product"))
    loaded = as_compiled()
    path = loaded.save(tmp_path / "deploy")
    assert {file.name for file in path.iterdir()} == {
        "deploy.json", "deploy.params", "deploy.code", "deploy.manifest.json",
    }  # fmt: skip
    assert load_artifact(path).code() == b"product"
    np.testing.assert_array_equal(ph.load(path)(X), Y)


def test_a_module_that_gives_a_kind_that_is_no_word(vault, tmp_path, monkeypatch):
    monkeypatch.setattr(PythonModule, "save_blob", lambda self: ("../so", b""))
    loaded = as_compiled()
    with pytest.raises(ArgumentValueError, match=r"'\.\./so' is no kind of code"):
        loaded.save(tmp_path / "m.packhorse")
    assert not (tmp_path / "m.packhorse").exists()


# ---------------------------------------------------------------- several devices


@pytest.fixture
def two(vault):
    """Code for ``vault`` and a target of the host that runs by the references alone."""
    node = Node("Mul", ["x", "w"], ["y"], name="times")
    step = Step("packhorse.op.Mul", (0, 1), (2,), "times", attrs=encode(node))
    host = replace(vault_kit.program(step), metadata={"device": "llvm-cpu:0"})
    plain = vault_kit.artifact(programs={"llvm-cpu": host}, libraries={}, kinds={})
    return join_artifacts([plain, vault_kit.artifact()])


def test_the_best_device_that_works_is_taken(two, vault, tmp_path, monkeypatch):
    path = save_artifact(tmp_path / "m.packhorse", two)
    with ph.load(path) as loaded:
        assert (loaded.device.name, loaded.compiled_for) == ("vault:0", "vault:0")
        for options, where in (({}, "vault:0"), ({"device": "cpu"}, "cpu:0")):
            np.testing.assert_array_equal(loaded(X, **options), Y)
            assert loaded.compile(**options).device.name == where
    ph.device("vault").close()
    monkeypatch.setattr(vault, "FAIL", DeviceUnavailable("vault: no driver"))
    with ph.load(path) as loaded:
        assert (loaded.device.name, loaded.compiled_for) == ("cpu:0", "llvm-cpu:0")
        np.testing.assert_array_equal(loaded(X), Y)
        with pytest.raises(DeviceUnavailable, match="no driver"):
            loaded(X, device="vault")


def test_a_device_that_was_closed_is_opened_anew(two, vault):
    with Executable.from_artifact(two, "cpu") as loaded:
        for _ in range(2):
            np.testing.assert_array_equal(loaded(X, device="vault"), Y)
            assert loaded.compile("vault") is loaded.compile("VAULT:0")
            ph.device("vault").close()


def test_strings_from_outside_fill_no_memory(two):
    with Executable.from_artifact(two, "cpu") as loaded:
        for number in range(300):
            assert loaded.compile(f"cpu,vault:{number}") is loaded
        assert len(loaded._elsewhere.meanings) == 256


def test_priorities_decide_and_not_the_order(site, monkeypatch, tmp_path):
    vault = vault_kit.install(site, monkeypatch, priority=50)
    node = Node("Mul", ["x", "w"], ["y"], name="times")
    step = Step("packhorse.op.Mul", (0, 1), (2,), "times", attrs=encode(node))
    plain = vault_kit.artifact(
        programs={"llvm-cpu": vault_kit.program(step)}, libraries={}, kinds={}
    )
    both = join_artifacts([vault_kit.artifact(), plain])
    assert Executable.from_artifact(both).device.name == "cpu:0"
    assert vault.LOADS == []


@pytest.mark.parametrize("error", [CompileError("no float64"), DeviceUnavailable("gone")])
def test_code_that_the_best_device_cannot_run(two, vault, monkeypatch, error):
    def load(self, blob, kind):
        raise error

    monkeypatch.setattr(vault.Vault, "load", load)
    assert Executable.from_artifact(two).device.name == "cpu:0"
    with pytest.raises(type(error), match=str(error)):
        Executable.from_artifact(two, "vault")


def test_damage_is_not_passed_over(two, vault):
    broken = replace(two, libraries={"vault": b"other"})
    with pytest.raises(ArtifactError, match="for 'vault' do not fit together"):
        Executable.from_artifact(broken)


def test_none_of_its_devices_works(vault, monkeypatch):
    faraway = vault_kit.artifact(
        programs={"faraway": vault_kit.program()},
        libraries={"faraway": b"product"},
        kinds={"faraway": "faraway-code"},
    )
    both = join_artifacts([faraway, vault_kit.artifact()])
    monkeypatch.setattr(vault, "FAIL", DeviceUnavailable("vault: no driver"))
    with pytest.raises(DeviceUnavailable) as caught:
        Executable.from_artifact(both)
    message = str(caught.value)
    assert "code for faraway, vault, and none of the devices 'auto' stands for can be" in message
    assert "\n  vault: vault: no driver" in message
    assert "no backend 'faraway'" in message


@pytest.mark.parametrize("named", ["cpu", "CPU:0", "nothing,cpu", "cpu?threads=1"])
def test_the_environment_names_the_device(two, monkeypatch, caplog, named):
    monkeypatch.setenv("PACKHORSE_DEVICE", named)
    assert Executable.from_artifact(two).device.name.startswith("cpu:0")
    assert Executable.from_artifact(two, "vault").device.name == "vault:0"


@pytest.mark.parametrize(
    ("wanted", "where"),
    [
        ("auto", "vault:0"),
        ("AUTO", "vault:0"),
        ("nothing,vault", "vault:0"),
        ("cpu,vault", "cpu:0"),
        ("opencl:99,cpu?threads=1", "cpu:0?threads=1"),
    ],
)
def test_strings_that_mean_several_devices(two, wanted, where):
    with Executable.from_artifact(two, wanted) as loaded:
        assert loaded.device.name == where
        np.testing.assert_array_equal(loaded(X), Y)
    with Executable.from_artifact(two, "cpu?threads=2") as loaded:
        assert loaded.compile(wanted).device.name == where
        np.testing.assert_array_equal(loaded(X, device=wanted), Y)


def test_a_list_goes_on_to_the_device_that_it_is_for(vault):
    """``cpu`` works here, but the artifact holds nothing for it."""
    with Executable.from_artifact(vault_kit.artifact(), "cpu,vault") as loaded:
        assert loaded.device.name == "vault:0"
        assert loaded.compile("cpu,vault") is loaded
        assert loaded.compile("auto") is loaded
        with pytest.raises(DeviceUnavailable, match="holds code for vault, none for"):
            loaded(X, device="auto:cpu")
    with pytest.raises(DeviceUnavailable, match=r"(?s)'cpu,nothing' stands for .*none for 'cpu:0'"):
        Executable.from_artifact(vault_kit.artifact(), "cpu,nothing")


@pytest.mark.parametrize("named", ["", "auto"])
def test_the_environment_leaves_the_choice(two, monkeypatch, named):
    monkeypatch.setenv("PACKHORSE_DEVICE", named)
    assert Executable.from_artifact(two).device.name == "vault:0"


def test_the_environment_names_a_device_without_code(vault, monkeypatch):
    monkeypatch.setenv("PACKHORSE_DEVICE", "cpu")
    words = r"^PACKHORSE_DEVICE=cpu: this artifact holds code for vault, none for 'cpu:0'"
    with pytest.raises(DeviceUnavailable, match=words):
        Executable.from_artifact(vault_kit.artifact())


def test_compiling_an_artifact_opens_the_one_device(two, vault, tmp_path):
    path = save_artifact(tmp_path / "m.packhorse", two)
    vault.LOADS.clear()
    with ph.compile(path, "cpu") as loaded:
        assert loaded.device.name == "cpu:0"
    assert vault.LOADS == []


def test_load_takes_the_device(two, tmp_path):
    path = save_artifact(tmp_path / "m.packhorse", two)
    with ph.load(path, device="cpu?threads=1") as loaded:
        assert loaded.device.name == "cpu:0?threads=1"
        np.testing.assert_array_equal(loaded(X), Y)
    with pytest.raises(UnknownBackend):
        ph.load(path, device="nothing")


# ---------------------------------------------------------------- joining


def test_weights_are_shared_where_they_are_equal():
    one = vault_kit.artifact()
    nan = np.array([np.nan, -0.0, 0.0, 1.0], np.float32)
    same, other = (
        vault_kit.artifact(
            programs={name: vault_kit.program()},
            params={"w": w},
            libraries={name: b"product"},
            kinds={name: "vault-names"},
        )
        for name, w in (("b", one.params["w"].copy()), ("c", nan))
    )
    joined = join_artifacts([one, same, other])
    assert joined.targets == ("vault", "b", "c")
    assert list(joined.params) == ["w", "w@c"]
    assert joined.params["w"] is one.params["w"]
    names = [joined.programs[t].entries[1].name for t in joined.targets]
    assert names == ["w", "w", "w@c"]
    assert joined.libraries["c"] == b"product"
    negative = replace(other, params={"w": np.abs(nan)})  # 0 in the place of -0
    renamed = replace(negative, programs={"d": vault_kit.program()}, libraries={}, kinds={})
    assert list(join_artifacts([other, renamed]).params) == ["w", "w@d"]


@pytest.mark.parametrize("w", [np.zeros((2, 2), np.float32), np.zeros(4, np.int32)])
def test_weights_of_another_form_are_not_shared(w):
    one = vault_kit.artifact(params={"w": np.zeros(4, np.float32)})
    shaped = entry(vault_kit.program(), 1, shape=w.shape, dtype=w.dtype.name)
    two = vault_kit.artifact(programs={"b": shaped}, params={"w": w}, libraries={}, kinds={})
    joined = join_artifacts([one, two])
    assert joined.params["w@b"] is w


def test_new_names_of_weights_are_free():
    one = vault_kit.artifact(params={"w": np.zeros(4, np.float32), "w@b": np.zeros(1)})
    two = vault_kit.artifact(
        programs={"b": entry(vault_kit.program(), 2, name="w@b.2")}, libraries={}, kinds={}
    )
    joined = join_artifacts([one, two])
    assert joined.programs["b"].entries[1].name == "w@b.3"
    np.testing.assert_array_equal(joined.params["w@b.3"], two.params["w"])


REFUSED = {
    "weight missing": (
        [
            vault_kit.artifact(),
            vault_kit.artifact(
                programs={"b": vault_kit.program()}, params={}, libraries={}, kinds={}
            ),
        ],
        "for b lacks the weight 'w'",
    ),
    "nothing": ([], "nothing to join"),
    "one target twice": ([vault_kit.artifact()] * 2, "are for the target 'vault'"),
    "another shape": (
        [
            vault_kit.artifact(),
            vault_kit.artifact(
                programs={"b": entry(vault_kit.program(), 0, shape=(2, 2))}, libraries={}, kinds={}
            ),
        ],
        r"float32\[2, 2\].*not x: float32\[4\] -> y: float32\[4\]\. Compile the same model",
    ),
    "another output": (
        [
            vault_kit.artifact(),
            vault_kit.artifact(
                programs={"b": replace(vault_kit.program(), output_names=("z",))},
                libraries={},
                kinds={},
            ),
        ],
        "other inputs or outputs",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_joined(name):
    artifacts, message = REFUSED[name]
    with pytest.raises(ArgumentValueError, match=message):
        join_artifacts(artifacts)


@NEEDS_LLVM
def test_code_of_the_host_beside_code_of_a_device(vault, tmp_path):
    made = linear().compile(LLVM, shapes=SHAPES)
    host = made.artifact()
    other = replace(
        host, programs={"vault": host.program()}, libraries={"vault": b"none"},
        kinds={"vault": "vault-names"},
    )  # fmt: skip
    path = save_artifact(tmp_path / "m.packhorse", join_artifacts([host, other]))
    x = batch_of(2)
    with ph.load(path, device="cpu") as loaded:
        np.testing.assert_array_equal(loaded(x), made(x))
        with pytest.raises(ArtifactError, match="for 'vault' do not fit"):
            loaded(x, device="vault")
        np.testing.assert_array_equal(loaded(x), made(x))
