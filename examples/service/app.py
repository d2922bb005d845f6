"""A checkout service: `POST /orders` with an `Idempotency-Key`, `GET` and `DELETE /orders/KEY`, `GET /metrics` for
Prometheus. `POST /purchases` places an order that waits for a person's decision (`POST /approvals/ACCOUNT/KEY`) and for
the payment provider's webhook (`POST /webhooks/payments`).

    python examples/service/app.py --port 8000 --store sqlite:runs.db

Responses follow the IETF draft "The Idempotency-Key HTTP Header Field":

    201  done; with `Idempotent-Replayed: true` it is the stored response of an earlier request
    202  accepted, for a request with `Prefer: respond-async`; `Location` is the address of the order's status
    400  no key, or one that is not 1 to 255 printable ASCII characters
    402  the card was declined                          (what had been done was undone)
    403  a person refused the order                     (what had been done was undone)
    404  there is no such order
    409  the order is in progress                       (`Retry-After` says when to retry), or it was cancelled,
         or the order has been decided before
    410  sold out
    413  the body of the request is too large
    422  the key was used for another order
    502  the gateway or the carrier did not respond     (what had been done was undone)
    503  the store is unreachable                       (retry with the same key: the order is resumed)
    504  no decision, or no payment, came in time       (what had been done was undone)

`GET` of an order returns 200 and its status while the order is in progress, and afterwards the response that `POST`
would return. `DELETE` cancels the order, in whichever process it runs, and undoes what was done. An accepted order
survives the end of the service if its runs are durable.

The response of `POST /orders` to an order that has run names its traces: `traceresponse` (W3C Trace Context) is the
trace of this request, and `Original-Trace-Id` of a replay is the trace of the request that did the work.

A service that is stopped finishes the orders in flight. A service that is killed loses the orders in flight and the
results of earlier ones if its runs are in memory (the default). With `--store sqlite:PATH` or a Redis they survive:
another process of the service, or the next one, resumes each order within one and a half times the lease.

A key belongs to the account that sent it: if two accounts send the same key, they place two orders, and neither account
can replay, block or discover the other's order. This example leaves out authentication (the header `X-Account` stands
for the user who is logged in; a real service never trusts such a header), TLS, and rate limits.

Spans are written to a file of JSON lines, and also sent by OTLP if OTEL_EXPORTER_OTLP_ENDPOINT is set.
"""

import argparse
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI, Header, Request
from fastapi.responses import JSONResponse
from opentelemetry import propagate
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind
from prometheus_client import CollectorRegistry, make_asgi_app
from pydantic import BaseModel, Field
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from answers import accepted, answer, in_progress, out_of_order, problem, received, standing, traced
from checkout import checkout
from flowcore import (
    AsyncEngine,
    Hook,
    IdempotencyHeld,
    IdempotencyInProgress,
    IdempotencyMismatch,
    ProgressHook,
    RunNotFound,
    SendRefused,
    Status,
    StoreUnavailable,
)
from flowcore_otel import PrometheusHook, TracingHook
from ledger import Ledger
from partners import HANG, Carrier, Gateway
from stores import known, started

OPENING_STOCK = {"mug": 500, "shirt": 400, "lamp": 200, "poster": 12}
LEASE = 10.0  # seconds
LARGEST = 16_384  # bytes of a request's body
Account = Annotated[str, Header(alias="X-Account", pattern=r"^[\w.-]{1,64}$")]


class Order(BaseModel):
    """An order, as a customer sends it."""

    sku: str = Field(examples=["mug"])
    quantity: int = Field(gt=0, examples=[2])
    cents: int = Field(gt=0, examples=[2400])
    card: str = Field(examples=["tok_visa"])
    address: str = Field(examples=["home"])


class Approval(BaseModel):
    """A person's decision on an order."""

    by: str = Field(min_length=1, max_length=64, examples=["Ann"])
    approved: bool = True


class PaymentEvent(BaseModel):
    """The body of the payment provider's webhook. A real one is signed: see your provider's documentation."""

    id: str = Field(min_length=1, max_length=64, examples=["evt_1"])
    ref: str = Field(examples=["guest/order-1"])
    cents: int = Field(gt=0)


def create_app(
    ledger_path: Path,
    provider: TracerProvider | None = None,
    *,
    store: str = "memory",
    lease: float = LEASE,
    hang: float = HANG,
    more_hooks: Sequence[Hook] = (),
) -> FastAPI:
    """Return the service, whose books are in `ledger_path`. Its spans go to `provider`, by default nowhere.

    `store`: where its runs are kept (see stores.py). `lease`: seconds after which another process may take over the
    runs of a dead one. `hang`: seconds for which a partner hangs, where the order makes it hang. `more_hooks`: hooks in
    addition to those for traces and metrics.
    """
    provider = provider or TracerProvider()
    registry = CollectorRegistry()
    ledger = Ledger(ledger_path)
    for sku, quantity in OPENING_STOCK.items():
        ledger.deliver(sku, quantity)
    gateway, carrier = Gateway(ledger, hang), Carrier(ledger, hang)
    workflow, purchase = checkout(ledger, gateway, carrier), checkout(ledger, gateway, carrier, approval=True)
    hooks: list[Hook] = [TracingHook(provider), PrometheusHook(registry), *more_hooks]
    tracer = provider.get_tracer("checkout-service")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with started(store, [workflow, purchase], hooks, lease) as engine:
            app.state.engine = engine
            yield
        ledger.close()
        provider.shutdown()  # writes the last spans

    def server_span(request: Request, name: str) -> AbstractContextManager[Span]:
        """Return the span of a request, which continues the trace of its caller if that sent a `traceparent`."""
        return tracer.start_as_current_span(name, context=propagate.extract(request.headers), kind=SpanKind.SERVER)

    app = FastAPI(title="Checkout", lifespan=lifespan)
    app.add_middleware(SmallBodies)
    app.router.routes.append(Route("/metrics", ExactPath(make_asgi_app(registry))))

    @app.post("/orders", status_code=201)
    async def place_order(
        order: Order,
        request: Request,
        account: Account = "guest",
        idempotency_key: Annotated[str | None, Header()] = None,
        prefer: Annotated[str, Header()] = "",
    ) -> JSONResponse:
        if idempotency_key is None or not is_a_key(idempotency_key):
            return problem(400, "no-key", "Send an Idempotency-Key header of 1 to 255 printable ASCII characters.")
        engine: AsyncEngine = request.app.state.engine
        with server_span(request, "POST /orders"):
            key = f"{account}/{idempotency_key}"  # it is also a value, and so part of the fingerprint
            values = {"ref": key, **order.model_dump()}
            if "respond-async" not in prefer:
                run = await engine.run(workflow, values, idempotency_key=key, check=False)
            else:
                future = engine.submit(workflow, values, idempotency_key=key, check=False)
                await future.recorded()
                if not future.done():
                    return accepted(f"/orders/{quote(idempotency_key)}")
                run = future.result()
            answered = answer(run)
            answered.headers.update(traced(run))
            return answered

    @app.post("/purchases", status_code=202)
    async def place_purchase(
        order: Order,
        request: Request,
        account: Account = "guest",
        idempotency_key: Annotated[str | None, Header()] = None,
    ) -> JSONResponse:
        """Place an order that a person has to approve. It is accepted once it waits for the approval."""
        if idempotency_key is None or not is_a_key(idempotency_key):
            return problem(400, "no-key", "Send an Idempotency-Key header of 1 to 255 printable ASCII characters.")
        engine: AsyncEngine = request.app.state.engine
        with server_span(request, "POST /purchases"):
            key = f"{account}/{idempotency_key}"
            values = {"ref": key, **order.model_dump()}
            try:
                run = await engine.run(purchase, values, idempotency_key=key, check=False, until="waiting")
            except IdempotencyInProgress as error:
                if not error.waiting_for:
                    raise
                return accepted(f"/orders/{quote(idempotency_key)}")
        return accepted(f"/orders/{quote(idempotency_key)}") if run.status is Status.WAITING else answer(run)

    @app.post("/approvals/{key:path}", status_code=202)
    async def approve(key: str, approval: Approval, request: Request) -> JSONResponse:
        """Record a person's decision on an order. `key`: ACCOUNT/IDEMPOTENCY-KEY. Only the first decision counts."""
        engine: AsyncEngine = request.app.state.engine
        with server_span(request, "POST /approvals"):
            return received(await engine.send(key, "approved", approval.model_dump(), id=approval.by))

    @app.post("/webhooks/payments", status_code=202)
    async def payment_confirmed(event: PaymentEvent, request: Request) -> JSONResponse:
        """Record that the provider has the money. This may come repeatedly, and before the charge call returns."""
        engine: AsyncEngine = request.app.state.engine
        with server_span(request, "POST /webhooks/payments"):
            return received(await engine.send(event.ref, "paid", event.cents, id=event.id))

    @app.get("/orders/{key:path}")
    async def show_order(key: str, request: Request, account: Account = "guest") -> JSONResponse:
        engine: AsyncEngine = request.app.state.engine
        record = await engine.find(f"{account}/{key}")
        if record is None:
            return problem(404, "no-order", "There is no such order.")
        if record.held or record.status not in {Status.SUCCESS, Status.FAILURE, Status.COMPENSATED}:
            return standing(record)
        values = {"ref": record.key, **Order.model_validate(record.values).model_dump()}
        placed = purchase if record.workflow == purchase.name else workflow
        return answer(await engine.run(placed, values, idempotency_key=record.key, once=True, check=False))

    @app.delete("/orders/{key:path}")
    async def cancel_order(key: str, request: Request, account: Account = "guest") -> JSONResponse:
        engine: AsyncEngine = request.app.state.engine
        if await engine.cancel(key=f"{account}/{key}"):
            return accepted(f"/orders/{quote(key)}")
        return problem(404, "no-order", "There is no such order that could still be cancelled.")

    @app.exception_handler(RunNotFound)
    async def unknown(_: Request, __: RunNotFound) -> JSONResponse:
        return problem(404, "no-order", "There is no such order.")

    @app.exception_handler(SendRefused)
    async def past(_: Request, __: SendRefused) -> JSONResponse:
        return problem(409, "past", "The order does not wait for that, or no longer waits for it.")

    @app.exception_handler(IdempotencyInProgress)
    async def overlap(_: Request, error: IdempotencyInProgress) -> JSONResponse:
        return in_progress(error.retry_after)

    @app.exception_handler(IdempotencyMismatch)
    async def mismatch(_: Request, __: IdempotencyMismatch) -> JSONResponse:
        return problem(422, "other-order", "This Idempotency-Key was used for another order.")

    @app.exception_handler(IdempotencyHeld)
    async def held(_: Request, __: IdempotencyHeld) -> JSONResponse:
        return problem(409, "held", "This order could not be undone; a person is looking into it.")

    @app.exception_handler(StoreUnavailable)
    async def unavailable(_: Request, __: StoreUnavailable) -> JSONResponse:
        return out_of_order()

    return app


def is_a_key(text: str) -> bool:
    """Whether a client may send this as its Idempotency-Key."""
    return 0 < len(text) <= 255 and text.isascii() and text.isprintable()


class SmallBodies:
    """Refuses a request whose body is larger than LARGEST, or of unknown size, before it is read into memory."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        chunked = b"transfer-encoding" in dict(scope["headers"])
        if chunked or (length and not (length.isdigit() and int(length) <= LARGEST)):
            refusal = problem(413, "too-large", f"The body of an order has at most {LARGEST} bytes, and says how many.")
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


class ExactPath:
    """An ASGI app on exactly one path (`app.mount` would redirect /metrics to /metrics/)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


# -- running it --------------------------------------------------------------------------------------------------------


class JsonLines(SpanExporter):
    """Appends each span to a file, as a line of JSON."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._file.writelines(f"{span.to_json(indent=None)}\n" for span in spans)
        self._file.flush()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._file.close()


def tracing(path: Path) -> TracerProvider:
    """Return a provider that writes spans to `path`. Its delay is short, because the demo waits for the spans."""
    provider = TracerProvider(resource=Resource.create({"service.name": "checkout"}))
    provider.add_span_processor(BatchSpanProcessor(JsonLines(path), max_queue_size=20_000, schedule_delay_millis=100))
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def main() -> None:
    parser = argparse.ArgumentParser(description="A checkout service.")
    parser.add_argument("--port", type=int, default=8000, help="0: a free one (default: 8000)")
    parser.add_argument("--ledger", type=Path, default=Path("ledger.db"), help="default: ledger.db")
    parser.add_argument("--spans", type=Path, default=Path("spans.jsonl"), help="default: spans.jsonl")
    parser.add_argument(
        "--store", type=known, default="memory", help="memory (default), sqlite:PATH, redis://..., temporal://..."
    )
    parser.add_argument("--lease", type=float, default=LEASE, help=f"seconds (default: {LEASE:g})")
    parser.add_argument("--hang", type=float, default=HANG, help=f"seconds that some partners hang (default: {HANG:g})")
    options = parser.parse_args()

    os.umask(0o077)  # only this user may read orders and spans
    # asyncio turns off Nagle's algorithm only if the socket names its protocol. With it, a response takes 40 ms more.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", options.port))
    except (OSError, OverflowError) as error:
        sys.exit(f"Port {options.port} cannot be used ({error}): choose another, or 0 for a free one.")
    provider = tracing(options.spans)
    hooks = [ProgressHook(file=sys.stdout, every=1)]  # a line a second in the log, while orders are in flight
    app = create_app(
        options.ledger, provider, store=options.store, lease=options.lease, hang=options.hang, more_hooks=hooks
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=75))
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    listener.listen(128)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
