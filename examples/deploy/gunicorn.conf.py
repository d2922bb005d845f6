"""gunicorn's settings for wsgi.py: a worker that is to stop parks its runs while its requests still wait for them."""

import signal
import threading
from types import FrameType
from typing import Any

workers = 2
graceful_timeout = 10  # longer than the engine's grace


def post_worker_init(worker: Any) -> None:
    """Make the worker's engine, also where the master has loaded the application, and let SIGTERM close it."""
    from wsgi import the_engine

    engine = the_engine()
    stop_taking_requests = signal.getsignal(signal.SIGTERM)
    assert callable(stop_taking_requests)

    def stop(number: int, frame: FrameType | None) -> None:
        # The main thread may be in the middle of a run: only another one can wait for it.
        threading.Thread(target=engine.close, args=(0,)).start()
        stop_taking_requests(number, frame)

    signal.signal(signal.SIGTERM, stop)
