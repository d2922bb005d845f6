"""Orders that wait: the service's approvals and its payment provider's webhook over HTTP, and `make demo WAIT=1`."""

from __future__ import annotations

import asyncio
import re
import threading
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

import checkout
import demo
from app import create_app
from audit import history
from partners import Gateway
from tests.examples.test_killing import Demo, start
from tests.stores.redis_servers import redis_binary, until

LAMP = {"sku": "lamp", "quantity": 2, "cents": 9800, "card": "tok_visa", "address": "home"}
PAID = {"id": "evt_1", "ref": "guest/lamp-1", "cents": 9800}
KEY = {"Idempotency-Key": "lamp-1"}


def with_service(
    folder: Path,
    store: str,
    talk: Callable[[httpx.AsyncClient], Awaitable[None]],
    provider: TracerProvider | None = None,
) -> None:
    """Run `talk(client)` against a service in this process."""

    async def main() -> None:
        where = f"sqlite:{folder / 'runs.db'}" if store == "sqlite" else store
        app = create_app(folder / "ledger.db", provider, store=where)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            await talk(client)

    asyncio.run(main())


async def stands(client: httpx.AsyncClient, condition: Callable[[httpx.Response], bool]) -> httpx.Response:
    """What `GET` of the order answers once that is so."""
    answer = await client.get("/orders/lamp-1")
    for _ in range(3000):
        if condition(answer):
            return answer
        await asyncio.sleep(0.01)
        answer = await client.get("/orders/lamp-1")
    raise AssertionError(answer.text)


def test_each_request_joins_its_callers_trace(tmp_path: Path) -> None:
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    requests = {"/purchases": LAMP, "/approvals/guest/lamp-1": {"by": "Ann"}, "/webhooks/payments": PAID}
    traces = {path: uuid.uuid4().hex for path in requests}

    async def talk(client: httpx.AsyncClient) -> None:
        for path, body in requests.items():
            caller = {"traceparent": f"00-{traces[path]}-00f067aa0ba902b7-01"}
            assert (await client.post(path, json=body, headers=KEY | caller)).status_code == 202

    with_service(tmp_path, "memory", talk, provider)
    spans = {span.name: span for span in memory.get_finished_spans() if span.kind is SpanKind.SERVER}
    joined = {name: f"{span.context.trace_id:032x}" for name, span in spans.items() if span.context}
    assert joined == {
        "POST /purchases": traces["/purchases"],
        "POST /approvals": traces["/approvals/guest/lamp-1"],
        "POST /webhooks/payments": traces["/webhooks/payments"],
    }


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_an_order_waits_for_its_approval_and_continues_with_it(tmp_path: Path, store: str) -> None:
    async def talk(client: httpx.AsyncClient) -> None:
        placed = await client.post("/purchases", json=LAMP, headers=KEY)
        assert (placed.status_code, placed.headers["Location"]) == (202, "/orders/lamp-1")
        assert (await client.post("/purchases", json=LAMP, headers=KEY)).status_code == 202
        assert (await client.get("/orders/lamp-1")).status_code == 200
        assert history(tmp_path / "ledger.db", "guest/lamp-1") == ("reserved",)
        decided = await client.post("/approvals/guest/lamp-1", json={"by": "Ann"})
        assert decided.status_code == 202
        assert (await client.post("/approvals/guest/lamp-1", json={"by": "Ann"})).status_code == 202  # the same again
        late = await client.post("/approvals/guest/lamp-1", json={"by": "Bob", "approved": False})
        assert (late.status_code, late.json()["type"]) == (409, "/problems/decided")
        assert (await client.post("/webhooks/payments", json=PAID)).status_code == 202
        done = await stands(client, lambda answer: answer.status_code == 201)
        assert done.json()["parcel"]
        assert (await client.post("/webhooks/payments", json=PAID)).status_code == 202  # providers repeat themselves
        assert (await client.post("/webhooks/payments", json={**PAID, "id": "evt_2"})).status_code == 409

    with_service(tmp_path, store, talk)
    assert history(tmp_path / "ledger.db", "guest/lamp-1") == ("reserved", "charged", "shipped", "notified")


def test_an_order_that_waits_says_for_what(tmp_path: Path) -> None:
    async def talk(client: httpx.AsyncClient) -> None:
        await client.post("/purchases", json=LAMP, headers=KEY)
        answer = await client.get("/orders/lamp-1")
        assert (answer.json()["status"], answer.json()["waiting_for"]) == ("waiting", ["approved"])

    with_service(tmp_path, "sqlite", talk)


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_an_order_that_is_refused_is_taken_back(tmp_path: Path, store: str) -> None:
    async def talk(client: httpx.AsyncClient) -> None:
        await client.post("/purchases", json=LAMP, headers=KEY)
        refusal = {"by": "Bob", "approved": False}
        assert (await client.post("/approvals/guest/lamp-1", json=refusal)).status_code == 202
        await stands(client, lambda answer: answer.status_code == 403)
        assert (await client.post("/webhooks/payments", json=PAID)).status_code == 409

    with_service(tmp_path, store, talk)
    assert history(tmp_path / "ledger.db", "guest/lamp-1") == ("reserved", "released")


def test_what_comes_for_an_unknown_order_is_refused(tmp_path: Path) -> None:
    async def talk(client: httpx.AsyncClient) -> None:
        assert (await client.post("/approvals/guest/nothing", json={"by": "Ann"})).status_code == 404
        assert (await client.post("/webhooks/payments", json=PAID)).status_code == 404
        assert (await client.post("/purchases", json=LAMP)).status_code == 400

    with_service(tmp_path, "sqlite", talk)


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_a_webhook_that_comes_before_the_charge_call_has_returned_is_kept(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    charged, may_return = threading.Event(), threading.Event()
    charge = Gateway.charge

    def slow(self: Gateway, *args: Any, **kwargs: Any) -> str:
        payment = charge(self, *args, **kwargs)
        charged.set()
        assert may_return.wait(30)
        return payment

    monkeypatch.setattr(Gateway, "charge", slow)

    async def talk(client: httpx.AsyncClient) -> None:
        await client.post("/purchases", json=LAMP, headers=KEY)
        await client.post("/approvals/guest/lamp-1", json={"by": "Ann"})
        await asyncio.to_thread(until, charged.is_set, "the charge")
        assert (await client.post("/webhooks/payments", json=PAID)).status_code == 202
        assert (await client.get("/orders/lamp-1")).status_code == 200  # the call is still under way
        assert "shipped" not in history(tmp_path / "ledger.db", "guest/lamp-1")
        may_return.set()
        await stands(client, lambda answer: answer.status_code == 201)

    with_service(tmp_path, store, talk)
    assert history(tmp_path / "ledger.db", "guest/lamp-1") == ("reserved", "charged", "shipped", "notified")


def test_an_order_that_is_not_decided_on_in_time_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "TO_APPROVE", 0.05)

    async def talk(client: httpx.AsyncClient) -> None:
        await client.post("/purchases", json=LAMP, headers=KEY)
        await stands(client, lambda answer: answer.status_code == 504)

    with_service(tmp_path, "memory", talk)
    assert history(tmp_path / "ledger.db", "guest/lamp-1") == ("reserved", "released")


# -- make demo WAIT=1 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_the_demos_order_waits_over_a_kill_a_deploy_and_a_restart(tmp_path: Path, kind: str) -> None:
    redis_binary()
    story: Demo = start(tmp_path / "demo", "--wait", f"--store={kind}")
    code, reported, errors = story.ended()
    assert (code, errors) == (0, ""), reported
    assert re.search(r"^  kill -9 \d+$", reported, re.MULTILINE)
    assert ("the Redis was killed" in reported) == (kind == "redis")
    assert "✗" not in reported
    assert reported.count("✓") == (12 if kind == "redis" else 11)
    assert "in the books: reserved, charged, shipped, notified; approved by Ann" in reported
    assert len(reported.splitlines()) <= 30
    assert max(map(len, reported.splitlines()[2:])) <= 120  # after where the runs are kept
    assert list(story.folder.glob("flowcore-demo-*")) == [], "nothing is left behind"


FAULT = """
def at_once(self, name, depends_on, timeout):
    return self.add_step(name, lambda _: {"approved": True, "by": "no one"}, depends_on=depends_on)
checkout.Workflow.wait = at_once
"""


def test_an_order_that_does_not_wait_makes_the_demo_fail(tmp_path: Path) -> None:
    story = start(tmp_path / "demo", "--wait", fault=FAULT)
    code, reported, _ = story.ended()
    assert code == 1
    assert "✗" in reported


def test_runs_in_memory_cannot_wait_in_the_demo(tmp_path: Path) -> None:
    for wrong in ("--store=memory", "--kill"):
        with pytest.raises(SystemExit):
            demo_main("--wait", wrong)


def demo_main(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["demo.py", *arguments])
        return demo.main()
