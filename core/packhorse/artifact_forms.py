"""The two forms of an artifact on disk: the ``deploy.*`` folder and the ``.packhorse`` file."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from packhorse.artifact import Artifact
from packhorse.artifact_files import Chunks, locate, recover, replace_file, replace_files
from packhorse.artifact_manifest import Manifest, Member, read_manifest
from packhorse.artifact_safetensors import load_safetensors, safetensors_chunks
from packhorse.artifact_zip import Part, Stored, read_zip, zip_chunks
from packhorse.errors import ArgumentValueError, ArtifactError
from packhorse.graph._devices import backend_of
from packhorse.graph.graph_json import program_from_json, program_to_json
from packhorse.graph.params import load_params, params_chunks
from packhorse.graph.program import Program

__all__ = ["load_file", "load_folder", "save_file", "save_folder"]

JSON, PARAMS, CODE, MANIFEST = "deploy.json", "deploy.params", "deploy.so", "deploy.manifest.json"
OTHER_CODE = "deploy.code"
"""Code that is no shared library, in the form that the manifest names."""
_OWNED = (CODE, OTHER_CODE, PARAMS, JSON, MANIFEST)
_FIRST, _WEIGHTS = "manifest.json", "params.safetensors"
_MAX_MANIFEST = 16 << 20
_ATTEMPTS = 3


@dataclass(frozen=True)
class _Content:
    """A member to be written."""

    chunks: Chunks
    member: Member


def _content(chunks: Chunks) -> _Content:
    digest, crc, size = sha256(), 0, 0
    for chunk in chunks:
        digest.update(chunk)
        crc = zlib.crc32(chunk, crc)
        size += len(chunk)
    return _Content(chunks, Member(size, digest.hexdigest(), crc))


# ---------------------------------------------------------------- the folder


def save_folder(folder: Path, artifact: Artifact) -> None:
    """Write the triple and its manifest."""
    if len(artifact.programs) > 1:
        raise ArgumentValueError(
            f"a folder holds one target, the artifact has {', '.join(artifact.programs)}; save it "
            f"as '{folder.name}.packhorse'"
        )
    target = artifact.targets[0]
    contents = {
        JSON: _content([program_to_json(artifact.program()).encode()]),
        PARAMS: _content(list(params_chunks(artifact.params))),
    }
    code, where = artifact.code(), OTHER_CODE if target in artifact.kinds else CODE
    if code is not None:
        contents[where] = _content([code])
    manifest = Manifest(
        artifact.device,
        {target: JSON},
        {target: where} if where in contents else {},
        PARAMS,
        {name: content.member for name, content in contents.items()},
        artifact.metadata,
        kinds=artifact.kinds,
    )
    files: dict[str, Chunks] = {name: content.chunks for name, content in contents.items()}
    files[MANIFEST] = [manifest.render(artifact.programs)]
    replace_files(folder, files, _OWNED)


def load_folder(folder: Path) -> Artifact:
    """Read the triple, with its manifest when it has one.

    A folder replaced meanwhile, some files read before and some after, is read again.
    """
    for _ in range(_ATTEMPTS):
        before = _identity(folder)
        try:
            return _load_folder(folder)
        except (ArtifactError, FileNotFoundError):
            if _identity(folder) == before:
                raise
    raise ArtifactError(f"'{folder}' is being replaced again and again; load it later")


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = (locate(folder, MANIFEST) or folder / JSON).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _load_folder(folder: Path) -> Artifact:
    with suppress(OSError):  # a folder that cannot be written is read as it is
        recover(folder, _OWNED)
    found = {name: locate(folder, name) for name in _OWNED}
    if found[JSON] is None:
        raise ArtifactError(
            f"'{folder}' has no {JSON}; an artifact is a folder with {JSON}, {PARAMS} and {CODE}, "
            "or a .packhorse file"
        )
    paths = {name: path for name, path in found.items() if path is not None}
    if MANIFEST in paths:
        return _ours(folder, paths)
    params = load_params(_map(paths[PARAMS])) if PARAMS in paths else {}
    program = _program(folder / JSON, _map(paths[JSON]), set(params))
    target = backend_of(program)
    code = {target: paths[CODE]} if CODE in paths else {}
    return Artifact({target: program}, params, code, packhorse_version="")


def _ours(folder: Path, paths: Mapping[str, Path]) -> Artifact:
    manifest = read_manifest(bytes(_map(paths[MANIFEST])), f"'{folder / MANIFEST}'")
    if len(manifest.programs) != 1 or not set(manifest.members) <= {*_OWNED} - {MANIFEST}:
        raise ArtifactError(f"'{folder / MANIFEST}' is not the manifest of a folder")
    data = {}
    for name, member in manifest.members.items():
        if name not in paths:
            raise ArtifactError(f"'{folder}' lacks {name}, which its manifest lists")
        data[name] = _map(paths[name])
        _verify(f"'{folder / name}'", data[name], member)
    target = next(iter(manifest.programs))
    return Artifact(
        {target: _program(folder / JSON, data[manifest.programs[target]], None)},
        load_params(data[manifest.params]),
        {
            target: bytes(data[name]) if target in manifest.kinds else paths[name]
            for target, name in manifest.libraries.items()
        },
        manifest.device,
        manifest.metadata,
        manifest.packhorse_version,
        manifest.members,
        manifest.kinds,
    )


# ---------------------------------------------------------------- the file


def save_file(path: Path, artifact: Artifact) -> None:
    """Write a ``.packhorse`` file."""
    contents = {_WEIGHTS: _content(safetensors_chunks(artifact.params))}
    programs: dict[str, str] = {}
    known: dict[str, str] = {}  # text -> member: targets may share a program
    for target, program in artifact.programs.items():
        text = program_to_json(program)
        name = known.setdefault(text, f"graph/{target}.json" if known else "graph.json")
        contents.setdefault(name, _content([text.encode()]))
        programs[target] = name
    libraries = {}
    for target in artifact.libraries:
        libraries[target] = f"lib/{target}.{'code' if target in artifact.kinds else 'so'}"
        contents[libraries[target]] = _content([artifact.code(target) or b""])
    manifest = Manifest(
        artifact.device,
        programs,
        libraries,
        _WEIGHTS,
        {name: content.member for name, content in contents.items()},
        artifact.metadata,
        kinds=artifact.kinds,
    )
    first = _content([manifest.render(artifact.programs)])
    parts = [
        Part(name, content.chunks, content.member.size, content.member.crc32)
        for name, content in {_FIRST: first, **contents}.items()
    ]
    replace_file(path, list(zip_chunks(parts)))


def load_file(path: Path) -> Artifact:
    """Map a ``.packhorse`` file and check all of it."""
    members = {member.name: member for member in read_zip(_map(path))}
    head = next(iter(members.values()))
    if head.name != _FIRST or len(head.data) > _MAX_MANIFEST:
        raise ArtifactError(f"'{path}' does not begin with {_FIRST}; it is not a .packhorse file")
    if zlib.crc32(head.data) != head.crc:
        raise ArtifactError(f"{_FIRST} at offset {head.offset} of '{path}' is damaged (CRC)")
    manifest = read_manifest(bytes(head.data), f"{_FIRST} of '{path}'")
    data = {name: _checked(path, name, m, members) for name, m in manifest.members.items()}
    extra = sorted(set(members) - set(data) - {_FIRST})
    if extra:
        raise ArtifactError(f"'{path}' holds '{extra[0]}', which its manifest does not list")
    programs = {
        name: _program(path / name, data[name], None)
        for name in dict.fromkeys(manifest.programs.values())
    }
    return Artifact(
        {target: programs[name] for target, name in manifest.programs.items()},
        load_safetensors(data[manifest.params], f"{manifest.params} of '{path}'"),
        {target: bytes(data[name]) for target, name in manifest.libraries.items()},
        manifest.device,
        manifest.metadata,
        manifest.packhorse_version,
        manifest.members,
        manifest.kinds,
    )


def _checked(path: Path, name: str, expected: Member, members: Mapping[str, Stored]) -> memoryview:
    found = members.get(name)
    if found is None:
        raise ArtifactError(f"'{path}' lacks the member '{name}', which its manifest lists")
    _verify(f"member '{name}' at offset {found.offset} of '{path}'", found.data, expected)
    if found.crc != expected.crc32:
        raise ArtifactError(f"the CRC of member '{name}' in '{path}' is wrong; it is damaged")
    return found.data


# ---------------------------------------------------------------- shared


def _verify(what: str, data: memoryview, expected: Member) -> None:
    if len(data) != expected.size:
        raise ArtifactError(
            f"{what} has {len(data)} bytes, its manifest says {expected.size}; it is truncated "
            "or was changed after it was saved"
        )
    if sha256(data).hexdigest() != expected.sha256:
        raise ArtifactError(
            f"{what} does not match the sha256 in its manifest; it is damaged or was changed "
            "after it was saved: save or copy it again"
        )


def _program(where: Path, data: memoryview, params: Collection[str] | None) -> Program:
    try:
        return program_from_json(bytes(data), params)
    except ArtifactError as error:
        raise ArtifactError(f"'{where}': {error}") from None


def _map(path: Path) -> memoryview:
    """A read-only view of a file, read page by page when it is used."""
    with open(path, "rb") as file:
        if not file.seek(0, 2):
            raise ArtifactError(f"'{path}' is empty; it is truncated")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
