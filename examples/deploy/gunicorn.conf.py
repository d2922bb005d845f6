"""gunicorn's settings for wsgi.py: a worker that has to stop parks its runs, which ends their requests."""

import signal
import threading
from queue import SimpleQueue
from types import FrameType
from typing import Any

workers = 2
graceful_timeout = 10  # longer than the engine's grace


def post_worker_init(worker: Any) -> None:
    """Make the worker's engine, even if the master has loaded the application, and close it on SIGTERM."""
    from wsgi import the_engine

    engine = the_engine()
    stop_taking_requests = signal.getsignal(signal.SIGTERM)
    assert callable(stop_taking_requests)
    told: SimpleQueue[None] = SimpleQueue()

    def close() -> None:
        told.get()
        engine.close(0)

    # The main thread may be in the middle of a run, and only another thread can wait for that run.
    threading.Thread(target=close, daemon=True).start()

    def stop(number: int, frame: FrameType | None) -> None:
        # This needs no lock. Thread.start() and Event.set() may wait for one that the interrupted code holds.
        told.put(None)
        stop_taking_requests(number, frame)

    signal.signal(signal.SIGTERM, stop)
