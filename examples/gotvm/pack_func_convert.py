"""A Python function as a packed function. gotvm's pack_func_convert.go.

python examples/gotvm/pack_func_convert.py
"""

import packhorse as ph


def sample_cb(*args: int) -> int:
    """C = A + B."""
    for value in args:
        print(f"ARGS: {type(value).__name__}: {value}")
    return args[0] + args[1]


def main() -> None:
    function = ph.convert(sample_cb)
    print("Converted:", function)
    result = function(10, 20)  # a Python int, no Value to unwrap
    print("Result:", result)


if __name__ == "__main__":
    main()
