"""Tests of simultaneous calls: several threads use one store, and another store object on the same data."""
# ruff: noqa: S101 - these are tests

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from ...status import Status
from ...stores.base import Busy, Claim, ClaimAnswer, Claimed, Ending, Lease, Lost, Renewal, RunRecord, Store
from .rules import broken
from .suite import LONG, Asked, Suite, done

__all__ = ["Races"]

THREADS = 8


class Races(Suite):
    """The tests of two processes: two store objects on the same data, each used by several threads."""

    def _at_once(self, act: Callable[[Store, int], Any]) -> list[Any]:
        """Call `act` in all threads at once, half of them with each of the two stores, and return the results."""
        barrier = threading.Barrier(THREADS)
        raws = [cast("Asked", store).raw for store in (self.store, self.other)]
        # With an async store, each thread has its own event loop.
        stores = [self.ask(raws[number % 2]) for number in range(THREADS)]

        def racing(number: int) -> Any:
            barrier.wait(30)
            return act(stores[number], number)

        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(racing, range(THREADS)))

    @pytest.mark.parametrize("state", ["new", "released", "parked", "expired", "half expired"])
    def test_of_many_claims_at_once_exactly_one_is_granted(self, state: str) -> None:
        for turn in range(5):
            key = f"{self.key}-{turn}"
            if state != "new":
                owner = self.begin(key)
                match state:
                    case "released":
                        owner.ends(Status.FAILURE)
                    case "parked":
                        owner.ends(Status.PARKED)
                    case "expired":
                        self.expire(owner)
                    case _:
                        self.store.renew([owner.lease], 0.0)
            claims = [self.request(key) for _ in range(THREADS)]

            def claim(store: Store, number: int, claims: list[Claim] = claims) -> ClaimAnswer:
                return store.claim(claims[number])

            answers = self._at_once(claim)
            owners = [answer for answer in answers if isinstance(answer, Claimed)]
            assert len(owners) == 1, broken("claim-by-many", f"{len(owners)} owners of a key that was {state}")
            others = [answer for answer in answers if not isinstance(answer, Claimed)]
            assert all(isinstance(answer, Busy) for answer in others), broken("claim-busy", others)
            assert self.record(key).fence == owners[0].fence, broken("fence-rises", "the owner's is not in the record")

    def test_the_same_claim_sent_many_times_at_once_gets_one_answer(self) -> None:
        claim = self.request()
        answers = self._at_once(lambda store, number: store.claim(claim))
        assert all(isinstance(answer, Claimed) for answer in answers), broken("claim-again", answers)
        seen = {(answer.generation, answer.fence, answer.record) for answer in answers}
        assert len(seen) == 1, broken("claim-again", seen)

    def test_each_key_has_one_owner_at_a_time(self) -> None:
        inside: dict[str, int] = {}
        fences: dict[str, list[int]] = {}
        lock = threading.Lock()

        def work(store: Store, number: int) -> int:
            granted = 0
            for turn in range(30):
                claim = self.request(f"{self.key}-{turn % 2}")
                answer = store.claim(claim)
                if not isinstance(answer, Claimed):
                    continue
                granted += 1
                with lock:
                    owners = inside[claim.key] = inside.get(claim.key, 0) + 1
                    fences.setdefault(claim.key, []).append(answer.fence)
                assert owners == 1, broken("claim-by-many", f"{owners} owners at a time")
                assert store.renew([Lease(claim.key, claim.run_id, answer.fence)], LONG) == [Renewal.OURS], broken(
                    "renew", "mine"
                )
                with lock:
                    inside[claim.key] -= 1
                record = RunRecord(claim.key, claim.run_id, claim.workflow, claim.fingerprint, claim.graph)
                record.status, record.fence, record.generation = Status.FAILURE, answer.fence, answer.generation
                lost = store.finish(Ending(record))
                assert lost is None, broken("lost", f"{lost}, to its only owner")
            return granted

        granted = self._at_once(work)
        assert sum(granted) >= 2, broken("claim-after-release", "the key was free only once")
        for seen in fences.values():
            assert seen == sorted(set(seen)), broken("fence-rises", seen)
        generations = [self.record(key).generation + 1 for key in fences]
        assert sum(generations) == sum(granted), broken("claim-after-release", f"{generations} for {granted} runs")

    def test_checkpoints_at_once_lose_nothing(self) -> None:
        owner = self.begin()
        sent = [owner.says({f"{number}-{turn}": done(turn)}) for number in range(THREADS) for turn in range(10)]

        def send(store: Store, number: int) -> list[object]:
            return [store.checkpoint(checkpoint) for checkpoint in sent[number * 10 : number * 10 + 10]]

        answers = self._at_once(send)
        assert answers == [[None] * 10] * THREADS, broken("lost", answers)
        record = self.record()
        assert len(record.results) == THREADS * 10, broken("results", f"{len(record.results)} of {THREADS * 10}")
        assert record.seq == owner.seq, broken("seq", record.seq)
        assert list(record.results) == [name for one in sent for name in one.steps], broken("results", "their order")

    def test_an_old_owner_and_its_successor_at_once_never_both_write(self) -> None:
        for turn in range(5):
            key = f"{self.key}-{turn}"
            old = self.begin(key)
            late = old.ending(Status.SUCCESS, {"old": done()})
            self.expire(old)
            claim = self.request(key)

            def race(store: Store, number: int) -> Any:
                return store.claim(claim) if number == 0 else store.finish(late)  # noqa: B023 - it ends within the turn

            taken, *finished = self._at_once(race)
            record = self.record(key)
            if isinstance(taken, Claimed):
                assert all(answer in (Lost(), None) for answer in finished), broken("lost", finished)
                assert "old" not in record.results or record.fence == old.fence, broken("lost", record)
                assert finished == [Lost()] * len(finished), broken("lost", f"{finished}, though it was taken over")
            else:
                assert record.status == Status.SUCCESS, broken("finish-late", record.status)
                assert finished == [None] * len(finished), broken("late-after-the-end", finished)
