"""Draws one panel into its place on the figure, by its type."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Callable
from typing import Any, Final

from matplotlib.patches import Rectangle, Wedge

from .asking import Asking, Series
from .frame import PAD, TITLE, Frame, box, clipped
from .looks import BACKGROUND, BORDER, FAINT, GRID, TEXT, colour_of, mapped, painted
from .tables import draw_bars, draw_table
from .time_series import draw_heatmap, draw_lines
from .units import written

__all__ = ["draw"]

Json = dict[str, Any]


def draw(frame: Frame, panel: Json, asking: Asking) -> None:
    """Draw the panel with its data."""
    if panel["type"] == "row":
        axes = frame.plain(top=0)
        axes.text(4, frame.height / 2, panel["title"], color=TEXT, size=11, weight="bold", va="center")
        axes.plot([0, frame.width], [frame.height - 1] * 2, color=BORDER, lw=1)
        return
    box(frame, BACKGROUND)
    found = [one for target in panel.get("targets", []) for one in asking.series(target)]
    if panel["type"] == "text":
        _text(frame, panel)
    elif not any(math.isfinite(value) for one in found for _, value in one.points):
        _empty(frame, panel)
    else:
        _KINDS[panel["type"]](frame, panel, found, asking)
    frame.plain(top=0).text(PAD, TITLE / 2 + 1, panel["title"], color=TEXT, size=8.5, weight="bold", va="center")


def _empty(frame: Frame, panel: Json) -> None:
    said = panel["fieldConfig"]["defaults"].get("noValue", "No data.")
    lines = textwrap.fill(said, max(16, int(frame.width / 7.5)))
    middle = frame.width / 2, (frame.height - TITLE) / 2
    frame.plain().text(*middle, lines, color=FAINT, size=8.5, ha="center", va="center", linespacing=1.5)


# -- numbers -----------------------------------------------------------------------------------------------------------


def _stat(frame: Frame, panel: Json, found: list[Series], _: Asking) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    value = found[0].last
    text = written(value, defaults["unit"], defaults.get("decimals"))
    colour = painted(panel, found[0].legend) or colour_of(value, defaults["thresholds"])
    text, colour = mapped(f"{value:g}", defaults["mappings"]) or (text, colour)
    size = min(0.85 * frame.width / max(3, len(text)), 0.42 * (frame.height - TITLE))
    middle = frame.width / 2, (frame.height - TITLE) / 2 - 2
    frame.plain().text(*middle, text, color=colour, size=size, weight="bold", ha="center", va="center")


def _gauge(frame: Frame, panel: Json, found: list[Series], _: Asking) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    value, largest = found[0].last, defaults["max"]
    axes = frame.axes(PAD, TITLE, PAD, PAD)
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-1.05, 1.05)
    axes.set_ylim(-0.42, 1.05)
    start, end = 200.0, -20.0

    def angle(at: float) -> float:
        return start + (end - start) * min(max(at, 0.0), float(largest)) / float(largest)

    axes.add_patch(Wedge((0, 0), 0.9, end, start, width=0.26, color=GRID))
    axes.add_patch(Wedge((0, 0), 0.9, angle(value), start, width=0.26, color=colour_of(value, defaults["thresholds"])))
    edges: list[float] = [0, *(step["value"] for step in defaults["thresholds"]["steps"][1:]), largest]
    for low, high in itertools.pairwise(edges):
        colour = colour_of(low, defaults["thresholds"])
        axes.add_patch(Wedge((0, 0), 1.0, angle(high), angle(low), width=0.05, color=colour))
    text = written(value, defaults["unit"], defaults.get("decimals"))
    colour = colour_of(value, defaults["thresholds"])
    axes.text(0, 0.02, text, color=colour, size=20, weight="bold", ha="center", va="center")


def _bar_gauge(frame: Frame, panel: Json, found: list[Series], _: Asking) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    largest = defaults.get("max") or max(one.last for one in found) or 1.0
    axes = frame.plain()
    room = frame.height - TITLE - PAD
    shown = found[: max(1, int(room // 18))]
    height = min(30.0, room / len(shown))
    names = min(0.42 * frame.width, 6.2 * max(len(one.legend) for one in shown) + 8)
    values = 70.0
    track = frame.width - names - values - 2 * PAD
    for i, one in enumerate(shown):
        middle = (i + 0.5) * height
        fixed = defaults["color"].get("fixedColor")
        colour = fixed or colour_of(one.last, defaults["thresholds"])
        axes.text(PAD, middle, clipped(one.legend, names / 6.2), color=TEXT, size=8, va="center")
        axes.add_patch(Rectangle((PAD + names, middle - 0.32 * height), track, 0.64 * height, color=GRID))
        share = min(1.0, one.last / largest)
        axes.add_patch(Rectangle((PAD + names, middle - 0.32 * height), track * share, 0.64 * height, color=colour))
        text = written(one.last, defaults["unit"], defaults.get("decimals"))
        axes.text(frame.width - PAD, middle, text, color=colour, size=8.5, weight="bold", ha="right", va="center")


# -- words -------------------------------------------------------------------------------------------------------------


def _text(frame: Frame, panel: Json) -> None:
    """Markdown, as far as our texts use it: paragraphs, bold words, blocks of code."""
    axes = frame.plain()
    y, line, fits = 4.0, 14.5, int(frame.width / 5.7)
    for i, block in enumerate(panel["options"]["content"].split("```")):
        if i % 2:
            code = block.split("\n")[1:-1]
            axes.add_patch(Rectangle((PAD, y), frame.width - 2 * PAD, line * len(code) + 8, color="#0f1014"))
            for number, text in enumerate(code):
                at = y + 4 + (number + 0.5) * line
                axes.text(PAD + 8, at, text, color="#9ece9a", size=7.3, family="monospace", va="center")
            y += line * len(code) + 14
            continue
        for paragraph in filter(None, (part.strip() for part in block.split("\n\n"))):
            plain = re.sub(r"\*\*|`", "", paragraph.replace("\n", " "))
            for text in textwrap.wrap(plain, fits):
                axes.text(PAD, y + line / 2, text, color=TEXT, size=7.8, va="center")
                y += line
            y += 5


_KINDS: Final[dict[str, Callable[[Frame, Json, list[Series], Asking], None]]] = {
    "stat": _stat,
    "gauge": _gauge,
    "bargauge": _bar_gauge,
    "timeseries": draw_lines,
    "heatmap": draw_heatmap,
    "barchart": draw_bars,
    "table": draw_table,
}
