"""A step that fans out over a list it has just computed: each child is durable, whenever the process dies."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from flowcore import AsyncEngine, Context, Engine, Status, Workflow
from tests.durable.crash import Place
from tests.durable.engines import DRIVERS, STORES
from tests.durable.nursery import Nursery

CHILDREN: Final = 20
LEASE: Final = 1.0
ENGINE: Final[dict[str, Any]] = {"lease": LEASE, "max_workers": 4}


class Letters:
    """A step computes who gets a letter, and a run for each sends it. `dies_after`: letters, then kill -9."""

    def __init__(self, place: Place, dies_after: int, *, asynchronous: bool) -> None:
        self.engine: Any = None
        self.path, self.dies_after = Path(place.ledger), dies_after
        self.letter, self.mailing = Workflow("letter"), Workflow("mailing")
        self.letter.add_step("send", self.send)
        whom = self.mailing.add_step("whom", lambda ctx: [{"id": f"r{number}"} for number in range(CHILDREN)])
        fans_out = self.send_all_on_a_loop if asynchronous else self.send_all
        self.mailing.add_step("send all", fans_out, depends_on=whom)

    def send(self, ctx: Context) -> str:
        with self.path.open("a") as sent:
            sent.write(f"{ctx['id']} {ctx.step_key}\n")
        if len(self.path.read_text().splitlines()) >= self.dies_after:
            os.kill(os.getpid(), 9)
        return f"sent to {ctx['id']}"

    def send_all(self, ctx: Context) -> list[str]:
        children = self.engine.map(
            self.letter, ctx["whom"], key=lambda one: f"{ctx.step_key}/{one['id']}", ordered=True, check=True
        )
        return [child["send"] for child in children]

    async def send_all_on_a_loop(self, ctx: Context) -> list[str]:
        children = self.engine.map(
            self.letter, ctx["whom"], key=lambda one: f"{ctx.step_key}/{one['id']}", ordered=True, check=True
        )
        return [child["send"] async for child in children]


def mail(place: Place, driver: str, dies_after: int) -> list[str]:
    asynchronous = driver == "asyncio"
    letters = Letters(place, dies_after, asynchronous=asynchronous)
    request = {"idempotency_key": "mailing", "wait": 60}

    async def on_a_loop(store: Any) -> Any:
        async with AsyncEngine(store=store, **ENGINE) as letters.engine:
            return await letters.engine.run(letters.mailing, **request)

    with place.store(asynchronous=asynchronous) as store:
        if asynchronous:
            run = asyncio.run(on_a_loop(store))
        else:
            with Engine(store=store, **ENGINE) as letters.engine:
                run = letters.engine.run(letters.mailing, **request)
    result: list[str] = run["send all"]
    return result


@pytest.mark.parametrize("dies_after", [1, 8, CHILDREN])
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("kind", STORES)
def test_the_children_of_a_step_that_fans_out_survive_a_kill(
    place: Callable[[str], Place], nursery: Nursery, kind: str, driver: str, dies_after: int
) -> None:
    where = place(kind)
    assert nursery.wait([nursery.start(mail, where, driver, dies_after)])[1] == -9
    assert mail(where, driver, 10_000) == [f"sent to r{number}" for number in range(CHILDREN)]

    sent = Counter(line.split()[0] for line in Path(where.ledger).read_text().splitlines())
    keys = dict(line.split() for line in Path(where.ledger).read_text().splitlines())
    assert len(sent) == len(set(keys.values())) == CHILDREN
    # What was in flight at the kill may be sent twice, with the same step key; nothing that had ended is.
    assert sum(sent.values()) - CHILDREN <= 2 * ENGINE["max_workers"]
    with where.store() as store:
        records = list(pages(store, "letter"))
    assert [record.status for record in records] == [Status.SUCCESS] * CHILDREN


def pages(store: Any, workflow: str) -> Iterator[Any]:
    cursor = None
    while True:
        page = store.list_runs(workflow=workflow, after=cursor)
        yield from page
        if page.cursor is None:
            return
        cursor = page.cursor


def batch(place: Place, driver: str, dies: bool) -> list[str]:
    wf, rows = Workflow("row"), [{"id": number} for number in range(12)]

    def book(ctx: Context) -> int:
        if dies and ctx["id"] == 6:
            os.kill(os.getpid(), 9)
        return int(ctx["id"])

    wf.add_step("book", book)

    async def on_a_loop(store: Any) -> list[str]:
        async with AsyncEngine(store=store, **ENGINE) as engine:
            return [str(run.status) async for run in engine.map(wf, rows, key=lambda row: f"row-{row['id']}")]

    with place.store(asynchronous=driver == "asyncio") as store:
        if driver == "asyncio":
            return asyncio.run(on_a_loop(store))
        with Engine(store=store, **ENGINE) as engine:
            return [str(run.status) for run in engine.map(wf, rows, key=lambda row: f"row-{row['id']}")]


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("kind", STORES)
def test_a_batch_that_is_started_again_at_once_waits_for_the_lease_of_the_dead(
    place: Callable[[str], Place], nursery: Nursery, kind: str, driver: str
) -> None:
    where = place(kind)
    assert nursery.wait([nursery.start(batch, where, driver, True)])[1] == -9
    assert batch(where, driver, False) == [Status.SUCCESS] * 12
