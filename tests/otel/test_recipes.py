"""What TELEMETRY.md tells users to write, written and run: log lines with ids, gunicorn with a killed worker, a batch job."""

import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import flowcore_otel
from flowcore import Context, Workflow
from flowcore_otel import LogContext, current

from .conftest import MakeDriver

TEXT = (Path(flowcore_otel.__file__).parent / "TELEMETRY.md").read_text(encoding="utf-8")
RECIPES = {
    code.partition("\n")[0].removeprefix("# "): code for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
}


def run(name: str, **given: Any) -> dict[str, Any]:
    """What the recipe leaves behind."""
    space = dict(given)
    exec(compile(RECIPES[name], f"TELEMETRY.md: {name}", "exec"), space)
    return space


def charging(log: Callable[[], object]) -> Workflow:
    wf = Workflow("order")
    wf.add_step("charge", lambda ctx: log() and None)
    return wf


def test_stdlib_lines(make_driver: MakeDriver, capsys: pytest.CaptureFixture[str]) -> None:
    handler = run("logging")["handler"]
    handler.setStream(io.StringIO())
    logger = logging.getLogger("shop")
    logger.setLevel(logging.INFO)
    try:
        done = make_driver(LogContext()).run(charging(lambda: logger.info("hello")))
        logger.info("outside")
    finally:
        logger.removeHandler(handler)
    assert handler.stream.getvalue().splitlines() == [
        f"hello run={done.id} step=charge trace=None",
        "outside run=None step=None trace=None",
    ]


def test_structlog_lines(make_driver: MakeDriver) -> None:
    structlog = pytest.importorskip("structlog")
    try:
        run("structlog")
        lines = io.StringIO()
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(lines), cache_logger_on_first_use=False)
        done = make_driver(LogContext()).run(charging(lambda: structlog.get_logger().info("hello")))
        structlog.get_logger().info("outside")
    finally:
        structlog.reset_defaults()
    inside, outside = map(json.loads, lines.getvalue().splitlines())
    assert inside == {"event": "hello", "run_id": done.id, "workflow": "order", "step": "charge", "attempt": 1}
    assert outside == {"event": "outside"}


def test_loguru_lines(make_driver: MakeDriver) -> None:
    loguru = pytest.importorskip("loguru")
    lines = io.StringIO()
    sink = loguru.logger.add(lines, format="{message} {extra}")
    try:
        logger = run("loguru")["logger"]
        done = make_driver(LogContext()).run(charging(lambda: logger.info("hello")))
        logger.info("outside")
    finally:
        loguru.logger.remove(sink)
    inside, outside = lines.getvalue().splitlines()
    assert done.id in inside
    assert "'step': 'charge'" in inside
    assert outside == "outside {}"


def test_current_follows_the_run_into_threads_and_late_attempts(make_driver: MakeDriver) -> None:
    wf, seen = Workflow("order"), list[Any]()
    ended = threading.Event()

    def work(ctx: Context) -> None:
        seen.append(current())
        if ctx.attempt == 1:
            while not ctx.cancelled:
                time.sleep(0.005)
            seen.append(current())
            ended.set()
            raise ValueError

    def ask(ctx: Context) -> bool:
        seen.append(current())
        return True

    wf.add_step("work", work, timeout=0.05, retry=2, when=ask)
    done = make_driver(LogContext()).run(wf)
    assert ended.wait(30)
    of_run: dict[str, str | int] = {"run_id": done.id, "workflow": "order"}
    attempts = [of_run | {"step": "work", "attempt": number} for number in (1, 1, 2)]
    assert seen == [of_run, *attempts]
    assert current() == {}


APP = """
import os, time
from flowcore import Engine, Workflow
from flowcore_otel import PrometheusHook
wf = Workflow("order")
wf.add_step("work", lambda ctx: time.sleep(600))
quick = Workflow("quick")
quick.add_step("work", lambda ctx: 1)
engine = None

def app(environ, start_response):
    global engine
    if environ["PATH_INFO"] == "/metrics":
        return metrics(environ, start_response)
    engine = engine or Engine(hooks=[PrometheusHook()], workflows=[wf, quick])
    if environ["PATH_INFO"] == "/hang":
        engine.submit(wf)
    else:
        engine.run(quick)
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]
"""


def test_a_killed_worker_of_gunicorn_leaves_no_ghost(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    (tmp_path / "gunicorn.conf.py").write_text(RECIPES["gunicorn.conf.py"])
    (tmp_path / "shop.py").write_text(RECIPES["the metrics endpoint"] + APP)
    values = tmp_path / "values"
    values.mkdir()
    address = f"unix:{tmp_path}/s"
    command = [sys.executable, "-m", "gunicorn", "-w", "2", "-b", address, "shop:app", "--graceful-timeout", "1"]
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(values)}
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True) as server:
        try:
            victim = int(until(lambda: get(f"{tmp_path}/s", "/hang"), "an answer"))
            get(f"{tmp_path}/s", "/quick")
            until(lambda: active(f"{tmp_path}/s") == 1, "a run in flight")
            os.kill(victim, signal.SIGKILL)
            until(lambda: active(f"{tmp_path}/s") == 0, "no ghost")
            text = get(f"{tmp_path}/s", "/metrics")
            assert 'flowcore_run_oldest_start_timestamp_seconds{workflow="order"}' not in text or "+Inf" in text
            assert 'flowcore_runs_total{outcome="success",workflow="quick"} 1.0' in text
        finally:
            server.terminate()
            server.wait(30)


def get(path: str, url: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(path)
        connection.sendall(f"GET {url} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer.decode().partition("\r\n\r\n")[2]


def active(path: str) -> float:
    found = re.findall(r'^flowcore_runs_active{workflow="order"} (\S+)$', get(path, "/metrics"), re.MULTILINE)
    return sum(map(float, found))


def until(look: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if found := look():
                return found
        except (OSError, ValueError):
            pass
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come")


def test_a_batch_job_pushes_when_it_exits() -> None:
    bodies = list[str]()

    class Gateway(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

    with HTTPServer(("127.0.0.1", 0), Gateway) as gateway:
        threading.Thread(target=gateway.serve_forever, daemon=True).start()
        failing = Workflow("nightly")

        def load(ctx: Context) -> None:
            raise ValueError("no data")

        failing.add_step("load", load)
        with pytest.raises(ValueError, match="no data"):
            run("a batch job")["main"](failing, f"127.0.0.1:{gateway.server_port}")
        gateway.shutdown()
    (text,) = bodies
    assert 'flowcore_runs_total{outcome="failure",workflow="nightly"} 1.0' in text
    assert 'flowcore_run_last_end_timestamp_seconds{outcome="failure",workflow="nightly"}' in text
