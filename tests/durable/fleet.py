"""A fleet: four processes under load on a Redis Cluster of three primaries with a replica each, half of them with `Engine`,
half with `AsyncEngine`.

`python -m tests.durable.fleet [--seconds N] [--rate N]` has it work for so many seconds flat out, and then, with orders that
arrive so many times a second whatever happens: undisturbed; with processes killed; stopped (SIGTERM) and replaced; added;
and with primaries killed, whose replicas take over. It prints what callers saw, and how long it took until runs of a
process that was gone were taken over. At last it looks whether every order that was accepted has ended, with each of its
effects once.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flowcore import Engine
from tests.durable.audit import audit, audit_after_loss
from tests.durable.fleet_process import ENDS, GRACE, LEASE, Post, order, serve, store_of
from tests.durable.ledger import Journal, Ledger, Word, effects_of, lines_of, words_of
from tests.durable.nursery import Nursery
from tests.durable.sagas import World
from tests.durable.watched import Watched
from tests.stores.redis_servers import RedisClusterServers, RedisServer

__all__ = ["Fleet", "Phase"]

PROCESSES: Final = 4
PAUSE: Final = 0.05
"""seconds that a step waits for its provider, where orders arrive by themselves"""
LOST_WITHIN: Final = 0.2
"""seconds around the death of a primary in which its replica may lack what was accepted"""


@dataclass
class Phase:
    """What a while was like. `latencies`: seconds, of orders that ended in it; `gone`: when a process died or was stopped;
    `takeovers`: seconds from then until another process had one of its runs."""

    name: str
    began: float
    ended: float = 0.0
    latencies: list[float] = field(default_factory=list[float])
    gone: dict[int, float] = field(default_factory=dict[int, float])
    takeovers: list[float] = field(default_factory=list[float])
    failovers: list[float] = field(default_factory=list[float])
    """seconds from the death of a primary until its replica was one"""

    def __str__(self) -> str:
        cuts = (
            statistics.quantiles(self.latencies, n=100, method="inclusive") if len(self.latencies) > 1 else [0.0] * 99
        )
        longest = max(self.latencies, default=0.0)
        rate = len(self.latencies) / (self.ended - self.began)
        text = f"{self.name:<26}{len(self.latencies):>7}{rate:>9.0f}" + "".join(
            f"{seconds * 1000:>9.0f}" for seconds in (cuts[49], cuts[98], longest)
        )
        if self.gone:
            text += f"   {len(self.gone)} processes, {len(self.takeovers)} runs taken over"
            if self.takeovers:
                least, most = min(self.takeovers), max(self.takeovers)
                text += f" after {least:.2f} to {most:.2f} s (median {statistics.median(self.takeovers):.2f})"
        if self.failovers:
            text += f"   {len(self.failovers)} primaries, replaced after {max(self.failovers):.1f} s at most"
        return text


HEADING: Final = f"{'':<26}{'orders':>7}{'a second':>9}{'p50 ms':>9}{'p99 ms':>9}{'longest':>9}"


class Fleet:
    """The processes, their servers, and what happens to them. `wrong`: what should not have been."""

    def __init__(self, folder: Path, nursery: Nursery, *, rate: float, seed: int = 0) -> None:
        self._nursery = nursery
        self._rate = rate
        self._random = random.Random(seed)
        self._ledger, self._journal, self._calls = (str(folder / name) for name in ("ledger", "journal", "calls"))
        self._cluster = RedisClusterServers(
            folder,
            replicas=True,
            appendonly="everysec",
            arguments=("--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"),
        )
        self._processes: list[int] = []
        self._started = 0
        self._lost: list[tuple[float, float]] = []
        self.phases: list[Phase] = []
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    @contextmanager
    def servers(self) -> Iterator[None]:
        with self._cluster:
            yield

    # -- phases --------------------------------------------------------------------------------------------------------

    def flat_out(self, seconds: float) -> None:
        """As many orders as it can, which wait for nothing but their store."""
        with self._fleet(rate=0.0, pause=0.0):
            time.sleep(seconds / 4)  # connections are made, and scripts loaded
            with self._phase("flat out, no waits"):
                time.sleep(seconds)

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Four processes to which orders come at the fleet's rate."""
        with self._fleet(rate=self._rate / PROCESSES, pause=PAUSE):
            yield

    def undisturbed(self, seconds: float) -> None:
        with self._phase("undisturbed"):
            time.sleep(seconds)

    def killed(self, seconds: float, *, every: float = 2.0) -> None:
        """Now and then a process is killed; the next one starts beside it."""
        with self._phase("processes killed") as phase:
            self._now_and_then(seconds, every, lambda: self._end(signal.SIGKILL, phase))
            time.sleep(LEASE * 1.5)

    def stopped(self, seconds: float, *, every: float = 2.0) -> None:
        """A rolling deploy: each process in turn gets SIGTERM and is replaced."""
        with self._phase("processes stopped") as phase:
            self._now_and_then(seconds, every, lambda: self._end(signal.SIGTERM, phase))
            time.sleep(GRACE)

    def added(self, seconds: float) -> None:
        """Two more processes join, and leave again."""
        with self._phase("two more, which leave") as phase:
            for _ in range(2):
                self._start()
            time.sleep(seconds)
            for pid in self._processes[PROCESSES:]:
                self._end(signal.SIGTERM, phase, pid)

    def failed_over(self, seconds: float, *, primaries: int = 1) -> None:
        """Primaries are killed, one after the other; each is started again once it has been replaced."""
        with self._phase("primaries killed") as phase:
            for node in self._cluster.nodes[:primaries]:
                phase.failovers.append(self._fail_over(node))
                time.sleep(seconds / primaries)

    def _fail_over(self, node: RedisServer) -> float:
        began = time.monotonic()
        self._cluster.fail_over(node)
        took = time.monotonic() - began
        self._lost.append((began - LOST_WITHIN, began + LOST_WITHIN))
        node.start()
        return took

    @contextmanager
    def _phase(self, name: str) -> Iterator[Phase]:
        phase = Phase(name, time.monotonic())
        yield phase
        phase.ended = time.monotonic()
        self.phases.append(phase)

    def _now_and_then(self, seconds: float, every: float, act: Callable[[], None]) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            act()
            time.sleep(every)

    # -- processes -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _fleet(self, *, rate: float, pause: float) -> Iterator[None]:
        self._post = Post(
            tuple(node.port for node in (*self._cluster.nodes, *self._cluster.replicas) if node.port is not None),
            self._ledger,
            self._journal,
            self._calls,
            rate=rate,
            pause=pause,
        )
        for _ in range(PROCESSES):
            self._start()
        yield
        phase = Phase("", time.monotonic())
        for pid in list(self._processes):
            self._end(signal.SIGTERM, phase, pid, again=False)

    def _start(self) -> None:
        is_async = self._started % 2 == 1
        self._started += 1
        post = Post(**{**self._post.__dict__, "asynchronous": is_async})
        self._processes.append(self._nursery.start(serve, post))

    def _end(self, how: signal.Signals, phase: Phase, pid: int | None = None, *, again: bool = True) -> None:
        pid = self._random.choice(self._processes) if pid is None else pid
        self._processes.remove(pid)
        phase.gone[pid] = time.monotonic()
        os.kill(pid, how)
        self.counts[how.name] += 1
        if again and len(self._processes) < PROCESSES:
            self._start()
        _, code = self._nursery.wait([pid])
        if code != (-how if how is signal.SIGKILL else 0):
            self.wrong.append(f"a process that got {how.name} ended with {code}")

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Have what is left resumed, by a process that was not there; then look at each order."""
        post = Post(**{**self._post.__dict__, "asynchronous": False})
        world = World(Ledger(self._ledger))
        workflow = order(world)
        with store_of(post) as store:
            watched = Watched(store, Journal(self._journal))
            with Engine(store=watched, lease=LEASE, workflows=[workflow]) as engine:
                end = time.monotonic() + 10 * LEASE
                while engine.recover() or any(store.counts().get(status) for status in ("running", "queued", "parked")):
                    if time.monotonic() > end:
                        break
                    time.sleep(0.2)
            self._look_at_calls()
            effects, words = effects_of(self._ledger), words_of(self._journal)
            for key in sorted(effects.keys() | words.keys()):
                did, said, record = effects.get(key, []), words.get(key, []), store.find(key)
                self._time_takeovers(said)
                self.counts["orders accepted"] += 1
                lossy = any(began <= word.heard <= ended for word in said for began, ended in self._lost)
                self.counts["orders at the death of a primary"] += lossy
                found = audit_after_loss(did, record, workflow) if lossy else audit(did, said, record, workflow)
                ended = None if record is None else record.status
                if ended not in ENDS:
                    found.append(f"it did not end: {ended}")
                meant = {(effect.run_id, effect.step, effect.what): effect.step_key for effect in did}
                once = {(effect.step, effect.what) for effect in did}
                found += (f"{len(meant)} effects, of which only {len(once)} should be",) * (len(meant) > len(once))
                self.counts["calls repeated, with their own step key"] += len(did) - len(meant)
                self.wrong += (f"{key}: {one}" for one in found)

    def _look_at_calls(self) -> None:
        for _, at, latency, _ in lines_of(self._calls):
            for phase in self.phases:
                if phase.began <= at < phase.ended:
                    phase.latencies.append(latency)

    def _time_takeovers(self, words: Sequence[Word]) -> None:
        """The runs of processes that were gone: how long it took until another one had them."""
        claims = sorted((word for word in words if word.verb == "claim"), key=lambda word: word.fence)
        for before, after in itertools.pairwise(claims):
            if before.pid == after.pid or before.fence == after.fence:
                continue
            self.counts["runs taken over"] += 1
            for phase in self.phases:
                if before.pid in phase.gone:
                    phase.takeovers.append(after.heard - phase.gone[before.pid])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.durable.fleet", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each part")
    parser.add_argument("--rate", type=float, default=100.0, help="orders that arrive in a second")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    arguments = parser.parse_args()
    seconds = arguments.seconds
    with tempfile.TemporaryDirectory() as folder, Nursery() as nursery:
        fleet = Fleet(Path(folder), nursery, rate=arguments.rate, seed=arguments.seed)
        with fleet.servers(), ExitStack() as stack:
            fleet.flat_out(seconds)
            stack.enter_context(fleet.steady())
            for part in (fleet.undisturbed, fleet.killed, fleet.stopped, fleet.added, fleet.failed_over):
                part(seconds)
            stack.close()
            fleet.look()
    print(f"four processes, {arguments.rate:.0f} orders a second unless it says otherwise, seed {arguments.seed}")
    print(HEADING)
    print(*fleet.phases, sep="\n")
    print(*(f"{number:,} {what}" for what, number in fleet.counts.items()), sep="; ")
    print(f"{len(fleet.wrong)} lost, done twice or otherwise wrong", *fleet.wrong[:20], sep="\n  ")
    return 1 if fleet.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
