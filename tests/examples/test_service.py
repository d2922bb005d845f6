"""The checkout service over HTTP: its answers, its books under eight clients, and that planted faults show."""

import asyncio
import dataclasses
import json
import socket
import sqlite3
import threading
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings

import make_orders
from app import create_app
from audit import audit
from ledger import Ledger
from partners import Gateway, NoAnswer
from replay import Line, read_orders, replay
from running import DemoError, serving
from timeline import read_spans

SERVICE = Path(make_orders.__file__).parent
TAKEN_BACK = "A partner of ours did not respond; the order was taken back."
MUG = {"sku": "mug", "quantity": 1, "cents": 1200, "card": "tok_visa", "address": "home"}

Post = Callable[..., Coroutine[Any, Any, httpx.Response]]


def with_service(
    ledger: Path, talk: Callable[[Post, httpx.AsyncClient], Awaitable[None]], provider: TracerProvider | None = None
) -> None:
    """Run `talk(post, client)` against a service in this process."""

    async def main() -> None:
        app = create_app(ledger, provider)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):

            async def post(
                key: str | None = None, headers: dict[str, str] | None = None, **changes: Any
            ) -> httpx.Response:
                key_header = {} if key is None else {"Idempotency-Key": key}
                return await client.post("/orders", json={**MUG, **changes}, headers={**key_header, **(headers or {})})

            await talk(post, client)

    asyncio.run(main())


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


# -- keys and bodies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\u00e9".encode().decode("latin-1"), "a\tb"])
def test_a_key_that_is_none_is_refused(ledger: Path, key: str) -> None:
    async def talk(post: Post, client: httpx.AsyncClient) -> None:
        headers = {b"Idempotency-Key": key.encode("latin-1")}
        assert (await client.post("/orders", json=MUG, headers=headers)).status_code == 400

    with_service(ledger, talk)


def test_a_key_belongs_to_the_account_that_sent_it(ledger: Path) -> None:
    async def talk(post: Post, _: httpx.AsyncClient) -> None:
        mine = await post("k", {"X-Account": "ann"})
        theirs = await post("k", {"X-Account": "bob"}, quantity=3)
        assert (mine.status_code, theirs.status_code) == (201, 201), (
            "one may neither block nor find out about the other"
        )
        assert "Idempotent-Replayed" not in theirs.headers
        assert mine.json()["run"] != theirs.json()["run"]

    with_service(ledger, talk)


def test_an_account_cannot_name_a_key_of_another(ledger: Path) -> None:
    async def talk(post: Post, _: httpx.AsyncClient) -> None:
        assert (await post("k", {"X-Account": "ann/x"})).status_code == 422

    with_service(ledger, talk)


def test_a_body_larger_than_any_order_is_refused(ledger: Path) -> None:
    async def talk(post: Post, client: httpx.AsyncClient) -> None:
        assert (await post("k", address="x" * 20_000)).status_code == 413

        async def endless() -> AsyncIterator[bytes]:
            yield b"{"

        refused = await client.post("/orders", content=endless(), headers={"Idempotency-Key": "k"})
        assert refused.status_code == 413

    with_service(ledger, talk)


# -- answers -----------------------------------------------------------------------------------------------------------


def test_replay_is_the_stored_answer_and_says_so(ledger: Path) -> None:
    async def talk(post: Post, _: httpx.AsyncClient) -> None:
        first, second = await post("k"), await post("k")

        assert (first.status_code, second.status_code) == (201, 201)
        assert "Idempotent-Replayed" not in first.headers
        assert second.headers["Idempotent-Replayed"] == "true"
        assert second.content == first.content

    with_service(ledger, talk)

    assert audit(ledger).charged == 1200


@pytest.mark.parametrize(
    ("changes", "status", "kind", "detail"),
    [
        ({"card": "tok_declined"}, 402, "declined", "The card was declined."),
        ({"sku": "unicorn"}, 410, "sold-out", "There is not enough left of it."),
        ({"card": "tok_black_hole"}, 502, "no-answer", TAKEN_BACK),
        ({"address": "island"}, 502, "no-answer", TAKEN_BACK),
        ({"address": "island, refund flaky"}, 502, "no-answer", TAKEN_BACK),
    ],
)
def test_failed_order_is_explained_and_has_cost_nothing(
    ledger: Path, changes: dict[str, Any], status: int, kind: str, detail: str
) -> None:
    async def talk(post: Post, _: httpx.AsyncClient) -> None:
        response = await post("k", **changes)

        problem = response.json()
        assert response.status_code == problem["status"] == status
        assert response.headers["Content-Type"] == "application/problem+json"
        assert (problem["type"], problem["detail"]) == (f"/problems/{kind}", detail)

    with_service(ledger, talk)

    books = audit(ledger)
    assert books.faults == []
    assert books.charged == books.refunded
    assert not books.shipped


@pytest.mark.parametrize("changes", [{"card": "tok_flaky"}, {"card": "tok_lost_reply"}, {"address": "hills"}])
def test_trouble_that_passes_is_not_noticed(ledger: Path, changes: dict[str, Any]) -> None:
    async def talk(post: Post, _: httpx.AsyncClient) -> None:
        assert (await post("k", **changes)).status_code == 201

    with_service(ledger, talk)

    books = audit(ledger)
    assert (books.faults, books.charged, books.shipped) == ([], 1200, {"guest/k"})


def test_key_of_another_order_is_refused(ledger: Path) -> None:
    async def talk(post: Post, _: httpx.AsyncClient) -> None:
        await post("k")
        other = await post("k", quantity=2)

        assert (other.status_code, other.json()["type"]) == (422, "/problems/other-order")

    with_service(ledger, talk)


def test_second_request_at_once_learns_when_to_retry(ledger: Path) -> None:
    async def talk(post: Post, _: httpx.AsyncClient) -> None:
        first = asyncio.create_task(post("k", card="tok_slow"))
        await asyncio.sleep(0.05)
        second = await post("k", card="tok_slow")

        assert (second.status_code, second.json()["type"]) == (409, "/problems/in-progress")
        assert int(second.headers["Retry-After"]) >= 1
        assert (await first).status_code == 201
        third = await post("k", card="tok_slow")
        assert (third.status_code, third.headers["Idempotent-Replayed"]) == (201, "true")

    with_service(ledger, talk)


def test_declined_customer_may_try_another_card_under_the_same_key(ledger: Path) -> None:
    async def talk(post: Post, _: httpx.AsyncClient) -> None:
        declined, paid = await post("k", card="tok_declined"), await post("k")

        assert (declined.status_code, paid.status_code) == (402, 201)
        assert "Idempotent-Replayed" not in paid.headers

    with_service(ledger, talk)


def test_order_is_accepted_polled_and_answered(ledger: Path) -> None:
    async def talk(post: Post, client: httpx.AsyncClient) -> None:
        wants = {"Prefer": "respond-async"}
        accepted = await post("k/7", wants, card="tok_slow")
        assert (accepted.status_code, accepted.headers["Location"]) == (202, "/orders/k/7")
        assert int(accepted.headers["Retry-After"]) >= 1

        stands = await client.get(accepted.headers["Location"])
        assert (stands.status_code, stands.json()["status"]) == (200, "running")
        again = await post("k/7", wants, card="tok_slow")
        assert (again.status_code, again.json()["type"]) == (409, "/problems/in-progress")
        other = await post("k/7", wants, card="tok_visa")
        assert (other.status_code, other.json()["type"]) == (422, "/problems/other-order")

        first = await over(client, "k/7")
        assert first.status_code == 201
        replayed = await post("k/7", wants, card="tok_slow")
        assert (replayed.status_code, replayed.content) == (201, first.content)
        assert (await client.get("/orders/k/7", headers={"X-Account": "bob"})).status_code == 404

    with_service(ledger, talk)

    assert audit(ledger).charged == 1200


@pytest.mark.parametrize(
    ("changes", "status"), [({"card": "tok_declined"}, 402), ({"sku": "unicorn"}, 410), ({"address": "island"}, 502)]
)
def test_accepted_order_that_failed_says_why(ledger: Path, changes: dict[str, Any], status: int) -> None:
    async def talk(post: Post, client: httpx.AsyncClient) -> None:
        await post("k", {"Prefer": "respond-async"}, **changes)
        assert (await over(client, "k")).status_code == status

    with_service(ledger, talk)


def test_order_is_cancelled_and_taken_back(ledger: Path) -> None:
    async def talk(post: Post, client: httpx.AsyncClient) -> None:
        await post("k", {"Prefer": "respond-async"}, card="tok_slow")
        assert (await client.delete("/orders/k")).status_code == 202
        cancelled = await over(client, "k")
        assert (cancelled.status_code, cancelled.json()["type"]) == (409, "/problems/cancelled")
        assert (await client.delete("/orders/k")).status_code == 404
        assert (await client.delete("/orders/another")).status_code == 404

    with_service(ledger, talk)

    books = audit(ledger)
    assert books.faults == []
    assert books.charged == books.refunded
    assert not books.shipped


async def over(client: httpx.AsyncClient, key: str) -> httpx.Response:
    """What the status page says of an order once it is over."""
    for _ in range(3000):
        response = await client.get(f"/orders/{key}")
        if response.status_code != 200:
            return response
        await asyncio.sleep(0.02)
    raise AssertionError(f"order {key!r} is not over after a minute")


def test_order_that_cannot_be_undone_is_held(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: object, **__: object) -> int:
        raise NoAnswer("the gateway is down")

    monkeypatch.setattr(Gateway, "refund", down)

    async def talk(post: Post, _: httpx.AsyncClient) -> None:
        assert (await post("k", address="island")).status_code == 500
        again = await post("k", address="island")
        assert (again.status_code, again.json()["type"]) == (409, "/problems/held")
        assert "Retry-After" not in again.headers

    with_service(ledger, talk)


def test_order_needs_a_key_and_sense(ledger: Path) -> None:
    async def talk(post: Post, _: httpx.AsyncClient) -> None:
        assert (await post()).status_code == 400
        assert (await post("")).status_code == 400
        assert (await post("k", quantity=0)).status_code == 422

    with_service(ledger, talk)


@pytest.mark.parametrize(
    ("accept", "kind", "exemplar"),
    [
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text", True),
        ("*/*", "text/plain", False),
    ],
)
def test_metrics_are_negotiated(ledger: Path, accept: str, kind: str, exemplar: bool) -> None:
    async def talk(post: Post, client: httpx.AsyncClient) -> None:
        await post("k")
        scraped = await client.get("/metrics", headers={"Accept": accept})

        assert scraped.status_code == 200
        assert scraped.headers["Content-Type"].startswith(kind)
        assert 'flowcore_run_duration_seconds_count{outcome="success",workflow="checkout"} 1.0' in scraped.text
        assert ("# {" in scraped.text.replace("# {}", "") and "trace_id=" in scraped.text) is exemplar

    with_service(ledger, talk)


def test_order_joins_its_callers_trace(ledger: Path) -> None:
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    trace = uuid.uuid4().hex

    async def talk(post: Post, _: httpx.AsyncClient) -> None:
        await post("k", headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})

    with_service(ledger, talk, provider)

    spans = {span.name: span for span in memory.get_finished_spans()}
    assert {"POST /orders", "run checkout", "step charge", "step notify"} <= set(spans)
    assert {f"{span.context.trace_id:032x}" for span in spans.values() if span.context} == {trace}


def test_answers_lead_to_their_traces_and_replays_to_the_one_in_which_the_work_was_done(ledger: Path) -> None:
    answers: list[httpx.Response] = []
    traces = [uuid.uuid4().hex, uuid.uuid4().hex]

    async def talk(post: Post, _: httpx.AsyncClient) -> None:
        first, second = ({"traceparent": f"00-{trace}-00f067aa0ba902b7-01"} for trace in traces)
        answers.extend([await post("k", headers=first), await post("k", headers=second)])

    with_service(ledger, talk)

    assert [answer.headers["traceresponse"].split("-")[1] for answer in answers] == traces
    assert [answer.headers.get("Idempotent-Replayed") for answer in answers] == [None, "true"]
    assert [answer.headers.get("Original-Trace-Id") for answer in answers] == [None, traces[0]]


# -- many clients ------------------------------------------------------------------------------------------------------


def test_orders_file_is_what_its_script_writes(capsys: pytest.CaptureFixture[str]) -> None:
    make_orders.main()

    assert capsys.readouterr().out == (SERVICE / "orders.jsonl").read_text("utf-8")


def test_books_add_up_after_eight_clients_at_once(tmp_path: Path) -> None:
    """The whole file, then everything once more: what was done is replayed, and nothing is charged again."""
    lines = read_orders(SERVICE / "orders.jsonl")
    with serving(SERVICE / "app.py", 0, tmp_path) as service:
        answers = replay(service.port, lines, clients=8)
        first = audit(service.ledger)
        done = [dataclasses.replace(answer.line, when=None) for answer in answers if answer.status == 201]
        again = replay(service.port, done, clients=8)
        second = audit(service.ledger)

    assert [answer.line for answer in answers if not answer.expected] == []
    assert first.faults == []
    assert first.shipped == {answer.line.ref for answer in answers if answer.status == 201}
    assert Counter((answer.status, answer.replayed) for answer in again) == {(201, True): len(again)}
    assert (second.faults, second.charged, second.refunded) == ([], first.charged, first.refunded)


def test_one_key_from_eight_clients_is_one_order(tmp_path: Path) -> None:
    order = {**MUG, "card": "tok_lost_reply"}
    lines = [Line(number, "same", f"key-{number // 8}", order, (201,)) for number in range(64)]
    with serving(SERVICE / "app.py", 0, tmp_path) as service:
        answers = replay(service.port, lines, clients=8)
        with closing(sqlite3.connect(service.ledger)) as db:
            (charges,) = db.execute("SELECT count(*) FROM payments").fetchone()

    assert charges == 8
    assert Counter(answer.replayed for answer in answers) == {False: 8, True: 56}
    assert len({json.dumps(answer.body) for answer in answers}) == 8


def test_service_that_must_stop_finishes_what_it_has_begun(tmp_path: Path) -> None:
    lines = read_orders(SERVICE / "orders.jsonl")

    def cut_short() -> None:
        with serving(SERVICE / "app.py", 0, tmp_path) as service:
            threading.Timer(0.5, service.process.terminate).start()
            replay(service.port, lines, clients=8)

    with pytest.raises(DemoError, match="The service died"):
        cut_short()

    books = audit(tmp_path / "ledger.db")
    assert books.faults == []
    assert len(books.orders) < len({line.key for line in lines})


# -- planted faults ----------------------------------------------------------------------------------------------------


def test_charge_that_ignores_its_key_is_found(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    charge = Ledger.charge
    monkeypatch.setattr(Ledger, "charge", lambda self, _, ref, cents: charge(self, uuid.uuid4().hex, ref, cents))

    async def talk(post: Post, _: httpx.AsyncClient) -> None:
        assert (await post("k", card="tok_lost_reply")).status_code == 201

    with_service(ledger, talk)

    assert "order guest/k was charged again while its first charge stood" in audit(ledger).faults


def test_refund_that_does_nothing_is_found(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "refund", lambda *_: 0)

    async def talk(post: Post, _: httpx.AsyncClient) -> None:
        assert (await post("k", address="island")).status_code == 502

    with_service(ledger, talk)

    assert audit(ledger).faults == ["order guest/k was charged 1200 cents, but neither shipped nor refunded"]


# -- OTLP --------------------------------------------------------------------------------------------------------------


def test_spans_go_to_a_collector_where_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")

    def order() -> set[str]:
        """Place one; the names of the spans in the file."""
        with serving(SERVICE / "app.py", 0, tmp_path) as service:
            replay(service.port, [Line(1, "normal", "k", MUG, (201,))])
        return {span.name for span in read_spans(service.spans)}

    async def collect() -> tuple[set[str], set[str]]:
        async with OtelTapHttpProtobufReceiver(OtelTapHttpProtobufReceiverSettings(port)) as collector:
            stream = collector.stream_traces()
            ordering = asyncio.create_task(asyncio.to_thread(order))
            names: set[str] = set()
            async with asyncio.timeout(30):
                while "POST /orders" not in names:  # the root ends last
                    names.add((await anext(stream)).name)
            return names, await ordering

    collected, written = asyncio.run(collect())

    assert {"POST /orders", "run checkout", "step charge"} <= collected == written
