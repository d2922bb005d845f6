"""Panels and dashboards as Grafana's classic JSON has them; one function for each kind of panel.

The options are spelt out in full, though many are Grafana's defaults: what a panel looks like should not depend on the
version that happens to load it. tests/dashboards checks all of it against Grafana's published types.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from . import colours
from .queries import Source

__all__ = [
    "Json",
    "Panel",
    "Section",
    "bar_gauge",
    "bars",
    "dashboard",
    "gauge",
    "heatmap",
    "lines",
    "stat",
    "steps",
    "table",
    "target",
    "text",
    "to_traces",
    "to_workflow",
]

Json = dict[str, Any]

DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
TAG: Final = "flowcore"


@dataclass(frozen=True)
class Panel:
    """A panel and its place: x, y, width and height in units of Grafana's grid, y counted from its section's top."""

    content: Json
    at: tuple[int, int, int, int]


@dataclass(frozen=True)
class Section:
    """A row of a dashboard: a question, and the panels that answer it."""

    title: str
    panels: Sequence[Panel] = field(default_factory=list[Panel])


# -- queries -----------------------------------------------------------------------------------------------------------


def target(expr: str, legend: str = "", *, kind: str = "range", exemplar: bool = False) -> Json:
    """A query. `kind`: "range" for lines, "heatmap", "instant" for one number a series, "table" for rows."""
    instant = kind in {"instant", "table"}
    return {
        "datasource": dict(DATASOURCE),
        "editorMode": "code",
        "exemplar": exemplar,
        "expr": expr,
        "format": {"table": "table", "heatmap": "heatmap"}.get(kind, "time_series"),
        "instant": instant,
        "legendFormat": legend or "__auto",
        "range": not instant,
    }


# -- what fields look like ---------------------------------------------------------------------------------------------


def steps(base: str, *more: tuple[float, str]) -> Json:
    """Thresholds: the colour from the start, then (from this value on, this colour)."""
    values = [{"color": base, "value": None}, *({"color": colour, "value": value} for value, colour in more)]
    return {"mode": "absolute", "steps": values}


def _override(matcher: str, name: str, **properties: Any) -> Json:
    listed = [{"id": key.replace("__", "."), "value": value} for key, value in properties.items()]
    return {"matcher": {"id": matcher, "options": name}, "properties": listed}


def _fixed(colour: str) -> Json:
    return {"mode": "fixed", "fixedColor": colour}


def _coloured(by_name: Mapping[str, str]) -> list[Json]:
    return [_override("byName", name, color=_fixed(colour)) for name, colour in by_name.items()]


def _legend(*, shown: bool = True, calcs: Sequence[str] = (), right: bool = False) -> Json:
    mode = "table" if calcs else "list"
    return {
        "showLegend": shown,
        "displayMode": mode,
        "placement": "right" if right else "bottom",
        "calcs": list(calcs),
    }


def _last(*, values: bool = False) -> Json:
    return {"calcs": ["lastNotNull"], "fields": "", "values": values}


# -- panels ------------------------------------------------------------------------------------------------------------


def _panel(
    kind: str,
    at: tuple[int, int, int, int],
    title: str,
    description: str,
    targets: Iterable[Json],
    *,
    options: Json,
    unit: str,
    custom: Json | None = None,
    empty: str = "",
    overrides: Iterable[Json] = (),
    links: Iterable[Json] = (),
    transformations: Sequence[Json] = (),
    **defaults: Any,
) -> Panel:
    field_config: Json = {
        "color": {"mode": "palette-classic"},
        "mappings": [],
        "thresholds": steps(colours.SUCCESS),
        "unit": unit,
        **defaults,
    }
    if empty:
        field_config["noValue"] = empty
    if custom is not None:
        field_config["custom"] = custom
    if links:
        field_config["links"] = list(links)
    content = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": dict(DATASOURCE),
        "targets": [{**one, "refId": chr(ord("A") + i)} for i, one in enumerate(targets)],
        "options": options,
        "fieldConfig": {"defaults": field_config, "overrides": list(overrides)},
        "transformations": list(transformations),
    }
    return Panel(content, at)


def stat(
    at: tuple[int, int, int, int],
    title: str,
    description: str,
    query: str,
    *,
    unit: str,
    thresholds: Json,
    filled: bool = False,
    sparkline: bool = False,
    words: Mapping[str, tuple[str, str]] | None = None,
    **more: Any,
) -> Panel:
    """One number. `filled`: its colour fills the panel. `words`: value -> (what it says instead, colour)."""
    options = {
        "colorMode": "background_solid" if filled else "value",
        "graphMode": "area" if sparkline else "none",
        "justifyMode": "center",
        "orientation": "auto",
        "percentChangeColorMode": "standard",
        "reduceOptions": _last(),
        "showPercentChange": False,
        "textMode": "value",
        "wideLayout": True,
    }
    said = {
        value: {"text": text, "color": colour, "index": i}
        for i, (value, (text, colour)) in enumerate((words or {}).items())
    }
    return _panel(
        "stat",
        at,
        title,
        description,
        [target(query, kind="range" if sparkline else "instant")],
        options=options,
        unit=unit,
        thresholds=thresholds,
        color={"mode": "thresholds"},
        mappings=[{"type": "value", "options": said}] if said else [],
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
        "reduceOptions": _last(),
        "showThresholdLabels": False,
        "showThresholdMarkers": True,
        "sizing": "auto",
    }
    return _panel(
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
        "legend": _legend(shown=False),
        "maxVizHeight": 40,
        "minVizHeight": 16,
        "minVizWidth": 8,
        "namePlacement": "left",
        "orientation": "horizontal",
        "reduceOptions": _last(),
        "showUnfilled": True,
        "sizing": "auto",
        "valueMode": "color",
    }
    return _panel(
        "bargauge",
        at,
        title,
        description,
        [one],
        options=options,
        unit=unit,
        thresholds=thresholds or steps(colours.SUCCESS),
        color=_fixed(colour) if colour else {"mode": "thresholds"},
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
    limit: float | None = None,
    overrides: Iterable[Json] = (),
    **more: Any,
) -> Panel:
    """Lines over time. `quantiles`: p50 is dashed and p99 dotted. `limit`: a value to stay below is drawn."""
    custom = {
        "axisBorderShow": False,
        "axisCenteredZero": False,
        "axisColorMode": "text",
        "axisLabel": "",
        "axisPlacement": "auto",
        "barAlignment": 0,
        "drawStyle": "line",
        "fillOpacity": 70 if stacked else 8,
        "gradientMode": "none",
        "hideFrom": {"legend": False, "tooltip": False, "viz": False},
        "insertNulls": False,
        "lineInterpolation": "linear",
        "lineWidth": 1 if stacked else 2,
        "pointSize": 5,
        "scaleDistribution": {"type": "linear"},
        "showPoints": "auto",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
        "thresholdsStyle": {"mode": "off" if limit is None else "dashed"},
    }
    options = {
        "legend": _legend(calcs=calcs, right=right),
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    drawn = list(overrides)
    if quantiles:
        drawn += [
            _override("byRegexp", "/p50$/", custom__lineStyle={"dash": [10, 10], "fill": "dash"}, custom__lineWidth=1),
            _override("byRegexp", "/p99$/", custom__lineStyle={"dash": [0, 6], "fill": "dot"}),
        ]
    if limit is not None:
        more["thresholds"] = steps("transparent", (limit, colours.FAILED))
    return _panel(
        "timeseries",
        at,
        title,
        description,
        targets,
        options=options,
        unit=unit,
        custom=custom,
        overrides=[*_coloured(coloured or {}), *drawn],
        **{"min": 0, **more},
    )


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
        "legend": _legend(),
        "orientation": "horizontal",
        "showValue": "never",
        "stacking": "normal",
        "tooltip": {"mode": "multi", "sort": "none"},
        "xField": x,
        "xTickLabelRotation": 0,
        "xTickLabelMaxLength": 24,
    }
    return _panel(
        "barchart",
        at,
        title,
        description,
        [target(query, kind="table") for query, _ in named.values()],
        options=options,
        unit=unit,
        custom=custom,
        min=0,
        overrides=_coloured({name: colour for name, (_, colour) in named.items()}),
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
    unit: str = "short",
    overrides: Iterable[Json] = (),
    decimals: Mapping[str, int] | None = None,
    **more: Any,
) -> Panel:
    """Rows of labels and numbers. `labels`: label -> heading. `columns`: heading -> (query, unit). `sort`: the heading
    whose largest values come first."""
    options = {
        "cellHeight": "sm",
        "footer": {"show": False, "reducer": ["sum"], "countRows": False},
        "showHeader": True,
        "sortBy": [{"displayName": sort, "desc": True}],
    }
    units = [_override("byName", heading, unit=of) for heading, (_, of) in columns.items()]
    units += [_override("byName", heading, decimals=places) for heading, places in (decimals or {}).items()]
    return _panel(
        "table",
        at,
        title,
        description,
        [target(query, kind="table") for query, _ in columns.values()],
        options=options,
        unit=unit,
        custom={"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False},
        overrides=[*units, *overrides],
        transformations=_joined(labels, list(columns)),
        **more,
    )


def _joined(labels: Mapping[str, str], headings: Sequence[str]) -> list[Json]:
    """The tables of several queries as one, with headings for people."""
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
    """How many, by how long it took, over time. The query gives buckets by `le`."""
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
    return _panel(
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


# -- ways from a panel to elsewhere ------------------------------------------------------------------------------------


def to_workflow(q: Source) -> Json:
    """From a series with a workflow to the dashboard about it."""
    workflow = f"${{__field.labels.{q.label('workflow')}}}"
    url = f"/d/flowcore-workflow?var-datasource=${{datasource}}&var-workflow={workflow}&${{__url_time_range}}"
    return {"title": "This workflow, in detail", "url": url, "targetBlank": False}


def to_traces(title: str, trace_ql: str) -> Json:
    """From a panel to the traces behind it, in Explore."""
    query = {
        "refId": "A",
        "datasource": {"type": "tempo", "uid": "${traces}"},
        "queryType": "traceql",
        "query": trace_ql,
    }
    pane = {"datasource": "${traces}", "queries": [query], "range": {"from": "${__from}", "to": "${__to}"}}
    text = json.dumps({"flowcore": pane}, separators=(",", ":"))
    # Variables must reach Grafana as they are; it fills them in before the address is opened.
    panes = "".join(part if part.startswith("${") else quote(part) for part in re.split(r"(\$\{[\w:.]+\})", text))
    return {"title": title, "url": f"/explore?schemaVersion=1&panes={panes}", "targetBlank": True}


# -- dashboards --------------------------------------------------------------------------------------------------------


def _variable(name: str, label: str, query: str, *, multi: bool) -> Json:
    everything = {"selected": True, "text": ["All"], "value": ["$__all"]}
    variable = {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": dict(DATASOURCE),
        "query": {"query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery", "qryType": 1},
        "refresh": 2,
        "regex": "",
        "sort": 1,
        "hide": 0,
        "skipUrlSync": False,
        "multi": multi,
        "includeAll": multi,
        "options": [],
        "current": everything if multi else {},
    }
    return variable | ({"allValue": ".+"} if multi else {})


def _variables(variables: Mapping[str, tuple[str, str, bool]]) -> list[Json]:
    datasource = {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "hide": 0,
        "skipUrlSync": False,
        "multi": False,
        "includeAll": False,
        "options": [],
        "current": {},
    }
    traces = {
        "name": "traces",
        "label": "uid of the data source with the traces",
        "type": "constant",
        "query": "tempo",
        "hide": 2,
        "skipUrlSync": True,
    }
    listed = [_variable(name, label, query, multi=multi) for name, (label, query, multi) in variables.items()]
    return [datasource, *listed, traces]


def dashboard(
    uid: str,
    title: str,
    description: str,
    sections: Sequence[Section],
    variables: Mapping[str, tuple[str, str, bool]],
    annotations: Mapping[str, tuple[str, str, str]],
) -> Json:
    """A dashboard. `variables`: name -> (label, query, whether several may be chosen). `annotations`: name -> (query,
    title, colour)."""
    drawn: list[Json] = []
    top = 0
    for section in sections:
        head = {
            "type": "row",
            "title": section.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": top, "w": 24, "h": 1},
        }
        drawn.append(head)
        top += 1
        for panel in section.panels:
            x, y, w, h = panel.at
            drawn.append({**panel.content, "gridPos": {"x": x, "y": top + y, "w": w, "h": h}})
        top += max(panel.at[1] + panel.at[3] for panel in section.panels)
    return {
        "id": None,
        "uid": uid,
        "title": title,
        "description": description,
        "tags": [TAG],
        "schemaVersion": 41,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "fiscalYearStartMonth": 0,
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "timepicker": {},
        "liveNow": False,
        "links": [_to_the_others()],
        "templating": {"list": _variables(variables)},
        "annotations": {"list": [_annotation(name, *about) for name, about in annotations.items()]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(drawn, start=1)],
    }


def _to_the_others() -> Json:
    return {
        "title": "flowcore",
        "type": "dashboards",
        "tags": [TAG],
        "icon": "external link",
        "tooltip": "",
        "url": "",
        "asDropdown": False,
        "targetBlank": False,
        "includeVars": True,
        "keepTime": True,
    }


def _annotation(name: str, expr: str, title: str, colour: str) -> Json:
    return {
        "name": name,
        "datasource": dict(DATASOURCE),
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "expr": expr,
        "titleFormat": title,
    }
