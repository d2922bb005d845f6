"""Checks whether the books add up. Reads the entries from the file, without asking the service.

python examples/service/audit.py ledger.db
"""

import sqlite3
import sys
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Order:
    """The sums of the entries of one order."""

    placed: int = 0
    """how often it was placed and not cancelled: 0 or 1"""
    price: int = 0
    """in cents, of the order as it was last placed"""
    sku: str = ""
    quantity: int = 0
    goods: int = 0
    """pieces taken off the shelf and not put back"""
    paid: int = 0
    """cents charged and not refunded"""
    parcels: int = 0
    """how many were shipped and not recalled"""


@dataclass
class Audit:
    """The sums of the books. `faults` describes what does not add up; it is empty if the books are correct."""

    faults: list[str] = field(default_factory=list)
    orders: dict[str, Order] = field(default_factory=lambda: defaultdict(Order))
    charged: int = 0
    """cents"""
    refunded: int = 0
    """cents"""
    delivered: Counter[str] = field(default_factory=Counter)
    shelf: Counter[str] = field(default_factory=Counter)

    @property
    def shipped(self) -> set[str]:
        """The orders whose parcel was shipped and not recalled."""
        return {ref for ref, order in self.orders.items() if order.parcels}

    @property
    def pieces_shipped(self) -> int:
        return sum(order.quantity for order in self.orders.values() if order.parcels)


def audit(path: Path) -> Audit:
    """Check the books in `path`. No process should write to them meanwhile."""
    books = Audit()
    with _reading(path) as db:
        for ref, what, sku, quantity, cents in db.execute(
            "SELECT ref, what, sku, quantity, cents FROM orders ORDER BY rowid"
        ):
            _enter_order(books.orders[ref], what, sku, quantity, cents)
        for ref, what, sku, quantity in db.execute("SELECT ref, what, sku, quantity FROM stock ORDER BY rowid"):
            _enter_stock(books, ref, what, sku, quantity)
        for ref, cents in db.execute("SELECT ref, cents FROM payments ORDER BY rowid"):
            _enter_payment(books, ref, cents)
    for ref, order in books.orders.items():
        books.faults += [f"order {ref} {fault}" for fault in _faults(order)]
    for sku, delivered in books.delivered.items():
        gone = sum(order.quantity for order in books.orders.values() if order.parcels and order.sku == sku)
        if delivered != books.shelf[sku] + gone:
            books.faults.append(f"{sku}: {delivered} delivered, but {books.shelf[sku]} left and {gone} shipped")
    return books


def history(path: Path, ref: str) -> tuple[str, ...]:
    """Return the names of the entries of one order, oldest first. Other processes may write meanwhile."""
    entries = "SELECT at, {0}, rowid, what FROM {1} WHERE ref = :ref"
    tables = " UNION ALL ".join(entries.format(*one) for one in enumerate(("orders", "payments", "stock")))
    with _reading(path) as db:
        rows = db.execute(f"{tables} ORDER BY 1, 2, 3", {"ref": ref}).fetchall()
    # "placed" and "cancelled" are left out, because they come together with "reserved" and "released".
    return tuple(what for _, _, _, what in rows if what not in {"placed", "cancelled"})


def _reading(path: Path) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True))


def _enter_order(order: Order, what: str, sku: str, quantity: int, cents: int) -> None:
    match what:
        case "placed":
            order.placed += 1
            order.sku, order.quantity, order.price = sku, quantity, cents
        case "cancelled":
            order.placed -= 1
        case "shipped":
            order.parcels += 1
        case "recalled":
            order.parcels -= 1


def _enter_stock(books: Audit, ref: str, what: str, sku: str, quantity: int) -> None:
    books.shelf[sku] += quantity
    if books.shelf[sku] < 0:
        books.faults.append(f"order {ref} took {sku} off an empty shelf")
    if what == "delivered":
        books.delivered[sku] += quantity
    else:
        books.orders[ref].goods -= quantity


def _enter_payment(books: Audit, ref: str, cents: int) -> None:
    if cents > 0:
        books.charged += cents
        if books.orders[ref].paid > 0:
            books.faults.append(f"order {ref} was charged again while its first charge stood")
    else:
        books.refunded -= cents
    books.orders[ref].paid += cents


def _faults(order: Order) -> list[str]:
    """Return the faults of an order: it must either be shipped once and paid in full, or have cost nothing."""
    faults = []
    if order.parcels not in (0, 1) or order.placed != order.parcels:
        faults.append(f"is placed {order.placed} times and shipped {order.parcels} times")
    if order.parcels and order.paid != order.price:
        faults.append(f"was shipped with {order.paid} of {order.price} cents paid")
    if not order.parcels and order.paid:
        faults.append(f"was charged {order.paid} cents, but neither shipped nor refunded")
    if order.goods != (order.quantity if order.parcels else 0):
        faults.append(f"keeps {order.goods} pieces")
    return faults


def main() -> int:
    books = audit(Path(sys.argv[1]))
    for fault in books.faults:
        print(fault)
    print(f"{len(books.orders)} orders, {len(books.shipped)} shipped, {len(books.faults)} faults")
    return 1 if books.faults else 0


if __name__ == "__main__":
    sys.exit(main())
