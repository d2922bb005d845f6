"""The ledger cannot be rewritten, and its audit finds what does not add up."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import audit as audit_module
from audit import audit
from ledger import Ledger, SoldOut


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    """Books with one order shipped (A) and one undone (B)."""
    ledger = Ledger(path)
    ledger.deliver("mug", 10)
    ledger.reserve("A1", "A", "mug", 2, 2400)
    ledger.charge("A2", "A", 2400)
    ledger.note("A3", "A", "shipped")
    ledger.note("A4", "A", "notified")
    ledger.reserve("B1", "B", "mug", 1, 1200)
    ledger.charge("B2", "B", 1200)
    ledger.refund("B3", "B")
    ledger.release("B4", "B", "mug", 1)
    yield ledger
    ledger.close()


@pytest.mark.usefixtures("ledger")
def test_sound_books_have_no_faults(path: Path) -> None:
    books = audit(path)

    assert books.faults == []
    assert books.shipped == {"A"}
    assert (books.charged, books.refunded) == (3600, 1200)
    assert (books.delivered.total(), books.shelf.total(), books.pieces_shipped) == (10, 8, 2)


PLANTED: dict[str, tuple[Callable[[Ledger], object], str]] = {
    "double charge": (
        lambda ledger: ledger.charge("X", "A", 2400),
        "order A was charged again while its first charge stood",
    ),
    "charge without parcel": (
        lambda ledger: ledger.charge("X", "B", 1200),
        "order B was charged 1200 cents, but neither shipped nor refunded",
    ),
    "parcel without charge": (
        lambda ledger: ledger.refund("X", "A"),
        "order A was shipped with 0 of 2400 cents paid",
    ),
    "parcel of an undone order": (
        lambda ledger: ledger.note("X", "B", "shipped"),
        "order B is placed 0 times and shipped 1 times",
    ),
    "shipped twice": (
        lambda ledger: ledger.note("X", "A", "shipped"),
        "order A is placed 1 times and shipped 2 times",
    ),
    "goods kept": (
        lambda ledger: ledger.reserve("X", "C", "mug", 3, 3600),
        "order C keeps 3 pieces",
    ),
    "goods returned twice": (
        lambda ledger: ledger.release("X", "B", "mug", 1),
        "mug: 10 delivered, but 9 left and 2 shipped",
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_is_found(ledger: Ledger, path: Path, fault: str) -> None:
    plant, sentence = PLANTED[fault]

    plant(ledger)

    assert sentence in audit(path).faults


def test_missing_refund_is_found(ledger: Ledger, path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DROP TRIGGER payments_DELETE")
        db.execute("DELETE FROM payments WHERE what = 'refunded'")
    db.close()

    assert audit(path).faults == ["order B was charged 1200 cents, but neither shipped nor refunded"]


def test_script_exits_with_the_verdict(ledger: Ledger, path: Path) -> None:
    command = [sys.executable, audit_module.__file__, str(path)]
    sound = subprocess.run(command, capture_output=True, text=True, check=False)
    ledger.charge("X", "A", 2400)
    unsound = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (sound.returncode, sound.stdout) == (0, "2 orders, 1 shipped, 0 faults\n")
    assert unsound.returncode == 1
    assert "charged again" in unsound.stdout


@pytest.mark.parametrize("table", ["orders", "stock", "payments"])
@pytest.mark.parametrize("statement", ["UPDATE {} SET ref = 'Z'", "DELETE FROM {}"])
@pytest.mark.usefixtures("ledger")
def test_books_are_append_only(path: Path, table: str, statement: str) -> None:
    db = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        db.execute(statement.format(table))
    db.close()


def test_effect_made_again_is_one_entry(ledger: Ledger, path: Path) -> None:
    ledger.reserve("A1", "A", "mug", 2, 2400)
    ledger.charge("A2", "A", 2400)
    ledger.note("A3", "A", "shipped")
    ledger.refund("B3", "B")
    ledger.release("B4", "B", "mug", 1)

    assert audit(path).faults == []


def test_empty_shelf_refuses_and_leaves_no_trace(ledger: Ledger, path: Path) -> None:
    with pytest.raises(SoldOut, match="9 mug wanted, 8 left"):
        ledger.reserve("C1", "C", "mug", 9, 1)

    assert "C" not in audit(path).orders
