"""Prometheus' own judgement of the metrics. promtool comes with Prometheus; $FLOWCORE_TEST_PROMTOOL says where it is."""

import os
import shutil
import subprocess

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from flowcore.events import StoreCalled, StoreSurveyed
from flowcore.status import Status
from flowcore_otel import PrometheusHook

from .conftest import MakeDriver, trip

PROMTOOL = os.environ.get("FLOWCORE_TEST_PROMTOOL") or shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool here")
def test_promtool_has_nothing_to_say(make_driver: MakeDriver, registry: CollectorRegistry) -> None:
    hook = PrometheusHook(registry)
    hook(StoreCalled("", "", 1.0, {}, "redis", "renew", Status.SUCCESS, 0.001, None))
    hook(StoreSurveyed("", "", 1.0, {}, {("trip", "held"): 1}))
    driver = make_driver(hook)
    wf = trip(fails=2, attempts=2).wf
    driver.run(wf, idempotency_key="T-1", check=False)
    driver.run(wf, idempotency_key="T-1")
    driver.run(wf, idempotency_key="T-1")
    done = subprocess.run(
        [str(PROMTOOL), "check", "metrics"],
        input=generate_latest(registry).decode(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
