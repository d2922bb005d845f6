"""`python -m flowcore_otel.dashboards` where nothing but the wheel is installed: it needs the standard library only."""

import json
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from flowcore_otel.dashboards import FORMATS, Options, files
from flowcore_otel.dashboards.queries import NATIVE

from .conftest import BOARDS, ROOT, read_yaml
from .grafana_types import faults
from .promql import parse
from .servers import program

RUNBOOK = "https://wiki.test/flowcore"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the wheel, and no other package beside the standard library."""
    folder = tmp_path_factory.mktemp("bare")
    for package in ("flowcore", "flowcore_otel"):
        (folder / package).symlink_to(ROOT / package)
    return folder


def written(bare: Path, out: Path, *options: str) -> dict[str, str]:
    code = f"import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]; sys.path.insert(0, {str(bare)!r}); "
    code += f"sys.argv = ['dashboards', {', '.join(map(repr, options))}, '--out', {str(out)!r}]; "
    code += "import runpy; runpy.run_module('flowcore_otel.dashboards', run_name='__main__')"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return {str(path.relative_to(out)): path.read_text("utf-8") for path in out.rglob("*") if path.is_file()}


def sections(text: str) -> set[str]:
    return {heading.lower() for heading in re.findall(r"^## (\w+)$", text, re.MULTILINE)}


def rules_of(groups: Any) -> list[dict[str, Any]]:
    return [rule for group in groups["groups"] for rule in group["rules"]]


def test_files_link_to_the_runbook_that_was_given_and_prometheus_takes_the_rules(bare: Path, tmp_path: Path) -> None:
    found = written(bare, tmp_path, "--runbook", RUNBOOK, "--service", "shop")
    assert {f"{name}.json" for name in BOARDS} < set(found)
    done = subprocess.run(
        [program("promtool"), "check", "rules", *map(str, (tmp_path / "rules").iterdir())],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    alerts = rules_of(read_yaml(found["rules/alerts.yml"]))
    for rule in alerts:
        address, _, section = rule["annotations"]["runbook_url"].partition("#")
        assert address == RUNBOOK
        assert section in sections(found["RUNBOOK.md"])
    assert f"{RUNBOOK}#${{__value.text}}" in found["overview.json"]
    anchors = set(re.findall(r'<a id="(\w+)">', found["RUNBOOK.md"]))
    assert anchors == {rule["alert"] for rule in alerts}
    declared = [rule for rule in rules_of(read_yaml(found["rules/recording.yml"])) if "labels" in rule]
    assert declared == [{"record": "job:flowcore_service:info", "expr": "vector(1)", "labels": {"job": "shop"}}]


def test_kubernetes_objects_hold_the_same(bare: Path, tmp_path: Path) -> None:
    found = written(bare, tmp_path, "--format", "kubernetes", "--namespace", "observability")
    objects = [read_yaml(text) for name, text in found.items() if name.endswith(".yaml")]
    assert {one["metadata"]["namespace"] for one in objects} == {"observability"}
    maps = [one for one in objects if one["kind"] == "ConfigMap"]
    boards = [json.loads(text) for one in maps for text in one["data"].values()]
    assert {one["metadata"]["labels"]["grafana_dashboard"] for one in maps} == {"1"}
    assert len({board["uid"] for board in boards}) == 3
    plain = files(Options())
    groups = [one["spec"] for one in objects if one["kind"] == "PrometheusRule"]
    assert {one["apiVersion"] for one in objects if one["kind"] == "PrometheusRule"} == {"monitoring.coreos.com/v1"}
    wanted = [read_yaml(plain[f"rules/{name}.yml"]) for name in ("alerts", "recording")]
    assert sorted(map(str, groups)) == sorted(map(str, wanted))


def test_a_mixin_imports_what_it_is_written_with(bare: Path, tmp_path: Path) -> None:
    found = written(bare, tmp_path, "--format", "mixin")
    imported = re.findall(r"import '([\w.]+)'", found["mixin.libsonnet"])
    assert len(imported) == 5
    assert all(json.loads(found[name]) for name in imported)


@pytest.mark.parametrize(("traces", "kind"), [("tempo", "traceql"), ("jaeger", "search"), ("none", None)])
def test_links_to_traces_are_those_of_the_backend(traces: str, kind: str | None) -> None:
    found = files(Options(traces=traces))
    for name in ("overview.json", "workflow.json"):
        assert faults(json.loads(found[name])) == []
        queries = re.findall(r"/explore\?[^\"]*panes=([^\"]+)", found[name])
        kinds = {json.loads(urllib.parse.unquote(query))["flowcore"]["queries"][0]["queryType"] for query in queries}
        assert kinds == (set() if kind is None else {kind})
        exemplars = {
            target["exemplar"] for panel in json.loads(found[name])["panels"] for target in panel.get("targets", ())
        }
        assert (True in exemplars) == (kind is not None)


def test_native_histograms_are_asked_for_as_such() -> None:
    """That the queries are PromQL and ask for no series that such a histogram lacks; no server has been asked."""
    found = files(Options(source=NATIVE))
    exprs = [
        rule["expr"] for name in ("alerts", "recording") for rule in rules_of(read_yaml(found[f"rules/{name}.yml"]))
    ]
    for name in BOARDS:
        exprs += [
            target["expr"]
            for panel in json.loads(found[f"{name}.json"])["panels"]
            for target in panel.get("targets", ())
        ]
    for expr in exprs:
        parse(expr)
        assert not re.search(r"_duration_seconds_(bucket|count|sum)", expr)


def test_every_format_is_tested() -> None:
    assert set(FORMATS) == {"files", "kubernetes", "mixin"}
