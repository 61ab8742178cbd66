"""When two results are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["TOLERANCES", "check_equal"]

TOLERANCES: Mapping[str, tuple[float, float]] = {
    "float16": (4e-3, 2e-3),
    "bfloat16": (2e-2, 1e-2),
    "float32": (1e-4, 1e-5),
    "float64": (1e-7, 1e-9),
}
"""Relative and absolute tolerance by dtype; everything else must be equal."""


def check_equal(
    found: Any,
    wanted: np.ndarray[Any, Any],
    what: str,
    rtol: Mapping[str, float] | None = None,
    atol: Mapping[str, float] | None = None,
) -> None:
    """Compare dtype, shape and values.

    Parameters
    ----------
    found, wanted : ndarray
    what : str
        What a failure calls it.
    rtol, atol : mapping of dtype name to float, optional
        Instead of :data:`TOLERANCES`.

    Raises
    ------
    AssertionError
        They differ.
    """
    assert isinstance(found, np.ndarray), f"{what} is no array but {type(found).__name__}"
    ours, theirs = (f"{x.dtype}{list(x.shape)}" for x in (found, wanted))
    assert ours == theirs, f"{what} is {ours}, wanted {theirs}"
    name = wanted.dtype.name
    if name not in TOLERANCES:
        np.testing.assert_array_equal(found, wanted, err_msg=what)
        return
    relative, absolute = TOLERANCES[name]
    relative, absolute = (rtol or {}).get(name, relative), (atol or {}).get(name, absolute)
    wide = np.float64
    np.testing.assert_allclose(
        found.astype(wide), wanted.astype(wide), relative, absolute, err_msg=what
    )
