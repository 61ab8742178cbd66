"""The cache of compiled code on disk: what is kept, what is thrown away, what is not trusted."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from packhorse.disk_cache import DiskCache, private_folder

POSIX = pytest.mark.skipif(os.name == "nt", reason="owners and modes are POSIX's")


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "code", limit=10_000)


def test_what_was_put_is_found(cache):
    assert cache.get("a") is None
    cache.put("a", b"code")
    cache.put("b", bytes(5000))
    assert (cache.get("a"), cache.get("b")) == (b"code", bytes(5000))
    cache.put("a", b"other")
    assert cache.get("a") == b"other"


def test_a_name_is_a_folder_of_the_cache_directory(tmp_path, monkeypatch):
    cache = DiskCache("code")
    monkeypatch.setenv("PACKHORSE_CACHE_DIR", str(tmp_path / "first"))
    cache.put("a", b"code")
    assert cache.folder == tmp_path / "first" / "code"
    monkeypatch.setenv("PACKHORSE_CACHE_DIR", str(tmp_path / "second"))
    assert cache.get("a") is None


def damaged(raw: bytes) -> list[bytes]:
    flipped = bytearray(raw)
    flipped[-1] ^= 1
    return [b"", raw[:10], raw[:32], raw[:-1], raw + b"x", bytes(flipped), b"x" * 100]


@pytest.mark.parametrize("which", range(7))
def test_damaged_files_are_not_there_and_removed(cache, which):
    cache.put("a", b"some code")
    path = cache.folder / "a.bin"
    path.write_bytes(damaged(path.read_bytes())[which])
    assert cache.get("a") is None
    assert not path.exists()
    cache.put("a", b"some code")
    assert cache.get("a") == b"some code"


def test_a_file_under_another_key_is_not_taken(cache):
    cache.put("a", b"code of a")
    os.rename(cache.folder / "a.bin", cache.folder / "b.bin")
    assert cache.get("b") is None


def test_a_file_larger_than_the_cache_is_not_read(cache):
    cache.put("a", b"code")
    with open(cache.folder / "a.bin", "wb") as file:
        file.truncate(1 << 40)  # takes no space: all of it is a hole
    assert cache.get("a") is None


@POSIX
def test_links_pipes_and_folders_are_not_read(cache, tmp_path):
    for key in ("link", "pipe", "folder"):
        cache.put(key, b"code")
    link, pipe, folder = (cache.folder / f"{k}.bin" for k in ("link", "pipe", "folder"))
    os.rename(link, tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere")
    pipe.unlink()
    os.mkfifo(pipe)
    folder.unlink()
    folder.mkdir()
    assert [cache.get(key) for key in ("link", "pipe", "folder")] == [None] * 3
    assert (tmp_path / "elsewhere").exists()


@POSIX
def test_code_that_others_could_write_is_not_taken(cache):
    cache.put("a", b"code")
    cache.folder.chmod(0o777)
    assert cache.get("a") is None
    cache.put("b", b"code")  # makes it private again
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert cache.get("b") == b"code"


@POSIX
def test_the_folder_of_another_user_is_not_used(cache, monkeypatch):
    cache.put("a", b"code")
    if os.getuid() == 0:  # what belongs to root is trusted
        os.chown(cache.folder, 54321, -1)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert cache.get("a") is None
    before = sorted(cache.folder.iterdir())
    cache.put("b", b"code")
    assert sorted(cache.folder.iterdir()) == before
    with pytest.raises(PermissionError, match="another user"):
        private_folder(cache.folder)


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = DiskCache(tmp_path / "file" / "code")
    cache.put("a", b"code")
    cache.shrink()
    assert cache.get("a") is None


def test_a_disk_that_cannot_be_written_is_no_error(cache, monkeypatch):
    cache.put("a", b"code")

    def refuse(*args):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(os, "utime", refuse)
    cache.put("b", b"code")
    assert (cache.get("a"), cache.get("b")) == (b"code", None)
    assert [p.name for p in cache.folder.iterdir()] == ["a.bin"]  # no temporary file stays


def test_it_is_bounded_and_the_oldest_go_first(cache):
    for i in range(40):
        cache.put(f"k{i}", bytes(1000))
        os.utime(cache.folder / f"k{i}.bin", (i, i))
        cache.get("k0")  # used again and again
    cache.shrink()
    kept = {p.stem for p in cache.folder.iterdir()}
    assert sum(p.stat().st_size for p in cache.folder.iterdir()) <= cache.limit
    assert "k0" in kept
    assert "k39" in kept
    assert "k1" not in kept


def test_it_shrinks_by_itself(cache):
    for i in range(100):
        cache.put(f"k{i}", bytes(1000))
    held = sum(p.stat().st_size for p in cache.folder.iterdir())
    assert held <= cache.limit + cache.limit // 16 + 1032
    cache.put("large", bytes(20_000))
    assert cache.get("large") is None


def test_what_crashed_writers_left_is_removed(cache):
    cache.put("a", b"code")
    old, new = cache.folder / "old.tmp", cache.folder / "new.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    cache.shrink()
    assert (old.exists(), new.exists()) == (False, True)


def test_many_writers_of_one_key(cache):
    """Readers see one of the contents whole, whoever writes: threads here, a process beside."""
    contents = {bytes([i]) * 3000 for i in range(4)}
    code = (
        "import sys; from pathlib import Path; from packhorse.disk_cache import DiskCache\n"
        "cache = DiskCache(Path(sys.argv[1]))\n"
        "for i in range(300): cache.put('a', bytes([i % 4]) * 3000)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(cache.folder)])
    writers = [
        threading.Thread(target=lambda c=c: [cache.put("a", c) for _ in range(50)])
        for c in contents
    ]
    for writer in writers:
        writer.start()
    seen = {cache.get("a") for _ in range(300)}
    for writer in writers:
        writer.join()
    assert other.wait(60) == 0
    assert seen <= contents | {None}
    assert cache.get("a") in contents


@POSIX
def test_a_cache_filled_by_the_administrator_is_read(tmp_path, monkeypatch):
    """As in a container image: owned by root, written by nobody else."""
    cache = DiskCache(tmp_path / "code")
    cache.put("a", b"code")
    real = os.stat

    def owned_by_root(path, *args, **options):
        found = real(path, *args, **options)
        if Path(path) != cache.folder:
            return found
        return os.stat_result((0o40755, *found[1:4], 0, *found[5:10]))

    monkeypatch.setattr(os, "stat", owned_by_root)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert cache.get("a") == b"code"
