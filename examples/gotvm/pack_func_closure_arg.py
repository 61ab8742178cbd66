"""A closure as an argument becomes a packed function there. gotvm's pack_func_closure_arg.go.

python examples/gotvm/pack_func_closure_arg.py
"""

import packhorse as ph


@ph.register_func("main.sampleFunctionArg")
def sample_function_arg(function: ph.PackedFunction, a: int, b: int) -> int:
    """Calls the function that it receives."""
    print("Received a", type(function).__name__)
    result: int = function(a, b)
    return result


def main() -> None:
    function = ph.get_global_func("main.sampleFunctionArg")
    print("Registered:", function.name)
    calls = []

    def closure(*args: int) -> int:
        calls.append(args)  # state of the caller
        for value in args:
            print(f"ARGS: {type(value).__name__}: {value}")
        return args[0] + args[1]

    print("Result:", function(closure, 30, 50))
    print("Calls the closure saw:", calls)


if __name__ == "__main__":
    main()
