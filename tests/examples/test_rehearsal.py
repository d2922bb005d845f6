"""The checkout saga rehearsed: every step with everything that can go wrong there, and the books looked at each time."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from audit import audit
from checkout import checkout
from flowcore.testing import Fault, Rehearsal, rehearse
from ledger import Ledger
from partners import Carrier, Gateway

ORDER = {"ref": "R-1", "sku": "mug", "quantity": 1, "cents": 1200, "card": "tok_visa", "address": "home"}


class Forgetful(Gateway):
    """The planted bug: it says that it has given the money back, and has not."""

    def refund(self, ref: str, *, moody: bool, idempotency_key: str) -> int:
        return 0


class Keyless(Gateway):
    """The other one: it charges each time, although it was asked under this key before."""

    calls = itertools.count()

    def charge(self, ref: str, card: str, cents: int, *, idempotency_key: str) -> str:
        return super().charge(ref, card, cents, idempotency_key=f"{idempotency_key} {next(self.calls)}")


@pytest.fixture
def rehearsed(tmp_path: Path) -> Iterator[Callable[[type[Gateway]], Rehearsal]]:
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)

    def afresh() -> None:
        ledger.close()
        path.unlink()
        ledger.__init__(path)  # type: ignore[misc] # the partners hold on to this very object
        ledger.deliver("mug", 10)

    def books_balance() -> None:
        faults = audit(path).faults
        assert not faults, "; ".join(faults)

    def rehearsal(gateway: type[Gateway]) -> Rehearsal:
        wf = checkout(ledger, gateway(ledger), Carrier(ledger))
        return rehearse(wf, ORDER, world=books_balance, reset=afresh)

    yield rehearsal
    ledger.close()


def test_the_checkout_leaves_sound_books_whatever_goes_wrong(rehearsed: Callable[[type[Gateway]], Rehearsal]) -> None:
    rehearsal = rehearsed(Gateway)
    rehearsal.assert_clean()
    assert {scene.step for scene in rehearsal.scenes} >= {"reserve", "charge", "ship", "notify"}


def test_the_rehearsal_finds_a_refund_that_never_comes(rehearsed: Callable[[type[Gateway]], Rehearsal]) -> None:
    rehearsal = rehearsed(Forgetful)
    assert {scene.step for scene in rehearsal.dirty} >= {"charge", "ship"}
    assert "was charged 1200 cents, but neither shipped nor refunded" in rehearsal.dirty[0].trouble
    with pytest.raises(AssertionError, match="did not leave the world clean"):
        rehearsal.assert_clean()


def test_the_rehearsal_finds_what_only_a_crash_brings_to_light(rehearsed: Callable[[type[Gateway]], Rehearsal]) -> None:
    rehearsal = rehearsed(Keyless)
    assert [(scene.step, scene.fault) for scene in rehearsal.dirty] == [("charge", Fault.CRASH_AFTER)]
    assert "was charged again while its first charge stood" in rehearsal.dirty[0].trouble
