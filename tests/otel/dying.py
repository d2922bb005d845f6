"""A program that is killed in the middle of a run: `python -m tests.otel.dying STORE`.

It prints each span that has ended, as `name trace span parent`. STORE is `sqlite:PATH` or the URL of a redis-server.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Literal

import redis
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from flowcore import Context, Engine, Workflow
from flowcore.stores import RedisStore, SQLiteStore
from flowcore_otel import TracingHook

LEASE = 0.6
KEY = "T-1"


def trip(*, dies: bool, on_crash: Literal["retry", "undo", "hold"] = "retry") -> Workflow:
    """A workflow whose second step is the end of its process if it `dies`."""
    wf = Workflow("trip")

    @wf.step
    def book(ctx: Context) -> str:
        return "seat 7"

    @book.compensate
    def cancel(ctx: Context) -> None: ...

    @wf.step(depends_on=book, on_crash=on_crash)
    def pay(ctx: Context) -> str:
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return "paid"

    @pay.compensate
    def refund(ctx: Context) -> None: ...

    wf.add_step("ship", lambda ctx: "sent", depends_on=(book, pay))
    return wf


@contextmanager
def open_store(where: str) -> Iterator[Any]:
    """The durable store at that place."""
    if where.startswith("sqlite:"):
        with closing(SQLiteStore(where.removeprefix("sqlite:"), durability="normal")) as store:
            yield store
    else:
        with redis.Redis.from_url(where) as client:
            yield RedisStore(client, prefix="flowcore-otel")


class Printed(SpanExporter):
    """Prints spans as they end."""

    def export(self, spans: Any) -> SpanExportResult:
        for span in spans:
            parent = f"{span.parent.span_id:016x}" if span.parent is not None else "-"
            print(f"{span.name}\t{span.context.trace_id:032x}\t{span.context.span_id:016x}\t{parent}", flush=True)
        return SpanExportResult.SUCCESS


def main(where: str) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Printed()))
    with open_store(where) as store:
        engine = Engine(store=store, hooks=[TracingHook(provider)], lease=LEASE)
        engine.run(trip(dies=True), idempotency_key=KEY)


if __name__ == "__main__":
    main(sys.argv[1])
