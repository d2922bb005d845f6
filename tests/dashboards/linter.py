"""The rules of grafana/dashboard-linter, which is a Go program, as functions: dashboard -> complaints.

Each does what the rule's documentation says; none was translated. Where we are stricter than the rule, the function says
so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from .promql import RATE_INTERVAL, Selector, parse, selectors

Json = dict[str, Any]
Rule = Callable[[Json], Iterator[str]]

RULES: Final[dict[str, Rule]] = {}

WITH_NUMBERS: Final = {"stat", "gauge", "bargauge", "timeseries", "table", "heatmap", "barchart"}
WITHOUT_QUERIES: Final = {"row", "text"}

UNITS: Final = {"none", "short", "percentunit", "percent", "s", "ops", "reqps", "dtdurations"}
"""of Grafana's units the ones that make sense here"""


def rule(name: str) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES[name] = function
        return function

    return add


# -- what a dashboard consists of --------------------------------------------------------------------------------------


def panels(board: Json) -> list[Json]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def targets(board: Json) -> list[tuple[Json, Json]]:
    return [(panel, target) for panel in panels(board) for target in panel.get("targets", [])]


def variables(board: Json, kind: str | None = None) -> list[Json]:
    return [one for one in board["templating"]["list"] if kind is None or one["type"] == kind]


def queries(board: Json) -> list[tuple[Json, Json]]:
    """The targets that are PromQL, as far as they can be parsed; the rest is another rule's business."""
    return [(panel, target) for panel, target in targets(board) if not _unparsable(target["expr"])]


def _unparsable(expr: str) -> str | None:
    try:
        parse(expr)
    except ValueError as error:
        return str(error)
    return None


def _selectors(board: Json) -> list[tuple[Json, Selector]]:
    return [(panel, found) for panel, target in queries(board) for found in selectors(target["expr"])]


# -- the dashboard -----------------------------------------------------------------------------------------------------


@rule("template-datasource-rule")
def template_datasource(board: Json) -> Iterator[str]:
    found = variables(board, "datasource")
    if [(one["name"], one["label"], one["query"]) for one in found] != [("datasource", "Data source", "prometheus")]:
        yield "there must be one variable for the data source: datasource, labelled Data source"


def _template(board: Json, name: str, label: str) -> Iterator[str]:
    found = [one for one in variables(board) if one["name"] == name]
    if not found:
        yield f"there is no variable {name}"
        return
    wanted = {"type": "query", "label": label, "multi": True, "includeAll": True, "allValue": ".+"}
    for key, value in wanted.items():
        if found[0].get(key) != value:
            yield f"variable {name}: {key} should be {value!r}"
    if found[0]["datasource"]["uid"] != "${datasource}":
        yield f"variable {name} does not use the variable data source"


@rule("template-job-rule")
def template_job(board: Json) -> Iterator[str]:
    yield from _template(board, "job", "Job")


@rule("template-instance-rule")
def template_instance(board: Json) -> Iterator[str]:
    yield from _template(board, "instance", "Instance")


@rule("template-label-promql-rule")
def template_label_promql(board: Json) -> Iterator[str]:
    for variable in variables(board, "query"):
        query = variable["query"]["query"]
        called = re.fullmatch(r"label_values\((.+), *\w+\)|query_result\((.+)\)", query)
        wrong = _unparsable(called[1] or called[2]) if called else "no function for variables"
        if wrong:
            yield f"variable {variable['name']}: {query}: {wrong}"


@rule("template-on-time-change-reload-rule")
def template_on_time_change_reload(board: Json) -> Iterator[str]:
    for variable in variables(board, "query"):
        if variable["refresh"] != 2:
            yield f"variable {variable['name']} is not asked for anew when the time changes"


@rule("uneditable-dashboard")
def uneditable_dashboard(board: Json) -> Iterator[str]:
    if board["editable"] is not False:
        yield "the dashboard is editable, though it comes from files"


# -- its panels --------------------------------------------------------------------------------------------------------


@rule("panel-datasource-rule")
def panel_datasource(board: Json) -> Iterator[str]:
    for panel in panels(board):
        if panel["datasource"]["uid"] != "${datasource}":
            yield f"panel {panel['title']!r} does not use the variable data source"
    for panel, target in targets(board):  # stricter: the rule looks at panels only
        if target["datasource"]["uid"] != "${datasource}":
            yield f"a query of panel {panel['title']!r} does not use the variable data source"


@rule("panel-title-description-rule")
def panel_title_description(board: Json) -> Iterator[str]:
    for panel in panels(board):  # stricter: of any kind
        if not panel.get("title") or not panel.get("description"):
            yield f"panel {panel['id']} ({panel.get('title')!r}) needs a title and a description"


@rule("panel-units-rule")
def panel_units(board: Json) -> Iterator[str]:
    for panel in panels(board):
        if panel["type"] in WITH_NUMBERS:
            config = panel["fieldConfig"]
            units = [config["defaults"].get("unit")]
            units += [p["value"] for over in config["overrides"] for p in over["properties"] if p["id"] == "unit"]
            for unit in units:
                if unit not in UNITS:
                    yield f"panel {panel['title']!r} has the unit {unit!r}"


@rule("panel-no-targets-rule")
def panel_no_targets(board: Json) -> Iterator[str]:
    for panel in panels(board):
        if panel["type"] not in WITHOUT_QUERIES and not panel.get("targets"):
            yield f"panel {panel['title']!r} asks for nothing"


# -- its queries -------------------------------------------------------------------------------------------------------


def _of_loki(board: Json) -> list[tuple[Json, Json]]:
    return [(panel, target) for panel, target in targets(board) if target["datasource"].get("type") == "loki"]


@rule("target-logql-rule")
def target_logql(board: Json) -> Iterator[str]:
    for panel, _ in _of_loki(board):  # stricter, as there is no parser for it here: none at all
        yield f"panel {panel['title']!r} asks in LogQL, which nothing here can check"


@rule("target-logql-auto-rule")
def target_logql_auto(board: Json) -> Iterator[str]:
    for panel, target in _of_loki(board):
        if re.search(r"\[(?!\$__auto\])", target["expr"]):
            yield f"panel {panel['title']!r} has a window that is not $__auto"


@rule("target-promql-rule")
def target_promql(board: Json) -> Iterator[str]:
    for panel, target in targets(board):
        wrong = _unparsable(target["expr"])
        if wrong and target["datasource"].get("type") == "prometheus":
            yield f"panel {panel['title']!r}: {target['expr']}: {wrong}"


@rule("target-rate-interval-rule")
def target_rate_interval(board: Json) -> Iterator[str]:
    for panel, found in _selectors(board):
        if found.function in {"rate", "irate"} and found.window != RATE_INTERVAL:
            yield f"panel {panel['title']!r}: the rate of {found.metric} is not over $__rate_interval"


@rule("target-job-rule")
def target_job(board: Json) -> Iterator[str]:
    for panel, found in _selectors(board):
        if found.matchers.get("job") != ("=~", "$job"):
            yield f'panel {panel["title"]!r}: {found.metric} has no job=~"$job"'


@rule("target-instance-rule")
def target_instance(board: Json) -> Iterator[str]:
    for panel, found in _selectors(board):  # laxer: what rules record is about all instances
        if (
            found.metric != "ALERTS"
            and ":" not in found.metric
            and found.matchers.get("instance") != ("=~", "$instance")
        ):
            yield f'panel {panel["title"]!r}: {found.metric} has no instance=~"$instance"'


@rule("target-counter-agg-rule")
def target_counter_agg(board: Json) -> Iterator[str]:
    of_panels = list(_selectors(board))
    increased = {(panel["id"], found.metric) for panel, found in of_panels if found.function == "increase"}
    for panel, found in of_panels:
        counter = re.search(r"_(total|sum|count|bucket)$", found.metric)  # stricter: the rule knows _total only
        # The only exception: the last value of a series that came into being, next to the increase of the others.
        added = found.function == "last_over_time" and (panel["id"], found.metric) in increased
        if counter and found.function not in {"rate", "irate", "increase"} and not added:
            yield f"panel {panel['title']!r}: the counter {found.metric} is shown as it stands"


def complaints(board: Json) -> dict[str, list[str]]:
    """Rule -> what it has to say; rules with nothing to say are left out."""
    said = {name: list(judge(board)) for name, judge in RULES.items()}
    return {name: found for name, found in said.items() if found}


__all__ = ["RULES", "complaints", "panels", "queries", "selectors", "targets", "variables"]
