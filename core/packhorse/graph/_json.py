"""Strict JSON for files of unknown origin.

:func:`parse` bounds size, nesting and the number of values before and while parsing, and refuses
what JSON readers disagree about: repeated keys, NaN, lone surrogates. The small checkers name
the place in the document. Everything wrong is an :class:`ArtifactError`.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from packhorse.errors import ArtifactError

__all__ = ["MAX_TEXT", "integer", "integers", "listing", "mapping", "only_keys", "parse", "text"]

MAX_TEXT = 32 << 20
"""Longest document read, in bytes."""
_MAX_VALUES = 1_000_000
"""Far beyond any graph; as Python objects they take 80 MB at most."""


def parse(source: str | bytes, what: str, limit: int = MAX_TEXT) -> dict[str, Any]:
    """The object that a JSON document holds.

    Raises
    ------
    ArtifactError
        Too long, not UTF-8, not JSON, nested too deeply, a key twice, NaN, or not an object.
    """
    if len(source) > limit:
        raise ArtifactError(f"{what} is {len(source)} characters long, more than {limit}")
    # Containers and commas bound the number of values, so memory is bounded before parsing.
    try:
        document = source if isinstance(source, str) else source.decode("utf-8")
        if sum(map(document.count, "[{,")) > _MAX_VALUES:
            raise ArtifactError(f"more than {_MAX_VALUES} values; the file is damaged")
        found = json.loads(
            document,
            object_pairs_hook=_unique,
            parse_constant=_refuse,
        )
    except ArtifactError as error:
        raise ArtifactError(f"{what}: {error}") from None
    except RecursionError:
        raise ArtifactError(f"{what} is nested too deeply; the file is damaged") from None
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{what} is not UTF-8 at byte {error.start}; it is damaged") from None
    except ValueError as error:  # JSONDecodeError says line and column; ints may be too long
        raise ArtifactError(
            f"{what} is not valid JSON: {error}; the file is damaged or truncated"
        ) from None
    return mapping(found, what)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ArtifactError(f"the key {twice!r:.80} occurs twice in one object")
    return made


def _refuse(word: str) -> NoReturn:
    raise ArtifactError(f"{word} is not a JSON number")


def mapping(value: Any, where: str) -> dict[str, Any]:
    """``value`` if it is an object."""
    if not isinstance(value, dict):
        raise ArtifactError(f"{where} must be a JSON object, found {_kind(value)}")
    return value


def listing(value: Any, where: str) -> list[Any]:
    """``value`` if it is an array."""
    if not isinstance(value, list):
        raise ArtifactError(f"{where} must be a JSON array, found {_kind(value)}")
    return value


def text(value: Any, where: str) -> str:
    """``value`` if it is a string of real characters."""
    if not isinstance(value, str):
        raise ArtifactError(f"{where} must be a string, found {_kind(value)}")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ArtifactError(f"{where} holds half a surrogate pair; the file is damaged")
    if "\0" in value:
        raise ArtifactError(f"{where} holds a NUL character; the file is damaged")
    return value


def integer(value: Any, where: str, low: int, high: int) -> int:
    """``value`` if it is an integer with ``low <= value < high``."""
    if type(value) is not int:
        raise ArtifactError(f"{where} must be an integer, found {_kind(value)}")
    if not low <= value < high:
        raise ArtifactError(f"{where} is {value!s:.40}, expected {low} <= value < {high}")
    return value


def integers(value: Any, where: str, low: int, high: int) -> list[int]:
    """``value`` if it is an array of integers within bounds."""
    found = listing(value, where)
    for i, item in enumerate(found):
        if type(item) is not int or not low <= item < high:
            integer(item, f"{where}[{i}]", low, high)
    return found


def only_keys(value: dict[str, Any], where: str, allowed: frozenset[str]) -> None:
    """Refuse keys that the schema does not have: TVM refuses them as well."""
    unknown = sorted(set(value) - allowed)
    if unknown:
        raise ArtifactError(
            f"{where} has the unknown key {unknown[0]!r:.80}; "
            f"known are {', '.join(sorted(allowed))}"
        )


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", type(None): "null"}
    return names.get(type(value), repr(value)[:40])
