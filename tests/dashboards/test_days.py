"""Whole days: on each of them exactly the alerts fire that a person wants, in time, and no other."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from days.evaluate import Alert, Archive, firing
from days.stories import DAY, STORIES, Story, tell

from .conftest import DASHBOARDS, read_yaml
from .prometheus import until
from .servers import program

Groups = list[dict[str, Any]]
END = int(datetime(2026, 3, 4, 18, tzinfo=UTC).timestamp())
"""of all days: how many customers there are depends on the hour, and alerts need runs"""


def shipped(name: str) -> Groups:
    groups: Groups = read_yaml((DASHBOARDS / "rules" / f"{name}.yml").read_text("utf-8"))["groups"]
    return groups


@contextmanager
def serve(data: Path) -> Iterator[str]:
    """A Prometheus that only looks back."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    config = data.parent / "prometheus.yml"
    config.write_text("{}", "utf-8")
    command = [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={data}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=60d", "--log.level=error"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:

            def ready() -> bool:
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", port)) == 0

            until(ready, "Prometheus being ready")
            time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@dataclass
class Days:
    began: dict[str, int]
    fired: dict[int, dict[Alert, list[int]]]
    """by the number of days looked at"""


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Days:
    samples, began = tell(END)
    archive = Archive(tmp_path_factory.mktemp("days"), program("promtool"), serve)
    archive.add(samples)
    last, before = (END - DAY, END - 60, 60), (END - 9 * DAY, END - DAY - 60, 240)
    archive.record(shipped("recording"), (before, last))
    with archive.served() as query:
        alerts = shipped("alerts")
        return Days(began, {1: firing(query, alerts, last), 8: firing(query, alerts, (END - 8 * DAY, END - 60, 240))})


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_exactly_the_alerts_that_a_person_wants(days: Days, story: Story) -> None:
    fired = {
        (name, severity, dict(labels).get("workflow", "")): (times[0] - days.began[story.name]) / 60
        for (name, severity, labels), times in days.fired[story.days].items()
        if dict(labels).get("job") == story.name
    }
    expected = {(one.alert, one.severity, one.workflow) for one in story.expected}
    assert set(fired) == expected
    for one in story.expected:
        assert one.after <= fired[one.alert, one.severity, one.workflow] <= one.before, (one, fired)
