"""The driver of the core's tests that runs workflows on a Temporal server, with a worker of the same process."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from flowcore import Run, Workflow
from tests.temporal.conftest import PATIENCE, Server, connect

__all__ = ["TemporalDrive"]

LEASE = 3.0


class TemporalDrive:
    """As `Drive`. A store that is given stands for a task queue, whose runs it knows."""

    kind = "temporal"

    def __init__(self, server: Server) -> None:
        self._server = server
        self._queues: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

    def __call__(
        self,
        workflow: Workflow,
        values: Mapping[Any, Any] | None = None,
        *,
        store: Any = None,
        hooks: Iterable[Any] = (),
        max_workers: int | None = None,
        grace: float = 5.0,
        **request: Any,
    ) -> Run:
        from flowcore.temporal import TemporalEngine, temporal_worker

        fresh = f"q-{uuid.uuid4().hex[:8]}"
        queue = fresh if store is None else self._queues.setdefault(store, fresh)
        runs, errors = list[Run](), list[BaseException]()

        async def main() -> None:
            client = await connect(self._server.address)
            engine = TemporalEngine(client, task_queue=queue, prefix=f"{queue}:", hooks=hooks, lease=LEASE, grace=grace)
            worker = temporal_worker(
                client,
                task_queue=queue,
                workflows=[workflow],
                hooks=hooks,
                lease=LEASE,
                max_workers=max_workers or 32,
            )
            try:
                async with worker, asyncio.timeout(PATIENCE):
                    runs.append(await engine.run(workflow, values, **request))
            except BaseException as error:  # noqa: BLE001 - asyncio.run cannot raise an exception without a repr
                errors.append(error)

        asyncio.run(main())
        if errors:
            raise errors[0]
        return runs[0]


def params(definition):
    import pytest

    return [pytest.param("temporal", marks=[pytest.mark.full])]
