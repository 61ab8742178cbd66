"""Packed functions: any mix of values in, one out, found by name; and tensors without copies.

python examples/packed_functions.py
"""

import numpy as np

import packhorse as ph


@ph.register_func("examples.scale")
def scale(x: ph.Tensor, factor: float) -> ph.Tensor:
    return ph.tensor(np.asarray(x) * np.float32(factor))


def main() -> None:
    function = ph.get_global_func("examples.scale")
    x = ph.tensor([1, 2, 3], dtype="float32")
    print("scaled", np.asarray(function(x, 2.5)))

    # DLPack both ways: the tensor and the array are one memory
    array = np.zeros(3, np.float32)
    shared = ph.from_dlpack(array)
    array[:] = 7
    print("shared", np.asarray(shared))

    # a Python closure as a packed function, as compiled code would call it
    shout = ph.convert(lambda text: text.upper())
    print("converted", shout("hello"))


if __name__ == "__main__":
    main()
