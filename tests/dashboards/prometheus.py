"""A real Prometheus of one's own, and what its HTTP API answers."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml

Json = dict[str, Any]
T = TypeVar("T")

PATIENCE = 30.0
EVERY = 1
"""seconds between scrapes, and between evaluations of rules"""
SLOWLY = 3 * EVERY
"""seconds between copies of all series, which are a third of the work"""


def until(condition: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """Wait for a condition, and answer what it answered."""
    give_up = time.monotonic() + patience
    while time.monotonic() < give_up:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {patience:g} s")


class Prometheus:
    """Scrapes what it is told to `watch` as the job "shop" each second, works out `rules` (files), and takes exemplars.

    The job "shop-otlp" is the same once more, with the labels that metrics have when they come by OTLP (`otlp_labels`:
    ours -> theirs). `assets`: a folder that it serves under /user.
    """

    def __init__(
        self,
        binary: str,
        folder: Path,
        rules: Sequence[Path] = (),
        *,
        otlp_labels: Mapping[str, str] | None = None,
        assets: Path | None = None,
    ) -> None:
        self.folder = folder
        self.log = folder / "prometheus.log"
        self.began = 0.0
        """when the first scrapes were made, in seconds since the epoch"""
        self.looked = 0.0
        """when all were there"""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._config = partial(_config, f"127.0.0.1:{port}", rules, otlp_labels)
        self._command = [
            binary,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=exemplar-storage",
            *((f"--web.user-assets={assets}",) if assets else ()),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def watch(self, targets: Sequence[str], /) -> None:
        """Start, and return when all targets (host:port) have been scraped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(self._config(targets)), "utf-8")
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        until(self._ready, "Prometheus being ready")
        self.began = time.time()
        self.look(targets)

    def look(self, targets: Sequence[str], /) -> None:
        """Return when all these targets have been scraped twice more, and rules have been worked out with that."""
        self._wait_for("shop", targets, time.time() + 2 * EVERY)

    def look_at_copies(self, targets: Sequence[str], /) -> None:
        """Return when the copies of the series of all these targets are as new as those are now."""
        self._wait_for("shop-otlp", targets, time.time(), settled=SLOWLY + EVERY)

    def _wait_for(self, job: str, targets: Sequence[str], later: float, settled: float = 0.0) -> None:
        """Wait for a moment in which all targets were up and scraped after `later`. A scrape that times out is stored
        with the time at which it began: `settled` seconds after the moment none can be outstanding, and what is stored
        of it stays."""
        each = "|".join(target.replace(".", "[.]") for target in targets)
        scraped = f'timestamp(flowcore_build_info{{job="{job}", instance=~"{each}"}}) > {later}'
        alive = f'up{{job="shop", instance=~"{each}"}} == 1'

        def were_all_there() -> bool:
            return self.series(f"count({scraped} and on (instance) {alive})", self.looked) == [({}, len(targets))]

        def seen() -> bool:
            self.looked = time.time()
            if not were_all_there():
                return False
            time.sleep(settled)
            return not settled or were_all_there()

        until(seen, "a scrape", 4 * PATIENCE)  # of a busy machine

    def rest(self) -> None:
        """Scrape nothing and work out no rule any more; what is stored stays."""
        assert self._process is not None
        (self.folder / "prometheus.yml").write_text("{}", "utf-8")
        self._process.send_signal(signal.SIGHUP)
        until(
            lambda: not self.ask("targets")["activeTargets"] and not self.ask("rules")["groups"],
            "Prometheus being idle",
        )

    def _ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"Prometheus did not start: {self.log.read_text('utf-8')[-2000:]}")
        try:
            return self.get("/-/ready") != ""
        except urllib.error.URLError:
            return False

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as response:
            text: str = response.read().decode()
            return text

    def ask(self, path: str, **parameters: Any) -> Any:
        """What an endpoint of the API has to say; raises AssertionError with its complaint."""
        body = urllib.parse.urlencode(parameters, doseq=True)
        try:
            answer = json.loads(self.get(f"/api/v1/{path}?{body}"))
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None
        assert answer["status"] == "success", answer
        assert not answer.get("warnings"), answer["warnings"]
        return answer["data"]

    def series(self, expr: str, at: float | None = None) -> list[tuple[dict[str, str], float]]:
        """The value of each series, now or at a time."""
        data = self.ask("query", query=expr, **({} if at is None else {"time": at}))
        found = data["result"] if data["resultType"] == "vector" else [{"metric": {}, "value": data["result"]}]
        return [(one["metric"], float(one["value"][1])) for one in found]


def free_port() -> int:
    """A port on which nothing listens. (Prometheus scrapes itself, so it cannot choose one later.)"""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _config(itself: str, rules: Sequence[Path], otlp_labels: Mapping[str, str] | None, targets: Sequence[str]) -> Json:
    every = {"scrape_interval": f"{EVERY}s", "scrape_timeout": f"{EVERY}s", "evaluation_interval": f"{EVERY}s"}
    scrapes: list[Json] = [{"job_name": "shop", "static_configs": [{"targets": list(targets)}]}]
    if otlp_labels:
        # What it has scraped from the processes it takes over from itself: they are asked once only.
        renamed: list[Json] = [
            {"source_labels": [ours], "regex": "(.+)", "target_label": theirs} for ours, theirs in otlp_labels.items()
        ]
        renamed += [
            {"action": "labeldrop", "regex": "|".join(otlp_labels)},
            {"target_label": "job", "replacement": "shop-otlp"},
        ]
        scrapes.append(
            {
                "job_name": "itself",
                "metrics_path": "/federate",
                "scrape_interval": f"{SLOWLY}s",
                "scrape_timeout": f"{SLOWLY}s",
                "params": {"match[]": ['{__name__=~"flowcore_.+", job="shop"}']},
                "honor_labels": True,
                "static_configs": [{"targets": [itself]}],
                "metric_relabel_configs": renamed,
            }
        )
    return {"global": every, "rule_files": [str(path) for path in rules], "scrape_configs": scrapes}
