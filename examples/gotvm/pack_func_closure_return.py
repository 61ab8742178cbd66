"""A packed function that returns a closure. gotvm's pack_func_closure_return.go.

python examples/gotvm/pack_func_closure_return.py
"""

from collections.abc import Callable

import packhorse as ph


@ph.register_func("main.sampleFunctionCb")
def sample_function_cb(factor: int) -> Callable[..., int]:
    """Returns a function that knows ``factor``."""

    def closure(*args: int) -> int:
        for value in args:
            print(f"ARGS: {type(value).__name__}: {value}")
        return factor * (args[0] + args[1])

    return closure


def main() -> None:
    function = ph.get_global_func("main.sampleFunctionCb")
    print("Registered:", function.name)
    once, twice = function(1), function(2)
    print("Received:", type(twice).__name__)
    print("Result:", once(30, 40))
    print("Result:", twice(30, 40))


if __name__ == "__main__":
    main()
