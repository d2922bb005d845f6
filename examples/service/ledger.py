"""The shop's books: orders, stock and payments in one SQLite file (`audit.py` says whether they add up).

Nothing is ever changed or deleted (triggers refuse it): each effect is appended, and undoing it is one more entry. Each
entry has the key of the effect that it records, and no key is entered twice, so a second attempt finds the entry of the
first. A card charged under *two* keys, however, is in the books twice, where the audit finds it.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (
    effect TEXT PRIMARY KEY, at TEXT DEFAULT (strftime('%Y-%m-%d %H:%M:%f')), ref TEXT NOT NULL,
    what TEXT NOT NULL CHECK (what IN ('placed', 'cancelled', 'shipped', 'recalled', 'notified')),
    sku TEXT, quantity INTEGER, cents INTEGER
);
CREATE TABLE IF NOT EXISTS stock (
    effect TEXT PRIMARY KEY, at TEXT DEFAULT (strftime('%Y-%m-%d %H:%M:%f')), ref TEXT NOT NULL,
    what TEXT NOT NULL CHECK (what IN ('delivered', 'reserved', 'released')),
    sku TEXT NOT NULL, quantity INTEGER NOT NULL CHECK ((quantity < 0) = (what = 'reserved'))
);
CREATE TABLE IF NOT EXISTS payments (
    effect TEXT PRIMARY KEY, at TEXT DEFAULT (strftime('%Y-%m-%d %H:%M:%f')), ref TEXT NOT NULL,
    what TEXT NOT NULL CHECK (what IN ('charged', 'refunded')),
    cents INTEGER NOT NULL CHECK ((cents < 0) = (what = 'refunded'))
);
CREATE INDEX IF NOT EXISTS stock_by_sku ON stock (sku, quantity);
CREATE INDEX IF NOT EXISTS payments_by_order ON payments (ref, cents);
CREATE INDEX IF NOT EXISTS orders_by_ref ON orders (ref);
"""
APPEND_ONLY = """
CREATE TRIGGER IF NOT EXISTS {table}_{verb} BEFORE {verb} ON {table}
BEGIN SELECT RAISE(ABORT, 'the books are append-only'); END;
"""
TABLES = ("orders", "stock", "payments")


class SoldOut(Exception):
    """Fewer goods are left than the order wants."""


class Ledger:
    """The books in the file `path`. Thread-safe: one connection, one writer at a time."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + SCHEMA)
        for table in TABLES:
            for verb in ("UPDATE", "DELETE"):
                self._db.executescript(APPEND_ONLY.format(table=table, verb=verb))

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Open one transaction: either all of its entries are in the books, or none."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    # -- stock ---------------------------------------------------------------------------------------------------------

    def deliver(self, sku: str, quantity: int) -> None:
        """Record the opening stock of an article, at the first call for this article; later calls do nothing."""
        with self._writing() as db:
            db.execute(
                "INSERT OR IGNORE INTO stock (effect, ref, what, sku, quantity) VALUES (?, 'opening', 'delivered', ?, ?)",
                (f"opening {sku}", sku, quantity),
            )

    def reserve(self, effect: str, ref: str, sku: str, quantity: int, cents: int) -> None:
        """Place the order and take its goods off the shelf. Raises SoldOut where the shelf has fewer."""
        with self._writing() as db:
            if _known(db, "stock", effect):
                return
            (left,) = db.execute("SELECT total(quantity) FROM stock WHERE sku = ?", (sku,)).fetchone()
            if left < quantity:
                raise SoldOut(f"{quantity} {sku} wanted, {left:.0f} left")
            db.execute(
                "INSERT INTO orders (effect, ref, what, sku, quantity, cents) VALUES (?, ?, 'placed', ?, ?, ?)",
                (effect, ref, sku, quantity, cents),
            )
            db.execute(
                "INSERT INTO stock (effect, ref, what, sku, quantity) VALUES (?, ?, 'reserved', ?, ?)",
                (effect, ref, sku, -quantity),
            )

    def release(self, effect: str, ref: str, sku: str, quantity: int) -> None:
        """Cancel the order and put its goods back."""
        with self._writing() as db:
            if not _known(db, "stock", effect):
                db.execute("INSERT INTO orders (effect, ref, what) VALUES (?, ?, 'cancelled')", (effect, ref))
                db.execute(
                    "INSERT INTO stock (effect, ref, what, sku, quantity) VALUES (?, ?, 'released', ?, ?)",
                    (effect, ref, sku, quantity),
                )

    def is_reserved(self, ref: str) -> bool:
        """Whether goods of this order are off the shelf."""
        with self._lock:
            (taken,) = self._db.execute("SELECT total(quantity) FROM stock WHERE ref = ?", (ref,)).fetchone()
            return bool(taken < 0)

    # -- money ---------------------------------------------------------------------------------------------------------

    def charge(self, effect: str, ref: str, cents: int) -> None:
        """Record a payment, once for this effect."""
        with self._writing() as db:
            db.execute(
                "INSERT OR IGNORE INTO payments (effect, ref, what, cents) VALUES (?, ?, 'charged', ?)",
                (effect, ref, cents),
            )

    def refund(self, effect: str, ref: str) -> int:
        """Refund what the order has paid and not got back, once for this effect. Returns the cents."""
        with self._writing() as db:
            (held,) = db.execute("SELECT coalesce(sum(cents), 0) FROM payments WHERE ref = ?", (ref,)).fetchone()
            if held > 0:
                db.execute(
                    "INSERT OR IGNORE INTO payments (effect, ref, what, cents) VALUES (?, ?, 'refunded', ?)",
                    (effect, ref, -held),
                )
            return int(held)

    # -- parcels -------------------------------------------------------------------------------------------------------

    def note(self, effect: str, ref: str, what: str) -> None:
        """Record that the order was shipped, recalled or notified, once for this effect."""
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO orders (effect, ref, what) VALUES (?, ?, ?)", (effect, ref, what))

    def is_out(self, ref: str) -> bool:
        """Whether a parcel of this order was shipped and not recalled."""
        with self._lock:
            (out,) = self._db.execute(
                "SELECT coalesce(sum((what = 'shipped') - (what = 'recalled')), 0) FROM orders WHERE ref = ?", (ref,)
            ).fetchone()
            return bool(out > 0)


def _known(db: sqlite3.Connection, table: str, effect: str) -> bool:
    return db.execute(f"SELECT 1 FROM {table} WHERE effect = ?", (effect,)).fetchone() is not None  # noqa: S608 - ours
