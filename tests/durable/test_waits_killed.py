"""An order that waits for approval over a kill -9, a deploy and a restart of its store, and goes on in another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowcore import stores
from flowcore.stores import SQLiteStore
from tests.stores.redis_servers import RedisServer, start_redis, until

__all__ = ["start_redis"]  # a fixture

ROOT = Path(__file__).parents[2]
SCRIPT = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from flowcore import AsyncEngine, Engine, Workflow, stores

    driver, url, effects, deadly, until = sys.argv[1:6]
    store = stores.open(url)

    def note(ctx, what):
        with Path(effects).open("a") as file:
            file.write(f"{what}\\n")

    wf = Workflow("order")
    wf.add_step("reserve", lambda ctx: note(ctx, "reserve"), compensate=lambda ctx: note(ctx, "-reserve"))
    wf.wait("approved", depends_on="reserve", timeout=3600)
    wf.add_step("ship", lambda ctx: note(ctx, f"ship for {ctx['approved']}"), depends_on="approved")

    async def wait_for_it():
        async with AsyncEngine(store=store, lease=1) as engine:
            await engine.run(wf, idempotency_key="order-1", until=until)

    async def recover():
        async with AsyncEngine(store=store, lease=1, workflows=[wf], recover_every=0.05):
            while store.head("order-1").status != "success":
                await asyncio.sleep(0.01)

    if driver == "threads":
        with Engine(store=store, lease=1) as engine:
            engine.run(wf, idempotency_key="order-1", until=until)
    elif driver == "asyncio":
        asyncio.run(wait_for_it())
    else:
        asyncio.run(recover())
""")


def started(driver: str, url: str, effects: Path, until_: str = "end") -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, driver, url, str(effects), "", until_], env=environment)


@pytest.mark.parametrize("driver", ["threads", "asyncio"])
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_an_order_waits_over_a_kill_a_deploy_and_a_restart_of_its_store(
    kind: str, driver: str, tmp_path: Path, start_redis: Callable[..., RedisServer]
) -> None:
    server = start_redis(appendonly="always") if kind == "redis" else None
    url = f"sqlite:{tmp_path / 'runs.db'}" if server is None else server.url
    effects = tmp_path / "effects"
    if server is None:
        SQLiteStore(tmp_path / "runs.db", durability="normal").close()

    def head() -> Any:
        store: Any = stores.open(url)
        try:
            return store.head("order-1")
        finally:
            store.close()

    owner = started(driver, url, effects)
    until(lambda: effects.exists() and (found := head()) and found.status == "waiting", "the run to wait")
    owner.send_signal(signal.SIGKILL)  # its caller dies while the run waits
    assert owner.wait() == -signal.SIGKILL
    assert head().waiting_for == ("approved",)
    deployed = started(driver, url, effects, "waiting")  # another process with the key learns that it waits
    assert deployed.wait() != 0
    if server is not None:
        server.kill()
        server.start()
    store: Any = stores.open(url)
    assert store.send("order-1", "approved", "Ann", id="click 7")
    assert store.send("order-1", "approved", "Ann", id="click 7")
    assert not store.send("order-1", "approved", "Bob", id="click 8")
    store.close()
    resumed = started("recover", url, effects)
    assert resumed.wait(60) == 0
    assert effects.read_text().splitlines() == ["reserve", "ship for Ann"]
    assert head().takeovers == 0
