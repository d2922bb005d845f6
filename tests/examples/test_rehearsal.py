"""The checkout saga rehearsed: every step with everything that can go wrong there, and the books looked at each time."""

from collections.abc import Callable
from pathlib import Path

import pytest

from audit import audit
from checkout import checkout
from flowcore.testing import Rehearsal, rehearse
from ledger import Ledger
from partners import Carrier, Gateway

ORDER = {"ref": "R-1", "sku": "mug", "quantity": 1, "cents": 1200, "card": "tok_visa", "address": "home"}


class Forgetful(Gateway):
    """The planted bug: it says that it has given the money back, and has not."""

    def refund(self, ref: str, *, moody: bool, idempotency_key: str) -> int:
        return 0


@pytest.fixture
def rehearsed(tmp_path: Path) -> Callable[[type[Gateway]], Rehearsal]:
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

    return rehearsal


def test_the_checkout_leaves_sound_books_whatever_goes_wrong(rehearsed: Callable[[type[Gateway]], Rehearsal]) -> None:
    rehearsal = rehearsed(Gateway)
    rehearsal.assert_clean()
    assert {scene.step for scene in rehearsal.scenes} >= {"reserve", "charge", "ship", "notify"}


def test_the_rehearsal_finds_a_refund_that_never_comes(rehearsed: Callable[[type[Gateway]], Rehearsal]) -> None:
    rehearsal = rehearsed(Forgetful)
    assert {scene.step for scene in rehearsal.dirty} >= {"charge", "ship"}
    assert "was charged 1200 cents, but neither shipped nor refunded" in rehearsal.dirty[0].trouble
    with pytest.raises(AssertionError, match="left the world dirty"):
        rehearsal.assert_clean()
