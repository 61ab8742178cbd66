"""Load a trained model, run it on two devices, compile it, and run what was saved.

    python examples/first_model.py [FOLDER]

The artifact goes to FOLDER (default: a temporary one).
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import packhorse as ph

MODEL = Path(__file__).parent / "magika" / "model.onnx"


def main() -> None:
    model = ph.load(MODEL)
    for name, kind in model.inputs.items():
        print(f"takes {name}: {kind}")
    # The model reads the first and the last 1024 bytes of a file; 256 stands for "no byte".
    source = Path(__file__).read_bytes()
    x = np.full((1, 2048), 256, np.int32)
    x[0, :1024] = np.frombuffer(source[:1024], np.uint8)
    x[0, 1024:] = np.frombuffer(source[-1024:], np.uint8)

    best = {}
    for device in ("llvm-cpu", "cpu"):
        scores = model(x, device=device)
        best[device] = int(scores.argmax())
        print(f"{device}: type number {best[device]} with {scores.max():.1%}")

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else scratch) / "deploy"
        model.compile("llvm-cpu", shapes={"bytes": x.shape}).save(folder)
        with ph.load(folder) as again:  # needs no llvmlite and no onnx
            print(f"artifact on {again.device.name}: type number {int(again(x).argmax())}")


if __name__ == "__main__":
    main()
