"""Draws what changes over time: lines, stacked areas, heatmaps."""

from __future__ import annotations

import itertools
import math
from datetime import datetime
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from .asking import Asking, Series
from .frame import PAD, TITLE, Frame, clipped
from .looks import BACKGROUND, FAINT, GRID, TEXT, Look, look
from .units import written

__all__ = ["POWERS_OF_TIME", "TimeLocator", "draw_heatmap", "draw_lines"]

Json = dict[str, Any]

STEPS: Final = (30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
"""seconds between ticks that people call round"""
POWERS: Final = [float(f"1e{power}") for power in range(-9, 16)]
POWERS_OF_TIME: Final = [*POWERS[:11], 60.0, 600.0, 3600.0, 36000.0, 360000.0, 3600000.0, 36000000.0, 1e15]
"""ticks of logarithmic axes; a minute and an hour are round, a hundred seconds are not"""
DOTS: Final = 60  # exemplars on a panel, more or less


def draw_lines(frame: Frame, panel: Json, found: list[Series], asking: Asking) -> None:
    custom, options = panel["fieldConfig"]["defaults"]["custom"], panel["options"]
    looks = {one.legend: look(panel, one.legend, i) for i, one in enumerate(found)}
    on_the_right = any(each.right for each in looks.values())
    beside = options["legend"]["placement"] == "right"
    right = 0.34 * frame.width if beside else 46 if on_the_right else 14
    axes = frame.axes(56, TITLE + 6, right, 26 if beside else 46)
    unit = next((looks[one.legend].unit for one in found if not looks[one.legend].right), "none")
    _time_axes(axes, asking, unit, frame.width - 56 - right)
    other = axes.twinx() if on_the_right else axes
    if on_the_right:
        _value_axis(other, next(each.unit for each in looks.values() if each.right))
    _thresholds(axes, panel)
    if custom["drawStyle"] == "bars":
        _bars(axes, found, {name: each.colour for name, each in looks.items()}, asking.step)
    elif custom["stacking"]["mode"] == "normal":
        _stacked(axes, found, {name: each.colour for name, each in looks.items()})
    else:
        for one in found:
            style = looks[one.legend]
            at, values = zip(*_gaps(one.points, asking.step), strict=True)
            drawn = other if style.right else axes
            marker = "o" if len(one.points) < 3 else ""
            drawn.plot(at, values, color=style.colour, lw=0.75 * style.width, ls=style.dash, marker=marker, ms=3)
            if not style.right and style.dash == "-":
                drawn.fill_between(at, values, color=style.colour, alpha=custom["fillOpacity"] / 100, lw=0)
    _annotations(axes, asking)
    if panel["targets"][0]["exemplar"] and unit == "s":
        dots = asking.exemplars(panel["targets"][0])
        dots = dots[:: max(1, len(dots) // DOTS)]
        axes.scatter([dot.at for dot in dots], [dot.value for dot in dots], s=6, marker="D", color="#5794F2", zorder=3)
    if custom["scaleDistribution"]["type"] == "log":
        axes.set_yscale("log")
        low, high = (max(end, 1e-9) for end in axes.get_ylim())
        round_ones = POWERS_OF_TIME if unit == "s" else POWERS
        # From one power of ten to another, as Grafana does.
        low, high = max(one for one in round_ones if one <= low), min(one for one in round_ones if one >= high)
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(FixedLocator(_every_other([one for one in round_ones if low <= one <= high])))
        axes.yaxis.set_minor_formatter(NullFormatter())
        _value_axis(axes, unit, locate=False)
    else:
        for each in {axes, other}:
            each.set_ylim(bottom=0, top=max(each.get_ylim()[1], 1.0 if custom["drawStyle"] == "bars" else 1e-9))
    if custom["drawStyle"] == "bars" or (unit in {"none", "short"} and _counts(found)):
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    elif "min" in panel["fieldConfig"]["defaults"] and custom["scaleDistribution"]["type"] == "log":
        axes.set_ylim(bottom=panel["fieldConfig"]["defaults"]["min"])
    _legend(frame, panel, found, looks, beside=beside)


def _bars(axes: Axes, found: list[Series], colours: dict[str, str], step: float) -> None:
    """A bar for each step of each series, one on top of the other."""
    base: dict[float, float] = {}
    for one in found:
        heights = [(at, value) for at, value in one.points if math.isfinite(value)]
        bottoms = [base.get(at, 0.0) for at, _ in heights]
        axes.bar(
            [at for at, _ in heights],
            [v for _, v in heights],
            0.85 * step,
            bottoms,
            color=colours[one.legend],
            alpha=0.85,
            lw=0,
        )
        base |= {at: bottom + value for (at, value), bottom in zip(heights, bottoms, strict=True)}


def _thresholds(axes: Axes, panel: Json) -> None:
    """A dashed line where the colour of a threshold begins."""
    defaults = panel["fieldConfig"]["defaults"]
    if defaults["custom"]["thresholdsStyle"]["mode"] != "off":
        for step in defaults["thresholds"]["steps"]:
            if step["value"] is not None:
                axes.axhline(step["value"], color=step["color"], lw=1, ls="--")


def _annotations(axes: Axes, asking: Asking) -> None:
    """A dashed line, with a flag at its foot, for each of the dashboard's annotations."""
    for mark in asking.marks:
        axes.axvline(mark.at, color=mark.colour, lw=0.9, ls=(0, (4, 3)))
        axes.plot(
            [mark.at], [0], marker="^", color=mark.colour, ms=5, transform=axes.get_xaxis_transform(), clip_on=False
        )


def _gaps(points: list[tuple[float, float]], step: float) -> list[tuple[float, float]]:
    """The points, with a hole where Grafana leaves one."""
    drawn = [points[0]]
    for before, after in itertools.pairwise(points):
        if after[0] - before[0] > 1.5 * step:
            drawn.append((before[0] + step, math.nan))
        drawn.append(after)
    return drawn


def _stacked(axes: Axes, found: list[Series], colours: dict[str, str]) -> None:
    times = sorted({at for one in found for at, _ in one.points})
    base = np.zeros(len(times))
    for one in found:
        known = dict(one.points)
        height = np.array([max(0.0, known.get(at, 0.0)) for at in times])
        top = base + height
        axes.fill_between(times, base, top, color=colours[one.legend], alpha=0.7, lw=0)
        axes.plot(times, np.where(height > 0, top, np.nan), color=colours[one.legend], lw=0.8)
        base = top


def _time_axes(axes: Axes, asking: Asking, unit: str, width: float) -> None:
    axes.set_facecolor(BACKGROUND)
    axes.set_xlim(asking.start, asking.end)
    form = "%H:%M:%S" if asking.seconds <= 600 else "%H:%M"
    axes.xaxis.set_major_locator(FixedLocator(_round_times(asking, max(2, int(width // 90)))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: datetime.fromtimestamp(at).strftime(form)))  # noqa: DTZ006
    axes.tick_params(colors=FAINT, labelsize=7, length=0)
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    _value_axis(axes, unit)


def _round_times(asking: Asking, most: int) -> list[float]:
    """Full minutes, quarters and hours of the clock, at most so many."""
    step = next((step for step in (5, 10, 15, *STEPS) if asking.seconds / step <= most), 86400)
    first = math.ceil(asking.start / step) * step
    return [float(at) for at in range(first, int(asking.end) + 1, step)]


def _every_other(ticks: list[float]) -> list[float]:
    """The ticks or, where they are many, every second of them."""
    return ticks if len(ticks) <= 5 else ticks[::2]


def _counts(found: list[Series]) -> bool:
    """Whether the values are numbers of things, of which there are no fractions."""
    return all(value == round(value) for one in found for _, value in one.points if math.isfinite(value))


class TimeLocator(MaxNLocator):
    """Full minutes, hours and days, where the values are that long."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        step = next((step for step in STEPS if (vmax - vmin) / step <= 4), STEPS[-1])
        if vmax - vmin < 2 * STEPS[0]:
            return super().tick_values(vmin, vmax)
        return np.arange(math.ceil(vmin / step) * step, vmax + step / 2, step)


def _value_axis(axes: Axes, unit: str, *, locate: bool = True) -> None:
    if locate:
        axes.yaxis.set_major_locator(TimeLocator(4) if unit == "s" else MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, unit)))
    axes.tick_params(colors=FAINT, labelsize=7, length=0, which="both")
    for side in axes.spines.values():
        side.set_visible(False)


def _legend(frame: Frame, panel: Json, found: list[Series], looks: dict[str, Look], *, beside: bool) -> None:
    axes = frame.plain()
    calcs = panel["options"]["legend"]["calcs"]
    if beside:
        left, line = 0.67 * frame.width, 15.0
        for i, name in enumerate(["", *(one.legend for one in found)][: int((frame.height - TITLE) // line)]):
            at = (i + 0.7) * line
            if i:
                axes.plot([left, left + 10], [at, at], color=looks[name].colour, lw=2)
                axes.text(left + 16, at, clipped(name, 0.15 * frame.width / 5), color=TEXT, size=7.5, va="center")
            for j, calc in enumerate(reversed(calcs)):
                values = [value for _, value in found[i - 1].points if math.isfinite(value)]
                value = {"mean": sum(values) / len(values), "max": max(values)}[calc] if values else math.nan
                text = written(value, looks[name].unit) if i else calc
                right = frame.width - PAD - j * 58
                axes.text(right, at, text, color=TEXT if i else FAINT, size=7.5, ha="right", va="center")
        return
    x, y = PAD, frame.height - TITLE - 10
    for one in found:
        width = 18 + 5.7 * len(one.legend) + 12
        if x + width > frame.width and x > PAD:
            axes.text(x, y, "…", color=FAINT, size=8, va="center")
            break
        style = looks[one.legend]
        axes.add_line(Line2D([x, x + 12], [y, y], color=style.colour, lw=2.2, ls=style.dash))
        axes.text(x + 17, y, one.legend, color=TEXT, size=7.5, va="center")
        x += width


def draw_heatmap(frame: Frame, panel: Json, found: list[Series], asking: Asking) -> None:
    axes = frame.axes(56, TITLE + 6, 14, 24)
    _time_axes(axes, asking, "s", frame.width - 70)
    axes.grid(visible=False)
    by_bound = sorted(((float(one.labels["le"]), dict(one.points)) for one in found), key=lambda pair: pair[0])
    times = np.arange(asking.start, asking.end + asking.step, asking.step)
    known = sorted({at for _, points in by_bound for at in points})
    counts = np.array([[points.get(at, 0.0) for at in known] for _, points in by_bound])
    cells = np.diff(counts, axis=0, prepend=0.0)  # buckets count all that was quicker, too
    cells = np.where(cells > 1e-9, cells, np.nan)
    filled = [i for i in range(len(by_bound)) if not np.all(np.isnan(cells[i]))]
    first, last = max(0, min(filled) - 1), min(len(by_bound) - 1, max(filled) + 1)
    cells = cells[first : last + 1]
    edges = np.array([*known, known[-1] + asking.step]) - asking.step / 2
    axes.pcolormesh(edges, np.arange(len(cells) + 1), np.sqrt(cells), cmap="viridis", shading="flat")
    axes.set_xlim(times[0], times[-1])
    labels = [written(bound, "s") for bound, _ in by_bound[first : last + 1]]
    every = max(1, math.ceil(len(labels) / 8))
    axes.set_yticks(np.arange(1, len(labels) + 1)[::every], labels[::every])
