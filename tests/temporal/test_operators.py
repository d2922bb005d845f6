"""What operators do with runs on Temporal: `engine.store`, and the command `flowcore`."""

import asyncio
import contextlib
import io
import json
from typing import Any

import pytest

from flowcore import (
    DefinitionError,
    IdempotencyHeld,
    LeaseLost,
    RunFailed,
    RunNotFound,
    Status,
    StoreError,
    StoreUnavailable,
    Workflow,
    stores,
)
from flowcore.cli.app import run

from .conftest import PATIENCE, Temporal, is_over, until


def incomplete(tries: list[int]) -> Workflow:
    """Its second step fails until `tries` has something in it, and nothing is undone."""
    wf = Workflow("etl", undo="never")
    wf.add_step("extract", lambda ctx: 1)

    @wf.step(depends_on="extract")
    def load(ctx: Any) -> int:
        if not tries:
            raise ValueError("no table")
        return 2

    return wf


def approval() -> Workflow:
    wf = Workflow("approval")
    wf.add_step("ask", lambda ctx: "asked").compensate(lambda ctx: None)
    wf.wait("approved", depends_on="ask")
    wf.add_step("act", lambda ctx: ctx["approved"], depends_on="approved")
    return wf


async def is_listed(engine: Any, status: str, key: str) -> bool:
    return key in [head.key for head in await engine.store.list_runs(status=status)]


@pytest.mark.parametrize("cached", [None, 0])
def test_a_run_that_is_left_can_be_held_with_a_reason_and_resumed(temporal: Temporal, cached: int | None) -> None:
    """Also if its worker evicts it from its memory after each workflow task (`cached`)."""
    tries: list[int] = []
    wf = incomplete(tries)

    async def main() -> None:
        async with temporal.open(wf, cached=cached) as engine:
            store = engine.store
            assert (await engine.run(wf, idempotency_key="k", check=False)).status is Status.INCOMPLETE
            head = await store.head("k")
            assert head is not None
            assert "no table" in (head.reason or "")
            await store.hold("k", "the table is being moved")
            await until(lambda: is_listed(engine, "held", "k"))
            for found in (await store.head("k"), await store.find("k")):
                assert found is not None
                assert (found.held, found.reason) == (True, "the table is being moved")
            assert await store.counts() == {("etl", "held"): 1}
            with pytest.raises(IdempotencyHeld):
                await engine.run(wf, idempotency_key="k")
            tries.append(1)
            await store.resume("k", reason="it was moved")
            await until(lambda: is_over(engine, "k"))
            found = await store.find("k")
            assert found is not None
            assert (found.status, found.reason) == (Status.SUCCESS, "it was moved")
            with pytest.raises(StoreError, match="there is nothing left to resume"):
                await store.resume("k")

    temporal.run(main)


def test_a_call_that_comes_too_late_does_not_resume_a_run_that_was_held_meanwhile(
    temporal: Temporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []
    wf = incomplete(tries)

    async def main() -> None:
        async with temporal.open(wf) as engine:
            store = engine.store
            assert (await engine.run(wf, idempotency_key="k", check=False)).status is Status.INCOMPLETE
            tries.append(1)
            left = store._left

            async def held_meanwhile(*arguments: Any) -> Any:
                record = await left(*arguments)
                await store.hold("k", "the table is being moved")
                return record

            monkeypatch.setattr(store, "_left", held_meanwhile)
            with pytest.raises(IdempotencyHeld):
                await engine.run(wf, idempotency_key="k")
            head = await store.head("k")
            assert head is not None
            assert (head.held, head.reason) == (True, "the table is being moved")
            await store.resume("k")
            await until(lambda: is_over(engine, "k"))
            assert (await engine.run(wf, idempotency_key="k"))["load"] == 2

    temporal.run(main)


def test_a_run_is_held_where_a_call_to_resume_it_comes_right_after_the_hold(temporal: Temporal) -> None:
    tries: list[int] = []
    wf = incomplete(tries)

    async def main() -> None:
        async with temporal.open(wf) as engine:
            await engine.run(wf, idempotency_key="k", check=False)
            tries.append(1)
        engine = await temporal.engine()
        await engine.store.hold("k", "the table is being moved")
        await engine.store._handle("k").signal("decide", args=["again", None])
        async with temporal.open(wf):  # this worker gets both at once
            await until(lambda: is_listed(engine, "held", "k"))
            await engine.store.resume("k")
            await until(lambda: is_over(engine, "k"))

    temporal.run(main)


def test_the_reason_of_a_cancellation_is_in_the_record(temporal: Temporal) -> None:
    wf = approval()

    async def main() -> None:
        async with temporal.open(wf) as engine:
            run = await engine.run(wf, idempotency_key="k", until="waiting")
            assert run.status is Status.WAITING
            with pytest.raises(StoreError, match="which is waiting: cancel it first"):
                await engine.store.hold("k")
            await engine.store.cancel("k", reason="the order was withdrawn")
            await until(lambda: is_over(engine, "k"))
            found = await engine.store.find("k")
            assert found is not None
            assert (found.status, found.reason) == (Status.COMPENSATED, "the order was withdrawn")
            listed = [head.key for head in await engine.list(workflow="approval")]
            assert listed == ["k"]
            alone = await engine.run(wf, until="waiting")
            assert (await engine.get(alone.id)).status is Status.WAITING
            assert await engine.cancel(alone.id)

    temporal.run(main)


def test_what_temporal_does_by_itself_is_refused_in_one_sentence(temporal: Temporal) -> None:
    async def main() -> None:
        engine = await temporal.engine()
        with pytest.raises(StoreError, match=r"forgets runs that are over.*namespace update --retention"):
            await engine.store.gc()
        with pytest.raises(StoreError, match="delete its workflow there, or encrypt with a payload codec"):
            await engine.store.erase("k")
        with pytest.raises(RunNotFound):
            await engine.store.hold("k")
        report = await engine.store.doctor()
        assert (report["store"], report["pollers"]) == ("temporal", 0)
        assert float(report["retention"]) >= 3600
        assert "no worker has polled" in str(report["risk"])

    temporal.run(main)


def test_a_caller_that_waits_for_a_run_which_an_operator_releases_begins_another(temporal: Temporal) -> None:
    wf = approval()

    async def main() -> None:
        async with temporal.open(wf) as engine:
            first = engine.submit(wf, idempotency_key="k")
            await first.waiting()
            engine_of_another = await temporal.engine()
            second = engine_of_another.submit(wf, idempotency_key="k", wait=PATIENCE)
            await asyncio.sleep(0.3)  # it waits now; if it came later, it would begin a run in the same way
            await engine.store.release("k", force=True)
            with pytest.raises(LeaseLost, match="was released before it ended"):
                await first
            await second.waiting()
            assert await engine.send("k", "approved", "yes")
            run = await second
            assert (run["act"], run.replayed, run.id != first.run_id) == ("yes", False, True)

    temporal.run(main)


def test_a_released_run_can_be_read(temporal: Temporal) -> None:
    wf = approval()

    async def main() -> None:
        async with temporal.open(wf) as engine:
            await engine.run(wf, idempotency_key="k", until="waiting")
            await engine.store.release("k", force=True)
            found = await engine.find("k")
            assert found is not None
            assert (found.status, found.error) == (Status.FAILURE, None)

    temporal.run(main)


def test_a_run_that_was_terminated_in_temporal_can_be_read(temporal: Temporal) -> None:
    wf = approval()

    async def main() -> None:
        async with temporal.open(wf) as engine:
            future = engine.submit(wf, idempotency_key="k")
            await future.waiting()
            await engine.store._handle("k").terminate(reason="by an operator of Temporal")
            with pytest.raises(RunFailed, match="ended from outside of flowcore"):
                await future
            found = await engine.find("k")
            assert found is not None
            assert found.status is Status.FAILURE
            assert "by an operator of Temporal" in str(found.error)
            again = engine.submit(wf, idempotency_key="k")  # its key is free
            assert (await again.waiting()).status is Status.WAITING

    temporal.run(main)


def test_a_run_that_only_waits_says_so_to_callers_and_operators(temporal: Temporal) -> None:
    wf = approval()

    async def main() -> None:
        async with temporal.open(wf) as engine:
            future = engine.submit(wf, idempotency_key="k")
            assert (await future.waiting()).status is Status.WAITING
            head = await engine.store.head("k")
            assert head is not None
            assert (head.status, head.waiting_for) == (Status.WAITING, ("approved",))
            found = await engine.find("k")
            assert found is not None
            assert (found.status, found.waiting_for, found.results) == (Status.WAITING, ("approved",), {"ask": "asked"})
            await until(lambda: is_listed(engine, "waiting", "k"))
            assert await engine.store.counts() == {("approval", "waiting"): 1}
            assert await engine.send("k", "approved", "yes")
            assert (await future)["act"] == "yes"
            assert (await engine.run(wf, idempotency_key="k", until="waiting")).replayed

    temporal.run(main)


def test_pages_have_at_most_so_many_runs_as_asked_for_and_every_run_once(temporal: Temporal) -> None:
    wf = approval()
    order = "pqxqppxxqpqqpxppq"  # the runs that are cancelled, and those of other keys, are between the others

    async def main() -> None:
        async with temporal.open(wf) as engine:
            store = engine.store
            for number, kind in enumerate(order):
                await engine.run(wf, idempotency_key=f"{kind}{number}", until="waiting")
            for number, kind in enumerate(order):
                if kind == "x":
                    await store.cancel(f"x{number}")
            waiting = order.count("p") + order.count("q")

            async def all_are_listed() -> bool:
                listed = [await store.list_runs(status=status) for status in ("waiting", "failure")]
                return [len(page) for page in listed] == [waiting, order.count("x")]

            await until(all_are_listed)
            for limit in (1, 2, 3, 5, 100):
                for options, expected in (({"text": "p"}, "p"), ({"text": "q"}, "q"), ({"status": "waiting"}, "pq")):
                    keys, cursor = [], None
                    while True:
                        page = await store.list_runs(**options, workflow="approval", limit=limit, after=cursor)
                        assert len(page) <= limit
                        keys += [head.key for head in page]
                        if (cursor := page.cursor) is None:
                            break
                        assert len(page) == limit
                    wanted = [f"{kind}{number}" for number, kind in enumerate(order) if kind in expected]
                    assert keys == wanted[::-1]
            wrong: Any
            for wrong in ("no cursor", 7):
                with pytest.raises(DefinitionError, match=r"list_runs\(after=\) must be the cursor of an earlier page"):
                    await store.list_runs(after=wrong)

    temporal.run(main)


def give(*arguments: str) -> tuple[object, str, str]:
    """A command of `flowcore`: its exit code, and what it prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        run(list(arguments))
    return ended.value.code, out.getvalue(), err.getvalue()


def test_the_command_line_reads_and_decides(temporal: Temporal) -> None:
    tries: list[int] = []
    etl, wf = incomplete(tries), approval()

    async def command(*arguments: str, code: int = 0) -> str:
        store = f"temporal://{temporal.server.address}/default?task_queue={temporal.queue}"
        ended, out, err = await asyncio.to_thread(give, "--store", store, "--prefix", f"{temporal.queue}:", *arguments)
        assert ended == code, err
        return out if code == 0 else err

    async def main() -> None:
        async with temporal.open(etl, wf) as engine:
            await engine.run(etl, idempotency_key="e", check=False)
            future = engine.submit(wf, idempotency_key="a")
            await future.waiting()
            await until(lambda: is_listed(engine, "waiting", "a"))
            listed = json.loads(await command("--json", "ls"))["runs"]
            assert {run["key"]: run["status"] for run in listed} == {"e": "incomplete", "a": "waiting"}
            assert "no table" in await command("show", "e")
            await command("hold", "e", "--reason", "the table is being moved")
            await until(lambda: is_listed(engine, "held", "e"))
            assert "the table is being moved" in await command("show", "e")
            tries.append(1)
            await command("resume", "e")
            await until(lambda: is_over(engine, "e"))
            await command("send", "a", "approved", "--json", '"yes"')
            assert (await future)["act"] == "yes"
            assert "success" in await command("ls", "--status", "success")
            assert "pollers: " in await command("doctor")
            for verb in ("cancel", "undo"):
                assert "there is nothing left to" in await command(verb, "a", code=1)
            assert "Temporal cannot change an ended run" in await command("release", "a", "--yes", code=1)
            assert "Temporal itself forgets" in await command("gc", code=1)
            assert "No run" in await command("show", "unknown", code=1)

    temporal.run(main)


def test_a_url_without_a_task_queue_and_a_server_that_is_away_are_refused() -> None:
    for url in (
        "temporal://127.0.0.1:7233/default",
        "temporal:///default?task_queue=q",
        "temporal://h/n?task_queue=q&x=1",
    ):
        with pytest.raises(DefinitionError, match="names no task queue of Temporal"):
            stores.open(url)
    with pytest.raises(StoreUnavailable, match=r"Temporal is unreachable at 127\.0\.0\.1:1 "):
        stores.open("temporal://127.0.0.1:1/default?task_queue=q").counts()
