"""Compiled artifacts: save and load.

Two forms with the same content. A folder holds TVM's triple ``deploy.json``, ``deploy.params``
and ``deploy.so``, which TVM's runtimes load too, and ``deploy.manifest.json`` with the hash of
each; folders that TVM wrote lack the manifest. A ``.packhorse`` file is a stored zip::

    manifest.json        format version, targets, inputs and outputs, sha256 of every member
    graph.json           the program, one more per target that needs its own
    params.safetensors   the weights, used where they are mapped
    lib/<target>.so      a shared library per target of host memory
    lib/<target>.code    code of other devices, in a form that the manifest names

Everything is checked before it is used; see SECURITY.md for what that does and does not mean.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from packhorse import _config
from packhorse._version import __version__
from packhorse.artifact_files import replace_file
from packhorse.artifact_manifest import FORMAT_VERSION, Member, check_kind, check_target
from packhorse.disk_cache import private_folder
from packhorse.errors import ArgumentValueError, ArtifactError, did_you_mean
from packhorse.graph.params import Array
from packhorse.graph.program import Program

__all__ = ["FORMAT_VERSION", "Artifact", "load_artifact", "save_artifact"]

SUFFIX = ".packhorse"


@dataclass(frozen=True)
class Artifact:
    """What a compiled model consists of.

    Attributes
    ----------
    programs : mapping of target to Program
        A target is a short word such as ``llvm-cpu`` or ``x86_64-linux-avx512``.
    params : mapping of str to ndarray
        The weights of all programs. Loaded ones are read-only views of the mapped file.
    libraries : mapping of target to bytes or Path
        Compiled code. A target without one runs on registered functions alone.
    kinds : mapping of target to str
        The form of its code, for targets whose library is no shared library of the host: what
        ``Module.save_blob`` called it and ``Device.load`` takes. Such targets are named like
        the backend that loads them.
    device : str
        Device string it was compiled for; empty if unknown (TVM's artifacts).
    metadata : mapping of str to str
        Free text pairs.
    packhorse_version : str
        Version that wrote it; empty for TVM's.
    members : mapping of str to Member
        Bytes and sha256 of every file it was read from, by name; empty when unknown (TVM's) and
        before it was saved.
    """

    programs: Mapping[str, Program]
    params: Mapping[str, Array]
    libraries: Mapping[str, bytes | Path] = field(default_factory=dict)
    device: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    packhorse_version: str = __version__
    members: Mapping[str, Member] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.programs:
            raise ArgumentValueError("an artifact needs at least one program; none was given")
        for target in (*self.programs, *self.libraries):
            check_target(target)
        lost = [target for target in self.libraries if target not in self.programs]
        if lost:
            raise ArgumentValueError(
                f"there is a library but no program for target '{lost[0]}'; programs are for "
                f"{', '.join(self.programs)}"
            )
        for target, kind in self.kinds.items():
            check_kind(kind)
            if target not in self.libraries:
                raise ArgumentValueError(
                    f"code of the kind '{kind}' was named for target '{target}', but none given"
                )

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets it can run on; the first is the default."""
        return tuple(self.programs)

    def program(self, target: str | None = None) -> Program:
        """The program for a target (default: the first); ArgumentValueError if there is none."""
        return self.programs[self._target(target)]

    def library_path(self, target: str | None = None) -> Path | None:
        """A shared library to load the target's code from; None when it has none.

        Code held in memory (from a ``.packhorse`` file) is written to a private cache folder,
        once per content.

        Raises
        ------
        ArgumentValueError
            No such target.
        ArtifactError
            The cache folder cannot be written, or others can write to it.
        """
        target = self._target(target)
        library = None if target in self.kinds else self.libraries.get(target)
        return _cached(library) if isinstance(library, bytes) else library

    def code(self, target: str | None = None) -> bytes | None:
        """The target's code, whatever its form; None when it has none.

        Raises
        ------
        ArgumentValueError
            No such target.
        ArtifactError
            Its file cannot be read.
        """
        library = self.libraries.get(self._target(target))
        try:
            return library.read_bytes() if isinstance(library, Path) else library
        except OSError as error:
            raise ArtifactError(
                f"the library '{library!s}' cannot be read: {error.strerror or error}"
            ) from error

    def _target(self, target: str | None) -> str:
        if target is None:
            return next(iter(self.programs))
        if target not in self.programs:
            raise ArgumentValueError(
                f"the artifact has no target '{target}'{did_you_mean(target, self.programs)}; "
                f"it was compiled for {', '.join(self.programs)}"
            )
        return target


def save_artifact(path: str | os.PathLike[str], artifact: Artifact) -> Path:
    """Write an artifact; what was there before is replaced whole, or kept whole on failure.

    Parameters
    ----------
    path : path-like
        ``name.packhorse`` for one file. A folder (existing, ending in a slash, or without a
        suffix) for the triple of TVM's formats, which holds one target. ``name.acme`` where a
        plugin of the group ``packhorse.formats`` is named ``acme``.
    artifact : Artifact

    Returns
    -------
    Path
        The file or folder written.

    Raises
    ------
    ArtifactError
        It cannot be written: says why, and for a full disk how much is needed.
    ArgumentValueError
        The path has another suffix, or a folder was asked for and there are several targets.
    ArgumentTypeError
        A weight has a dtype that the format lacks.
    """
    from packhorse import artifact_forms as forms

    text, where = os.fspath(path), Path(path)
    if where.suffix == SUFFIX and not where.is_dir():
        forms.save_file(where, artifact)
        return where
    if text.endswith(("/", os.sep)) or where.is_dir() or not where.suffix:
        forms.save_folder(where, artifact)
        return where
    from packhorse.plugin import default_manager
    from packhorse.plugin.formats import write_artifact

    written = write_artifact(default_manager(), where, artifact)
    if written is not None:
        return written
    raise ArgumentValueError(
        f"cannot tell the form of '{where}' from its suffix '{where.suffix}'; use "
        f"'{where.stem}{SUFFIX}' for one file, or '{where.stem}/' for a folder"
    )


def load_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Read an artifact of ours or TVM's ``deploy.*`` triple. No code is loaded or run.

    Parameters
    ----------
    path : path-like
        A ``.packhorse`` file, or a folder with ``deploy.json``.

    Raises
    ------
    ArtifactError
        No such file, not an artifact, truncated, damaged (a hash differs), or written by a newer
        packhorse. Names the member and the offset where that is known.
    """
    from packhorse import artifact_forms as forms

    where = Path(path)
    try:
        return forms.load_folder(where) if where.is_dir() else forms.load_file(where)
    except OSError as error:
        raise ArtifactError(
            f"'{where}' cannot be read: {error.strerror or error}; check the path"
        ) from error


def _cached(code: bytes) -> Path:
    """A file with this content that no other user could have changed."""
    folder = _config.cache_dir("libraries")
    name = f"{sha256(code).hexdigest()}.so"
    try:
        private_folder(folder)
    except OSError as error:
        raise ArtifactError(
            f"the cache folder '{folder}' cannot be used: {error.strerror or error}; set "
            "PACKHORSE_CACHE_DIR to a folder you can write to"
        ) from error
    path = folder / name
    with suppress(OSError):  # the content is compared: a cache may be damaged like any file
        if path.read_bytes() == code:
            return path
    replace_file(path, [code], 0o700)
    return path
