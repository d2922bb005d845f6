"""flowcore's own schedules on Temporal: each fire is a workflow whose id has its time, so that it begins once."""

import asyncio
from datetime import UTC, datetime
from functools import partial
from typing import Any

from flowcore import Status, Workflow
from flowcore.fires import fire_key

from .conftest import Temporal, is_over, until

FIRES = 3


def report(seen: list[datetime]) -> Workflow:
    wf = Workflow("report")

    @wf.step
    def write(ctx: Any) -> str:
        seen.append(ctx.scheduled_at)
        return str(ctx["of"])

    return wf


def test_two_engines_and_two_workers_begin_each_fire_once(temporal: Temporal) -> None:
    seen: list[datetime] = []
    wf = report(seen)

    def values(planned: datetime) -> dict[str, str]:
        return {"of": planned.isoformat()}

    async def is_enough() -> bool:
        return len(set(seen)) >= FIRES

    async def main() -> None:
        async with temporal.open(wf) as one, temporal.open(wf) as two, one, two:
            for engine in (one, two):
                engine.schedule(wf, every=1, values=values, overlap="queue", name="often")
            await until(is_enough)
            fires = sorted(set(seen))[:FIRES]
            for planned in fires:
                key = fire_key("often", planned)
                await until(partial(is_over, one, key))
                found = await one.find(key)
                assert found is not None
                assert (found.status, found.results["write"]) == (Status.SUCCESS, planned.isoformat())
            (status,) = await two.schedules()
            assert status.schedule.name == "often"
        again = len(seen)
        await asyncio.sleep(1.5)
        assert len(seen) == again == len(set(seen))  # each once, and none after both are closed

    temporal.run(main)
    assert all(planned.tzinfo is UTC and not planned.microsecond for planned in seen)
