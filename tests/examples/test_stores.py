"""The checkout service on durable stores: what it answers after it was started again, and when its store is gone."""

import asyncio
import time
from argparse import ArgumentTypeError
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

import make_orders
from answers import answer
from app import create_app
from audit import audit
from flowcore import Engine, LeaseLost, RunFailed, RunParked, Workflow
from flowcore.stores import RedisStore, SQLiteStore
from running import serving
from stores import known, looked_into, spoken
from tests.stores.redis_servers import StartRedis, start_redis

__all__ = ["start_redis"]

MUG = {"sku": "mug", "quantity": 1, "cents": 1200, "card": "tok_visa", "address": "home"}

Post = Callable[[str], Coroutine[Any, Any, httpx.Response]]


def with_service(folder: Path, talk: Callable[[Post], Awaitable[None]], **settings: Any) -> None:
    """Run `talk(post)` against a service in this process, which is there for no longer than that."""

    async def main() -> None:
        app = create_app(folder / "ledger.db", **settings)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            await talk(lambda key: client.post("/orders", json=MUG, headers={"Idempotency-Key": key}))

    asyncio.run(main())


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'runs.db'}"
    start: StartRedis = request.getfixturevalue("start_redis")
    return start().url


def test_answer_outlives_the_service_that_gave_it(tmp_path: Path, store: str) -> None:
    answers: list[httpx.Response] = []

    async def talk(post: Post) -> None:
        answers.append(await post("k"))

    with_service(tmp_path, talk, store=store)
    with_service(tmp_path, talk, store=store)

    assert [response.status_code for response in answers] == [201, 201]
    assert answers[1].headers["Idempotent-Replayed"] == "true"
    assert answers[1].json() == answers[0].json()
    assert audit(tmp_path / "ledger.db").charged == 1200


def test_operator_can_look_into_the_store_of_the_service(tmp_path: Path, store: str) -> None:
    async def talk(post: Post) -> None:
        await post("k")

    with_service(tmp_path, talk, store=store)

    with looked_into(store) as runs:
        (record,) = runs.list_runs(workflow="checkout")
    assert isinstance(runs, SQLiteStore | RedisStore)
    assert (record.key, record.status) == ("guest/k", "success")


def test_order_is_refused_while_the_store_is_gone_and_taken_once_it_is_back(
    tmp_path: Path, start_redis: StartRedis
) -> None:
    server = start_redis(appendonly="always")

    async def talk(post: Post) -> None:
        await asyncio.to_thread(server.kill)
        refused = await post("k")
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/out-of-order")
        assert int(refused.headers["Retry-After"]) >= 1

        await asyncio.to_thread(server.start)
        assert (await post("k")).status_code == 201

    with_service(tmp_path, talk, store=server.url, lease=0.5)

    books = audit(tmp_path / "ledger.db")
    assert (books.faults, books.charged) == ([], 1200)


@pytest.mark.parametrize(
    ("error", "status", "kind", "detail"),
    [
        (RunFailed(error_type="cancelled"), 409, "cancelled", "The order was cancelled"),
        (LeaseLost(), 409, "in-progress", "This order is being worked on."),
        (RunParked(), 503, "out-of-order", "Our own books are unreachable"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_run_that_ended_elsewhere_is_answered_like_one_of_our_own(
    error: Exception, status: int, kind: str, detail: str
) -> None:
    wf = Workflow("checkout")

    @wf.step
    def fail(ctx: object) -> None:
        raise error

    response = answer(Engine().run(wf, check=False))

    body = bytes(response.body).decode()
    assert response.status_code == status
    assert f'"/problems/{kind}"' in body
    assert detail in body


def test_failure_without_an_answer_is_raised() -> None:
    wf = Workflow("checkout")

    @wf.step
    def fail(ctx: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        answer(Engine().run(wf, check=False))


@pytest.mark.parametrize("word", ["", "disk", "sqlite", "sqlite:", "http://localhost"])
def test_word_that_names_no_store_is_refused_with_those_that_do(word: str) -> None:
    with pytest.raises(
        ArgumentTypeError, match="names no store: memory, sqlite:PATH, redis://HOST:PORT/NUMBER and temporal:"
    ):
        known(word)


@pytest.mark.parametrize(
    ("where", "printed"),
    [
        ("sqlite:/var/lib/a@b.db", "sqlite:/var/lib/a@b.db"),
        ("redis://shop:s3cret@cache:6379/0", "redis://cache:6379/0"),
        ("rediss://cache/0?password=s3cret", "rediss://cache/0"),
    ],
)
def test_password_of_a_store_is_not_printed(where: str, printed: str) -> None:
    assert spoken(where) == printed


def test_accepted_order_survives_a_service_that_is_killed(tmp_path: Path, store: str) -> None:
    """202, then kill -9: the next process of the service does the order."""
    script = Path(make_orders.__file__).parent / "app.py"
    options = (f"--store={store}", "--lease=0.5")
    slow = {"sku": "mug", "quantity": 1, "cents": 1200, "card": "tok_slow", "address": "home"}
    with serving(script, 0, tmp_path, *options) as service:
        headers = {"Idempotency-Key": "k", "Prefer": "respond-async"}
        response = httpx.post(f"{service.url}/orders", json=slow, headers=headers)
        assert (response.status_code, response.headers["Location"]) == (202, "/orders/k")
        service.kill()
        service.start(*options)
        give_up = time.monotonic() + 60
        while (order := httpx.get(f"{service.url}/orders/k")).status_code == 200 and time.monotonic() < give_up:
            time.sleep(0.05)
        assert order.status_code == 201, order.text
    assert audit(tmp_path / "ledger.db").charged == 1200
