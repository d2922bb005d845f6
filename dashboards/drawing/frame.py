"""A panel's place on the figure."""

from __future__ import annotations

from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from .looks import BORDER

__all__ = ["PAD", "TITLE", "Frame", "box", "clipped"]

TITLE: Final = 26.0  # pixels
PAD: Final = 10.0


class Frame:
    """A panel's place on the figure, in pixels from its top left corner."""

    def __init__(self, figure: Figure, x: float, y: float, width: float, height: float) -> None:
        self.figure = figure
        self.x, self.y, self.width, self.height = x, y, width, height
        self._all = figure.get_size_inches() * figure.dpi

    def axes(self, left: float, top: float, right: float, bottom: float) -> Axes:
        """Axes so many pixels within the frame."""
        whole_width, whole_height = self._all
        box = (
            (self.x + left) / whole_width,
            1 - (self.y + self.height - bottom) / whole_height,
            max(1.0, self.width - left - right) / whole_width,
            max(1.0, self.height - top - bottom) / whole_height,
        )
        return self.figure.add_axes(box)

    def plain(self, *, top: float = TITLE) -> Axes:
        """The same to paint on: no ticks, one unit is one pixel, y downwards."""
        axes = self.axes(0, top, 0, 0)
        axes.set_axis_off()
        axes.set_xlim(0, self.width)
        axes.set_ylim(self.height - top, 0)
        return axes


def box(frame: Frame, colour: str) -> None:
    axes = frame.plain(top=0)
    axes.add_patch(
        FancyBboxPatch(
            (0.5, 0.5),
            frame.width - 1,
            frame.height - 1,
            boxstyle="round,pad=0,rounding_size=3",
            facecolor=colour,
            edgecolor=BORDER,
            linewidth=0.8,
        )
    )


def clipped(text: str, characters: float) -> str:
    return text if len(text) <= characters + 1 else text[: max(1, int(characters) - 1)] + "…"
