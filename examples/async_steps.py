"""Async and sync steps in one workflow, many runs at once on one event loop.

    python examples/async_steps.py

`AsyncEngine` awaits async steps on the loop and runs sync ones in worker threads. A backoff holds no thread: a hundred
runs that wait cost next to nothing.
"""

import asyncio
import threading

from flowcore import AsyncEngine, Backoff, Context, Retry, Workflow

wf = Workflow("thumbnail")
loop_thread = threading.get_ident()


@wf.step(retry=Retry(3, Backoff.fixed(0.05)))
async def download(ctx: Context) -> bytes:
    """Async: runs on the event loop. Every first attempt fails."""
    await asyncio.sleep(0.01)
    assert threading.get_ident() == loop_thread
    if ctx.attempt == 1:
        raise ConnectionError("try again")
    return f"picture {ctx['number']}".encode()


@wf.step(depends_on=download)
def shrink(ctx: Context) -> bytes:
    """Sync: runs in a worker thread, so that the event loop stays free."""
    assert threading.get_ident() != loop_thread
    return ctx[download].replace(b"picture", b"thumb")


@wf.step(depends_on=shrink)
async def upload(ctx: Context) -> str:
    await asyncio.sleep(0.01)
    return f"{ctx[shrink].decode()} uploaded"


async def main() -> None:
    async with AsyncEngine() as engine:
        runs = await asyncio.gather(*(engine.run(wf, {"number": number}) for number in range(1, 101)))

    print(f"{len(runs)} runs, {sum(run.steps['download'].attempts for run in runs)} downloads tried")
    print(runs[0][upload])
    print(runs[-1][upload])


if __name__ == "__main__":
    asyncio.run(main())
