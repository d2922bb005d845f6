"""The rules: judged by promtool, tested for firing and for silence, and each with a section in the runbook."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import build
import pytest

from flowcore_otel import names
from flowcore_otel.dashboards import Options, dashboards, files, rules
from flowcore_otel.dashboards.queries import NATIVE, OTLP, PROMETHEUS, Source

from .conftest import DASHBOARDS, board, read_yaml
from .promql import labels_used, selectors
from .servers import program

Json = dict[str, Any]

RULES = DASHBOARDS / "rules"
TESTS = sorted((RULES / "tests").glob("*.yml"))
RUNBOOK = (DASHBOARDS / "RUNBOOK.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (Flowcore\w+)\n(.*?)(?=^<a id|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))

RECORDED = {
    rule["record"]: rule
    for group in read_yaml((RULES / "recording.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
}
ALERTS: list[Json] = [
    rule for group in read_yaml((RULES / "alerts.yml").read_text("utf-8"))["groups"] for rule in group["rules"]
]
NAMES = sorted({rule["alert"] for rule in ALERTS})
CASES: list[Json] = [case for path in TESTS for case in read_yaml(path.read_text("utf-8"))["tests"]]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [program("promtool"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


# -- promtool's judgement ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [PROMETHEUS, OTLP, NATIVE], ids=["prometheus", "otlp", "native"])
def test_promtool_finds_the_rules_in_order(source: Source, tmp_path: Path) -> None:
    for name, content in files(build.options(source)).items():
        if name.startswith("rules/"):
            (tmp_path / Path(name).name).write_text(content, "utf-8")
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", *sorted(tmp_path.iterdir()))
    assert done.returncode == 0, done.stderr


def asked_for(case: Json) -> set[str]:
    """The rules that a unit test asks for, and those that they stand on."""
    asked = {one["alertname"] for one in case.get("alert_rule_test", [])}
    exprs = [one["expr"] for one in case.get("promql_expr_test", [])]
    while True:
        exprs += [
            rule["expr"] for rule in (*ALERTS, *RECORDED.values()) if rule.get("alert", rule.get("record")) in asked
        ]
        found = {name for name in (*RECORDED, *NAMES) for expr in exprs if name in expr}
        if found <= asked:
            return asked
        asked |= found


def divided(path: Path, folder: Path, alerts: str) -> list[Path]:
    """A file for each unit test of a file, beside those of the recording rules and `alerts` that it asks for. promtool
    evaluates every rule of its files for every minute of every test, which takes several times as long."""
    rules = {"recording.yml": (RULES / "recording.yml").read_text("utf-8"), "alerts.yml": alerts}
    content = read_yaml(path.read_text("utf-8"))
    tests = []
    for number, case in enumerate(content["tests"]):
        of_case = folder / str(number)
        (of_case / "tests").mkdir(parents=True)
        asked = asked_for(case)
        for name, text in rules.items():
            groups = read_yaml(text)["groups"]
            for group in groups:
                group["rules"] = [one for one in group["rules"] if one.get("alert", one.get("record")) in asked]
            (of_case / name).write_text(json.dumps({"groups": groups}), "utf-8")  # JSON is YAML.
        tests.append(of_case / "tests" / path.name)
        tests[-1].write_text(json.dumps({**content, "tests": [case]}), "utf-8")
    return tests


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_promtools_unit_tests_pass(path: Path, tmp_path: Path, full: bool) -> None:
    done = promtool(
        "test", "rules", *([path] if full else divided(path, tmp_path, (RULES / "alerts.yml").read_text("utf-8")))
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("old", "new", "tests"),
    [
        ("> 14.4 * 0.005", "> 14.5 * 0.005", "burn"),
        pytest.param('status="expired"', 'status="parked"', "runs", marks=pytest.mark.full),
        pytest.param("#flowcorenosuccess", "#flowcoresuccess", "runs", marks=pytest.mark.full),
        pytest.param("unless flowcore_hook_errors_total <=", ">", "rest", marks=pytest.mark.full),
    ],
)
def test_a_changed_rule_fails_its_unit_tests(old: str, new: str, tests: str, tmp_path: Path) -> None:
    """Not all of it, but a sample: every threshold, time and label was changed once, by hand."""
    alerts = (RULES / "alerts.yml").read_text("utf-8")
    assert old in alerts
    copies = divided(RULES / "tests" / f"{tests}.yml", tmp_path, alerts.replace(old, new))
    done = promtool("test", "rules", *copies)
    assert done.returncode == 1
    assert "FAILED" in done.stdout + done.stderr


@pytest.mark.parametrize(("name", "title"), [("overview", "Errors"), ("workflow", "Errors of attempts")])
def test_a_table_counts_errors_from_the_first_even_of_a_process_that_has_ended(
    name: str, title: str, tmp_path: Path
) -> None:
    (panel,) = (panel for panel in board(name)["panels"] if panel["title"] == title)
    expr = panel["targets"][0]["expr"].replace("$__range", "1h").replace("$workflow", "nightly")
    of = 'job="shop", workflow="nightly", step="load"'
    series = {
        f'instance="ended", {of}, error_type="TimeoutError"': "_x70 1x5 _x60",
        f'instance="first", {of}, error_type="ValueError"': "_x100 1x20",
        f'instance="old", {of}, error_type="KeyError"': "7x90 9x30",
        f'instance="quiet", {of}, error_type="OSError"': "5x120",
    }
    by = 'step="load", ' if name == "workflow" else ""
    counts = {"TimeoutError": 1, "ValueError": 1, "KeyError": 2, "OSError": 0}
    case = {
        "interval": "1m",
        "input_series": [
            {"series": f"flowcore_step_errors_total{{{labels}}}", "values": values} for labels, values in series.items()
        ],
        "promql_expr_test": [
            {
                "expr": re.sub(r'=~"\$(job|instance)"', '=~".+"', expr),
                "eval_time": "2h",
                "exp_samples": [
                    {"labels": f'{{{by}error_type="{error}"}}', "value": count} for error, count in counts.items()
                ],
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(json.dumps({"tests": [case]}), "utf-8")
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


# -- that the unit tests leave nothing out -----------------------------------------------------------------------------


def _expectations(name: str) -> list[tuple[str, list[Json]]]:
    """(test, what it expects of the alert), for each time it looks."""
    return [
        (case["name"], one.get("exp_alerts", []))
        for case in CASES
        for one in case.get("alert_rule_test", [])
        if one["alertname"] == name
    ]


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_is_tested_for_firing_resolving_and_silence(name: str) -> None:
    expected = _expectations(name)
    fires = [i for i, (_, alerts) in enumerate(expected) if alerts]
    assert fires
    first = expected[fires[0]][0]
    reported = [bool(alerts) for case, alerts in expected if case == first]
    assert reported[0] is False, "silent until it has lasted long enough"
    resolving = [case for i, (case, _) in enumerate(expected[:-1]) if expected[i][1] and expected[i + 1] == (case, [])]
    assert resolving, "it resolves"
    silent = {case for case, alerts in expected if not alerts} - {case for case, alerts in expected if alerts}
    for quiet in (
        "never run anything",
        "idle now",
        "set back by a restart",
        "no data",
    ):
        assert any(quiet in case for case in silent), quiet


@pytest.mark.parametrize("name", NAMES)
def test_several_instances_make_one_alert(name: str) -> None:
    firing = {case for case, alerts in _expectations(name) if alerts}
    instances = max(
        len(set(re.findall(r'instance="(\w+)"', " ".join(series["series"] for series in case["input_series"]))))
        for case in CASES
        if case["name"] in firing
    )
    assert instances >= 2 or name in {"FlowcoreStoreSlow", "FlowcoreSeriesCapped", "FlowcoreErrorBudgetBurn"}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"] + rule["labels"].get("long", ""))
def test_expected_alerts_are_written_out_in_full(rule: Json) -> None:
    firing = [
        alert
        for _, alerts in _expectations(rule["alert"])
        for alert in alerts
        if rule["labels"].items() <= alert["exp_labels"].items()
    ]
    assert firing
    for alert in firing:
        assert set(alert["exp_annotations"]) == set(rule["annotations"])


@pytest.mark.parametrize("record", RECORDED)
def test_each_recorded_series_has_a_test_of_its_value(record: str) -> None:
    tested = [one for case in CASES for one in case.get("promql_expr_test", []) if record in one["expr"]]
    assert any(one["exp_samples"] for one in tested)


# -- what rules are made of --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"] + rule["labels"].get("long", ""))
def test_each_alert_says_how_bad_it_is_and_where_to_read_on(rule: Json) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket"}
    base, _, section = rule["annotations"]["runbook_url"].partition("#")
    assert base == build.OPTIONS.runbook
    assert section == rule["alert"].lower()
    assert rule["alert"] in SECTIONS
    uid = re.match(rf"{build.OPTIONS.grafana}/d/(flowcore-\w+)(\?|$)", rule["annotations"]["dashboard_url"])
    assert uid
    assert uid[1] in {board["uid"] for board in dashboards(build.options(PROMETHEUS)).values()}


def test_no_alert_is_about_an_instance_or_a_kind_of_error() -> None:
    for rule in ALERTS:
        assert "error_type" not in rule["expr"]
        assert "$labels.instance" not in str(rule["annotations"])


def test_every_recorded_series_serves_an_alert_and_is_named_for_what_it_is() -> None:
    asked = {found.metric for rule in ALERTS for found in selectors(rule["expr"])}
    asked |= {one.metric for name, rule in RECORDED.items() for one in selectors(rule["expr"]) if one.metric != name}
    for record, rule in RECORDED.items():
        assert re.fullmatch(r"job(_workflow(_status)?)?:flowcore_\w+:\w+", record)
        assert record in asked
        assert labels_used(rule["expr"]) <= {"job", "workflow", "outcome", "status", "le"}


def test_the_objective_is_set_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowcore_otel.dashboards.alerts.OBJECTIVE", 0.99)
    text = str(rules(build.options(PROMETHEUS)))
    assert "> 14.4 * 0.01" in text
    assert "0.005" not in text
    assert "99.0%" in text


def test_links_can_lead_elsewhere() -> None:
    text = str(rules(Options(runbook="https://wiki.test/flowcore", grafana="https://grafana.test")))
    assert "https://wiki.test/flowcore#flowcorerunsheld" in text
    assert "https://grafana.test/d/flowcore-store" in text
    assert "localhost" not in text


def test_the_variant_for_otlp_uses_its_labels_and_asks_for_no_targets() -> None:
    allowed = {names.LABELS[label].replace(".", "_") for label in names.LABELS} | {"job", "instance", "le", "workflow"}
    for content in rules(build.options(OTLP)).values():
        for rule in (rule for group in content["groups"] for rule in group["rules"]):
            assert "up" not in {found.metric for found in selectors(rule["expr"])}
            assert labels_used(rule["expr"]) <= allowed
            assert not re.search(r"\$labels\.(workflow|step|store|hook)\b", str(rule.get("annotations")))


def test_with_either_kind_of_histograms_every_alert_is_there() -> None:
    def alerts(source: Source) -> list[str]:
        groups = rules(build.options(source))["alerts"]["groups"]
        return [rule["alert"] for group in groups for rule in group["rules"]]

    assert alerts(NATIVE) == alerts(OTLP)
    assert set(NAMES) - set(alerts(OTLP)) == {"FlowcoreTargetDown"}, "only a target that is scraped can be down"


# -- the runbook -------------------------------------------------------------------------------------------------------


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    assert sorted(SECTIONS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_section_says_what_to_look_at_what_to_type_and_when_it_is_over(name: str) -> None:
    for heading in ("**Means**: ", "**How bad**: ", "**Look at**: ", "**Type**:", "**Over when**: "):
        assert SECTIONS[name].count(heading) == 1


def test_the_panels_that_the_runbook_names_are_on_the_dashboards() -> None:
    titles = {panel["title"] for board in dashboards(build.options(PROMETHEUS)).values() for panel in board["panels"]}
    named = {title.replace("\n", " ") for title in re.findall(r"(?<!\*)\*([A-Z][^*]+?)\*(?!\*)", RUNBOOK)}
    for title in named - {"Status → Targets", "New version"}:
        assert any(one.startswith(title) for one in titles), title


COMMANDS = {"ls", "show", "resume", "undo", "release", "schedules", "hold", "cancel", "gc", "doctor"}


def test_the_runbook_types_commands_of_the_command_line() -> None:
    typed = re.findall(r"(?:^|`)flowcore (\w+)", RUNBOOK, re.MULTILINE)
    assert set(typed) == COMMANDS
    if importlib.util.find_spec("click") and importlib.util.find_spec("rich"):
        reading, deciding, top = (
            importlib.import_module(f"flowcore.cli.{name}") for name in ("reading", "deciding", "top")
        )
        commands = {command.name for command in (*reading.COMMANDS, *deciding.COMMANDS, top.top)}
        assert commands >= COMMANDS
    statuses = set(re.findall(r"--status (\w+)", RUNBOOK))
    assert statuses <= {*names.RUN_OUTCOMES, "queued", "running", "waiting", "held", "expired"}
