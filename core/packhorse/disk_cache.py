"""Compiled code on disk: one file per key, written whole, checked when read.

What is cached is run later, so files are taken only from a folder that no other user can write
to; :func:`private_folder` makes such folders.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
import time
from pathlib import Path

from packhorse._config import cache_dir

__all__ = ["DiskCache", "private_folder"]

_DIGEST = 32
_STALE_SECONDS = 3600
_OPEN = (
    os.O_RDONLY
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NOFOLLOW", 0)  # not what a link points to
    | getattr(os, "O_NONBLOCK", 0)  # a pipe in the place of a file must not stop us
)


class DiskCache:
    """Bytes by key. Losing them costs time only: every failure counts as "not there".

    Parameters
    ----------
    folder : str or Path
        A name: that folder of the cache directory (``$PACKHORSE_CACHE_DIR``), looked up at each
        use. A Path: that folder.
    limit : int
        Bytes it may grow to, give or take a sixteenth; the least recently used files go first.
    """

    def __init__(self, folder: str | Path, limit: int = 256 << 20) -> None:
        self._folder, self.limit = folder, limit
        self._written = 0

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return cache_dir(self._folder) if isinstance(self._folder, str) else self._folder

    def get(self, key: str) -> bytes | None:
        """The bytes kept under a key, or None. What :meth:`put` did not write is removed."""
        path = self._path(key)
        try:
            if not _trusted(os.stat(path.parent)):
                return None
            raw = self._read(path)
        except OSError:
            return None
        digest, data = raw[:_DIGEST], raw[_DIGEST:]
        with contextlib.suppress(OSError):
            if not data or _digest(key, data) != digest:
                path.unlink()
                return None
            os.utime(path)  # for the least-recently-used order
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep bytes. A full or read-only disk is no error, nor is a folder of another user."""
        if len(data) > self.limit:
            return
        with contextlib.suppress(OSError):
            private_folder(self.folder)
            self._write(self._path(key), _digest(key, data) + data)
            self._written += len(data)
            if self._written > self.limit // 16:
                self._written = 0
                self.shrink()

    def shrink(self) -> None:
        """Remove the least recently used files until the rest fits the limit, and the temporary
        files of writers that crashed."""
        for path in self.folder.glob("*.tmp"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - _STALE_SECONDS:
                    path.unlink()
        files = []
        for path in self.folder.glob("*.bin"):
            with contextlib.suppress(OSError):
                found = path.stat()
                files.append((found.st_mtime_ns, found.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.bin"

    def _read(self, path: Path) -> bytes:
        """A file's bytes; none of what is no plain file or larger than the cache."""
        handle = os.open(path, _OPEN)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_size > self.limit + _DIGEST:
                return b""
            return file.read()

    def _write(self, path: Path, raw: bytes) -> None:
        """Under a temporary name, then renamed, so that no reader sees half a file.

        Not synced to the disk, which takes 5 ms a file and as much again as compiling it: what a
        power cut leaves half written has the wrong digest.
        """
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def private_folder(folder: Path) -> None:
    """Make a folder that only this user can write to, or make the one that is there so.

    Raises
    ------
    OSError
        It cannot be made, or is another user's.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.name == "nt":  # the user's cache directory is private by its inherited access list
        return
    found = os.stat(folder)
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise PermissionError(
            errno.EACCES, "it belongs to another user, who could replace code in it"
        )
    if found.st_mode & 0o077:
        os.chmod(folder, 0o700)


def _trusted(folder: os.stat_result) -> bool:
    """Whether code may be taken out of it: a folder of ours, or one the administrator filled."""
    if os.name == "nt":
        return True
    return folder.st_uid in (0, os.getuid()) and not folder.st_mode & 0o022


def _digest(key: str, data: bytes) -> bytes:
    """With the key, so that a file under another's name is not taken for it."""
    return hashlib.sha256(key.encode() + b"\0" + data).digest()
