"""Files that are replaced whole or not at all: survives a full disk, a crash, a power cut.

One file: written beside its place, synced, renamed. Several files of a folder that belong
together: written into a folder within it, which is renamed to :data:`COMMIT`; from then on the
save counts, and the files are moved out one by one, by whoever comes first: the writer, or after
a crash the next reader or writer. Other files of the folder are left alone.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from packhorse.errors import ArtifactError

__all__ = ["COMMIT", "Chunks", "locate", "recover", "replace_file", "replace_files"]

Chunks: TypeAlias = Sequence[bytes | memoryview]

COMMIT = ".packhorse-commit"
_GONE = ".removed"
_STALE_SECONDS = 3600


def replace_file(path: Path, chunks: Chunks, mode: int = 0o666) -> None:
    """Write a file, or leave the old one as it was.

    Raises
    ------
    ArtifactError
        It cannot be written; for a full disk with the bytes needed and free.
    """
    partial = path.with_name(_temporary(path.name))
    with _explained(path, chunks), _removed_on_error(partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent, path.name)
        _write(partial, chunks, mode)
        os.replace(partial, path)
        _sync_folder(path.parent)


def replace_files(folder: Path, files: Mapping[str, Chunks], owned: Sequence[str]) -> None:
    """Write several files of a folder at once: after a crash all are old or all are new.

    Parameters
    ----------
    folder : Path
        Created if need be.
    files : mapping of name to content
        Names out of ``owned``.
    owned : sequence of str
        All names that may belong together; those not in ``files`` are removed. They are moved
        in this order.

    Raises
    ------
    ArtifactError
        They cannot be written; for a full disk with the bytes needed and free.
    """
    staging = folder / _temporary("packhorse")
    every = [chunk for chunks in files.values() for chunk in chunks]
    with _explained(folder, every), _removed_on_error(staging):
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder, "packhorse")
        staging.mkdir()
        for name in owned:
            if name in files:
                _write(staging / name, files[name], 0o777 if name.endswith(".so") else 0o666)
            else:
                _write(staging / (name + _GONE), [], 0o666)
        _sync_folder(staging)
        recover(folder, owned)  # an earlier save that crashed comes first
        os.rename(staging, folder / COMMIT)
    try:
        _sync_folder(folder)
        recover(folder, owned)
    except OSError as error:
        raise ArtifactError(
            f"'{folder}' was saved but its files could not be moved into place: {error}; "
            "loading it with packhorse works, saving or loading with write access mends it"
        ) from error


def recover(folder: Path, owned: Iterable[str]) -> None:
    """Finish a save that was committed but not moved into place. Raises OSError."""
    commit = folder / COMMIT
    if not commit.is_dir():
        return
    for name in owned:
        # Another process may do the same: whoever is later finds nothing to move.
        with suppress(FileNotFoundError):
            os.replace(commit / name, folder / name)
        if (commit / (name + _GONE)).exists():
            (folder / name).unlink(missing_ok=True)
            (commit / (name + _GONE)).unlink(missing_ok=True)
    _sync_folder(folder)
    with suppress(FileNotFoundError):
        os.rmdir(commit)


def locate(folder: Path, name: str) -> Path | None:
    """Where a file of the folder is, also when a committed save could not be finished."""
    commit = folder / COMMIT
    if (commit / name).exists():
        return commit / name
    if (commit / (name + _GONE)).exists() or not (folder / name).exists():
        return None
    return folder / name


# ---------------------------------------------------------------- the pieces


def _write(path: Path, chunks: Chunks, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    with open(handle, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make renames durable. Windows cannot sync folders, and needs not."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary(name: str) -> str:
    return f".{name}.{secrets.token_hex(8)}.tmp"


def _sweep(folder: Path, name: str) -> None:
    """Remove what killed writers left, once it is too old to be in use."""
    for debris in folder.glob(f".{glob.escape(name)}.????????????????.tmp"):
        with suppress(OSError):
            if time.time() - debris.stat().st_mtime > _STALE_SECONDS:
                _remove(debris)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError):
            _remove(path)
        raise


@contextmanager
def _explained(path: Path, chunks: Chunks) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(_explanation(path, chunks, error)) from error


def _explanation(path: Path, chunks: Chunks, error: OSError) -> str:
    kept = "what was there before is unchanged"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f"'{path}' could not be written: {error.strerror or error}; {kept}"
    needed = sum(len(chunk) for chunk in chunks)
    try:
        free = f"{shutil.disk_usage(path.parent).free} are free"
    except OSError:
        free = "the file system does not say how many are free"
    return (
        f"'{path}' could not be written: {error.strerror}; {needed} bytes are needed, {free}. "
        f"Free some space or save elsewhere; {kept}"
    )
