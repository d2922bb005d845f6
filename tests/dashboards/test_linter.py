"""The rules of grafana/dashboard-linter hold, and each of them can fail."""

from collections.abc import Callable
from typing import Any

import pytest

from .conftest import board
from .linter import RULES, complaints, panels, targets, variables

Json = dict[str, Any]


def _panel(of: Json, kind: str = "timeseries") -> Json:
    return next(panel for panel in panels(of) if panel["type"] == kind)


def _variable(of: Json, name: str) -> Json:
    return next(one for one in variables(of) if one["name"] == name)


def _expr(of: Json, old: str, new: str) -> None:
    target = next(target for _, target in targets(of) if old in target["expr"])
    target["expr"] = target["expr"].replace(old, new)


def _loki(of: Json, expr: str) -> None:
    panel = _panel(of)
    panel["targets"].append({"datasource": {"type": "loki", "uid": "${datasource}"}, "expr": expr, "refId": "L"})


# rule -> what breaks it
BREACHES: dict[str, list[Callable[[Json], object]]] = {
    "template-datasource-rule": [
        lambda of: of["templating"]["list"].pop(0),
        lambda of: _variable(of, "datasource").update(name="prom"),
        lambda of: _variable(of, "datasource").update(label="Datasource"),
    ],
    "template-job-rule": [
        lambda of: of["templating"]["list"].remove(_variable(of, "job")),
        lambda of: _variable(of, "job").update(multi=False),
        lambda of: _variable(of, "job").update(allValue=".*"),
        lambda of: _variable(of, "job").update(datasource={"type": "prometheus", "uid": "prom1"}),
    ],
    "template-instance-rule": [lambda of: _variable(of, "instance").update(label="Host")],
    "template-label-promql-rule": [
        lambda of: _variable(of, "workflow").update(query={"query": "label_values(up{, job)"}),
        lambda of: _variable(of, "workflow").update(query={"query": "values(up, job)"}),
    ],
    "template-on-time-change-reload-rule": [lambda of: _variable(of, "workflow").update(refresh=1)],
    "uneditable-dashboard": [lambda of: of.update(editable=True)],
    "panel-datasource-rule": [
        lambda of: _panel(of).update(datasource={"type": "prometheus", "uid": "prom1"}),
        lambda of: _panel(of)["targets"][0].update(datasource={"type": "prometheus", "uid": "prom1"}),
    ],
    "panel-title-description-rule": [
        lambda of: _panel(of).update(title=""),
        lambda of: _panel(of, "stat").pop("description"),
    ],
    "panel-units-rule": [
        lambda of: _panel(of)["fieldConfig"]["defaults"].update(unit="sec"),
        lambda of: _panel(of)["fieldConfig"]["defaults"].pop("unit"),
    ],
    "panel-no-targets-rule": [lambda of: _panel(of).update(targets=[])],
    "target-logql-rule": [lambda of: _loki(of, '{app="x"}')],
    "target-logql-auto-rule": [lambda of: _loki(of, 'rate({app="x"}[5m])')],
    "target-promql-rule": [lambda of: _expr(of, "sum", "summ"), lambda of: _expr(of, ")", "")],
    "target-rate-interval-rule": [
        lambda of: _panel(of)["targets"][0].update(expr='rate(flowcore_lease_lost_total{job=~"$job"}[5m])'),
        lambda of: _panel(of)["targets"][0].update(expr='irate(flowcore_lease_lost_total{job=~"$job"}[$__range])'),
    ],
    "target-job-rule": [
        lambda of: _expr(of, 'job=~"$job", ', ""),
        lambda of: _expr(of, 'job=~"$job"', 'job="$job"'),
    ],
    "target-instance-rule": [lambda of: _expr(of, 'instance=~"$instance"', 'instance=~".+"')],
    "target-counter-agg-rule": [
        lambda of: _panel(of)["targets"][0].update(
            expr='flowcore_step_retries_total{job=~"$job",instance=~"$instance"}'
        ),
        lambda of: _panel(of)["targets"][0].update(expr='max_over_time(flowcore_step_retries_total{job=~"$job"}[5m])'),
    ],
}


def test_the_committed_dashboards_keep_all_the_rules(committed: Json) -> None:
    said = complaints(committed)
    if committed["uid"] == "flowcore-workflow":  # its workflow is one, which no rule is about
        assert not _variable(committed, "workflow")["multi"]
    assert said == {}


def test_there_are_seventeen_rules_each_with_a_case_that_fails() -> None:
    assert len(RULES) == 17
    assert set(BREACHES) == set(RULES)


@pytest.mark.parametrize(
    ("name", "breach"),
    [
        pytest.param(name, breach, id=f"{name}-{i}")
        for name, cases in BREACHES.items()
        for i, breach in enumerate(cases)
    ],
)
def test_each_rule_notices_its_breach(name: str, breach: Callable[[Json], object]) -> None:
    broken = board("overview")
    breach(broken)
    assert name in complaints(broken)
