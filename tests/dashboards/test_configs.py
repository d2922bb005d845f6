"""The configuration files: checked by the real programs where they can be had, else for what they say of each other.

Nothing here has been loaded by Grafana or Tempo, nor brought up by docker: neither can be had where these tests run.
"""

import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import build
import pytest

from flowcore_otel.dashboards import rules
from flowcore_otel.dashboards.queries import PROMETHEUS

from ..stores.redis_servers import RedisServer
from .conftest import BOARDS, DASHBOARDS, ROOT, board, read_yaml
from .linter import variables
from .prometheus import free_port, until
from .servers import program

Json = dict[str, Any]


def read(name: str) -> Any:
    return read_yaml((DASHBOARDS / name).read_text("utf-8"))


COMPOSE: Json = read("compose.yaml")
SERVICES: dict[str, Json] = COMPOSE["services"]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [program(name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# -- Prometheus and Alertmanager ---------------------------------------------------------------------------------------


def test_promtool_finds_the_configuration_and_its_rules_in_order() -> None:
    done = run("promtool", "check", "config", "--lint=all", str(DASHBOARDS / "prometheus.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 rule files found" in done.stdout


def test_amtool_finds_the_configuration_in_order() -> None:
    done = run("amtool", "check-config", str(DASHBOARDS / "alertmanager.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "rule",
    rules(build.options(PROMETHEUS))["alerts"]["groups"][1]["rules"],
    ids=lambda rule: rule["alert"],
)
def test_an_alert_goes_to_those_whom_its_severity_calls(rule: Json) -> None:
    severity = rule["labels"]["severity"]
    done = run(
        "amtool",
        "config",
        "routes",
        "test",
        f"--config.file={DASHBOARDS / 'alertmanager.yml'}",
        f"severity={severity}",
        f"alertname={rule['alert']}",
    )
    assert done.stdout.strip() == severity


def test_inhibitions_name_real_alerts() -> None:
    text = (DASHBOARDS / "alertmanager.yml").read_text("utf-8")
    named = set(re.findall(r"Flowcore\w+", text))
    alerts = {
        rule["alert"] for group in rules(build.options(PROMETHEUS))["alerts"]["groups"] for rule in group["rules"]
    }
    assert named
    assert named <= alerts


# -- Grafana -----------------------------------------------------------------------------------------------------------


def test_an_exemplar_leads_to_the_data_source_that_panels_call_the_traces() -> None:
    metrics, traces = read("provisioning/datasources/flowcore.yaml")["datasources"]
    (destination,) = metrics["jsonData"]["exemplarTraceIdDestinations"]
    assert (metrics["type"], traces["type"]) == ("prometheus", "tempo")
    assert destination == {"name": "trace_id", "datasourceUid": traces["uid"]}
    for name in BOARDS:
        (variable,) = [one for one in variables(board(name)) if one["name"] == "traces"]
        assert variable["query"] == traces["uid"]


def test_the_data_source_knows_how_often_prometheus_scrapes() -> None:
    """Grafana works `$__rate_interval` out from it."""
    (metrics, _) = read("provisioning/datasources/flowcore.yaml")["datasources"]
    assert metrics["jsonData"]["timeInterval"] == read("prometheus.yml")["global"]["scrape_interval"]


def test_the_provider_finds_all_dashboards() -> None:
    (provider,) = read("provisioning/dashboards/flowcore.yaml")["providers"]
    assert provider["type"] == "file"
    path = provider["options"]["path"]
    mounted = {volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]}
    assert {f"{path}/{name}.json" for name in BOARDS} <= mounted


# -- compose.yaml ------------------------------------------------------------------------------------------------------


def test_services_are_made_of_what_compose_knows() -> None:
    assert set(COMPOSE) == {"services", "volumes"}
    for name, service in SERVICES.items():
        known = {
            "build",
            "image",
            "command",
            "environment",
            "ports",
            "volumes",
            "depends_on",
            "cap_drop",
            "security_opt",
        }
        assert set(service) <= known, name
        assert ("image" in service) != ("build" in service), name
        assert re.search(r":v?\d+(\.\d+)+$", service.get("image", ":1.0")), "a version, so that it works next year too"
        assert set(service.get("depends_on", [])) <= set(SERVICES)


def test_nothing_has_more_rights_than_it_needs() -> None:
    built = SERVICES["checkout"]
    recipe = built["build"]["dockerfile_inline"]
    assert re.search(r"^FROM python:\d+\.\d+\.\d+-slim-\w+$", recipe, re.MULTILINE)
    assert re.search(r"^USER (?!root)\w+$", recipe, re.MULTILINE)
    assert (built["cap_drop"], built["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    grafana = SERVICES["grafana"]["environment"]
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_what_is_mounted_is_there() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (DASHBOARDS / source).exists(), f"{name}: {source}"


def test_commands_name_files_that_are_mounted() -> None:
    for name, service in SERVICES.items():
        mounted = [volume.split(":")[1] for volume in service.get("volumes", [])]
        for argument in service.get("command", []):
            for path in re.findall(r"/etc/flowcore/[\w./-]+", argument):
                assert any(one == path or one.startswith(path + "/") for one in mounted), f"{name}: {path}"


def test_what_is_reached_over_the_network_is_a_service_on_its_port() -> None:
    texts = [
        (DASHBOARDS / name).read_text("utf-8")
        for name in ("prometheus.yml", "compose.yaml", "provisioning/datasources/flowcore.yaml")
    ]
    reached = set(re.findall(r"\b([a-z]+):(\d{4,5})\b", "\n".join(texts))) - {
        ("localhost", port) for port in ("3000", "8000", "9090")
    }
    listening = {
        ("checkout", "8000"),
        ("redis", "6379"),
        ("prometheus", "9090"),
        ("alertmanager", "9093"),
        ("tempo", str(read("tempo.yaml")["server"]["http_listen_port"])),
        (
            "tempo",
            read("tempo.yaml")["distributor"]["receivers"]["otlp"]["protocols"]["http"]["endpoint"].split(":")[1],
        ),
    }
    assert reached
    assert reached <= listening
    assert {name for name, _ in listening} <= set(SERVICES)


def test_only_this_machine_can_reach_it() -> None:
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_alerts_lead_to_where_compose_publishes_runbook_and_grafana() -> None:
    assert "127.0.0.1:9090:9090" in SERVICES["prometheus"]["ports"]
    assert "127.0.0.1:3000:3000" in SERVICES["grafana"]["ports"]
    assert build.OPTIONS.runbook == "http://localhost:9090/user/RUNBOOK.md"
    assert build.OPTIONS.grafana == "http://localhost:3000"


def test_the_image_gets_what_the_service_imports() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", SERVICES["checkout"]["build"]["dockerfile_inline"], re.MULTILINE)
    for path in " ".join(copied).split():
        assert (ROOT / path).exists()


def test_the_command_of_the_checkout_service_serves_metrics(tmp_path: Path) -> None:
    """Run as it stands, but for addresses."""
    redis, port = RedisServer(tmp_path / "redis"), free_port()
    _, flag, code = SERVICES["checkout"]["command"]
    assert flag == "-c"
    for old, new in {"redis://redis:6379/0": redis.url, "0.0.0.0": "127.0.0.1", "8000": str(port)}.items():
        assert code.count(old) == 1
        code = code.replace(old, new)
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'examples' / 'service')!r})\n{code}"
    with redis, subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) as process:
        url = f"http://127.0.0.1:{port}/metrics"

        def scraped() -> str:
            try:
                with urllib.request.urlopen(url, timeout=5) as response:
                    text: str = response.read().decode()
                    return text
            except OSError:
                return ""

        try:
            text = until(scraped, "the service answering")
            assert 'flowcore_workflow_info{steps="4",workflow="checkout"} 1.0' in text
        finally:
            process.terminate()
