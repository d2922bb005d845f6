"""A real Chromium, driven over its debugging pipe: messages are JSON, each ended by a NUL byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Chromium", "program"]

_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"),
)


def program() -> str | None:
    """Where Chromium is, if it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Chromium:
    """A browser with one page. Not thread-safe."""

    def __init__(self, program: str, profile: Path) -> None:
        reads, self._to = os.pipe()
        self._from, writes = os.pipe()
        # Chromium reads commands from descriptor 3 and writes to descriptor 4.
        line = f'exec "$0" "$@" 3<&{reads} 4>&{writes}'
        command = ["bash", "-c", line, program, *_OPTIONS, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            command, pass_fds=(reads, writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(reads)
        os.close(writes)
        self._messages = self._read()
        self._number = 0
        self._session: str | None = None
        self.console: list[dict[str, Any]] = []
        """what the page has logged, and its exceptions"""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._to)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)

    def _read(self) -> Iterator[dict[str, Any]]:
        buffer = b""
        while chunk := os.read(self._from, 1 << 16):
            *whole, buffer = (buffer + chunk).split(b"\0")
            yield from map(json.loads, whole)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give a command, and wait for what it returns."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            heard = self._heard()
            if heard.get("id") == self._number:
                assert "error" not in heard, heard
                result: dict[str, Any] = heard["result"]
                return result

    def _heard(self) -> dict[str, Any]:
        heard = next(self._messages)
        if heard.get("method") in {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"}:
            self.console.append(heard["params"])
        return heard

    def open(self, url: str) -> None:
        """Open a page, and wait until it is loaded."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.send(f"{domain}.enable")
        self.send("Page.navigate", url=url)
        while self._heard().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """What a JavaScript expression comes to on the page."""
        return self.send("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")
