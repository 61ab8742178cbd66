"""Compiled objects on disk: one file per key, written atomically, checked when read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from packhorse._config import cache_dir

__all__ = ["ObjectCache"]

_DIGEST = 32


class ObjectCache:
    """Objects by key. Losing the cache costs time only: every failure counts as "not there".

    Parameters
    ----------
    folder : Path, optional
        Default: ``kernels`` in the cache directory, looked up at each use.
    limit : int
        Bytes it may grow to; the least recently used files go first.
    """

    def __init__(self, folder: Path | None = None, limit: int = 256 << 20) -> None:
        self._folder = folder
        self.limit = limit
        self._written = 0

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._folder if self._folder is not None else cache_dir("kernels")

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.o"

    def get(self, key: str) -> bytes | None:
        """The object, or None. A file whose digest does not fit is removed."""
        path = self._path(key)
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        digest, data = raw[:_DIGEST], raw[_DIGEST:]
        if len(raw) <= _DIGEST or hashlib.sha256(data).digest() != digest:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # for the least-recently-used order
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep an object; a full or read-only disk is no error."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._write(self._path(key), hashlib.sha256(data).digest() + data)
            self._written += len(data)
            if self._written > self.limit // 16:
                self._written = 0
                self.shrink()

    def _write(self, path: Path, raw: bytes) -> None:
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    def shrink(self) -> None:
        """Remove the least recently used files until the rest fits the limit."""
        files = []
        for path in self.folder.glob("*.o"):
            with contextlib.suppress(OSError):
                found = path.stat()
                files.append((found.st_mtime, found.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size
