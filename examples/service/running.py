"""Runs the service as a process of its own, and scrapes it."""

import http.client
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

START = 30.0  # seconds that the service may take to listen


class DemoError(Exception):
    """Something that should be told in a sentence, not in a traceback."""


@dataclass
class Service:
    """The service, running as a process of its own."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.db"

    @property
    def spans(self) -> Path:
        return self.folder / "spans.jsonl"


@contextmanager
def serving(script: Path, port: int, folder: Path) -> Iterator[Service]:
    """Start the service, wait until it listens, stop it in the end. Raises DemoError with what it has said."""
    log = folder / "service.log"
    options = [f"--port={port}", f"--ledger={folder / 'ledger.db'}", f"--spans={folder / 'spans.jsonl'}"]
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, str(script), *options], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield Service(process, _listening(process, log), folder)
        if process.poll() is not None:
            raise DemoError(f"The service died (exit {process.returncode}). {_tail(log)}")
    except (OSError, http.client.HTTPException) as error:
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.5)  # a process that has just died may not be known to be dead yet
        died = "died" if process.poll() is not None else "does not answer"
        raise DemoError(f"The service {died} ({type(error).__name__}: {error}). {_tail(log)}") from error
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listening(process: subprocess.Popen[bytes], log: Path) -> int:
    """The port, once the service answers."""
    give_up = time.monotonic() + START
    while time.monotonic() < give_up:
        said = re.search(r"listening on http://[\d.]+:(\d+)\n", log.read_text("utf-8", "replace"))
        if process.poll() is not None:
            raise DemoError(f"The service did not start. {_tail(log)}")
        if said:
            return int(said[1])
        time.sleep(0.02)
    raise DemoError(f"The service did not listen within {START:g} s. {_tail(log)}")


def _tail(log: Path, lines: int = 8) -> str:
    said = log.read_text("utf-8", "replace").splitlines()[-lines:]
    return "\n".join(["Its last words:", *(f"  {line}" for line in said)]) if said else "It has said nothing."


@dataclass(frozen=True)
class Sample:
    """A line of a scrape."""

    name: str
    labels: dict[str, str]
    value: float
    exemplar: dict[str, str]


def scrape(port: int) -> list[Sample]:
    """What /metrics says, in the OpenMetrics format: the one with exemplars."""
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
