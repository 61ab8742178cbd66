"""Writes golden.json: sample contents and what the package magika 1.0.3 says of them.

Run in a fresh virtual environment with nothing but magika in it:

    python -m venv /tmp/magika && /tmp/magika/bin/pip install magika==1.0.3
    /tmp/magika/bin/python tests/data/magika/make_golden.py
"""

import base64
import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from pathlib import Path

from magika import Magika

PYTHON = b'''import os


def main(names: list[str]) -> int:
    """Print the size of each file."""
    for name in names:
        print(name, os.path.getsize(name))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(["a", "b"]))
'''
HTML = b"<!doctype html><html><head><title>x</title></head><body><p>Hello</p></body></html>\n"
C = b'#include <stdio.h>\n\nint main(void)\n{\n    printf("%d\\n", 42);\n    return 0;\n}\n'
MARKDOWN = (
    b"# Title\n\nSome *text* with a [link](https://example.org).\n\n- one\n- two\n\n```\nx\n```\n"
)
SHELL = b'#!/bin/sh\nset -e\nfor f in *.txt; do\n  echo "$f"\ndone\n'


def png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + bytes(6) + b"\0" + bytes(6))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def zipped() -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.txt"), "hello")
    return memory.getvalue()


def samples() -> dict[str, bytes]:
    noise = random.Random(1)
    words = [noise.choice(["lorem", "ipsum", "dolor", "sit"]) for _ in range(900)]
    return {
        "empty": b"",
        "one byte": b"x",
        "seven bytes of text": b"abc def",
        "seven bytes, not UTF-8": b"\xff\xfe\xfd\x80\x81\x82\x83",
        "eight bytes": b"abcdefgh",
        "white space only": b" \n\t" * 50,
        "white space around seven bytes": b"  \n" * 20 + b"abc def" + b"\n" * 20,
        "white space over more than a block": b" " * 5000 + PYTHON,
        "vertical tab and form feed": b"\x0b\x0c" * 5 + C,
        "python": PYTHON,
        "python, three blocks": PYTHON * 40,
        "json": json.dumps({"a": [1, 2, 3], "b": {"c": None}}, indent=1).encode(),
        "html": HTML,
        "c": C,
        "markdown": MARKDOWN,
        "shell": SHELL,
        "words": " ".join(words).encode(),
        "exactly one block": (C * 60)[:4096],
        "one byte more than a block": (C * 60)[:4097],
        "1024 bytes": (HTML * 20)[:1024],
        "png": png(),
        "zip": zipped(),
        "gzip": gzip.compress(PYTHON, mtime=0),
        "noise": noise.randbytes(3000),
        "zeros": bytes(2000),
        "latin-1": "élève à l'œuvre où çà".encode("latin-1", "ignore") * 3,
        "unsure": b"key value other\nthird fourth\n",
        "csv": b"a,b,c\n1,2,3\n4,5,6\n7,8,9\n",
    }


def main() -> None:
    magika = Magika()
    golden = {}
    for name, content in samples().items():
        found = magika.identify_bytes(content)
        golden[name] = {
            "content": base64.b64encode(zlib.compress(content, 9)).decode(),
            "label": str(found.output.label),
            "score": found.score,
        }
    target = Path(__file__).with_name("golden.json")
    target.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
