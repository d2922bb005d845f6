"""The parts of every panel: queries, fields with units, colours and thresholds, and a place on the grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from . import colours

__all__ = [
    "DATASOURCE",
    "Json",
    "Panel",
    "fixed",
    "last_value",
    "legend_of",
    "override",
    "painted",
    "panel",
    "steps",
    "target",
]

Json = dict[str, Any]

DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """A panel and its place: x, y, width and height in units of Grafana's grid, y counted from its section's top."""

    content: Json
    at: tuple[int, int, int, int]


def target(expr: str, legend: str = "", *, kind: str = "range", exemplar: bool = False) -> Json:
    """Return a query. `kind`: "range" for lines, "heatmap", "instant" for one number per series, "table" for rows."""
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


def steps(base: str, *more: tuple[float, str]) -> Json:
    """Return thresholds. `base`: the colour of the lowest values. `more`: (lowest value, its colour), rising."""
    values = [{"color": base, "value": None}, *({"color": colour, "value": value} for value, colour in more)]
    return {"mode": "absolute", "steps": values}


def override(matcher: str, name: str, **properties: Any) -> Json:
    listed = [{"id": key.replace("__", "."), "value": value} for key, value in properties.items()]
    return {"matcher": {"id": matcher, "options": name}, "properties": listed}


def fixed(colour: str) -> Json:
    return {"mode": "fixed", "fixedColor": colour}


def painted(by_name: Mapping[str, str]) -> list[Json]:
    return [override("byName", name, color=fixed(colour)) for name, colour in by_name.items()]


def legend_of(*, shown: bool = True, calcs: Sequence[str] = (), right: bool = False) -> Json:
    mode = "table" if calcs else "list"
    return {
        "showLegend": shown,
        "displayMode": mode,
        "placement": "right" if right else "bottom",
        "calcs": list(calcs),
    }


def last_value(*, values: bool = False) -> Json:
    return {"calcs": ["lastNotNull"], "fields": "", "values": values}


def panel(
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
