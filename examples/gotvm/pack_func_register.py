"""A Python function in the global registry. gotvm's pack_func_register.go.

python examples/gotvm/pack_func_register.py
"""

import packhorse as ph


def sample_cb(*args: int) -> int:
    """C = A + B."""
    for value in args:
        print(f"ARGS: {type(value).__name__}: {value}")
    return args[0] + args[1]


def main() -> None:
    ph.register_func("sampleCb", sample_cb)
    print("Listed:", "sampleCb" in ph.list_global_func_names())

    function = ph.get_global_func("sampleCb")
    print("sampleCb result:", function(10, 20))

    # A name is replaced on purpose only, and can be given back: gotvm can do neither.
    try:
        ph.register_func("sampleCb", max)
    except ph.PackhorseError as error:
        print(f"{type(error).__name__}: {error}")
    ph.register_func("sampleCb", max, override=True)
    print("sampleCb result:", ph.get_global_func("sampleCb")(10, 20))
    ph.remove_global_func("sampleCb")
    print("Listed:", "sampleCb" in ph.list_global_func_names())


if __name__ == "__main__":
    main()
