"""Workers and the server are killed in steps, backoffs and undos, and while runs are held."""

import asyncio
import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowcore import IdempotencyHeld, RunTimeout, Status

from .conftest import LEASE, PATIENCE, Server, Temporal, eventually, is_over, until

_TIMED_OUT: Any = "activity_task_timed_out_event_attributes"
MODULE = Path(__file__).parent / "killed.py"


@pytest.fixture(scope="module")
def killed() -> Iterator[Any]:
    sys.path.insert(0, str(MODULE.parent))
    yield importlib.import_module("killed")
    sys.path.pop(0)


def lines(folder: Path, name: str) -> list[list[str]]:
    """What a run has written down: what, by which process, with which fence and step key."""
    log = folder / f"{name}.log"
    return [line.rsplit(" ", 3) for line in log.read_text().splitlines()] if log.exists() else []


def whats(folder: Path, name: str) -> list[str]:
    return [line[0] for line in lines(folder, name)]


def test_a_killed_worker_is_taken_over_wherever_it_was(temporal: Temporal, killed: Any, tmp_path: Path) -> None:
    definitions = killed.workflows()
    temporal.worker_process(MODULE)

    async def main() -> None:
        engine = await temporal.engine()
        runs = {
            wf.name: engine.submit(wf, {"folder": str(tmp_path), "name": wf.name}, idempotency_key=wf.name, check=False)
            for wf in definitions
            if wf.name != "unclear"
        }
        await until(lambda: _all_stuck(tmp_path, list(runs)))
        await asyncio.sleep(LEASE)  # a heartbeat reports the failed attempt
        temporal.kill_workers()
        temporal.worker_process(MODULE)
        at = time.monotonic()
        (tmp_path / "go").touch()
        ended = {name: await future for name, future in runs.items() if name != "held"}
        took = time.monotonic() - at

        plain, again = ended["plain"], lines(tmp_path, "plain")
        assert plain.status is Status.SUCCESS
        assert [line[0] for line in again] == ["first", "stuck", "stuck"]
        assert again[1][1] != again[2][1]  # another process
        assert int(again[1][2]) < int(again[2][2])  # the fence has risen
        assert again[1][3] == again[2][3]  # the step key is the same

        assert ended["verified"]["stuck"] == "landed"
        assert whats(tmp_path, "verified") == ["first", "stuck"]

        assert ended["undone"].status is Status.COMPENSATED
        assert ended["undone"].undone == ("stuck", "first")

        assert ended["in undo"].status is Status.COMPENSATED
        assert whats(tmp_path, "in undo") == ["step", "stuck", "stuck"]

        backoff = ended["in backoff"].steps["step"]
        assert (backoff.attempts, len(backoff.errors)) == (2, 2)
        assert whats(tmp_path, "in backoff") == ["stuck", "stuck"]

        held = await runs["held"]
        assert (held.status, held.held) == (Status.PARKED, True)
        with pytest.raises(IdempotencyHeld):
            await engine.run(definitions[3], {"folder": str(tmp_path), "name": "held"}, idempotency_key="held")
        record = await engine.find("held")
        assert record is not None
        assert "which has on_crash='hold'" in (record.reason or "")
        await engine.store.resume("held")
        await until(lambda: is_over(engine, "held"))
        assert whats(tmp_path, "held") == ["first", "stuck", "stuck"]
        assert took < 3 * LEASE + 5, f"the takeovers took {took:.1f} s"

    temporal.run(main)


async def _all_stuck(folder: Path, names: list[str]) -> bool:
    return all("stuck" in whats(folder, name) for name in names)


def test_a_step_that_kills_its_workers_is_held(temporal: Temporal, killed: Any, tmp_path: Path) -> None:
    wf = killed.workflow("plain")

    async def main() -> None:
        engine = await temporal.engine(max_takeovers=1, lease=1.0)
        future = engine.submit(wf, {"folder": str(tmp_path), "name": "plain"}, idempotency_key="k", check=False)
        for _ in range(2):
            before = len(lines(tmp_path, "plain"))
            await asyncio.to_thread(temporal.worker_process, MODULE)
            await asyncio.to_thread(eventually, lambda: whats(tmp_path, "plain")[before:].count("stuck") == 1)  # noqa: B023
            temporal.kill_workers()
        await asyncio.to_thread(temporal.worker_process, MODULE)
        run = await future
        assert run.held
        assert "crashed 2 times in step 'stuck'" in str(run.error)

    temporal.run(main)


def test_a_step_that_no_worker_takes_over_before_the_deadline_is_undone(
    temporal: Temporal, killed: Any, tmp_path: Path
) -> None:
    wf = killed.workflow("plain")

    async def is_overdue(engine: Any) -> bool:
        handle = engine.store._client.get_workflow_handle(f"{temporal.queue}:k")
        return any([event.HasField(_TIMED_OUT) async for event in handle.fetch_history_events()])

    async def main() -> None:
        engine = await temporal.engine(lease=1.0)
        await asyncio.to_thread(temporal.worker_process, MODULE)
        values = {"folder": str(tmp_path), "name": "plain"}
        future = engine.submit(wf, values, idempotency_key="k", check=False, deadline=4)
        await asyncio.to_thread(eventually, lambda: "stuck" in whats(tmp_path, "plain"))
        temporal.kill_workers()
        await until(lambda: is_overdue(engine))
        await asyncio.to_thread(temporal.worker_process, MODULE)
        run = await future
        assert isinstance(run.error, RunTimeout)
        assert whats(tmp_path, "plain") == ["first", "stuck", "undo stuck", "undo first"]

    temporal.run(main)


def test_a_verify_that_cannot_tell_is_asked_again_and_is_no_crash(
    temporal: Temporal, killed: Any, tmp_path: Path
) -> None:
    async def main() -> None:
        engine = await temporal.engine(max_takeovers=1, lease=1.0)
        future = engine.submit(killed.unclear(), {"folder": str(tmp_path), "name": "unclear"}, idempotency_key="k")
        await asyncio.to_thread(temporal.worker_process, MODULE)
        await asyncio.to_thread(eventually, lambda: "stuck" in whats(tmp_path, "unclear"))
        temporal.kill_workers()
        await asyncio.to_thread(temporal.worker_process, MODULE)
        await asyncio.to_thread(eventually, lambda: whats(tmp_path, "unclear").count("asked") == 3)
        (tmp_path / "reachable").touch()
        assert (await future)["stuck"] == "landed"
        assert whats(tmp_path, "unclear").count("stuck") == 1

    temporal.run(main)


def test_a_worker_that_is_stopped_leaves_its_step_to_another_one(
    temporal: Temporal, killed: Any, tmp_path: Path
) -> None:
    wf = killed.workflow("plain")

    async def main() -> None:
        async with temporal.open(wf) as engine:
            future = engine.submit(wf, {"folder": str(tmp_path), "name": "plain"}, check=False)
            await asyncio.to_thread(eventually, lambda: "stuck" in whats(tmp_path, "plain"))
        (tmp_path / "go").touch()
        async with temporal.open(wf):
            run = await future
        assert run.status is Status.SUCCESS
        assert whats(tmp_path, "plain") == ["first", "stuck", "stuck"]

    temporal.run(main)


def test_a_killed_server_continues_where_it_was(killed: Any, tmp_path: Path) -> None:
    """It is killed while one run is in a step, one in an undo, one waits for a value, one is held, and one is
    cancelled."""
    server = Server(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    temporal = Temporal(server)
    plain, undone, waits, held = killed.workflow("plain"), killed.in_undo(), killed.waits(), killed.held()

    async def main() -> None:
        async with temporal.open(plain, undone, waits, held) as engine:

            def submit(wf: Any) -> Any:
                values = {"folder": str(tmp_path), "name": wf.name}
                return engine.submit(wf, values, idempotency_key=wf.name, check=False)

            assert (await submit(held)).held
            stuck, in_undo, waiting = submit(plain), submit(undone), submit(waits)
            await waiting.waiting()
            values = {"folder": str(other), "name": "cancelled"}
            cancelled = asyncio.create_task(engine.run(plain, values, idempotency_key="cancelled"))
            await until(lambda: _all_stuck(tmp_path, [plain.name, undone.name]))
            await until(lambda: _all_stuck(other, ["cancelled"]))
            server.kill()
            cancelled.cancel()
            (tmp_path / "go").touch()
            await asyncio.to_thread(server.start)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(cancelled, PATIENCE)
            assert whats(other, "cancelled")[-1] == "undo first"
            (other / "go").touch()
            assert (await asyncio.wait_for(stuck, PATIENCE))["stuck"] == "done"
            assert whats(tmp_path, "plain")[0] == "first"
            assert set(whats(tmp_path, "plain")[1:]) == {"stuck"}
            assert (await asyncio.wait_for(in_undo, PATIENCE)).status is Status.COMPENSATED
            assert set(whats(tmp_path, "in undo")) == {"step", "stuck"}
            assert await engine.send("waits", "value", 7)
            assert (await asyncio.wait_for(waiting, PATIENCE))["value"] == 7
            record = await engine.find("held")
            assert record is not None
            assert record.held
            await engine.store.undo("held", reason="the line is back")
            await until(lambda: is_over(engine, "held"))
            record = await engine.find("held")
            assert record is not None
            assert (record.status, record.reason) == (Status.COMPENSATED, "the line is back")

    try:
        temporal.run(main)
    finally:
        server.kill()
