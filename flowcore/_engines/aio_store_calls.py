"""The calls of the store in runs on an event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from .._kernel import stopping
from .._kernel.effects import Ask, Outcome, Program, Sleep
from ..errors import StoreUnavailable
from .aio_threads import PendingReply, ThreadCalls
from .driving import drive_on_loop
from .in_context import is_process_stopping

__all__ = ["StoreCalls"]

T = TypeVar("T")


class StoreCalls(ThreadCalls):
    """The part of an `AsyncDriver` that calls the store."""

    async def perform(self, program: Program[T]) -> T:
        """Perform a program that only calls the store and sleeps between the calls. Returns the program's result."""
        return await drive_on_loop(program, self._perform)

    async def _perform(self, effect: object) -> Outcome | None:
        if isinstance(effect, Ask):
            return await self._ask(effect)
        if isinstance(effect, Sleep):
            await asyncio.sleep(effect.seconds)
        return None

    async def _ask(self, ask: Ask) -> Outcome:
        """Call the store. A sync store that may block is called on a thread, an async one in a separate task, which
        the run never cancels."""
        store = self.run.settings.store
        verb = getattr(store, ask.verb)
        if not getattr(store, "blocks", True):
            try:
                return verb(ask.argument), None
            except Exception as error:  # noqa: BLE001 - the program decides what a store's error means
                return None, error
        pending = PendingReply(self)

        async def asked() -> None:
            try:
                if inspect.iscoroutinefunction(verb):
                    pending.set((await verb(ask.argument), None))
                else:
                    pending.set(await asyncio.to_thread(_called, verb, ask.argument))
            except Exception as error:  # noqa: BLE001 - see above
                pending.set((None, error))
            except (SystemExit, KeyboardInterrupt) as error:
                pending.set((None, stopping.store_interrupted(error)))
                if not is_process_stopping():  # no task of the client has ended the loop with it yet
                    raise

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():  # the loop shuts down, maybe before the first step; the program calls the store again
                pending.set((None, StoreUnavailable("the event loop is shutting down.")))
            elif (error := task.exception()) is not None:  # an exit that a signal handler raised here; it ends the loop
                pending.set((None, stopping.store_interrupted(error)))

        run = self.run
        context = ask.context or (run.store_context or run.context).copy()
        task = pending.task = self.loop.create_task(asked(), context=context)
        self._tasks.add(task)
        task.add_done_callback(ended)
        result: Outcome | None = await pending.wait()
        return result or (None, StoreUnavailable("the event loop is shutting down."))


def _called(verb: Callable[[object], Any], argument: object) -> Outcome:
    """Call a verb of a sync store on a thread. Its error is part of the reply: an exit must not end the loop that waits
    for the reply, and a future cannot raise StopIteration."""
    try:
        return verb(argument), None
    except Exception as error:  # noqa: BLE001 - the program decides what a store's error means
        return None, error
    except (SystemExit, KeyboardInterrupt) as error:
        return None, stopping.store_interrupted(error)
