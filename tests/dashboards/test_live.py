"""The proof: a real Prometheus scrapes the checkout service and a back office in trouble; every query of every
dashboard is executed, every rule is worked out, and what comes of it is what the load implies."""

from __future__ import annotations

import os
import re
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import build
import pytest
from drawing.asking import Asking, filled_in

from flowcore_otel import names
from flowcore_otel.dashboards import dashboards, files, rules
from flowcore_otel.dashboards.queries import OTLP, PROMETHEUS
from flowcore_otel.dashboards.recording import FAILING_AGAIN

from .conftest import BOARDS, DASHBOARDS, board, read_yaml
from .linter import WITH_NUMBERS, panels, targets, variables
from .load import PAUSED, TAKEN_FORWARD, TAKEN_HELD, TAKEN_UNDONE, Told, load
from .prometheus import EVERY, Prometheus
from .servers import program

Json = dict[str, Any]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills and pauses processes by signal")

# Rules for people have windows of minutes to days; here they have seconds, so that all can be seen within one test.
SHORTENED = {
    "5m": "8s",
    "2m": "6s",
    "10m": "8s",
    "15m": "15s",
    "30m": "12s",
    "1h": "20s",
    "2h": "15s",
    "6h": "20s",
    "1d": "30s",
    "3d": "30s",
}
VERSION = "7.1.0"
OTLP_LABELS = {
    ours: named for ours, attribute in names.LABELS.items() if (named := attribute.replace(".", "_")) != ours
}
NOT_LIVE = {
    "FlowcoreAbsent": "one Prometheus cannot have flowcore and not have it",
    **dict.fromkeys(
        ("FlowcoreRunsFailing", "FlowcoreSuccessOverdue", "FlowcoreRunsSlow", "FlowcoreUndoneSurge"),
        "it compares with what is usual: test_days.py has days of it",
    ),
    "FlowcoreLatencyObjective": "it wants an objective of the user's",
    "FlowcoreTargetDown/page": "it wants more than half of the targets gone, and the load kills and pauses only half",
    "FlowcoreRunsExpired/ticket": "it wants parked runs that nothing resumes for an hour",
    "FlowcoreSurveyMissing": "it wants a whole service that is gone",
    "FlowcoreRecoveryStale": "it wants a quarter of an hour in which nothing recovers",
}
"""alerts, or alerts of one severity, that only promtool and test_days.py see, and why"""


def shortened(text: str) -> str:
    """Rules in which minutes, hours and days are seconds; names of series stay."""
    text = re.sub(r"\[(\d+[mhd])\]", lambda found: f"[{SHORTENED.get(found[1], '30s')}]", text)
    text = re.sub(r"offset (\d+[mhd])", lambda found: f"offset {SHORTENED.get(found[1], '5s')}", text)
    text = re.sub(r'\b(for|interval): "\d+[mhd]"', rf'\1: "{EVERY}s"', text)
    return text.replace("> 3600", "> 3")


@dataclass
class Live:
    prometheus: Prometheus
    reported: Told
    rules: list[Json]
    """all rules, and how they fared"""
    began: float
    ended: float

    def expr(self, expr: str, chosen: dict[str, str] | None = None) -> str:
        """A query with Grafana's variables filled in. The data source says that a scrape is made every two seconds, so
        that on a busy machine one may be missed. How long alerts fired is looked up each second, not each minute."""
        expr = expr.replace("$__range:1m]", f"$__range:{EVERY}s]").replace(") * 60 ", f") * {EVERY} ")
        return filled_in(expr, seconds=self.ended - self.began, step=EVERY, scrape=2 * EVERY, chosen=chosen or {})

    def series(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """The value of each series at the end of the load."""
        return self.prometheus.series(expr, self.ended)

    def value(self, expr: str) -> float:
        """The value of the one series there is."""
        ((_, value),) = self.series(expr)
        return value


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    binary = program("prometheus")
    folder = tmp_path_factory.mktemp("live")
    os.environ["OTEL_RESOURCE_ATTRIBUTES"] = f"service.version={VERSION}"
    rules = []
    for name, content in files(build.options(PROMETHEUS)).items():
        if name.startswith("rules/"):
            rules.append(folder / Path(name).name)
            rules[-1].write_text(shortened(content), "utf-8")
    with Prometheus(binary, folder / "prometheus", rules, otlp_labels=OTLP_LABELS, assets=DASHBOARDS) as prometheus:
        with load(folder, prometheus) as reported:
            prometheus.look_at_copies(reported.alive)
            fared = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
        prometheus.rest()
        yield Live(prometheus, reported, fared, prometheus.began, prometheus.looked)
    del os.environ["OTEL_RESOURCE_ATTRIBUTES"]


# -- what Grafana does with a query ------------------------------------------------------------------------------------


def several(*values: str) -> str:
    """A variable of which several values are chosen, as Grafana writes them into a regular expression."""
    escaped = [re.sub(r"([\\^$*+?.()|{}\[\]/])", r"\\\\\1", value) for value in values]
    return f"({'|'.join(escaped)})" if len(escaped) > 1 else escaped[0]


def executed(live: Live, target: Json, chosen: dict[str, str] | None = None) -> list[Json]:
    """The series that a target gets, as Grafana would ask for them."""
    expr = live.expr(target["expr"], chosen)
    if target["instant"]:
        found: list[Json] = live.prometheus.ask("query", query=expr, time=live.ended)["result"]
        return found
    ranged: list[Json] = live.prometheus.ask("query_range", query=expr, start=live.began, end=live.ended, step=EVERY)[
        "result"
    ]
    return ranged


def choices(live: Live, target: Json, job: str = "shop") -> list[dict[str, str]]:
    """What to choose so that there may be data: all workflows or, where the dashboard is about one, each of them."""
    if not re.search(r'workflow\w*="\$workflow"', target["expr"]):
        return [{"job": job}]
    known = sorted({labels["workflow"] for labels, _ in live.series('flowcore_workflow_info{job="shop"}')})
    return [{"job": job, "workflow": workflow} for workflow in known]


def of_a_workflow(live: Live, target: Json, job: str) -> list[Json]:
    """The series that a target gets for the first choice that has any."""
    return next((found for chosen in choices(live, target, job) if (found := executed(live, target, chosen))), [])


Targets = list[tuple[Json, Json]]


def of_each(queries: Targets) -> pytest.MarkDecorator:
    """A test for each query, which gets its panel and the target."""
    names_of = [f"{panel['title']}-{target['refId']}" for panel, target in queries]
    return pytest.mark.parametrize(("panel", "target"), queries, ids=names_of)


ALL_TARGETS: Targets = [one for name in BOARDS for one in targets(board(name))]
LATER = re.compile(r"offset 1d|overdue")
"""what compares with the day before, which test_days.py has, or has data when a workflow is overdue"""
NOW_TARGETS: Targets = [one for one in ALL_TARGETS if not LATER.search(f"{one[1]['expr']} {one[1]['legendFormat']}")]
OF_OTLP = [
    one for of in dashboards(build.options(OTLP)).values() for one in targets(of) if "ALERTS" not in one[1]["expr"]
]
OTLP_TARGETS: Targets = [one for one in OF_OTLP if not LATER.search(f"{one[1]['expr']} {one[1]['legendFormat']}")]
WITH_EXEMPLARS: Targets = [(panel, target) for panel, target in ALL_TARGETS if target["exemplar"]]


@of_each(NOW_TARGETS)
def test_every_query_has_data(live: Live, panel: Json, target: Json) -> None:
    found = of_a_workflow(live, target, "shop")
    assert found, f"{panel['title']}: {target['expr']}"
    for one in found:
        assert one.get("values") or one["value"]


@of_each(ALL_TARGETS)
def test_every_query_runs_with_some_of_each_variable_chosen(live: Live, panel: Json, target: Json) -> None:
    instances = sorted({one["instance"] for one, _ in live.series('flowcore_build_info{job="shop"}')})
    chosen = {
        "job": several("shop", "another (job)"),
        "instance": several(*instances),
        "workflow": several("checkout", "returns", "a+b"),
    }
    executed(live, target, chosen)
    executed(live, target)


@of_each(OTLP_TARGETS)
def test_every_query_of_the_variant_for_otlp_has_data(live: Live, panel: Json, target: Json) -> None:
    """From the same numbers under the labels that they have when they come by OTLP."""
    assert of_a_workflow(live, target, "shop-otlp"), f"{panel['title']}: {target['expr']}"


@pytest.mark.parametrize("name", BOARDS)
def test_every_variable_has_values(live: Live, name: str) -> None:
    wanted = {"job": "shop", "instance": "127.0.0.1:", "workflow": "checkout"}
    for variable in variables(board(name), "query"):
        query = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert query
        selector = live.expr(query[1])
        found = live.prometheus.ask(f"label/{query[2]}/values", **{"match[]": selector, "start": live.began})
        assert any(value.startswith(wanted[variable["name"]]) for value in found), variable["name"]


@pytest.mark.parametrize("name", BOARDS)
def test_the_version_is_marked_when_it_comes(live: Live, name: str) -> None:
    for annotation in board(name)["annotations"]["list"]:
        expr = live.expr(annotation["expr"], {"job": "shop"})
        data = live.prometheus.ask("query_range", query=expr, start=live.began, end=live.ended, step=EVERY)
        assert [one["metric"] for one in data["result"]] == [{"job": "shop", "version": VERSION}]


# -- headline numbers --------------------------------------------------------------------------------------------------


def _share(part: float, whole: float) -> float:
    return part / whole


BAD = ("failure", "compensation_failed", "parked", "lost")

Expected = Callable[[Told], float]


def _of_runs(*outcomes_and_told: Any) -> float:
    """The share of runs that ended so."""
    *outcomes, reported = outcomes_and_told
    return _share(sum(reported.outcomes[name] for name in outcomes), reported.runs.total())


# (dashboard, panel) -> the value that the load implies, the workflow chosen
HEADLINES: dict[tuple[str, str], tuple[Expected, str]] = {
    ("overview", "Served"): (partial(_of_runs, "success"), ".+"),
    ("overview", "Undone"): (partial(_of_runs, "compensated"), ".+"),
    ("overview", "Failed"): (partial(_of_runs, *BAD), ".+"),
    ("overview", "Targets down"): (lambda _: 1, ".+"),
    ("overview", "Requests served by an earlier run"): (
        lambda reported: _share(
            reported.hits["replayed"] + reported.hits["adopted"],
            reported.hits["replayed"] + reported.hits["adopted"] + reported.runs.total(),
        ),
        ".+",
    ),
    ("workflow", "Failed"): (lambda _: 0.0, "checkout"),
    ("workflow", "Runs"): (
        lambda reported: sum(not a.replayed and a.status in {201, 402, 410, 502} for a in reported.orders),
        "checkout",
    ),
    ("workflow", "In flight"): (lambda _: 0, "checkout"),
}


@pytest.mark.parametrize(("name", "title"), HEADLINES)
def test_headline_numbers_are_what_the_load_implies(live: Live, name: str, title: str) -> None:
    expected, workflow = HEADLINES[name, title]
    (panel,) = [one for one in panels(board(name)) if one["title"] == title]
    found = executed(live, panel["targets"][0], {"job": "shop", "workflow": workflow})
    ((_, value),) = [one.get("value") or one["values"][-1] for one in found]
    # increase() draws the slope out to the ends of its window, which is 20 times the time between scrapes or more.
    assert float(value) == pytest.approx(expected(live.reported), rel=0.1, abs=0.005), title


def test_every_number_that_stands_large_is_compared() -> None:
    large = {
        (name, panel["title"]) for name in BOARDS for panel in panels(board(name)) if panel["type"] in {"stat", "gauge"}
    }
    times = {
        ("workflow", "p95 of runs"),
        ("workflow", "Last success"),
        ("workflow", "Until the next fire"),
        ("workflow", "Last scheduled success"),
        ("store", "Successful operations"),
        ("store", "Hooks, for each attempt"),
        ("store", "Last round of recovery"),
        ("workflow", "Served"),
        ("workflow", "Undone"),
    }  # how long things take, and how often heartbeats were sent, is not implied by the load
    assert large - times == set(HEADLINES)


def _sums(live: Live, metric: str, label: str) -> dict[str, int]:
    found = live.series(f'sum by ({label}) ({metric}{{job="shop"}}) > 0')
    return {labels[label]: round(value) for labels, value in found}


def test_counts_are_what_the_callers_got(live: Live) -> None:
    """The counters themselves, and so exactly."""
    reported = live.reported
    count = 'flowcore_runs_total{job="shop", workflow!="queue"}'  # no caller waited for that one
    found = live.series(f"sum by (workflow, outcome) ({count}) > 0")
    assert {(labels["workflow"], labels["outcome"]): value for labels, value in found} == dict(reported.runs)
    assert _sums(live, "flowcore_idempotency_hits_total", "outcome") == dict(reported.hits)
    by_step = live.series('sum by (workflow, step) (flowcore_step_retries_total{job="shop"}) > 0')
    assert sum(value for _, value in by_step) == reported.retries, by_step
    recovered = {"forward": TAKEN_FORWARD + PAUSED, "undo": TAKEN_UNDONE, "hold": TAKEN_HELD}
    assert _sums(live, "flowcore_run_recoveries_total", "decision") == recovered
    assert live.value('sum(flowcore_lease_lost_total{job="shop"})') == PAUSED
    assert _sums(live, "flowcore_hook_errors_total", "hook") == {"grumpy": reported.by_trouble["failures"]["failure"]}
    assert _sums(live, "flowcore_step_late_completions_total", "step") == {
        "read": reported.by_trouble["time_outs"]["failure"]
    }


def test_panels_show_the_troubles_that_there_were(live: Live) -> None:
    """(dashboard, panel) -> legends that must be among its series."""
    shown = {
        ("overview", "Runs that wait"): {"held", "expired"},
        ("overview", "Errors"): {"ConnectionError", "LookupError", "partners.Declined"},
        ("overview", "Compensations"): {"success", "failure"},
        ("overview", "Requests that met an earlier run with their key"): set(live.reported.hits),
        ("overview", "Runs that failed or were undone"): set(live.reported.outcomes) - {"success"},
        ("store", "Takeovers"): {"forward", "undo", "hold"},
        ("overview", "Firing alerts"): {"FlowcoreRunsHeld", "FlowcoreRunsExpired", "page", "ticket"},
        ("overview", "Workflows, worst first"): {"checkout", "returns"},
    }
    for (name, title), wanted in shown.items():
        (panel,) = [one for one in panels(board(name)) if one["title"] == title]
        found = [one for target in panel["targets"] for one in executed(live, target, {"job": "shop"})]
        values = {value for one in found for value in one["metric"].values()}
        assert wanted <= values | {value.rpartition(".")[0] + "." + value.rpartition(".")[2] for value in values}, (
            title,
            values,
        )


# -- exemplars ---------------------------------------------------------------------------------------------------------


@of_each(WITH_EXEMPLARS)
def test_every_query_that_asks_for_exemplars_gets_some(live: Live, panel: Json, target: Json) -> None:
    """As Grafana asks for them: with the panel's own query."""
    span = {"start": live.began, "end": live.ended}
    exprs = [live.expr(target["expr"], chosen) for chosen in choices(live, target)]
    found = [series for expr in exprs for series in live.prometheus.ask("query_exemplars", query=expr, **span)]
    labels = [exemplar["labels"] for series in found for exemplar in series["exemplars"]]
    assert labels, panel["title"]
    for one in labels:
        assert re.fullmatch(r"[0-9a-f]{32}", one["trace_id"])
        assert re.fullmatch(r"[0-9a-f]{16}", one["span_id"])


def test_an_exemplar_of_the_service_is_a_span_that_it_wrote(live: Live) -> None:
    spans = (live.prometheus.log.parents[1] / "spans.jsonl").read_text("utf-8")
    found = live.prometheus.ask(
        "query_exemplars",
        query='flowcore_run_duration_seconds_bucket{job="shop", workflow="checkout", outcome="compensated"}',
        start=live.began,
        end=live.ended,
    )
    traces = {one["labels"]["trace_id"] for series in found for one in series["exemplars"]}
    assert traces
    assert all(trace in spans for trace in traces)


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_panels_of_each_kind_are_drawn(live: Live) -> None:
    from render import COLUMN, GAP, LINE, render  # Matplotlib: not in each process that collects.

    first = {panel["type"]: panel for name in BOARDS for panel in panels(board(name))}
    assert set(first) >= WITH_NUMBERS - {"gauge"}, "a kind that has no panel is drawn by no test"
    for row, panel in enumerate(first.values()):
        panel["gridPos"] = {"x": 0, "y": 8 * row, "w": 12, "h": 8}
    asking = Asking(live.prometheus.url, live.began, live.ended, 2 * EVERY, {"job": "shop"})
    picture = render({"panels": list(first.values())}, asking).convert("RGB")
    assert picture.size == (24 * COLUMN + 2 * GAP, 8 * len(first) * LINE + 2 * GAP)
    for row, panel in enumerate(first.values()):
        drawn = picture.crop((0, 8 * row * LINE, 12 * COLUMN, 8 * (row + 1) * LINE)).getcolors(1 << 20)
        assert drawn is not None
        assert len(drawn) >= 12, f"{panel['title']} is blank"


# -- rules -------------------------------------------------------------------------------------------------------------


def test_every_rule_is_healthy(live: Live) -> None:
    assert {rule["health"] for rule in live.rules} == {"ok"}


def test_every_recording_rule_has_data(live: Live) -> None:
    for group in rules(build.options(PROMETHEUS))["recording"]["groups"]:
        for rule in group["rules"]:
            series = live.series(f'last_over_time({rule["record"]}{{job="shop"}}[5m])')
            found = {labels.get("workflow") for labels, _ in series}
            # Whether the latest run of a workflow has failed depends on the moment; some have failed in every run.
            workflow = "returns" if "fail" in rule["record"] else "checkout"
            expected = None if rule["record"].startswith("job:") else workflow
            assert expected in found or rule["record"] == FAILING_AGAIN, rule["record"]


ALERTS: list[Json] = [rule for group in rules(build.options(PROMETHEUS))["alerts"]["groups"] for rule in group["rules"]]


def _names(rule: Json) -> set[str]:
    """What NOT_LIVE may call an alert."""
    return {rule["alert"], f"{rule['alert']}/{rule['labels']['severity']}"}


POSSIBLE = [rule for rule in ALERTS if not _names(rule) & set(NOT_LIVE)]


@pytest.mark.parametrize("rule", POSSIBLE, ids=lambda rule: rule["alert"] + rule["labels"].get("long", ""))
def test_every_alert_fires_when_it_should(live: Live, rule: Json) -> None:
    """With shortened windows: that a real Prometheus makes an alert of real metrics. promtool sees to the rest."""
    name = rule["alert"]
    chosen = ", ".join(
        f'{label}="{rule["labels"][label]}"' for label in ("severity", "long") if label in rule["labels"]
    )
    fired = live.series(
        f'count by (job) (last_over_time(ALERTS{{alertname="{name}", alertstate="firing", job="shop", {chosen}}}[5m]))'
    )
    assert fired, name


def test_the_others_are_few_and_known() -> None:
    left_out = [rule for rule in ALERTS if rule not in POSSIBLE]
    assert {name for rule in left_out for name in _names(rule) & set(NOT_LIVE)} == set(NOT_LIVE)


def test_the_service_that_only_declines_cards_burns_no_budget(live: Live) -> None:
    burnt = 'last_over_time(ALERTS{alertname="FlowcoreErrorBudgetBurn", workflow="checkout", job="shop"}[5m])'
    assert live.series(burnt) == []


def test_the_runbook_is_where_the_alerts_say(live: Live) -> None:
    """Prometheus serves it, as compose.yaml sets it up."""
    for rule in ALERTS:
        path, _, section = urllib.parse.urlsplit(rule["annotations"]["runbook_url"])[2:5]
        text = live.prometheus.get(path)
        assert re.search(rf"^## {section}$", text, re.MULTILINE | re.IGNORECASE)


def test_rules_are_shortened_in_time_only() -> None:
    for name in ("recording", "alerts"):
        text = (DASHBOARDS / "rules" / f"{name}.yml").read_text("utf-8")
        before, after = read_yaml(text), read_yaml(shortened(text))
        for one, other in zip(before["groups"], after["groups"], strict=True):
            assert [set(rule) for rule in one["rules"]] == [set(rule) for rule in other["rules"]]
            assert [rule.get("record") for rule in one["rules"]] == [rule.get("record") for rule in other["rules"]]
