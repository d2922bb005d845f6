"""Metric names in dashboards, rules, runbook and documents are those of `flowcore_otel.names`, both ways."""

import dataclasses
import functools
import json
import re

import pytest

from flowcore_otel import names
from flowcore_otel.dashboards.queries import OF_THE_TARGET

from .conftest import BOARDS, DASHBOARDS, ROOT, read_yaml
from .linter import targets, variables
from .promql import selectors

FIELDS = {"flowcore_run_id", "flowcore_workflow", "flowcore_step", "flowcore_attempt"}
"""of log records"""
NOT_OURS = {*OF_THE_TARGET, *FIELDS, "ALERTS"}
RECORDED = re.compile(r"(?:(?:job_)?workflow(?:_status)?|job):flowcore_\w+:\w+")
NAME = re.compile(r"(?<![\w:/.-])flowcore_(?!otel)[a-z_]+[a-z]\b(?![:(/])")

Texts = dict[str, str]


@functools.cache
def _texts() -> Texts:
    """Everything that names metrics: file -> text."""
    read = {f"{name}.json": (DASHBOARDS / f"{name}.json").read_text("utf-8") for name in BOARDS}
    read |= {f"rules/{path.name}": path.read_text("utf-8") for path in sorted((DASHBOARDS / "rules").glob("*.yml"))}
    read |= {f"rules/tests/{path.name}": path.read_text("utf-8") for path in (DASHBOARDS / "rules/tests").glob("*.yml")}
    for document in ("dashboards/RUNBOOK.md", "dashboards/README.md", "README.md", "flowcore_otel/TELEMETRY.md"):
        if (ROOT / document).exists():
            read[document] = (ROOT / document).read_text("utf-8")
    return read


@functools.cache
def named(file: str, text: str) -> frozenset[str]:
    """The metrics that a file names, recorded series aside."""
    if file.endswith(".json"):
        board = json.loads(text)
        exprs = [target["expr"] for _, target in targets(board)]
        exprs += [one["expr"] for one in board["annotations"]["list"]]
        queried = [re.match(r"label_values\((.+), \w+\)", one["query"]["query"]) for one in variables(board, "query")]
        exprs += [one[1] for one in queried if one]
        found = {selector.metric for expr in exprs for selector in selectors(expr)}
    elif file.startswith("rules/tests/"):
        cases = read_yaml(text)["tests"]
        found = {re.split("[{]", series["series"])[0] for case in cases for series in case["input_series"]}
    elif file.endswith(".yml"):
        groups = read_yaml(text)["groups"]
        found = {selector.metric for group in groups for rule in group["rules"] for selector in selectors(rule["expr"])}
    else:
        found = set(NAME.findall(text))
    return frozenset(name for name in found if not RECORDED.fullmatch(name)) - NOT_OURS


def texts() -> Texts:
    """The same, to be changed at will."""
    return dict(_texts())


def differences(read: Texts) -> list[str]:
    """Where names and catalogue differ; empty is good."""
    bare = re.compile(r"_(bucket|sum|count)$")
    known = {metric.prometheus: metric for metric in names.METRICS}
    found = {file: named(file, text) for file, text in read.items()}
    reported = []
    for file, used in found.items():
        for name in sorted(used):
            metric = known.get(name) or known.get(bare.sub("", name))
            if metric is None:
                reported.append(f"{file} names {name}, which is not in the catalogue")
            elif file.endswith((".json", ".yml")) and (metric.kind == "histogram") != bool(bare.search(name)):
                reported.append(f"{file} asks for {name}, which has no such series")
    shown = {bare.sub("", name) for file, used in found.items() if file.endswith(".json") for name in used}
    reported += [f"no dashboard shows {name}" for name in sorted(set(known) - shown)]
    listed = found["flowcore_otel/TELEMETRY.md"]
    return reported + [f"TELEMETRY.md does not list {name}" for name in sorted(set(known) - listed)]


def test_the_names_are_those_of_the_catalogue_both_ways() -> None:
    assert differences(texts()) == []


@pytest.mark.parametrize("metric", names.METRICS, ids=lambda metric: metric.name)
def test_a_metric_renamed_in_the_catalogue_is_missed(metric: names.Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = dataclasses.replace(metric, name=metric.name + ".renamed")
    monkeypatch.setattr(names, "METRICS", tuple(renamed if one is metric else one for one in names.METRICS))
    reported = differences(texts())
    assert f"no dashboard shows {renamed.prometheus}" in reported
    assert any(f"names {metric.prometheus}" in one for one in reported)


@pytest.mark.parametrize("file", [file for file in texts() if "flowcore_run_duration_seconds" in texts()[file]])
def test_a_metric_renamed_in_a_file_is_seen(file: str) -> None:
    read = texts()
    read[file] = read[file].replace("flowcore_run_duration_seconds", "flowcore_run_time_seconds")
    assert any(one.startswith(f"{file} names flowcore_run_time_seconds") for one in differences(read))


def test_a_metric_added_to_the_catalogue_wants_a_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    new = names.Metric("flowcore.run.surprises", "counter", "{surprise}", ("workflow",), "Surprises.")
    monkeypatch.setattr(names, "METRICS", (*names.METRICS, new))
    assert "no dashboard shows flowcore_run_surprises_total" in differences(texts())
