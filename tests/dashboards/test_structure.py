"""The dashboards are valid classic Grafana JSON, up to date, and laid out without gaps or overlaps."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import build
import pytest
from contents import README, readme
from drawing.looks import BACKGROUND

from flowcore_otel import names
from flowcore_otel.dashboards import colours, dashboards, files
from flowcore_otel.dashboards.__main__ import main
from flowcore_otel.dashboards.queries import NATIVE, OF_THE_TARGET, OTLP, PROMETHEUS, Source

from .conftest import BOARDS, DASHBOARDS, board
from .grafana_types import faults
from .linter import panels, queries, targets, variables
from .promql import labels_used, selectors

Json = dict[str, Any]

OF_ALERTS = {"alertname", "alertstate", "severity"}
"""labels that Prometheus gives its series ALERTS"""


def _first(of: Json, kind: str) -> Json:
    return next(panel for panel in of["panels"] if panel["type"] == kind)


def _defaults(of: Json, kind: str) -> Json:
    found: Json = _first(of, kind)["fieldConfig"]["defaults"]
    return found


# what is planted -> how
PLANTED: dict[str, Callable[[Json], object]] = {
    # misspelt keys, at each depth
    "dashboard key": lambda of: of.update(graphTooltips=1),
    "panel key": lambda of: _first(of, "stat").update(desciption="?"),
    "gridPos key": lambda of: _first(of, "stat")["gridPos"].update(width=3),
    "target key": lambda of: _first(of, "stat")["targets"][0].update(expression="up"),
    "option key": lambda of: _first(of, "timeseries")["options"]["legend"].update(position="right"),
    "default key": lambda of: _defaults(of, "stat").update(units="s"),
    "custom key": lambda of: _defaults(of, "timeseries")["custom"].update(lineWith=2),
    "threshold key": lambda of: _defaults(of, "stat")["thresholds"]["steps"][0].update(colour="red"),
    "variable key": lambda of: of["templating"]["list"][1].update(allvalue=".+"),
    "annotation key": lambda of: of["annotations"]["list"][0].update(iconColour="red"),
    "link key": lambda of: of["links"][0].update(tag="flowcore"),
    "transformation key": lambda of: _first(of, "table")["transformations"][0].update(name="merge"),
    "override property": lambda of: _first(of, "timeseries")["fieldConfig"]["overrides"][0]["properties"].append(
        {"id": "colour", "value": {}}
    ),
    "custom override property": lambda of: _first(of, "timeseries")["fieldConfig"]["overrides"][0]["properties"].append(
        {"id": "custom.lineStile", "value": {}}
    ),
    # wrong types
    "a string for a number": lambda of: of.update(schemaVersion="41"),
    "a fraction for a whole number": lambda of: _first(of, "stat")["gridPos"].update(w=6.5),
    "a number for a string": lambda of: _first(of, "stat").update(title=7),
    "a string for a boolean": lambda of: of.update(editable="false"),
    "a boolean for a number": lambda of: _defaults(of, "bargauge").update(min=True),
    "an object for a list": lambda of: _first(of, "stat").update(targets={}),
    "a string for an object": lambda of: _first(of, "stat").update(gridPos="0,0,6,6"),
    "no options": lambda of: _first(of, "bargauge").pop("options"),
    # values that enums do not have
    "legend mode": lambda of: _first(of, "timeseries")["options"]["legend"].update(displayMode="rows"),
    "stat colour mode": lambda of: _first(of, "stat")["options"].update(colorMode="foreground"),
    "stacking mode": lambda of: _defaults(of, "timeseries")["custom"]["stacking"].update(mode="stacked"),
    "thresholds mode": lambda of: _defaults(of, "stat")["thresholds"].update(mode="relative"),
    "colour mode": lambda of: _defaults(of, "stat")["color"].update(mode="threshold"),
    "query format": lambda of: _first(of, "stat")["targets"][0].update(format="series"),
    "variable refresh": lambda of: of["templating"]["list"][1].update(refresh=3),
    "cursor sync": lambda of: of.update(graphTooltip=9),
    "panel type": lambda of: _first(of, "stat").update(type="bigstat"),
    "override value": lambda of: _first(of, "timeseries")["fieldConfig"]["overrides"][0]["properties"].append(
        {"id": "custom.drawStyle", "value": "dots"}
    ),
}


def test_grafanas_types_have_nothing_against_them(committed: Json) -> None:
    assert faults(committed) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name: str) -> None:
    broken = board("overview")
    PLANTED[name](broken)
    assert faults(broken) != []


def test_the_committed_files_are_what_build_writes() -> None:
    for name, content in files(build.options(PROMETHEUS)).items():
        assert (DASHBOARDS / name).read_text("utf-8") == content, f"{name} is out of date: run make dashboards"


def test_check_distinguishes_stale_files_from_fresh_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*options: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["build.py", f"--out={tmp_path}", *options])
        return main(), capsys.readouterr().out

    assert run("--check")[0] == 1
    assert not list(tmp_path.iterdir())
    code, said = run()
    assert (code, said.count("written")) == (0, len(files(build.options(PROMETHEUS))))
    assert run("--check") == (0, "")
    (tmp_path / "store.json").write_text("{}", "utf-8")
    assert run("--check") == (1, "store.json: not up to date\n")


def test_the_tables_of_the_readme_are_what_is_on_the_dashboards() -> None:
    assert readme() == README.read_text("utf-8"), "README.md is out of date: run make dashboards"


@pytest.mark.parametrize("name", BOARDS)
def test_the_readme_has_each_row_and_each_panel(name: str) -> None:
    text = README.read_text("utf-8").partition(f"<!-- {name} -->")[2].partition("<!-- end of")[0]
    for panel in board(name)["panels"]:
        assert panel["title"] in text


@pytest.mark.parametrize("wrong", ["file", "file/in/it"])
def test_a_folder_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(SystemExit) as exit_:
        main([f"--out={tmp_path / wrong}"])
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"--out {tmp_path / wrong} cannot be used: ")
    assert said.endswith("Name a folder that you may write.\n")


@pytest.mark.parametrize(
    "wrong",
    [
        ["--runbook="],
        ["--runbook=https://wiki.test/flowcore#top"],
        ["--runbook=https://wiki.test/{{ .Page }}"],
        ["--grafana=  "],
        ["--service="],
        ["--namespace=My space"],
        ["--namespace="],
        ["--out="],
        ["--source=prometheus", "--histograms=native"],
    ],
    ids=" ".join,
)
def test_an_option_of_which_no_valid_rule_or_link_could_be_made_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([f"--out={tmp_path}", *wrong])
    assert exit_.value.code == 2
    assert wrong[-1].partition("=")[0] in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_service_that_is_named_twice_is_declared_once_and_a_file_of_any_bytes_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_bytes(b"\xff")
    assert main([f"--out={tmp_path}", "--service=shop", "--service=shop"]) == 0
    assert (tmp_path / "rules" / "recording.yml").read_text("utf-8").count('job: "shop"') == 1
    assert json.loads((tmp_path / "store.json").read_text("utf-8"))["uid"] == "flowcore-store"


@pytest.mark.parametrize("name", BOARDS)
def test_each_panel_with_quantiles_says_where_they_end_unless_histograms_are_native(name: str) -> None:
    def described(source: Source) -> dict[str, bool]:
        board = json.loads(files(build.options(source))[f"{name}.json"])
        return {
            panel["title"]: "Quantiles end at the highest bucket (" in panel["description"]
            for panel in board["panels"]
            if any("histogram_quantile(" in one.get("expr", "") for one in panel.get("targets", ()))
        }

    classic, native = described(PROMETHEUS), described(NATIVE)
    assert set(classic.values()) == {True}
    assert set(native.values()) == {False}


def test_the_address_of_grafana_may_end_in_a_slash(tmp_path: Path) -> None:
    assert main([f"--out={tmp_path}", "--grafana=https://g.test/"]) == 0
    text = (tmp_path / "rules" / "alerts.yml").read_text("utf-8")
    assert "https://g.test/d/flowcore-" in text
    assert "https://g.test//" not in text


def test_only_targets_that_have_flowcore_are_counted() -> None:
    of_targets = [
        target["expr"]
        for name in BOARDS
        for _, target in targets(board(name))
        if {found.metric for found in selectors(target["expr"])} & set(OF_THE_TARGET)
    ]
    assert len(of_targets) == 3
    for expr in of_targets:
        assert re.search(r"and on \(job\) last_over_time\(flowcore_build_info\{.*\}\[1d\]\)", expr)


def contrast(one: str, other: str) -> float:
    """As in the Web Content Accessibility Guidelines, from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_colour_can_be_read_on_the_background() -> None:
    for name in ("SUCCESS", "FAILED", "UNDONE", "REPLAYED", "WAITING", "HELD", "WORKING", "NEUTRAL"):
        assert contrast(getattr(colours, name), BACKGROUND) >= 4.5, name


def test_it_is_classic_json_that_file_provisioning_takes(committed: Json) -> None:
    assert committed["id"] is None
    assert committed["schemaVersion"] == 41
    assert committed["editable"] is False
    assert "__inputs" not in committed
    assert "dashboard" not in committed
    assert "spec" not in committed
    assert re.fullmatch(r"[a-z-]{1,40}", committed["uid"])


def test_no_two_dashboards_share_a_uid_or_a_title() -> None:
    boards = [board(name) for name in BOARDS]
    assert len({one["uid"] for one in boards}) == len({one["title"] for one in boards}) == len(boards)


def test_panel_ids_are_unique(committed: Json) -> None:
    ids = [panel["id"] for panel in committed["panels"]]
    assert len(set(ids)) == len(ids)


def test_panels_neither_overlap_nor_leave_gaps_on_the_grid_of_24(committed: Json) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in committed["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    height = max(y for _, y in taken) + 1
    assert len(taken) == 24 * height


def test_the_number_that_matters_most_comes_first(committed: Json) -> None:
    first = next(panel for panel in panels(committed) if panel["type"] == "stat")
    assert first["title"] in {"Served", "Successful operations"}
    assert (first["gridPos"]["x"], first["gridPos"]["y"]) == (0, 1)


def test_what_is_rare_is_counted_and_not_drawn_as_a_rate(committed: Json) -> None:
    for panel, target in targets(committed):
        assert panel["fieldConfig"]["defaults"]["unit"] not in {"ops", "reqps"}, panel["title"]
        if panel["type"] == "timeseries":
            assert not re.search(r"\) > 0$", target["expr"]), f"{panel['title']} cuts its lines"
            if panel["fieldConfig"]["defaults"]["custom"]["drawStyle"] == "bars":
                assert "increase(" in target["expr"]
                assert panel["interval"] == "1m"


def test_a_panel_has_six_lines_at_most(committed: Json) -> None:
    """By its labels: those with few values, or the six that matter."""
    few = {"outcome", "decision", "status", "state"}
    for panel, target in targets(committed):
        if panel["type"] == "timeseries":
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) - few
            assert not shown or "topk(" in target["expr"] or shown == {"store"}, panel["title"]
            assert len(panel["targets"]) <= 6


def test_bars_start_at_nothing(committed: Json) -> None:
    for panel in panels(committed):
        if panel["type"] in {"gauge", "bargauge", "barchart"}:
            assert panel["fieldConfig"]["defaults"]["min"] == 0


def test_tables_of_three_columns_have_room(committed: Json) -> None:
    for panel in panels(committed):
        if panel["type"] == "table" and len(panel["transformations"][-1]["options"]["renameByName"]) >= 3:
            assert panel["gridPos"]["w"] >= 7


def test_every_panel_that_may_be_empty_says_what_that_means(committed: Json) -> None:
    for panel, target in targets(committed):
        if not re.search(r"vector\(0\)|round\(sum\(|sum\(flowcore_runs_active", target["expr"]):
            assert panel["fieldConfig"]["defaults"].get("noValue", "").endswith("."), panel["title"]


def test_quantiles_of_runs_and_steps_have_exemplars(committed: Json) -> None:
    for panel, target in targets(committed):
        compared = re.search(r"offset 1d|wait|queue|compensation", target["expr"])
        if re.search(r"histogram_quantile.*flowcore_(run|step)_", target["expr"]) and target["range"] and not compared:
            assert target["exemplar"], panel["title"]


def test_dashboards_link_to_each_other_and_panels_to_traces(committed: Json) -> None:
    (link,) = committed["links"]
    assert (link["type"], link["tags"]) == ("dashboards", committed["tags"])
    urls = [
        one["url"]
        for panel in panels(committed)
        for one in panel.get("fieldConfig", {}).get("defaults", {}).get("links", [])
    ]
    boards = {board(name)["uid"] for name in BOARDS}
    assert {found[1] for url in urls if (found := re.match(r"/d/([\w-]+)\?", url))} <= boards
    if committed["uid"] != "flowcore-store":
        assert any("/explore?" in url for url in urls)


def test_links_to_traces_name_real_attributes() -> None:
    text = json.dumps([board(name) for name in BOARDS])
    named = set(re.findall(r"span\.(flowcore(?:\.|%2E)[\w.]+)", text))
    assert named
    assert named <= set(names.ATTRIBUTES)


def test_every_selector_is_chosen_by_workflow_where_its_metric_has_one(committed: Json) -> None:
    """Grafana escapes the values of a variable of which several may be chosen. It does not escape a single one, and `C++` or
    `refund (manual)` would match nothing as a regular expression."""
    (variable,) = [one for one in variables(committed) if one["name"] == "workflow"]
    assert variable["multi"] == (committed["uid"] != "flowcore-workflow")
    operator = "=~" if variable["multi"] else "="
    has = {metric.prometheus for metric in names.METRICS if "workflow" in metric.labels}
    for panel, target in queries(committed):
        for found in selectors(target["expr"]):
            metric = re.sub(r"_(bucket|sum|count)$", "", found.metric)
            if metric in has:
                assert found.matchers["workflow"] == (operator, "$workflow"), panel["title"]


def test_no_query_asks_for_a_label_that_its_metrics_do_not_have(committed: Json) -> None:
    outside = {"job", "instance", "le", *OF_ALERTS}
    by_name = {metric.prometheus: metric for metric in names.METRICS}
    for panel, target in queries(committed):
        metrics = {re.sub(r"_(bucket|sum|count)$", "", found.metric) for found in selectors(target["expr"])}
        known = {label for name in metrics & set(by_name) for label in by_name[name].labels}
        known |= {"workflow"} if "ALERTS" in metrics else set()
        assert labels_used(target["expr"]) <= known | outside, panel["title"]
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= known | outside, panel["title"]


def test_the_variables_are_what_the_contract_says(committed: Json) -> None:
    assert [one["name"] for one in variables(committed)] == ["datasource", "job", "instance", "workflow", "traces"]


# -- the variant for metrics that came by OTLP -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["overview.json", "workflow.json", "store.json"])
def test_the_variant_for_otlp_is_as_valid_and_uses_its_labels(name: str) -> None:
    of = dashboards(build.options(OTLP))[name.removesuffix(".json")]
    assert faults(json.loads(json.dumps(of))) == []
    allowed = {names.LABELS[label].replace(".", "_") for label in names.LABELS} | {"job", "instance", "le"}
    allowed |= OF_ALERTS
    for panel, target in queries(of):
        assert labels_used(target["expr"]) <= allowed, panel["title"]
        assert {found.metric for found in selectors(target["expr"])}.isdisjoint({"up", "scrape_samples_scraped"})


def test_the_variant_for_otlp_differs_in_labels_only() -> None:
    def bare(of: Json) -> set[str]:
        exprs = [target["expr"] for _, target in targets(of)]
        for label, attribute in names.LABELS.items():
            exprs = [re.sub(rf"\b{attribute.replace('.', '_')}\b", label, expr) for expr in exprs]
        return set(exprs)

    for name in dashboards(build.options(OTLP)):
        ours, theirs = (
            bare(dashboards(build.options(PROMETHEUS))[name.removesuffix(".json")]),
            bare(dashboards(build.options(OTLP))[name.removesuffix(".json")]),
        )
        own = {expr for expr in ours | theirs if re.search(r"\bup\b|scrape_|count\(flowcore_build_info", expr)}
        assert ours - own == theirs - own


PLAIN = dataclasses.replace(PROMETHEUS, templated=False)

# -- queries.py --------------------------------------------------------------------------------------------------------


def test_a_label_that_a_metric_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"flowcore\.lease\.lost has no label outcome"):
        PROMETHEUS.select(names.LEASE_LOST, outcome="held")


@pytest.mark.parametrize(("metric", "part"), [(names.RUN_DURATION, ""), (names.LEASE_LOST, "count")])
def test_a_part_that_a_metric_does_not_have_is_refused(metric: names.Metric, part: str) -> None:
    with pytest.raises(ValueError, match="has no part"):
        PROMETHEUS.select(metric, part)


@pytest.mark.parametrize(
    ("value", "matcher"),
    [("a", 'outcome="a"'), ("a|b", 'outcome=~"a|b"'), ("!=a", 'outcome!="a"'), ("!=a|b", 'outcome!~"a|b"')],
)
def test_matchers_say_one_of_or_none_of(value: str, matcher: str) -> None:
    selector = PLAIN.select(names.IDEMPOTENCY_HITS, outcome=value)
    assert selector == f"flowcore_idempotency_hits_total{{{matcher}}}"
