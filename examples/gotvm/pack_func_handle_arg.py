"""A packed function as the argument of another. gotvm's pack_func_handle_arg.go.

python examples/gotvm/pack_func_handle_arg.py
"""

import packhorse as ph


def sample_cb(*args: int) -> int:
    """C = A + B."""
    for value in args:
        print(f"ARGS: {type(value).__name__}: {value}")
    return args[0] + args[1]


@ph.register_func("main.sampleFunctionArg")
def sample_function_arg(function: ph.PackedFunction, *args: int) -> int:
    """Calls the function that it receives; the other values are handed on as they came."""
    print("Received:", function)
    result: int = function(*args)
    return result


def main() -> None:
    handle = ph.convert(sample_cb)
    function = ph.get_global_func("main.sampleFunctionArg")
    print("Registered:", function.name)
    print("Result:", function(handle, 10, 20))


if __name__ == "__main__":
    main()
