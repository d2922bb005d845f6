"""`flowcore top`: what it shows, and what its keys do, in a terminal of its own too."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from flowcore import Engine, StoreUnavailable
from flowcore.cli.app import Operator
from flowcore.cli.top import Screen
from flowcore.stores import SQLiteStore
from tests.stores.redis_servers import until

from .test_cli import order


@pytest.fixture
def store(tmp_path: Path) -> SQLiteStore:
    store = SQLiteStore(tmp_path / "runs.db", durability="normal")
    with Engine(store=store) as engine:
        for number in (0, 2, 1, 2):
            engine.run(order(), {"n": number}, idempotency_key=f"order-{number}-{time.time_ns()}", check=False)
    return store


@pytest.fixture
def screen(store: SQLiteStore, tmp_path: Path) -> Screen:
    screen = Screen(Operator(f"sqlite:{tmp_path / 'runs.db'}", None, None, False))
    screen.look()
    return screen


def text(screen: Screen) -> str:
    file = io.StringIO()
    Console(file=file, width=200).print(screen.drawn())
    return file.getvalue()


def held(store: SQLiteStore) -> list[str]:
    return [record.key for record in store.list_runs(status="held")]


def test_it_shows_counts_rates_and_what_needs_a_person(screen: Screen, store: SQLiteStore) -> None:
    shown = text(screen)
    assert shown.splitlines()[0].split() == [
        *(
            "WORKFLOW",
            "RUNNING",
            "QUEUED",
            "WAITING",
            "PARKED",
            "INCOMPLETE",
            "EXPIRED",
            "HELD",
            "OLDEST",
            "STARTED/MIN",
        )
    ]
    assert shown.splitlines()[1].split() == ["order", "-", "-", "-", "-", "-", "-", "2", "-", "4"]
    assert all(key in shown for key in held(store))
    assert "the bank is closed" in shown


def test_a_decision_is_asked_for_and_carried_out_by_y_alone(screen: Screen, store: SQLiteStore) -> None:
    first, second = held(store)
    screen.press("u")
    assert f"undo {first}" in text(screen)
    screen.press("n")
    assert "Nothing was done." in text(screen)
    assert store.find(first).decision is None
    screen.press("down")
    screen.press("u")
    screen.press("y")
    assert f"undo {second}: recorded" in text(screen)
    assert (store.find(first).decision, store.find(second).decision) == (None, "undo")
    assert "undo by " in (store.find(second).reason or "")


def test_keys_choose_show_and_quit(screen: Screen, store: SQLiteStore) -> None:
    screen.press("s")
    assert "secret-card" not in text(screen)
    assert "pay: success" in text(screen)
    for _ in range(5):
        screen.press("j")
    screen.press("k")
    screen.press("r")
    assert f"release {held(store)[0]}" in text(screen)
    screen.press("y")
    assert len(held(store)) == 1
    screen.press("x")  # no key of it
    screen.press("q")
    assert screen.over


def test_a_store_that_is_away_is_said_and_what_was_seen_stays(
    screen: Screen, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise StoreUnavailable("the store is\naway")

    monkeypatch.setattr(screen._operator.store, "counts", away)
    screen.look()
    assert r"the store is\naway" in text(screen)
    assert held(store)[0] in text(screen)


@pytest.fixture
def watched(store: SQLiteStore, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`flowcore top` in a terminal of its own, and the other end of that."""
    mine, theirs = pty.openpty()
    command = [sys.executable, "-m", "flowcore", "--store", f"sqlite:{tmp_path / 'runs.db'}", "top", "--every", "0.2"]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    )
    os.close(theirs)
    yield process, mine
    process.kill()
    process.wait(60)


def test_it_is_worked_by_keys_in_a_terminal(store: SQLiteStore, watched: tuple[subprocess.Popen[bytes], int]) -> None:
    (first, second), (process, mine) = held(store), watched
    seen = bytearray()

    def shows(wanted: str) -> bool:
        seen.extend(os.read(mine, 65536))
        return wanted.encode() in seen

    until(lambda: shows(first), "the list")
    os.write(mine, b"\x1b[B")
    os.write(mine, b"u")
    until(lambda: shows(f"undo {second}"), "the question")
    os.write(mine, b"y")
    until(lambda: shows("recorded"), "the answer")
    os.write(mine, b"q")
    assert process.wait(60) == 0
    os.close(mine)
    assert [store.find(key).decision for key in (first, second)] == [None, "undo"]


def test_it_ends_with_its_terminal(store: SQLiteStore, watched: tuple[subprocess.Popen[bytes], int]) -> None:
    held(store)
    process, mine = watched
    os.read(mine, 1)
    os.close(mine)
    assert process.wait(60) != 0
