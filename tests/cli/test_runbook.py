"""A person with a shell and the runbook: what it types works, brings a held run back, and delays nothing."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from flowcore import Context, Engine, Workflow
from flowcore.cli import run
from flowcore.stores import RedisStore, SQLiteStore
from tests.stores.redis_servers import StartRedis, redis_url, start_redis, until

from .left_behind import PASSWORD, reader_of

__all__ = ["redis_url", "start_redis"]  # fixtures

RUNBOOK = (Path(__file__).parents[2] / "dashboards" / "RUNBOOK.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (Flowcore\w+)\n(.*?)(?=^<a id|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))
TYPED = re.compile(r"(?:^|`)(flowcore [^`\n]+?)(?:`|  +#.*|$)", re.MULTILINE)
READING = [
    ["ls"],
    ["ls", "--status", "held"],
    ["ls", "--workflow", "order", "--older-than", "0s"],
    ["show", "order-2"],
    ["show", "order-2", "--values"],
    ["timeline", "order-2"],
    ["html", "order-2", "-o", "run.html"],
    ["top", "--once"],
    ["doctor"],
]

Given = Callable[..., tuple[int, str, str]]


class Bank:
    """Refunds fail until it opens."""

    opens = False

    def refund(self, ctx: Context) -> None:
        if not self.opens:
            raise ConnectionError("the bank is closed")


def order(bank: Bank) -> Workflow:
    wf = Workflow("order")
    pay = wf.add_step("pay", lambda ctx: "secret-card")
    pay.compensate(retry=1)(bank.refund)

    def ship(ctx: Context) -> None:
        if ctx["n"]:
            raise ValueError("no such street")

    wf.add_step("ship", ship, depends_on="pay")
    return wf


def filled(store: Any) -> tuple[Bank, Workflow]:
    """One run that went well, and two that are held because the bank is closed."""
    bank = Bank()
    wf = order(bank)
    with Engine(store=store) as engine:
        for number in range(3):
            engine.run(wf, {"n": number}, idempotency_key=f"order-{number}", check=False)
    return bank, wf


@pytest.fixture(params=["sqlite", "redis"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, list[str]]]:
    """A store, and the options that name it."""
    if request.param == "sqlite":
        store = SQLiteStore(tmp_path / "runs.db", durability="normal")
        yield store, ["--store", f"sqlite:{tmp_path / 'runs.db'}"]
        store.close()
        return
    url, prefix = request.getfixturevalue("redis_url"), f"runbook-{uuid4().hex}"
    with redis.Redis.from_url(url) as client:
        yield RedisStore(client, prefix=prefix), ["--store", url, "--prefix", prefix]


@pytest.fixture
def give(capsys: pytest.CaptureFixture[str]) -> Given:
    def given(options: list[str], *arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            run([*options, *arguments])
        printed = capsys.readouterr()
        code = exit_.value.code
        return (code if isinstance(code, int) else 0), printed.out, printed.err

    return given


def typed_in(text: str) -> list[list[str]]:
    """The commands that a text says to type, without their first word."""
    return [shlex.split(command)[1:] for command in TYPED.findall(text)]


def test_every_command_of_the_runbook_can_be_typed(opened: tuple[Any, list[str]], give: Given) -> None:
    store, options = opened
    filled(store)
    commands = [command for command in typed_in(RUNBOOK) if command != ["show"]]  # which is spoken of, not typed
    assert len(commands) > 30
    for command in commands:
        real = [{"KEY": "order-2", "NAME": "order"}.get(word, word) for word in command]
        code, out, error = give(options, *real, *(["--yes"] if real[0] == "release" else []))
        assert code in {0, 1}, (command, out, error)  # 1: refused, or no run is found, now
        assert code == 0 or error.count("\n") == 1, (command, error)


def test_a_person_with_only_the_runbook_brings_held_runs_back(opened: tuple[Any, list[str]], give: Given) -> None:
    store, options = opened
    bank, wf = filled(store)
    section = typed_in(SECTIONS["FlowcoreRunsHeld"])
    with Engine(store=store, workflows=[wf], recover_every=0.05):
        assert section[0] == ["ls", "--status", "held"]
        code, listed, _ = give([*options, "--json"], *section[0])
        assert code == 0
        held = [one["key"] for one in json.loads(listed)["runs"]]
        assert sorted(held) == ["order-1", "order-2"]

        assert section[1] == ["show", "KEY"]
        _, shown, _ = give(options, "show", held[0])
        assert "the bank is closed" in shown
        bank.opens = True  # which a person has seen to
        (undo,) = [line.split("#")[0] for line in shown.splitlines() if line.strip().startswith("flowcore undo")]
        code, said, _ = give(options, *shlex.split(undo)[1:], "--reason", "the bank is open again")
        assert (code, said) == (0, f"undo {held[0]!r}: recorded\n")
        until(lambda: store.find(held[0]).status == "compensated", "the undo")

        # The other one is left to all that are held, which the command counts first.
        assert f"undo {held[1]!r}" in give(options, "undo", "--status", "held", "--dry-run")[2]
        assert give(options, "undo", "--status", "held", "--yes")[0] == 0
        until(lambda: store.find(held[1]).status == "compensated", "the other undo")
        code, out, _ = give(options, *section[0])
        assert (code, out) == (0, "No run matches.\n")  # over when


def test_ages_have_units(opened: tuple[Any, list[str]], give: Given) -> None:
    store, options = opened
    filled(store)
    for age, found in (("0", 3), ("0s", 3), ("10m", 0), ("1.5h", 0), ("2d", 0)):
        assert len(json.loads(give([*options, "--json"], "ls", "--older-than", age)[1])["runs"]) == found, age
    code, _, error = give(options, "ls", "--older-than", "soon")
    assert code == 2
    assert "Give seconds, or a unit as in 90s, 10m, 1h or 2d." in error


def test_reading_needs_no_more_than_a_read_only_user_has(
    start_redis: StartRedis, give: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = start_redis(port=0)
    with server.client() as owner:
        filled(RedisStore(owner))
        reader = ["--store", reader_of(f"redis://127.0.0.1:{server.port}/0")]
        before = {key: owner.dump(key) for key in owner.keys("*")}
        for command in READING:
            for form in ([], ["--json"]):
                code, out, error = give([*reader, *form], *command)
                assert (code, error) == (0, ""), (command, out, error)
        assert "order-2" in give(reader, "ls")[1]
        assert {key: owner.dump(key) for key in owner.keys("*")} == before
        for verb in ("cancel", "resume", "undo", "hold", "release"):
            code, _, error = give(reader, verb, "order-2", *(["--yes"] if verb == "release" else []))
            assert code == 3
            assert error.count("\n") == 1
            assert "does not let this user" in error
            assert PASSWORD not in error
