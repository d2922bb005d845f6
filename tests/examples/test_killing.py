"""`make demo` on durable stores, and with KILL=1: real processes, a real kill -9, and books that must add up."""

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

import demo
from audit import history
from killing import CASES
from ledger import Ledger
from running import DemoError, own_redis
from tests.stores.redis_servers import redis_binary

SERVICE = Path(demo.__file__).parent

# The gateway charges again although it is given the key of a charge that it has made, and goods stay off the shelf.
FAULTS = """
charge = ledger.Ledger.charge
ledger.Ledger.charge = lambda self, _, ref, cents: charge(self, uuid.uuid4().hex, ref, cents)
ledger.Ledger.release = lambda *_: None
"""


@dataclass
class Demo:
    """A run of the demo, under way."""

    process: subprocess.Popen[str]
    folder: Path

    def ended(self) -> tuple[int, str, str]:
        """Its exit code, and what it said on stdout and stderr."""
        out, err = self.process.communicate(timeout=100)
        return self.process.returncode, out, err


def start(folder: Path, *arguments: str, fault: str = "", each: int = 1) -> Demo:
    folder.mkdir()
    wanted = dict.fromkeys(("normal", "declined", "flaky card", "lost reply", "no carrier"), each)
    few = []
    for text in (SERVICE / "orders.jsonl").read_text("utf-8").splitlines():
        kind = json.loads(text)["kind"]
        if wanted.get(kind, 0) > 0:
            wanted[kind] -= 1
            few.append(text)
    (folder / "few.jsonl").write_text("\n".join(few), "utf-8")
    script = folder / "service.py"
    script.write_text(
        f"import sys, uuid\nsys.path.insert(0, {str(SERVICE)!r})\nimport app, ledger, checkout\n{fault}\napp.main()\n"
    )
    command = [sys.executable, demo.__file__, f"--orders={folder / 'few.jsonl'}", f"--service={script}", *arguments]
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=environment
    )
    return Demo(process, folder)


DEMOS = {
    "on sqlite": (["--kill"], "", 8),
    "on redis": (["--kill", "--store=redis"], "", 8),
    "with faults": (["--kill"], FAULTS, 1),
}


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Demo]]:
    """All of them at once: they mostly wait for leases to end."""
    redis_binary()
    folder = tmp_path_factory.mktemp("demos")
    with ExitStack() as stack:
        started = {}
        for name, (arguments, fault, each) in DEMOS.items():
            started[name] = start(folder / name.replace(" ", "-"), *arguments, fault=fault, each=each)
            stack.enter_context(started[name].process)
            stack.callback(started[name].process.terminate)  # so that it takes its service along
        yield started


@pytest.mark.parametrize("name", ["on sqlite", "on redis"])
def test_killed_orders_are_resumed_and_the_books_add_up(demos: dict[str, Demo], name: str) -> None:
    code, reported, errors = demos[name].ended()

    assert (code, errors) == (0, ""), reported
    chapters = re.findall(r"^\S.*$", reported, re.MULTILINE)
    assert [chapter.split()[0] for chapter in chapters] == [
        *("flowcore", "runs", "kill", "Started", "Responses", "The", "Where")
    ]
    assert re.search(r"^kill -9 \d+, and what is left$", reported, re.MULTILINE)
    assert "✗" not in reported
    assert len(reported.splitlines()) <= 50
    assert max(map(len, reported.splitlines())) <= 120
    assert list(demos[name].folder.glob("flowcore-demo-*")) == [], "nothing is left behind"


@pytest.mark.parametrize("name", ["on sqlite", "on redis"])
def test_story_says_where_each_order_stood_and_how_it_ended(demos: dict[str, Demo], name: str) -> None:
    _, reported, _ = demos[name].ended()

    rows = re.findall(r"^  (caught-\d)  (.+?)  +(\S.*)$", reported, re.MULTILINE)
    left = [(case, ", ".join(CASES[case].at_last[: CASES[case].entries]), CASES[case].record) for case in CASES]
    done = [(case, "+ " + ", ".join(CASES[case].at_last[CASES[case].entries :])) for case in CASES]
    assert rows[:5] == left
    assert [(case, more) for case, more, _ in rows[5:]] == done
    assert [outcome.split(",")[0] for *_, outcome in rows[5:]] == ["success"] * 3 + ["compensated"] * 2


def test_takeovers_are_counted_by_the_service_itself(demos: dict[str, Demo]) -> None:
    _, reported, _ = demos["on sqlite"].ended()

    counts = {word: int(count) for word, count in re.findall(r"(forward|undo) (\d+)", reported)}
    assert counts["forward"] >= 3
    assert counts["undo"] >= 2


def test_faults_that_a_takeover_brings_out_make_the_demo_fail(demos: dict[str, Demo]) -> None:
    code, reported, _ = demos["with faults"].ended()

    assert code == 1
    assert "caught-2: reserved, charged, charged, shipped, notified; success" in reported
    assert "caught-5: reserved, charged, refunded; compensated" in reported
    assert "was charged again while its first charge stood" in reported
    assert "keeps 1 pieces" in reported
    assert re.search(r"\d checks? FAILED", reported)
    (kept,) = demos["with faults"].folder.glob("flowcore-demo-*")
    assert {"ledger.db", "runs.db", "service.log"} <= {path.name for path in kept.iterdir()}


def test_store_of_ones_own_is_kept_and_takes_a_second_demo(tmp_path: Path) -> None:
    where = f"--store=sqlite:{tmp_path / 'mine.db'}"
    for name in ("first", "second"):
        code, reported, errors = start(tmp_path / name, where, each=2).ended()
        assert (code, errors) == (0, ""), reported
        assert f"runs are kept in sqlite:{tmp_path / 'mine.db'}" in reported
        assert "done           6  201" in reported


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--kill", "--store=memory"], 2, "runs in memory end with the process"),
        (["--store=disk"], 2, "'disk' names no store"),
        (["--store=redis://127.0.0.1:1"], 1, "Redis is unreachable"),
        (["--store=sqlite:/no/such/folder/runs.db"], 1, "its folder does not exist"),
    ],
)
def test_store_that_cannot_be_had_is_reported_in_a_sentence(
    tmp_path: Path, arguments: list[str], code: int, sentence: str
) -> None:
    ended, _, errors = start(tmp_path / "demo", *arguments).ended()

    assert ended == code
    assert sentence in errors
    assert "Traceback" not in errors


def test_service_that_dies_before_it_is_killed_shows_its_last_words(tmp_path: Path) -> None:
    fault = "import os\nledger.Ledger.note = lambda *_: (print('out of memory', flush=True), os._exit(9))"
    code, _, errors = start(tmp_path / "demo", "--kill", fault=fault).ended()

    assert code == 1
    assert "The service died" in errors
    assert "out of memory" in errors


def test_redis_of_the_demo_ends_with_it(tmp_path: Path) -> None:
    redis_binary()
    with own_redis(tmp_path) as server:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        socket.create_connection(("127.0.0.1", port), timeout=5).close()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_missing_redis_is_reported_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    with pytest.raises(DemoError, match="install one, or give the address"), own_redis(tmp_path):
        pass


def test_history_is_reported_in_the_order_of_events(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.executescript("""
            INSERT INTO stock (effect, at, ref, what, sku, quantity) VALUES
                (1, '09:01', 'A', 'reserved', 'mug', -1), (5, '09:05', 'A', 'released', 'mug', 1);
            INSERT INTO payments (effect, at, ref, what, cents) VALUES
                (2, '09:02', 'A', 'charged', 1200), (4, '09:05', 'A', 'refunded', -1200);
            INSERT INTO orders (effect, at, ref, what) VALUES
                (1, '09:01', 'A', 'placed'), (3, '09:03', 'B', 'shipped'), (5, '09:05', 'A', 'cancelled');
        """)

    assert history(path, "A") == ("reserved", "charged", "refunded", "released")
    assert history(path, "B") == ("shipped",)
    assert history(path, "C") == ()
