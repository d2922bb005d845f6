"""A FastAPI service that a deploy may stop at any time. $FLOWCORE_STORE names its store.

    uvicorn api:app --timeout-graceful-shutdown 2

On SIGTERM the engine parks its runs, so that another process resumes them at once, and the requests that wait for them
get 503. uvicorn takes no more requests, waits two seconds for those in flight, and cancels the rest. A cancelled
request must not cancel its run: the endpoint waits behind a shield.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType

from fastapi import FastAPI, HTTPException

from flowcore import AsyncEngine, IdempotencyInProgress, RunParked
from orders import open_store, order


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the engine in the loop that serves; close it on SIGTERM, before uvicorn begins to wait for requests."""
    loop = asyncio.get_running_loop()
    engine = AsyncEngine(store=open_store(), workflows=[order], recover_every=0.2, grace=5)
    app.state.engine = engine
    stop_serving = signal.getsignal(signal.SIGTERM)
    assert callable(stop_serving)

    def stop(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(lambda: loop.create_task(engine.aclose(timeout=0)))
        stop_serving(number, frame)

    signal.signal(signal.SIGTERM, stop)
    yield
    await engine.aclose(timeout=0)


app = FastAPI(lifespan=lifespan)


@app.get("/ready")
async def ready() -> str:
    """Return 200 once the process can take requests."""
    return "yes"


@app.post("/orders/{number}")
async def place(number: str) -> str:
    """Run an order to its end; a client that gets 503 retries with the same number."""
    engine: AsyncEngine = app.state.engine
    try:
        run = await asyncio.shield(engine.submit(order, {"number": number}, idempotency_key=number))
    except IdempotencyInProgress as error:
        raise HTTPException(503, "in progress", {"Retry-After": f"{error.retry_after:.0f}"}) from error
    except RunParked as error:
        raise HTTPException(503, "stopping", {"Retry-After": "1"}) from error
    return str(run.status)
