"""A frontend as the rest of packhorse uses it: the description and one method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packhorse.errors import ModelFormatError
from packhorse.plugin.info import FrontendInfo

if TYPE_CHECKING:  # annotations only: the graph lies above the plugins
    from packhorse.graph.ir import Graph

__all__ = ["Frontend", "choose_frontend"]


@dataclass(frozen=True)
class Frontend:
    """A loaded frontend plugin; get one from :meth:`PluginManager.frontend`."""

    info: FrontendInfo
    hook: Any

    def import_model(
        self, source: Any, fmt: str | None = None, options: Mapping[str, Any] | None = None
    ) -> Graph:
        """Read a model into a Graph.

        Parameters
        ----------
        source : Path, bytes or the framework's own object
            The model.
        fmt : str, optional
            The format's word when the caller named it.
        options : mapping, optional
            Options of this frontend.

        Raises
        ------
        ModelFormatError
            The source is not of this format, or damaged.
        """
        graph: Graph | None = self.hook(source=source, fmt=fmt, options=dict(options or {}))
        if graph is None:
            what = type(source).__name__ if not hasattr(source, "__fspath__") else f"'{source}'"
            raise ModelFormatError(
                f"{what} is not a model the frontend '{self.info.name}' reads "
                f"({self.info.summary or ', '.join(self.info.suffixes)})"
            )
        return graph


def choose_frontend(
    file: str, infos: Sequence[FrontendInfo], broken: Sequence[Exception] = ()
) -> str:
    """Name of the frontend whose suffix fits a file name best (the longest one).

    Raises
    ------
    ModelFormatError
        None fits, or several do; ``broken`` says what else might have.
    """
    fits = {
        info.name: max((len(s) for s in info.suffixes if file.lower().endswith(s)), default=0)
        for info in infos
    }
    best = max(fits.values(), default=0)
    names = [name for name, length in fits.items() if length == best and best]
    if len(names) == 1:
        return names[0]
    if names:
        raise ModelFormatError(
            f"'{file}' may be read by {', '.join(names)}: choose one with format="
        )
    known = ", ".join(sorted(s for info in infos for s in info.suffixes)) or "none"
    notes = "".join(f" Not usable: {error}" for error in broken)
    raise ModelFormatError(
        f"no frontend reads '{file}'. Suffixes known here: {known}. "
        f"Name the format with format= if the suffix misleads.{notes}"
    )
