"""A frontend as the rest of packhorse uses it: the description and one method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packhorse.errors import ModelFormatError
from packhorse.plugin.info import FrontendInfo

if TYPE_CHECKING:  # annotations only: the graph lies above the plugins
    from packhorse.graph.ir import Graph

__all__ = ["Frontend"]


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
