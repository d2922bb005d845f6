"""The recipes of examples/deploy: started as each file says, and stopped by SIGTERM in the middle of an order."""

import configparser
import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.stores.redis_servers import StartRedis, start_redis

__all__ = ["start_redis"]  # a fixture

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
PATIENCE = 60  # seconds: for hangs, not for slow machines
LEASE = 30  # seconds, the engine's default: how long a run waits whose process did not park it
GRACE = 5  # seconds, of the engines in the recipes


class Service:
    """A command of the recipes: it is started, gets an order, and is stopped."""

    def __init__(self, command: Sequence[str], environ: dict[str, str], *, listens: bool = True) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        python = {"python": sys.executable, "/opt/orders/.venv/bin/python": sys.executable}
        self.command = [python.get(word, word).replace("8000", str(self.port)) for word in command]
        self.environ = environ
        self.listens = listens
        self.ledger = Path(environ["ORDERS_LEDGER"])
        self.status = 0

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        environ = {**os.environ, **self.environ}
        with subprocess.Popen(self.command, cwd=DEPLOY, env=environ, stdin=subprocess.PIPE, text=True) as process:
            try:
                if self.listens:
                    until(lambda: self.ask("GET", "/ready") == 200, "the service")
                yield process
            finally:
                process.terminate()
                process.wait(PATIENCE)

    def ask(self, method: str, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path)
            return connection.getresponse().status
        finally:
            connection.close()

    def place_order(self, process: subprocess.Popen[str]) -> None:
        if self.listens:
            self.status = self.ask("POST", "/orders/7")
        else:
            assert process.stdin is not None
            process.stdin.write("7\n")
            process.stdin.flush()

    def effects(self) -> list[tuple[str, float]]:
        lines = self.ledger.read_text(encoding="utf-8").splitlines() if self.ledger.exists() else []
        return [(line.split()[0], float(line.split()[2])) for line in lines]


def until(look: Callable[[], Any], what: str) -> None:
    """Wait until `look` returns something true; a service that does not listen yet refuses connections."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if look():
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come")


def deploy(old: Service, new: Service, pre_stop: Sequence[str] = ("true",)) -> float:
    """Stop `old` in the middle of an order, where `new` is running already: how many seconds `old` took to stop."""
    with old.running() as first, new.running():
        client = threading.Thread(target=old.place_order, args=(first,))
        client.start()
        until(lambda: len(old.effects()) == 2, "the step in the middle")
        stopping = time.monotonic()
        subprocess.run(pre_stop, check=True)
        sent = time.time()
        first.send_signal(signal.SIGTERM)
        first.wait(PATIENCE)
        took = time.monotonic() - stopping
        client.join(PATIENCE)
        until(lambda: len(new.effects()) == 3, "the last step")
        assert [effect for effect, _ in new.effects()] == ["reserve", "pack", "ship"]
        assert new.effects()[2][1] - sent < LEASE - 2 * GRACE, "the run waited until its lease was over"
    assert [effect for effect, _ in new.effects()] == ["reserve", "pack", "ship"]
    return took


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        "FLOWCORE_STORE": f"sqlite:{tmp_path}/runs.db",
        "ORDERS_LEDGER": f"{tmp_path}/ledger",
        "ORDERS_PACKING": "1.5",
    }


def printed_command(file: str) -> list[str]:
    """The command that the docstring of a recipe shows."""
    text = (DEPLOY / file).read_text(encoding="utf-8")
    return shlex.split(next(line for line in text.splitlines() if line.startswith("    ")))


def test_uvicorn_hands_its_orders_over(environ: dict[str, str]) -> None:
    command = [sys.executable, "-m", *printed_command("api.py"), "--port", "8000"]
    old = Service(command, environ)
    deploy(old, Service(command, environ))
    assert old.status == 503


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["each worker loads", "preload"])
def test_gunicorn_hands_its_orders_over(environ: dict[str, str], preload: list[str]) -> None:
    command = [sys.executable, "-m", *printed_command("wsgi.py"), "--bind", "127.0.0.1:8000", *preload]
    old = Service(command, environ)
    deploy(old, Service(command, environ))
    assert old.status == 503


def test_a_worker_hands_its_orders_over(environ: dict[str, str]) -> None:
    command = ["python", *printed_command("worker.py")[1:2]]
    deploy(Service(command, environ, listens=False), Service(command, environ, listens=False))


def test_systemd_gives_a_worker_enough_time(environ: dict[str, str]) -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[method-assign,assignment] # systemd's names have capitals
    unit.read(DEPLOY / "orders.service")
    service = unit["Service"]
    assert service["KillSignal"] == "SIGTERM"
    command = shlex.split(service["ExecStart"])
    took = deploy(Service(command, environ, listens=False), Service(command, environ, listens=False))
    assert took < int(service["TimeoutStopSec"])
    assert int(service["TimeoutStopSec"]) > 2 * GRACE


def test_kubernetes_gives_a_pod_enough_time(environ: dict[str, str], start_redis: StartRedis) -> None:
    pod = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {one["name"] for one in container["env"]} == {"FLOWCORE_STORE", "ORDERS_LEDGER"}
    environ["FLOWCORE_STORE"] = start_redis().url
    pre_stop = container["lifecycle"]["preStop"]["exec"]["command"]
    environ["ORDERS_PACKING"] = str(float(pre_stop[1]) + 1.5)
    took = deploy(Service(container["command"], environ), Service(container["command"], environ), pre_stop)
    period = pod["terminationGracePeriodSeconds"]
    graceful = float(container["command"][-1])
    assert took < period
    assert period > float(pre_stop[1]) + graceful + GRACE
