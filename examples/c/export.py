"""Compiles y = sigmoid(a * x + b) over 1000 floats into one library, deploy.so.

python examples/c/export.py [deploy.so]
"""

import sys
from pathlib import Path

import onnx.parser

import packhorse as ph

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
scale (float[1000] a, float[1000] x, float[1000] b) => (float[1000] y)
{
   ax = Mul(a, x)
   sum = Add(ax, b)
   y = Sigmoid(sum)
}
"""


def main(target: str = "deploy.so") -> None:
    library = Path(target).absolute()
    onnx.save(onnx.parser.parse_model(MODEL), library.with_suffix(".onnx"))
    model = ph.load(library.with_suffix(".onnx"))
    model.compile("llvm-cpu").save(library)
    print(f"wrote {library.name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
