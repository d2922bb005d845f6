"""Builds dashboards in Grafana's classic JSON: variables, annotations, links, and panels laid out in sections."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from flowcore_otel import names

from .fields import DATASOURCE, Json, Panel
from .queries import Source

__all__ = ["Section", "dashboard", "to_runbook", "to_traces", "to_workflow"]

TAG: Final = "flowcore"
_LENGTHS: Final[dict[float, str]] = {
    names.BUCKETS[-1]: "an hour",
    names.STORE_BUCKETS[-1]: "10 s",
    names.WAIT_BUCKETS[-1]: "a week",
}
"""the highest buckets in words"""


@dataclass(frozen=True)
class Section:
    """A row of a dashboard: its title, which is a question, and its panels."""

    title: str
    panels: Sequence[Panel] = field(default_factory=list[Panel])


def _variable(name: str, label: str, query: str, *, multi: bool) -> Json:
    everything = {"selected": True, "text": ["All"], "value": ["$__all"]}
    variable: Json = {
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


def _variables(variables: Mapping[str, tuple[str, str, bool]], kind: str) -> list[Json]:
    datasource: Json = {
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
        "query": kind,
        "hide": 2,
        "skipUrlSync": True,
    }
    listed = [_variable(name, label, query, multi=multi) for name, (label, query, multi) in variables.items()]
    return [datasource, *listed, traces] if kind != "none" else [datasource, *listed]


def dashboard(
    q: Source,
    uid: str,
    title: str,
    description: str,
    sections: Sequence[Section],
    variables: Mapping[str, tuple[str, str, bool]],
    annotations: Mapping[str, tuple[str, str, str]],
) -> Json:
    """Return a dashboard. `variables`: name -> (label, query, whether several may be chosen). `annotations`: name ->
    (query, title, colour)."""
    drawn: list[Json] = []
    top = 0
    for section in sections:
        head: Json = {
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
            described = {"description": panel.content["description"] + _of_quantiles(q, panel.content)}
            drawn.append({**panel.content, **described, "gridPos": {"x": x, "y": top + y, "w": w, "h": h}})
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
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "timepicker": {},
        "liveNow": False,
        "links": [_to_the_others()],
        "templating": {"list": _variables(variables, q.traces)},
        "annotations": {"list": [_annotation(name, *about) for name, about in annotations.items()]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(drawn, start=1)],
    }


def _of_quantiles(q: Source, panel: Json) -> str:
    """Return the sentence that says where the quantiles of a panel end, or nothing if they do not, or there are none."""
    exprs = [one["expr"] for one in panel.get("targets", ()) if "histogram_quantile(" in one.get("expr", "")]
    shown = [metric for metric in names.METRICS if any(f"{metric.prometheus}_bucket{{" in expr for expr in exprs)]
    if q.native or not shown:
        return ""
    highest = max(bound for metric in shown for bound in metric.buckets)
    unless = ", unless buckets= is set" if shown[0].buckets == names.BUCKETS else ""
    return f" Quantiles end at the highest bucket ({_LENGTHS[highest]}{unless}): what takes longer is shown as that."


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


# -- links of panels ---------------------------------------------------------------------------------------------------


def to_workflow(q: Source, workflow: str = "") -> Json:
    """Return a link to the dashboard of one workflow: `workflow` or, without it, that of the clicked series."""
    workflow = workflow or f"${{__field.labels.{q.label('workflow')}:percentencode}}"
    url = f"/d/flowcore-workflow?var-datasource=${{datasource}}&var-workflow={workflow}&${{__url_time_range}}"
    return {"title": "This workflow, in detail", "url": url, "targetBlank": False}


def to_runbook(q: Source) -> Json:
    """Return a link from a firing alert to its section of the runbook."""
    return {"title": "Runbook", "url": f"{q.runbook}#${{__value.text}}", "targetBlank": True}


def to_traces(q: Source, title: str, spans: str, tags: Mapping[str, str] | None = None) -> list[Json]:
    """Return a link from a panel to its traces in Explore, or none without traces. `spans`: conditions in TraceQL.
    `tags`: the same for Jaeger, which only supports equality."""
    if q.traces == "none":
        return []
    query: Json = {"refId": "A", "datasource": {"type": q.traces, "uid": "${traces}"}}
    if q.traces == "tempo":
        query |= {"queryType": "traceql", "query": f"{{ {spans} }}"}
    else:
        wanted = " ".join(f"{name}={value}" for name, value in (tags or {}).items())
        query |= {"queryType": "search", "service": "${job:raw}", "tags": wanted}
    pane = {"datasource": "${traces}", "queries": [query], "range": {"from": "${__from}", "to": "${__to}"}}
    text = json.dumps({"flowcore": pane}, separators=(",", ":"))
    # Variables are not quoted, because Grafana replaces them before it opens the address.
    panes = "".join(part if part.startswith("${") else quote(part) for part in re.split(r"(\$\{[\w:.]+\})", text))
    return [{"title": title, "url": f"/explore?schemaVersion=1&panes={panes}", "targetBlank": True}]
