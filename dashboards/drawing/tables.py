"""Draws what stands side by side: stacked bars and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.patches import Rectangle

from .asking import Asking, Series
from .frame import PAD, TITLE, Frame, clipped
from .looks import GRID, TEXT, colour_of, look, mapped
from .units import written

__all__ = ["draw_bars", "draw_table"]

LINK = "#6E9FFF"

Json = dict[str, Any]


def draw_bars(frame: Frame, panel: Json, found: list[Series], _: Asking) -> None:
    rows, headings = rows_of(panel, found)
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes = frame.plain()
    parts = headings[1:]
    rows.sort(key=lambda row: -sum(float(row[part] or 0) for part in parts))
    room = frame.height - TITLE - 30
    shown = rows[: max(1, int(room // 20))]
    height = min(46.0, room / len(shown))
    largest = max(sum(float(row[part] or 0) for part in parts) for row in shown) or 1.0
    names, values = 0.2 * frame.width, 76.0
    track = frame.width - names - values - 2 * PAD
    for i, row in enumerate(shown):
        x, middle = PAD + names, (i + 0.5) * height
        axes.text(x - 8, middle, clipped(str(row[headings[0]]), names / 6), color=TEXT, size=8, ha="right", va="center")
        for j, part in enumerate(parts):
            width = track * float(row[part] or 0) / largest
            colour = look(panel, part, j).colour
            axes.add_patch(Rectangle((x, middle - 0.36 * height), width, 0.72 * height, color=colour))
            x += width
        whole = sum(float(row[part] or 0) for part in parts)
        axes.text(x + 6, middle, written(whole, unit), color=TEXT, size=8, va="center")
    x, y = PAD, frame.height - TITLE - 12
    for j, part in enumerate(parts):
        axes.add_patch(Rectangle((x, y - 4), 10, 8, color=look(panel, part, j).colour))
        axes.text(x + 15, y, part, color=TEXT, size=7.5, va="center")
        x += 15 + 5.3 * len(part) + 18


def rows_of(panel: Json, found: Sequence[Series]) -> tuple[list[dict[str, Any]], list[str]]:
    """The table that the panel's transformations make: rows by heading, and the headings in order."""
    renamed: dict[str, str] = panel["transformations"][-1]["options"]["renameByName"]
    labels = [name for name in renamed if not name.startswith("Value")]
    values = {
        name.removeprefix("Value").removeprefix(" #") or "A": heading
        for name, heading in renamed.items()
        if name not in labels
    }
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for one in found:
        key = tuple(one.labels.get(label, "") for label in labels)
        row = rows.setdefault(key, {renamed[label]: value for label, value in zip(labels, key, strict=True)})
        row[values[one.ref]] = one.last
    headings = [*(renamed[label] for label in labels), *values.values()]
    return [{heading: row.get(heading) for heading in headings} for row in rows.values()], headings


def draw_table(frame: Frame, panel: Json, found: list[Series], _: Asking) -> None:
    rows, headings = rows_of(panel, found)
    (sort,) = panel["options"]["sortBy"]
    rows = [row for row in rows if any(not _missing(value) for value in row.values())]
    rows.sort(key=lambda row: _rank(row[sort["displayName"]]), reverse=sort["desc"])
    axes = frame.plain()
    line = 22.0
    shown = rows[: int((frame.height - TITLE - PAD) // line) - 1]
    widths = [
        max(len(heading), *(len(_cell(panel, heading, row[heading])[0]) for row in shown)) + 2 for heading in headings
    ]
    scale = (frame.width - 2 * PAD) / sum(widths)
    x = PAD
    for heading, width in zip(headings, widths, strict=True):
        number = any(isinstance(row[heading], float) for row in shown)
        end = x + width * scale
        at, side = (end - 6, "right") if number else (x + 2, "left")
        axes.text(at, line / 2, heading, color=LINK, size=8, weight="bold", va="center", ha=side)
        for i, row in enumerate(shown, start=1):
            text, colour = _cell(panel, heading, row[heading])
            axes.text(
                at, (i + 0.5) * line, clipped(text, width * scale / 5.4), color=colour, size=8, va="center", ha=side
            )
        x = end
    for i in range(1, len(shown) + 1):
        axes.plot([PAD, frame.width - PAD], [i * line] * 2, color=GRID, lw=0.7)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _rank(value: Any) -> tuple[int, Any]:
    """What has no value comes last in rising order, as in Grafana."""
    return (1, 0) if _missing(value) else (0, value)


def _cell(panel: Json, heading: str, value: Any) -> tuple[str, str]:
    properties: Json = {}
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"]["options"] == heading:
            properties |= {one["id"]: one["value"] for one in override["properties"]}
    if isinstance(value, float):
        text = written(value, look(panel, heading, 0).unit) if math.isfinite(value) else "-"
        return text, colour_of(value, properties["thresholds"]) if "thresholds" in properties else TEXT
    if value is None:
        return "", TEXT
    if "links" in properties and "mappings" not in properties:
        return str(value), LINK
    mappings = [
        mapping
        for override in panel["fieldConfig"]["overrides"]
        if override["matcher"]["options"] == heading
        for one in override["properties"]
        if one["id"] == "mappings"
        for mapping in one["value"]
    ]
    return mapped(str(value or ""), mappings) or (str(value or ""), TEXT)
