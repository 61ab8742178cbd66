"""Built programs on disk: one file per key, written atomically, checked when read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from packhorse._config import cache_dir

__all__ = ["ProgramCache"]

_DIGEST = 32


class ProgramCache:
    """Binaries by key. Losing one costs time only: every failure counts as "not there".

    Parameters
    ----------
    limit : int
        Bytes it may grow to; the least recently used files go first.
    """

    def __init__(self, limit: int = 256 << 20) -> None:
        self.limit = limit

    @property
    def folder(self) -> Path:
        """Where the files are: ``opencl`` in the cache directory."""
        return cache_dir("opencl")

    def get(self, key: str) -> bytes | None:
        """The binary, or None. A file whose digest does not fit is removed."""
        path = self.folder / f"{key}.bin"
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        digest, data = raw[:_DIGEST], raw[_DIGEST:]
        with contextlib.suppress(OSError):
            if len(raw) <= _DIGEST or hashlib.sha256(data).digest() != digest:
                path.unlink()
                return None
            os.utime(path)  # for the least-recently-used order
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep a binary; a full or read-only disk is no error."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(data).digest() + data)
                os.replace(name, self.folder / f"{key}.bin")
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
            self._shrink()

    def _shrink(self) -> None:
        files = []
        for path in self.folder.glob("*.bin"):
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
