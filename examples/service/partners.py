"""The two partners of the shop, which fail now and then: the card gateway and the parcel carrier.

The input chooses what they do, as with a payment provider's test cards, so that every run of the demo meets the same
failures. Both record their effects in the shop's ledger, where the audit finds them. Both honour an idempotency key, as
good APIs do.
"""

import threading
import time
from collections import Counter

from ledger import Ledger

LATENCY = 0.004  # seconds, of every call
SLOW = 0.25
HANG = 0.25  # seconds that a partner hangs, unless the service sets another time

CARDS = {
    "tok_visa": "is charged",
    "tok_slow": f"is charged, after {SLOW:g} s",
    "tok_declined": "is declined",
    "tok_flaky": "times out twice, then is charged",
    "tok_lost_reply": "is charged at once, but the first reply is lost",
    "tok_black_hole": "is charged, but no reply ever comes back",
    "tok_hang_before_charge": "hangs, then is charged",
    "tok_hang_after_charge": "is charged, then hangs",
    "tok_hang_before_refund": "is charged; a refund hangs, then is made",
    "tok_hang_after_refund": "is charged; a refund is made, then hangs",
}
ADDRESSES = {
    "home": "gets its parcel",
    "hills": "gets it at the second attempt",
    "hang after shipping": "gets it, then the carrier hangs",
    "island": "has no ferry today: every attempt fails",
    "island, refund flaky": "the same, and the gateway stumbles over the refund",
}


class Declined(Exception):
    """The bank has declined the card. Another attempt would be declined too."""


class NoAnswer(ConnectionError):
    """The partner did not respond. Whether the call took effect is unknown."""


class _Calls:
    """Counts the calls with a key; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()

    def number(self, key: str) -> int:
        with self._lock:
            self._seen[key] += 1
            return self._seen[key]


class Gateway:
    """Charges and refunds cards. Thread-safe. `hang`: seconds."""

    def __init__(self, ledger: Ledger, hang: float = HANG) -> None:
        self._ledger = ledger
        self._hang = hang
        self._calls = _Calls()
        self._cards: dict[str, str] = {}

    def charge(self, ref: str, card: str, cents: int, *, idempotency_key: str) -> str:
        """Take the money. Returns the payment's id. Raises Declined or NoAnswer."""
        self._cards[ref] = card
        time.sleep(SLOW if card == "tok_slow" else LATENCY)
        self._hang_if(card == "tok_hang_before_charge")
        call = self._calls.number(idempotency_key)
        if card == "tok_declined":
            raise Declined("the bank declined the card")
        if card == "tok_flaky" and call <= 2:
            raise NoAnswer("the card gateway timed out")
        self._ledger.charge(idempotency_key, ref, cents)
        if (card == "tok_lost_reply" and call == 1) or card == "tok_black_hole":
            raise NoAnswer("the card gateway hung up before it replied")
        self._hang_if(card == "tok_hang_after_charge")
        return f"pay_{idempotency_key[:12]}"

    def refund(self, ref: str, *, moody: bool, idempotency_key: str) -> int:
        """Refund what was taken for an order. Returns the cents. Raises NoAnswer, if `moody` at the first attempt."""
        time.sleep(LATENCY)
        if moody and self._calls.number(idempotency_key) == 1:
            raise NoAnswer("the card gateway timed out")
        self._hang_if(self._cards.get(ref) == "tok_hang_before_refund")
        cents = self._ledger.refund(idempotency_key, ref)
        self._hang_if(self._cards.get(ref) == "tok_hang_after_refund")
        return cents

    def _hang_if(self, hangs: bool) -> None:
        time.sleep(self._hang if hangs else 0)


class Carrier:
    """Ships and recalls parcels. Thread-safe. `hang`: seconds."""

    def __init__(self, ledger: Ledger, hang: float = HANG) -> None:
        self._ledger = ledger
        self._hang = hang
        self._calls = _Calls()

    def ship(self, ref: str, address: str, *, idempotency_key: str) -> str:
        """Send the parcel. Returns its tracking id. Raises NoAnswer."""
        time.sleep(LATENCY)
        call = self._calls.number(idempotency_key)
        if address.startswith("island"):
            raise NoAnswer("no ferry to the island today")
        if address == "hills" and call == 1:
            raise NoAnswer("the carrier's van broke down")
        self._ledger.note(idempotency_key, ref, "shipped")
        if address == "hang after shipping":
            time.sleep(self._hang)
        return f"parcel_{idempotency_key[:12]}"

    def recall(self, ref: str, *, idempotency_key: str) -> None:
        """Recall the parcel, if it was sent."""
        if self._ledger.is_out(ref):
            self._ledger.note(idempotency_key, ref, "recalled")
