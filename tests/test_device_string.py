"""The grammar of device strings."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.device import DeviceString, Hop, parse, parse_choice
from packhorse.errors import DeviceStringError

CANONICAL = {
    "cpu": "cpu:0",
    "CUDA": "cuda:0",
    "cuda:1": "cuda:1",
    "cuda:0001": "cuda:1",
    "llvm-cpu?threads=4": "llvm-cpu:0?threads=4",
    "llvm-cpu?threads=4&cpu=Znver4": "llvm-cpu:0?cpu=Znver4&threads=4",
    "LLVM-CPU:0?Threads=4": "llvm-cpu:0?threads=4",
    "wasm?fuel=1000": "wasm:0?fuel=1000",
    "x?path=/a%20b%26c": "x:0?path=/a%20b%26c",
    "x?a=b=c": "x:0?a=b%3Dc",
    "x?name=%c3%a9": "x:0?name=%C3%A9",
    "rpc://host:9190/opencl:0": "rpc://host:9190/opencl:0",
    "rpc://Host/opencl": "rpc://host:9190/opencl:0",
    "rpc://host": "rpc://host:9190/auto",
    "rpc://host/": "rpc://host:9190/auto",
    "rpc://host/?rpc.timeout=5": "rpc://host:9190/auto?rpc.timeout=5",
    "rpc://host:1/auto:gpu": "rpc://host:1/auto:gpu",
    "rpc+tls://[::1]:9190/cuda:2?graph=1": "rpc+tls://[::1]:9190/cuda:2?graph=1",
    "rpc://[0:0:0::1]/cpu": "rpc://[::1]:9190/cpu:0",
    "rpc://gw:9190/rpc://board:9191/hexagon:0": "rpc://gw:9190/rpc://board:9191/hexagon:0",
    "rpc://h/x?rpc.token_file=/k": "rpc://h:9190/x:0?rpc.token_file=/k",
    "auto": "auto",
    "AUTO:GPU": "auto:gpu",
}


@pytest.mark.parametrize(("text", "canonical"), CANONICAL.items())
def test_canonical_text(text, canonical):
    assert str(parse(text)) == canonical
    assert parse(canonical) == parse(text)


BAD = {
    "": "empty",
    " cuda": "a space",
    "cuda :1": "a space",
    "cuda\n": "character",
    "cu\u212aa": "character",  # a Kelvin sign, whose lower case is k
    "cuda:": "index ''",
    "cuda:x": "index 'x'",
    "cuda:-1": "index '-1'",
    "cuda:12345": "1 to 4 digits",
    "cuda:1:2": "index '1:2'",
    ":1": "backend is missing",
    "?a=b": "backend is missing",
    "1cuda": "not a backend name",
    "llvm_cpu": "not a backend name",
    "llvm--cpu": "not a backend name",
    "cpu-": "not a backend name",
    "cpu?": "an option is empty",
    "cpu?threads": "'threads' has no value",
    "cpu?threads=": "'threads' has no value",
    "cpu?threads=1&": "an option is empty",
    "cpu?threads=1&threads=2": "given twice",
    "cpu?threads=1&THREADS=1": "given twice",
    "cpu?1=2": "not an option name",
    "cpu?a=%": "hexadecimal",
    "cpu?a=%zz": "hexadecimal",
    "cpu?a=%ff": "not UTF-8",
    "cpu?a=%00": "control character",
    "cpu?rpc.timeout=5": "no such part",
    "cuda,cpu": "several devices",
    "auto?threads=2": "takes no options",
    "http://host/cpu": "'http://' is unknown",
    "rpc://": "host is missing",
    "rpc:///cpu": "host is missing",
    "rpc://-h/cpu": "not a host name",
    "rpc://h:0/cpu": "port '0'",
    "rpc://h:65536/cpu": "port '65536'",
    "rpc://h:/cpu": "port ''",
    "rpc://::1/cpu": "in brackets",
    "rpc://[::1/cpu": "[address]",
    "rpc://[::1]9/cpu": "[address]",
    "rpc://[::g]/cpu": "not an IPv6",
    "rpc://[fe80::1%25eth0]/cpu": "not an IPv6",
    "rpc://h?rpc.timeout=5": "'/auto?'",
}


@pytest.mark.parametrize(("text", "hint"), BAD.items())
def test_bad_strings_say_what_is_wrong(text, hint):
    with pytest.raises(DeviceStringError) as caught:
        parse(text)
    assert hint in str(caught.value)


def test_auto_has_no_index():
    with pytest.raises(DeviceStringError, match="auto"):
        parse("auto:0")


def test_only_strings_name_devices():
    with pytest.raises(DeviceStringError, match="int"):
        parse(3)


@pytest.mark.parametrize(
    "text",
    [
        "rpc://me:hunter2@host/cpu",
        "rpc://hunter2@host/cpu",
        "rpc://a/rpc://me:hunter2@b/cpu",
        "rpc://me:a/hunter2@host/cpu",
        "rpc://me:hun,hunter2@host/cpu,cpu",
        "cpu?token=hunter2",
        "cpu?API_KEY=hunter2",
        "rpc://h/cpu?rpc.password=hunter2",
        "cpu?threads=1&threads=2&secret=hunter2",
        "http://me:hunter2@host/",
    ],
)
def test_secrets_are_refused_and_not_repeated(text):
    with pytest.raises(DeviceStringError) as caught:
        parse_choice(text)
    assert "hunter2" not in str(caught.value)


def test_long_strings_are_cut_in_the_message():
    for text in ["x" * 10_000, "cpu?a=" + "x" * 1000 + "&a=1"]:
        with pytest.raises(DeviceStringError) as caught:
            parse(text)
        assert len(str(caught.value)) < 300


def test_choices():
    assert [str(d) for d in parse_choice("cuda,cpu")] == ["cuda:0", "cpu:0"]
    assert [str(d) for d in parse_choice("auto")] == ["auto"]
    for bad, hint in {
        "cuda,": "empty entry",
        ",": "empty entry",
        "cuda, cpu": "a space",
        "auto,cpu": "stands alone",
        "cuda,cuda:0": "twice",
    }.items():
        with pytest.raises(DeviceStringError, match=hint):
            parse_choice(bad)


def test_parse_remembers():
    assert parse("llvm-cpu?threads=4") is parse("llvm-cpu?threads=4")


def test_names_that_escaping_makes_too_long():
    assert parse(str(parse("a?o=" + '"' * 300))) == parse("a?o=" + '"' * 300)
    with pytest.raises(DeviceStringError, match="a name of 1206 characters; at most 1024"):
        parse("a?o=" + '"' * 400)


_word = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
_backend = st.lists(_word, min_size=1, max_size=3).map("-".join).filter(lambda w: w != "auto")
_hop = st.builds(
    Hop,
    st.sampled_from(["rpc", "rpc+tls"]),
    st.one_of(_word, st.sampled_from(["::1", "fe80::1", "10.0.0.1", "a.b-c"])),
    st.integers(1, 65535),
)
_value = st.text(  # one character is up to twelve in the name, which may have 1024
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\x7f"),
    min_size=1,
    max_size=20,
)
_options = st.dictionaries(_word.map(lambda w: "o" + w), _value, max_size=3)


@given(st.lists(_hop, max_size=2), _backend, st.integers(0, 9999), _options)
def test_canonical_text_parses_to_the_same(hops, backend, index, options):
    device = DeviceString(tuple(hops), backend, index, tuple(sorted(options.items())))
    assert parse(str(device)) == device
    assert str(parse(str(device).upper() if not options else str(device))) == str(device)


@given(st.text(st.sampled_from(string.printable + "é\u212a"), max_size=30))
def test_any_text_parses_or_is_refused(text):
    try:
        device = parse(text)
    except DeviceStringError:
        return
    assert parse(str(device)) == device


@given(st.text(st.sampled_from("rpc+tls://[]@:.?&=%,auto019-"), max_size=30))
def test_any_choice_parses_or_is_refused(text):
    try:
        devices = parse_choice(text)
    except DeviceStringError:
        return
    assert parse_choice(",".join(map(str, devices))) == devices
