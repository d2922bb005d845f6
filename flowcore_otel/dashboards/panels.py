"""Builds panels in Grafana's classic JSON, one function for each kind.

The options are complete, although many are Grafana's defaults, so that a panel looks the same in every version of
Grafana. tests/dashboards checks them against Grafana's published types.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import colours
from .fields import DATASOURCE, Json, Panel, fixed, last_value, legend_of, override, painted, panel, steps, target

__all__ = ["bar_gauge", "bars", "gauge", "heatmap", "lines", "stat", "table", "text"]


def stat(
    at: tuple[int, int, int, int],
    title: str,
    description: str,
    query: str,
    *,
    unit: str,
    thresholds: Json,
    sparkline: bool = False,
    words: Mapping[str, tuple[str, str]] | None = None,
    coloured: Mapping[str, tuple[str, str]] | None = None,
    **more: Any,
) -> Panel:
    """One number. `words`: value -> (text shown instead, its colour). `coloured`: name -> (query that has data instead of the
    first one, the colour of its number)."""
    options = {
        "colorMode": "value",
        "graphMode": "area" if sparkline else "none",
        "justifyMode": "center",
        "orientation": "auto",
        "percentChangeColorMode": "standard",
        "reduceOptions": last_value(),
        "showPercentChange": False,
        "textMode": "value",
        "wideLayout": True,
    }
    value_options = {
        value: {"text": text, "color": colour, "index": i}
        for i, (value, (text, colour)) in enumerate((words or {}).items())
    }
    return panel(
        "stat",
        at,
        title,
        description,
        [
            target(query, kind="range" if sparkline else "instant"),
            *(target(other, name, kind="instant") for name, (other, _) in (coloured or {}).items()),
        ],
        options=options,
        unit=unit,
        thresholds=thresholds,
        color={"mode": "thresholds"},
        mappings=[{"type": "value", "options": value_options}] if value_options else [],
        overrides=painted({name: colour for name, (_, colour) in (coloured or {}).items()}),
        **more,
    )


def gauge(
    at: tuple[int, int, int, int],
    title: str,
    description: str,
    query: str,
    *,
    unit: str,
    thresholds: Json,
    largest: float,
    **more: Any,
) -> Panel:
    """One number on an arc from 0 to `largest`."""
    options = {
        "minVizHeight": 75,
        "minVizWidth": 75,
        "orientation": "auto",
        "reduceOptions": last_value(),
        "showThresholdLabels": False,
        "showThresholdMarkers": True,
        "sizing": "auto",
    }
    return panel(
        "gauge",
        at,
        title,
        description,
        [target(query, kind="instant")],
        options=options,
        unit=unit,
        thresholds=thresholds,
        color={"mode": "thresholds"},
        min=0,
        max=largest,
        **more,
    )


def bar_gauge(
    at: tuple[int, int, int, int],
    title: str,
    description: str,
    one: Json,
    *,
    unit: str,
    thresholds: Json | None = None,
    colour: str | None = None,
    **more: Any,
) -> Panel:
    """A bar for each series, in the order of the query."""
    options = {
        "displayMode": "gradient",
        "legend": legend_of(shown=False),
        "maxVizHeight": 40,
        "minVizHeight": 16,
        "minVizWidth": 8,
        "namePlacement": "left",
        "orientation": "horizontal",
        "reduceOptions": last_value(),
        "showUnfilled": True,
        "sizing": "auto",
        "valueMode": "color",
    }
    return panel(
        "bargauge",
        at,
        title,
        description,
        [one],
        options=options,
        unit=unit,
        thresholds=thresholds or steps(colours.SUCCESS),
        color=fixed(colour) if colour else {"mode": "thresholds"},
        min=0,
        **more,
    )


def lines(
    at: tuple[int, int, int, int],
    title: str,
    description: str,
    *targets: Json,
    unit: str,
    coloured: Mapping[str, str] | None = None,
    stacked: bool = False,
    quantiles: bool = False,
    calcs: Sequence[str] = (),
    right: bool = False,
    log: bool = False,
    events: bool = False,
    overrides: Iterable[Json] = (),
    **more: Any,
) -> Panel:
    """Lines over time. `quantiles`: p50 is dashed and p99 dotted. `log`: a logarithmic axis. `events`: bars instead of
    lines, for rare events, with intervals of at least a minute."""
    custom = {
        "axisBorderShow": False,
        "axisCenteredZero": False,
        "axisColorMode": "text",
        "axisLabel": "",
        "axisPlacement": "auto",
        "barAlignment": 0,
        "drawStyle": "bars" if events else "line",
        "fillOpacity": 80 if events else 70 if stacked else 0 if log else 8,
        "gradientMode": "none",
        "hideFrom": {"legend": False, "tooltip": False, "viz": False},
        "insertNulls": False,
        "lineInterpolation": "linear",
        "lineWidth": 0 if events else 1 if stacked else 2,
        "pointSize": 5,
        "scaleDistribution": {"type": "log", "log": 10} if log else {"type": "linear"},
        "showPoints": "auto",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stacked or events else "none"},
        "thresholdsStyle": {"mode": "dashed" if "thresholds" in more else "off"},
    }
    options = {
        "legend": legend_of(calcs=calcs, right=right),
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    shown: Json = more if log else {"min": 0, **more}
    drawn = list(overrides)
    if quantiles:
        drawn += [
            override("byRegexp", "/p50$/", custom__lineStyle={"dash": [10, 10], "fill": "dash"}, custom__lineWidth=1),
            override("byRegexp", "/p99$/", custom__lineStyle={"dash": [0, 6], "fill": "dot"}),
        ]
    drawn_panel = panel(
        "timeseries",
        at,
        title,
        description,
        targets,
        options=options,
        unit=unit,
        custom=custom,
        overrides=[*painted(coloured or {}), *drawn],
        **shown,
    )
    return Panel({**drawn_panel.content, "interval": "1m"}, at) if events else drawn_panel


def bars(
    at: tuple[int, int, int, int],
    title: str,
    description: str,
    x: str,
    named: Mapping[str, tuple[str, str]],
    *,
    unit: str,
    **more: Any,
) -> Panel:
    """Stacked horizontal bars, one for each value of the label `x`. `named`: part -> (its query, its colour)."""
    custom = {
        "axisBorderShow": False,
        "axisCenteredZero": False,
        "axisColorMode": "text",
        "axisLabel": "",
        "axisPlacement": "auto",
        "fillOpacity": 85,
        "gradientMode": "none",
        "hideFrom": {"legend": False, "tooltip": False, "viz": False},
        "lineWidth": 0,
        "scaleDistribution": {"type": "linear"},
        "thresholdsStyle": {"mode": "off"},
    }
    options = {
        "barRadius": 0,
        "barWidth": 0.8,
        "fullHighlight": False,
        "groupWidth": 0.7,
        "legend": legend_of(),
        "orientation": "horizontal",
        "showValue": "never",
        "stacking": "normal",
        "tooltip": {"mode": "multi", "sort": "none"},
        "xField": x,
        "xTickLabelRotation": 0,
        "xTickLabelMaxLength": 24,
    }
    return panel(
        "barchart",
        at,
        title,
        description,
        [target(query, kind="table") for query, _ in named.values()],
        options=options,
        unit=unit,
        custom=custom,
        min=0,
        overrides=painted({name: colour for name, (_, colour) in named.items()}),
        transformations=_joined({x: x}, list(named)),
        **more,
    )


def table(
    at: tuple[int, int, int, int],
    title: str,
    description: str,
    labels: Mapping[str, str],
    columns: Mapping[str, tuple[str, str]],
    *,
    sort: str,
    ascending: bool = False,
    unit: str = "short",
    coloured: Mapping[str, Mapping[str, str]] | None = None,
    graded: Mapping[str, Json] | None = None,
    linked: Mapping[str, Sequence[Json]] | None = None,
    hidden: Sequence[str] = (),
    **more: Any,
) -> Panel:
    """Rows of labels and numbers. `labels`: label -> heading. `columns`: heading -> (query, unit). `sort`: the heading
    to sort by, the largest value first unless `ascending`. `coloured`: heading -> value -> colour. `graded`: heading
    -> thresholds. `linked`: heading -> links of its cells. `hidden`: headings of columns that are not shown."""
    options = {
        "cellHeight": "sm",
        "footer": {"show": False, "reducer": ["sum"], "countRows": False},
        "showHeader": True,
        "sortBy": [{"displayName": sort, "desc": not ascending}],
    }
    units = [override("byName", heading, unit=of) for heading, (_, of) in columns.items()]
    for heading, by_value in (coloured or {}).items():
        value_options = {value: {"color": colour, "index": i} for i, (value, colour) in enumerate(by_value.items())}
        mappings = [{"type": "value", "options": value_options}]
        units.append(override("byName", heading, mappings=mappings, custom__cellOptions={"type": "color-text"}))
    for heading, thresholds in (graded or {}).items():
        units.append(override("byName", heading, thresholds=thresholds, custom__cellOptions={"type": "color-text"}))
    units += [override("byName", heading, links=list(links)) for heading, links in (linked or {}).items()]
    units += [override("byName", heading, custom__hidden=True) for heading in hidden]
    return panel(
        "table",
        at,
        title,
        description,
        [target(query, kind="table") for query, _ in columns.values()],
        options=options,
        unit=unit,
        custom={"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False},
        overrides=units,
        transformations=_joined(labels, list(columns)),
        **more,
    )


def _joined(labels: Mapping[str, str], headings: Sequence[str]) -> list[Json]:
    """Return the transformations that join the tables of several queries into one, with readable headings."""
    values = ["Value"] if len(headings) == 1 else [f"Value #{chr(ord('A') + i)}" for i in range(len(headings))]
    renamed = {**labels, **dict(zip(values, headings, strict=True))}
    organised = {
        "excludeByName": {"Time": True},
        "indexByName": {name: i for i, name in enumerate(renamed)},
        "renameByName": renamed,
    }
    return [{"id": "merge", "options": {}}, {"id": "organize", "options": organised}]


def heatmap(
    at: tuple[int, int, int, int], title: str, description: str, query: str, *, exemplar: bool = True, **more: Any
) -> Panel:
    """A heatmap of durations over time. The query returns buckets by `le`."""
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {
            "mode": "scheme",
            "scheme": "Viridis",
            "fill": "dark-orange",
            "scale": "exponential",
            "exponent": 0.5,
            "steps": 64,
            "reverse": False,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "showColorScale": False, "yHistogram": True},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": "s"},
    }
    return panel(
        "heatmap",
        at,
        title,
        description,
        [target(query, "{{le}}", kind="heatmap", exemplar=exemplar)],
        options=options,
        unit="short",
        custom={
            "hideFrom": {"legend": False, "tooltip": False, "viz": False},
            "scaleDistribution": {"type": "linear"},
        },
        **more,
    )


def text(at: tuple[int, int, int, int], title: str, description: str, markdown: str) -> Panel:
    content = {
        "type": "text",
        "title": title,
        "description": description,
        "datasource": dict(DATASOURCE),
        "options": {"mode": "markdown", "content": markdown},
    }
    return Panel(content, at)
