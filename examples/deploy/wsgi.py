"""A WSGI service under gunicorn, with or without --preload. $FLOWCORE_STORE names its store.

    gunicorn -c gunicorn.conf.py wsgi:app

Threads do not survive a fork, and gunicorn's master must not recover runs, so each worker makes its own engine, at
first use. gunicorn.conf.py closes it when its worker gets SIGTERM.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from flowcore import Engine, IdempotencyInProgress, RunParked
from orders import open_store, order


@functools.cache
def the_engine() -> Engine:
    """The engine of this process."""
    return Engine(store=open_store(), workflows=[order], recover_every=0.2, grace=5)


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """POST /orders/NUMBER runs an order to its end; a client that gets 503 retries with the same number."""
    if environ["REQUEST_METHOD"] != "POST":
        start_response("200 OK", [])
        return [b"ready"]
    number = environ["PATH_INFO"].rpartition("/")[2]
    try:
        run = the_engine().run(order, {"number": number}, idempotency_key=number)
    except (IdempotencyInProgress, RunParked):
        start_response("503 Service Unavailable", [("Retry-After", "1")])
        return [b"stopping or in progress"]
    start_response("200 OK", [])
    return [str(run.status).encode()]
