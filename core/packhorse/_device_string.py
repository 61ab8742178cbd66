"""The grammar of device strings. Public names are re-exported by :mod:`packhorse.device`.

::

    device  = hop* local
    hop     = ("rpc" | "rpc+tls") "://" host [":" port] "/"       port 9190 unless given
    local   = backend [":" index] ["?" key "=" value ("&" key "=" value)*]
    backend = letter, then letters and digits, words joined by "-"
    index   = 1 to 4 digits, 0 unless given
    choice  = device ("," device)* | "auto" | "auto:cpu" | "auto:gpu"

Case does not matter but in option values; values are percent-decoded. Options whose key starts
with ``rpc.`` belong to the hops, the others to the device. ``rpc://host`` alone means
``rpc://host:9190/auto``. The canonical text has lower case, index, port and sorted options: it is
the identity of a device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from packhorse.errors import DeviceStringError

__all__ = [
    "AUTO",
    "DEFAULT_PORT",
    "DeviceString",
    "Hop",
    "is_backend_word",
    "parse",
    "parse_choice",
]

DEFAULT_PORT = 9190
_LONGEST = 1024
AUTO = ("auto", "auto:cpu", "auto:gpu")
"""The words that leave the choice to packhorse."""

_SCHEMES = ("rpc", "rpc+tls")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_BACKEND = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_KEY = re.compile(r"[a-z][a-z0-9_]*([.-][a-z0-9_]+)*")
_SECRET = re.compile(r"(^|[._-])(token|password|passwd|secret|api[_-]?key|auth|credentials?)$")
_USERINFO = re.compile(r"://[^?]*@")
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")
_PLAIN = re.compile(r"[a-zA-Z0-9/:.~_+@-]*")
_SAFE = "/:.~_-+@"  # kept readable in canonical option values; all others are percent-encoded
_NO_SECRETS = (
    "device strings are written to logs; put the secret into PACKHORSE_RPC_TOKEN "
    "or into a file named by rpc.token_file="
)


@dataclass(frozen=True)
class Hop:
    """One machine on the way to the device."""

    scheme: str
    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}/"


@dataclass(frozen=True)
class DeviceString:
    """A parsed device string; ``str()`` gives the canonical text.

    Attributes
    ----------
    hops : tuple of Hop
        Machines to go through, outermost first; empty for a device of this machine.
    backend : str
        Backend word, or one of :data:`AUTO`.
    index : int
        Which of the backend's devices.
    options : tuple of (key, value)
        Decoded, sorted by key, those of the hops (``rpc.``) included.
    """

    hops: tuple[Hop, ...] = ()
    backend: str = "cpu"
    index: int = 0
    options: tuple[tuple[str, str], ...] = ()

    @property
    def is_auto(self) -> bool:
        """True when packhorse is to choose."""
        return self.backend in AUTO

    def __str__(self) -> str:
        local = self.backend if self.is_auto else f"{self.backend}:{self.index}"
        options = "&".join(f"{k}={_quoted(v)}" for k, v in self.options)
        return "".join(map(str, self.hops)) + local + (f"?{options}" if options else "")


def _quoted(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    from urllib.parse import quote

    return quote(value, safe=_SAFE)


@lru_cache(maxsize=1024)
def parse(text: str) -> DeviceString:
    """Parse one device string.

    Raises
    ------
    DeviceStringError
        It does not follow the grammar, or holds a secret (which the message does not repeat).
    """
    if not isinstance(text, str):
        raise DeviceStringError(f"a device is named by a string, not by {type(text).__name__}")
    _check_characters(text)
    found = _parsed(text)
    length = len(str(found))
    if length > _LONGEST:  # escaped options are longer; the name of a device must name it again
        raise _error(text, f"has a name of {length} characters; at most {_LONGEST} are allowed")
    return found


def _parsed(text: str) -> DeviceString:
    if "," in text:
        raise DeviceStringError(
            f"device string {_shown(text)} names several devices where one is needed; "
            "in an option value a comma is written %2C"
        )
    hops, rest = _hops(text)
    word, question, tail = rest.partition("?")
    local = word.lower() or ("auto" if hops else "")
    options = _options(text, tail) if question else ()
    for key, _ in options:
        if key.startswith("rpc.") and not hops:
            raise _error(text, f"option '{key}' belongs to rpc://, and there is no such part")
    if local in AUTO:
        if any(not key.startswith("rpc.") for key, _ in options):
            raise _error(text, f"'{local}' takes no options; name the device they are for")
        return DeviceString(hops, local, 0, options)
    backend, colon, index = local.partition(":")
    if backend == "auto":
        raise _error(text, f"'{local}' is unknown; it is one of {', '.join(AUTO)}")
    return DeviceString(hops, _backend(text, backend), _index(text, colon, index), options)


def parse_choice(text: str) -> tuple[DeviceString, ...]:
    """Parse a device string or a comma-separated list of them, in order of preference.

    Raises
    ------
    DeviceStringError
        A part does not follow the grammar, is empty, occurs twice, or is ``auto`` among others.
    """
    if not isinstance(text, str) or "," not in text:
        return (parse(text),)
    _check_characters(text)
    parts = text.split(",")
    if not all(parts):
        raise DeviceStringError(f"list of devices {_shown(text)} has an empty entry")
    found = tuple(parse(part) for part in parts)
    if any(device.is_auto and not device.hops for device in found):
        raise DeviceStringError(
            f"list of devices {_shown(text)}: 'auto' tries every device, so it stands alone"
        )
    if len(set(found)) < len(found):
        raise DeviceStringError(f"list of devices {_shown(text)} names one device twice")
    return found


def _shown(text: str) -> str:
    """The string as errors quote it: what could be a secret is left out, long ones are cut."""
    text = re.sub(r"(://)[^?]*@", r"\1***@", text)
    text = re.sub(
        r"(?i)((?:token|passw(?:or)?d|secret|key|auth|credentials?)=)[^&,]*", r"\1***", text
    )
    return repr(text if len(text) <= 120 else text[:117] + "...")


def _error(text: str, what: str) -> DeviceStringError:
    return DeviceStringError(f"device string {_shown(text)}: {what}")


def _check_characters(text: str) -> None:
    if not text:
        raise DeviceStringError(
            "the device string is empty; write for example 'cpu', 'llvm-cpu?threads=2' or 'auto'"
        )
    if len(text) > _LONGEST:
        raise _error(text, f"is {len(text)} characters long; at most {_LONGEST} are allowed")
    if _USERINFO.search(text):
        raise _error(text, f"holds user or password; {_NO_SECRETS}")
    for character in text:
        if not "!" <= character <= "~":
            what = "a space" if character == " " else f"the character {character!a}"
            raise _error(text, f"holds {what}; remove it, or percent-encode it in an option value")


def _hops(text: str) -> tuple[tuple[Hop, ...], str]:
    hops, rest = [], text
    while match := _SCHEME.match(rest.lower()):
        scheme = match.group()[:-3]
        if scheme not in _SCHEMES:
            raise _error(text, f"'{scheme}://' is unknown; it is rpc:// or rpc+tls://")
        place, slash, rest = rest[match.end() :].partition("/")
        if "?" in place:
            raise _error(text, "options follow the device: write '/auto?' before them")
        hops.append(_hop(text, scheme, place.lower()))
        if not slash:
            break
    return tuple(hops), rest


def _hop(text: str, scheme: str, place: str) -> Hop:
    if place.startswith("["):
        literal, bracket, tail = place[1:].partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            raise _error(text, "an IPv6 address is written [address]:port")
        host, colon, port = _ipv6(text, literal), tail[:1], tail[1:]
    else:
        host, colon, port = place.partition(":")
        if ":" in port:
            raise _error(text, "an IPv6 address is written in brackets: [::1]:9190")
        if not _HOST.fullmatch(host):
            raise _error(text, f"'{host}' is not a host name" if host else "the host is missing")
    if not colon:
        return Hop(scheme, host)
    if not port.isdigit() or len(port) > 5 or not 1 <= int(port) <= 65535:
        raise _error(text, f"port '{port}' is not a number from 1 to 65535")
    return Hop(scheme, host, int(port))


def _ipv6(text: str, literal: str) -> str:
    import ipaddress  # only rpc devices pay for it

    try:
        if "%" in literal:  # a zone names an interface of one machine, so it is no identity
            raise ValueError
        return str(ipaddress.IPv6Address(literal))
    except ValueError:
        raise _error(text, f"'{literal}' is not an IPv6 address") from None


def is_backend_word(word: str) -> bool:
    """True when a backend of that name can be written in a device string."""
    return _BACKEND.fullmatch(word) is not None and word not in AUTO


def _backend(text: str, word: str) -> str:
    if not word:
        raise _error(text, "the backend is missing; write for example cpu:0")
    if not _BACKEND.fullmatch(word):
        dashed = word.replace("_", "-")
        hint = f" (did you mean '{dashed}'?)" if _BACKEND.fullmatch(dashed) else ""
        raise _error(
            text,
            f"'{word}' is not a backend name{hint}: a letter, then letters and digits, "
            "joined by '-'",
        )
    return word


def _index(text: str, colon: str, index: str) -> int:
    if not colon:
        return 0
    if not index.isdigit() or len(index) > 4:
        raise _error(text, f"index '{index}' is not a number of 1 to 4 digits")
    return int(index)


def _options(text: str, tail: str) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for part in tail.split("&"):
        key, equals, value = part.partition("=")
        key = key.lower()
        if not key or not equals or not value:
            missing = f"option '{key}' has no value" if key else "an option is empty"
            raise _error(text, f"{missing}; options are written key=value, joined by '&'")
        if not _KEY.fullmatch(key):
            raise _error(text, f"'{key}' is not an option name")
        if _SECRET.search(key):
            raise _error(text, f"option '{key}' is a secret; {_NO_SECRETS}")
        if key in found:
            raise _error(text, f"option '{key}' is given twice")
        found[key] = _decoded(text, key, value)
    return tuple(sorted(found.items()))


def _decoded(text: str, key: str, value: str) -> str:
    if "%" not in value:
        return value
    from urllib.parse import unquote  # few strings need it, and `import packhorse` pays for it

    if _BAD_ESCAPE.search(value):
        raise _error(text, f"option '{key}': '%' must be followed by two hexadecimal digits")
    try:
        decoded = unquote(value, errors="strict")
    except UnicodeDecodeError:
        raise _error(text, f"option '{key}': the percent-encoded bytes are not UTF-8") from None
    if any(ord(character) < 32 or ord(character) == 127 for character in decoded):
        raise _error(text, f"option '{key}' holds a control character")
    return decoded
