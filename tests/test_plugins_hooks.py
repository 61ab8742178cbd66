"""What plugins add besides devices: functions, operators, formats; from wheels installed by pip."""

import importlib.util
import json

import numpy as np
import pytest
from plugin_kit import Environment, needs_pip, write_wheel

needs_pip()
onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")

DEVICES = [name for name, package in (("cpu", "numpy"), ("llvm-cpu", "llvmlite"))
           if importlib.util.find_spec(package)]  # fmt: skip

EXTRAS = """
    import numpy as np
    from packhorse.plugin import hookimpl

    ASKED = []

    @hookimpl
    def packhorse_functions():
        ASKED.append("functions")
        return {"acme.double": lambda x: 2 * x, "tvm.contrib.sort.sort": max, "acme.no": 7}

    @hookimpl
    def packhorse_operators():
        from packhorse.kernel.expr import call
        from packhorse.ops.maps import Map, define_map

        ASKED.append("operators")
        swish = Map(
            "Swish", "x * sigmoid(beta * x)",
            lambda x, *, beta=1.0: x / (1 + np.exp(-beta * x)),
            lambda x, *, beta: x * call("sigmoid", x * beta),
        )
        relu = Map("Relu", "taken", lambda x: x)
        return [define_map(swish, domain="com.acme"), define_map(relu), "no operator"]
"""
FORMAT = """
    import shutil
    import tempfile
    from pathlib import Path

    from packhorse.artifact import load_artifact, save_artifact
    from packhorse.errors import ArtifactError
    from packhorse.plugin import hookimpl

    MAGIC = b"ACME-1\\n"

    @hookimpl
    def packhorse_load_artifact(path, head):
        if not head.startswith(MAGIC):
            return None
        data = path.read_bytes()[len(MAGIC):]
        if not data:
            raise ArtifactError("there is nothing after the first line")
        if data == b"boom":
            1 / 0
        if data == b"text":
            return "text"
        inner = Path(tempfile.mkdtemp()) / "inner.packhorse"
        inner.write_bytes(data)
        return load_artifact(inner)

    @hookimpl
    def packhorse_save_artifact(artifact, path):
        inner = save_artifact(Path(tempfile.mkdtemp()) / "inner.packhorse", artifact)
        path.write_bytes(MAGIC + inner.read_bytes())
        return path
"""
RIVAL = """
    from packhorse.plugin import hookimpl

    @hookimpl
    def packhorse_functions():
        return {"acme.double": lambda x: 3 * x, "rival.one": lambda: 1}

    @hookimpl
    def packhorse_operators():
        raise RuntimeError("no operators today")
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    made = Environment(tmp_path_factory.mktemp("venv"))
    plugins = "packhorse.plugins"
    made.install([
        write_wheel(folder, "acme-extras", {"ph_extras": EXTRAS}, {plugins: {"acme": "ph_extras"}}),
        write_wheel(folder, "zeta-rival", {"ph_rival": RIVAL}, {plugins: {"rival": "ph_rival"}}),
        write_wheel(folder, "acme-format", {"ph_format": FORMAT},
                    {"packhorse.formats": {"acme": "ph_format"}}),
        write_wheel(folder, "sick-format", {"ph_sick": "1 / 0"},
                    {"packhorse.formats": {"sick": "ph_sick"}}),
    ])  # fmt: skip
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model with the plugin's operator between two of ONNX's, and what it must give."""
    from onnx import TensorProto, helper

    folder = tmp_path_factory.mktemp("models")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 300]) for n in "xy")
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Swish", ["a"], ["b"], domain="com.acme", beta=1.5),
        helper.make_node("Swish", ["b"], ["c"], domain="com.acme"),
        helper.make_node("Exp", ["c"], ["y"]),
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 3)]
    graph = helper.make_graph(nodes, "swish", [x], [y])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save(model, folder / "swish.onnx")
    array = np.random.default_rng(5).normal(size=(7, 300)).astype(np.float32)
    np.save(folder / "x.npy", array)
    wide = -array.astype(np.float64)
    inner = wide / (1 + np.exp(-1.5 * wide))
    np.save(folder / "y.npy", np.exp(inner / (1 + np.exp(-inner))))
    return folder


def test_functions_appear_when_they_are_looked_up(environment):
    out = environment.run(
        """
        import sys
        import packhorse as ph
        ph.get_global_func("tvm.contrib.sort.argsort")
        print("ph_extras" in sys.modules)
        print(ph.get_global_func("acme.double")(21), ph.get_global_func("rival.one")())
        print(ph.get_global_func("acme.triple", allow_missing=True))
        print("acme.double" in ph.list_global_func_names(), sys.modules["ph_extras"].ASKED)
        """
    )
    assert out.splitlines() == ["False", "42 1", "None", "True ['functions']"]


def test_a_list_of_functions_has_those_of_plugins(environment):
    assert environment.run(
        "import packhorse as ph; print('acme.double' in ph.list_global_func_names())"
    ) == "True\n"  # fmt: skip
    off = "import packhorse as ph; print(ph.get_global_func('acme.double', allow_missing=True))"
    assert environment.run(off, PACKHORSE_PLUGINS="off") == "None\n"


def test_a_taken_name_is_refused_and_the_plugin_named(environment):
    out = environment.run(
        """
        import packhorse as ph
        from packhorse.plugin import default_manager
        print(ph.get_global_func("acme.double")(1))
        try:
            ph.get_global_func("acme.no")
        except ph.PackhorseError as error:
            print(type(error).__name__)
        for key, error in sorted(default_manager().failures().items()):
            print(*key, error)
        """
    )
    double, missing, acme, rival = out.splitlines()
    assert (double, missing) == ("2", "FunctionNotFound")
    assert acme.startswith("packhorse.plugins acme plugin 'acme' of acme-extras 1.2: ")
    for word in ("'tvm.contrib.sort.sort' is registered already", "int cannot be called"):
        assert word in acme
    assert "rival' of zeta-rival 1.2: packhorse_functions: a global function 'acme.double'" in rival
    assert "pip uninstall zeta-rival" in rival


def test_doctor_names_what_was_refused(environment):
    report = environment.run(
        "from packhorse import cli; cli.main(['doctor', '--json'])",
        PACKHORSE_DISABLE="llvm-cpu,opencl",
    )
    plugins = json.loads(report)["Plugins"]
    assert "'Relu' is registered already" in plugins["plugins: acme"]
    assert "it gave str, not packhorse.ops.Operator" in plugins["plugins: acme"]
    assert "RuntimeError: no operators today" in plugins["plugins: rival"]
    assert "ZeroDivisionError" in plugins["formats: sick"]
    assert plugins["formats: acme"] == "ok (acme-format 1.2)"


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_with_an_operator_of_a_plugin(environment, files, device):
    out = environment.run(
        f"""
        import sys
        import numpy as np
        import packhorse as ph
        model = ph.load({str(files / "swish.onnx")!r})
        x, y = (np.load({str(files)!r} + f"/{{name}}.npy") for name in "xy")
        found = model(x, device={device!r})
        np.testing.assert_allclose(found, y, rtol=3e-6)
        executable = model.compile({device!r}, shapes={{"x": (7, 300)}})
        print(*[step.device + " " + step.step for step in executable.report()], sep="\\n")
        print(sys.modules["ph_extras"].ASKED)
        """
    )
    *steps, asked = out.splitlines()
    assert asked == "['operators']"
    if device == "llvm-cpu":  # one kernel, made of all four nodes
        assert len({step for step in steps if step.startswith("llvm-cpu")}) == 1
        assert not [step for step in steps if step.startswith("cpu")]


def test_without_the_plugin_its_operator_is_unknown(environment, files):
    out = environment.run(
        f"""
        import packhorse as ph
        try:
            ph.load({str(files / "swish.onnx")!r})
        except ph.PackhorseError as error:
            print(type(error).__name__, error)
        """,
        PACKHORSE_DISABLE="acme-extras",
    )
    assert out.startswith("UnsupportedOperator")
    assert "com.acme::Swish" in out


@pytest.mark.skipif("llvm-cpu" not in DEVICES, reason="llvmlite is not installed")
def test_a_format_is_written_and_read(environment, files, tmp_path):
    out = environment.run(
        f"""
        import sys
        import numpy as np
        import packhorse as ph
        x, y = (np.load({str(files)!r} + f"/{{name}}.npy") for name in "xy")
        model = ph.load({str(files / "swish.onnx")!r})
        executable = model.compile("llvm-cpu", shapes={{"x": (7, 300)}})
        print("ph_format" in sys.modules)
        print(executable.save({str(tmp_path / "swish.acme")!r}))
        """
    )
    assert out.splitlines() == ["False", str(tmp_path / "swish.acme")]
    assert (tmp_path / "swish.acme").read_bytes().startswith(b"ACME-1\n")
    (tmp_path / "swish.bin").write_bytes((tmp_path / "swish.acme").read_bytes())
    environment.run(
        f"""
        import numpy as np
        import packhorse as ph
        x, y = (np.load({str(files)!r} + f"/{{name}}.npy") for name in "xy")
        for name, fmt in (("swish.acme", None), ("swish.bin", None), ("swish.bin", "acme")):
            executable = ph.load({str(tmp_path)!r} + "/" + name, format=fmt)
            np.testing.assert_allclose(executable(x), y, rtol=3e-6)
            executable.save({str(tmp_path / "again.packhorse")!r})
        """
    )


READ = {
    # name of the file: (content, type of the error, words of its message)
    "empty.acme": (b"ACME-1\n", "ArtifactError", "empty.acme': there is nothing after"),
    "boom.acme": (b"ACME-1\nboom", "PluginError", "'acme' of acme-format 1.2 failed on"),
    "text.acme": (b"ACME-1\ntext", "PluginError", "str, not as packhorse.artifact.Artifact"),
    "other.acme": (b"BCME-1\n", "ModelFormatError", "no frontend reads 'other.acme'"),
    "other.sick": (b"SICK", "ModelFormatError", "Not usable: plugin 'sick' of sick-format 1.2"),
    "other.bin": (b"", "ModelFormatError", "misleads. Formats of plugins: acme, sick. Not usable"),
    "a.bin as acme": (b"SICK", "ModelFormatError", "a.bin' is not a file of the format 'acme'"),
    "a.bin as sick": (b"SICK", "PluginLoadError", "ZeroDivisionError"),
    "a.bin as none": (b"SICK", "ModelError", "no frontend 'none'. Installed: onnx"),
}


@pytest.mark.parametrize("name", READ)
def test_a_file_that_cannot_be_read(environment, tmp_path, name):
    content, kind, words = READ[name]
    name, _, fmt = name.partition(" as ")
    (tmp_path / name).write_bytes(content)
    out = environment.run(
        f"""
        import packhorse as ph
        try:
            ph.load({str(tmp_path / name)!r}, format={fmt or None!r})
        except ph.PackhorseError as error:
            print(type(error).__name__, error)
        """
    )
    assert out.startswith(kind)
    assert words in out


def test_a_suffix_that_nobody_writes(environment, files, tmp_path):
    device = DEVICES[-1]
    if device == "cpu":
        pytest.skip("nothing here compiles")
    out = environment.run(
        f"""
        import packhorse as ph
        model = ph.load({str(files / "swish.onnx")!r})
        executable = model.compile({device!r}, shapes={{"x": (1, 300)}})
        for name in ("a.nobody", "a.sick"):
            try:
                executable.save({str(tmp_path)!r} + "/" + name)
            except ph.PackhorseError as error:
                print(type(error).__name__, error)
        """
    )
    nobody, sick = out.splitlines()
    assert nobody.startswith("ArgumentValueError cannot tell the form")
    assert sick.startswith("PluginLoadError plugin 'sick' of sick-format 1.2")
