import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packhorse.errors import ArgumentValueError, ArtifactError
from packhorse.graph import _json
from packhorse.graph.graph_json import program_from_json, program_to_json
from packhorse.graph.program import Entry, Program, Step, check, element_bytes

CONVNET = Path(__file__).parent / "data" / "tvm" / "convnet"


def program() -> Program:
    entries = (
        Entry("x", (2, 3), "float32", 0),
        Entry("w", (3, 4), "bfloat16", 1),
        Entry("border", (64,), "float32", 2),
        Entry("inner", (64,), "float32", 2),
        Entry("a", (2, 4), "int64", 3),
        Entry("b", (), "bool", 4),
    )
    steps = (
        Step("zero", (), (2,), "zero", once=True),
        Step("conv", (0, 1, 2), (3,), "conv"),
        Step("packhorse.op.TopK", (3,), (4, 5), "top", attrs={"axis": "-1", "text": 'é "q"'}),
    )
    names = ("indices", "flag")
    return Program("net", entries, (0,), (1,), steps, (4, 5), names, {"device": "llvm-cpu"})


def document() -> dict:
    return json.loads(program_to_json(program()))


def test_round_trip():
    text = program_to_json(program())
    back = program_from_json(text)
    assert program_to_json(back) == text
    assert [e.name for e in back.entries] == ["x", "w", "zero", "conv", "top", "top:1"]
    assert [(e.shape, e.dtype, e.storage) for e in back.entries] == [
        (e.shape, e.dtype, e.storage) for e in program().entries
    ]
    assert back.steps == program().steps
    assert (back.name, back.output_names, back.metadata) == (
        "net",
        ("indices", "flag"),
        {"device": "llvm-cpu"},
    )


def test_schema_is_the_one_tvm_reads():
    found = document()
    assert list(found)[-1] == "metadata"  # TVM stops reading there
    assert found["arg_nodes"] == [0, 1]
    assert found["node_row_ptr"] == [0, 1, 2, 3, 4, 6]
    assert found["heads"] == [[4, 0, 0], [4, 1, 0]]
    assert found["nodes"][2]["attrs"] == {
        "func_name": "zero",
        "num_inputs": "0",
        "num_outputs": "1",
        "flatten_data": "0",
        "packhorse_once": "1",
    }
    assert found["attrs"]["storage_id"] == ["list_int", [0, 1, 2, 2, 3, 4]]
    assert "\\u" not in program_to_json(program())  # TVM's reader knows no such escape


def test_a_tensor_written_twice_becomes_two_entries_of_one_storage():
    entries = (Entry("x", (4,), "float32", 0), Entry("y", (4,), "float32", 1))
    steps = (Step("f", (0,), (1,), "f"), Step("g", (0,), (1,), "g"))
    back = program_from_json(program_to_json(Program("", entries, (0,), (), steps, (1,), ("y",))))
    assert back.outputs == (2,)
    assert [e.storage for e in back.entries] == [0, 1, 1]


def test_reads_what_tvm_wrote():
    text = (CONVNET / "deploy.json").read_text()
    found = program_from_json(text, {"p0", "p1", "p2", "p3"})
    assert [found.entries[i].name for i in found.inputs] == ["data"]
    assert [found.entries[i].name for i in found.params] == ["p0", "p1", "p2", "p3"]
    assert found.steps[0].function == "tvmgen_default_fused_layout_transform"
    assert found.steps[0].attrs["dst_layout"] == "NCHW3c"
    assert found.metadata == {"alignment": "strict", "device_type": "1"}
    assert found.output_names == ("output_0", "output_1")
    assert len(program_from_json(text).inputs) == 5  # TVM does not say which are weights
    again = program_from_json(program_to_json(found))
    assert again.metadata == found.metadata
    assert [again.entries[i].name for i in again.params] == ["p0", "p1", "p2", "p3"]


def test_flatten_data_is_kept():
    found = document()
    found["nodes"][3]["attrs"]["flatten_data"] = "1"
    back = program_from_json(json.dumps(found))
    assert back.steps[1].attrs == {"flatten_data": "1"}
    assert json.loads(program_to_json(back))["nodes"][3]["attrs"]["flatten_data"] == "1"


def test_attribute_names_of_the_schema_are_refused():
    entries = (Entry("x", (4,), "float32", 0), Entry("y", (4,), "float32", 1))
    steps = (Step("f", (0,), (1,), "f", attrs={"func_name": "g"}),)
    with pytest.raises(ArgumentValueError, match="'func_name'"):
        program_to_json(Program("", entries, (0,), (), steps, (1,), ("y",)))


def _set(*path_and_value):
    *path, last, value = path_and_value

    def change(found):
        for key in path:
            found = found[key]
        found[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("extra", 1), "unknown key 'extra'"),
        (_set("nodes", 0, "color", 1), "node 0 has the unknown key 'color'"),
        (_set("nodes", {}), "nodes must be a JSON array, found an object"),
        (_set("nodes", 0, "op", "conv"), "expected null or tvm_op"),
        (_set("nodes", 0, "inputs", [[0, 0, 0]]), "inputs.0. of node 0"),
        (_set("nodes", 3, "inputs", 0, [4, 0, 0]), "node of inputs.0. of node 3"),
        (_set("nodes", 3, "inputs", 0, [0, 1, 0]), "index of inputs.0. of node 3"),
        (_set("nodes", 3, "inputs", 0, [-1, 0, 0]), "expected 0 <= value"),
        (_set("nodes", 3, "inputs", 0, [True, 0, 0]), "must be an integer"),
        (_set("nodes", 3, "inputs", 0, [0]), "has 1 items"),
        (_set("nodes", 3, "attrs", "num_inputs", "9"), "says num_inputs '9', but has 3"),
        (_set("nodes", 3, "attrs", "func_name", ""), "needs a func_name"),
        (_set("nodes", 3, "attrs", "func_name", 3), "must be a string"),
        (_set("nodes", 3, "attrs", {}), "lacks the attribute 'func_name'"),
        (_set("nodes", 3, "control_deps", [3]), "control_deps"),
        (_set("nodes", 2, "attrs", "func_name", "__nop"), "__nop of 0 inputs"),
        (_set("nodes", 1, "name", "x"), "two inputs or params are called 'x'"),
        (_set("nodes", 1, "name", "\ud800"), "surrogate"),
        (_set("nodes", 1, "name", "a\0"), "NUL"),
        (_set("arg_nodes", [0, 0]), "arg_nodes"),
        (_set("arg_nodes", [0]), "arg_nodes"),
        (_set("heads", [[9, 0, 0]]), "heads"),
        (_set("node_row_ptr", [0, 1]), "node_row_ptr has 2 items for 5 nodes"),
        (_set("node_row_ptr", [0, 1, 2, 3, 2, 6]), "node_row_ptr falls"),
        (_set("node_row_ptr", 5, 7), "has 6 items, node_row_ptr asks for 7"),
        (_set("attrs", "dltype", 1, 0, "float31x"), "not a dtype"),
        (_set("attrs", "dltype", ["list_int", []]), "attrs.dltype must be"),
        (_set("attrs", "storage_id", 1, 0, -1), "storage_id"),
        (_set("attrs", "storage_id", 1, 0, 1 << 40), "storage_id"),
        (_set("attrs", "shape", 1, 0, [1] * 40), "40 dimensions"),
        (_set("attrs", "shape", 1, 0, [2.5]), "must be an integer"),
        (_set("attrs", "shape", 1, 0, [1 << 47, 1 << 47]), "more than the limit"),
        (_set("attrs", "device_index", ["list_int", [1, 1, 1, 1, 1, 2]]), "spread over devices"),
        (_set("attrs", "device_index", ["list_int", [1]]), "device_index"),
        (_set("metadata", "packhorse", "outputs", ["one"]), "1 output names for 2 outputs"),
        (_set("metadata", []), "metadata must be a JSON object"),
    ],
)
def test_damage_is_named(change, message):
    found = document()
    change(found)
    with pytest.raises(ArtifactError, match=message):
        program_from_json(json.dumps(found))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "must be a JSON object, found an array"),
        ("{}", "lacks the key 'arg_nodes'"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": ' + "[" * 200_000, "nested too deeply|not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        ("{" + "," * 5_000_000, "more than 1000000 values"),
    ],
)
def test_hostile_text(text, message):
    with pytest.raises(ArtifactError, match=message):
        program_from_json(text)


def test_too_long(monkeypatch):
    with pytest.raises(ArtifactError, match="more than 10"):
        _json.parse(" " * 11, "text", limit=10)


def test_the_sum_of_storages_is_bounded():
    with pytest.raises(ArtifactError, match="more than the limit of 100"):
        program_from_json(json.dumps(document()), max_storage=100)


def test_check_wants_writes_before_reads():
    entries = (Entry("x", (4,), "float32", 0), Entry("y", (4,), "float32", 1))
    early = Program("", entries, (0,), (), (Step("f", (1,), (1,), "f"),), (1,), ("y",))
    with pytest.raises(ArtifactError, match="step 'f' reads entry 1 before"):
        check(early)
    never = Program("", entries, (0,), (), (), (1,), ("y",))
    with pytest.raises(ArtifactError, match="never written"):
        check(never)
    beyond = Program("", entries, (5,), (), (), (0,), ("y",))
    with pytest.raises(ArtifactError, match="names entry 5, but there are 2"):
        check(beyond)


@pytest.mark.parametrize(
    ("name", "size"),
    [("float32", 4), ("bool", 1), ("uint1", 1), ("int4", 1), ("float32x4", 16), ("handle", 8),
     ("bfloat16", 2), ("float8_e4m3fn", 1), ("complex64", 8)],
)  # fmt: skip
def test_element_bytes(name, size):
    assert element_bytes(name) == size


def _attempt(data: bytes) -> None:
    try:
        program_from_json(data)
    except ArtifactError:
        return


def _fuzz(data: st.DataObject) -> None:
    text = bytearray(program_to_json(program()), "utf-8")
    if data.draw(st.booleans()):
        del text[data.draw(st.integers(0, len(text))) :]
    for _ in range(data.draw(st.integers(1, 4))):
        if text:
            place = data.draw(st.integers(0, len(text) - 1))
            text[place] ^= 1 << data.draw(st.integers(0, 7))
    _attempt(bytes(text))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_text_gives_artifact_errors_only(data):
    _fuzz(data)


@pytest.mark.fuzz
@settings(max_examples=100_000, deadline=None)
@given(st.data())
def test_damaged_text_long(data):
    _fuzz(data)


_leaf = st.one_of(st.integers(), st.text(max_size=5), st.none(), st.floats(allow_nan=False))
_value = st.recursive(_leaf, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


@settings(max_examples=150, deadline=None)
@given(st.data(), _value)
def test_any_value_anywhere(data, value):
    """Every place of a good document replaced by something of the wrong kind."""
    found = document()
    place, key = found, data.draw(st.sampled_from(sorted(found)))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
    place[key] = value
    _attempt(json.dumps(found).encode())
