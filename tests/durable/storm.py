"""A storm: processes that run the same 200 keys are killed, frozen, deployed and cut off from their store, which is killed
too, and on Redis fails over to a replica that lacks the last writes.

`python -m tests.durable.storm [--runs N] [--seconds N] [--store redis|sqlite]` runs eras, each with new servers
and keys, until so many runs are over, and checks after each era whether all that is promised was kept.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from flowcore import Engine
from flowcore.status import Status
from tests.cli.left_behind import complaints, reader_of
from tests.durable.audit import audit, audit_after_loss
from tests.durable.crash import Place
from tests.durable.ledger import Effect, Journal, Ledger, Word, effects_of, lines_of, words_of
from tests.durable.nursery import Nursery
from tests.durable.proxy import Weather, run_proxy
from tests.durable.sagas import SAGAS, World
from tests.durable.stormy import KEYS, LEASE, ROUND, Post, saga_of, sendings_of, work
from tests.durable.watched import Watched
from tests.stores.redis_servers import RedisServer, free_port, until

__all__ = ["Figures", "Storm"]

PROCESSES: Final = 8
PATIENCE: Final = 60.0
"""seconds after which a process that was told to stop hangs, or a storm is too weak: only where something is broken"""
_POSTPONED: Final = 2.0
"""seconds for which Redis postpones a write to its file"""
WEATHER: Final = Weather(lose=0.01, delay=0.02, half_close=0.005, seconds=LEASE / 2)


@dataclass
class Figures:
    """What a storm was like. `wrong`: what should not have been; `stories`: all that is known of the keys it was with."""

    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    stories: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        reported = ", ".join(f"{number:,} {what}" for what, number in self.counts.items())
        return f"{self.seconds:.0f} s: {reported}; {len(self.wrong)} violations"


class Storm:
    """One era. `kind`: redis (which is killed too, and heard of through a bad network by half of the processes) or
    sqlite."""

    def __init__(self, kind: str, folder: Path, nursery: Nursery, seed: int) -> None:
        self.kind = kind
        self.nursery = nursery
        self.random = random.Random(seed)
        self.figures = Figures()
        self.folder = folder
        self.server, self.replica = (
            RedisServer(folder / name, port=0, appendonly="always", arguments=["--repl-diskless-sync-delay", "0"])
            if kind == "redis"
            else None
            for name in ("redis", "replica")
        )
        self.proxy = free_port() if kind == "redis" else 0
        self.lost: list[tuple[float, float]] = []  # from when to when the store was told what it then forgot
        self.workers: dict[int, int] = {}
        self.frozen: dict[int, float] = {}  # until when
        self.stopping: dict[int, float] = {}  # since when
        self.freezes: list[tuple[int, float, float]] = []  # from when to when
        self.board = folder / "board"
        self.board.write_bytes(bytes(4 * KEYS))

    def place(self, *, direct: bool) -> Place:
        address = str(self.folder / "runs.db")
        if self.server is not None:
            address = self.server.url if direct else f"redis://127.0.0.1:{self.proxy}/0"
        return Place(self.kind, address, "storm", str(self.folder / "ledger"), str(self.folder / "journal"))

    def rage(self, seconds: float, least: Mapping[str, int] = MappingProxyType({})) -> Figures:
        """Have the storm for so many seconds, and until the figures are at least so; then calm, then look what is left."""
        began = time.monotonic()
        with self._servers(), self._network():
            for number in range(PROCESSES):
                self._start(number)
            self._spoil(began + seconds, least)
            for pid in list(self.workers):
                self._kill(pid, again=False)
            while self.stopping:
                self._look_after_deploys()
                time.sleep(0.01)
            self.figures.seconds = time.monotonic() - began
            with self.place(direct=True).store() as store:
                self._calm(store)
                self._audit(store)
            self._operate()
        return self.figures

    @contextlib.contextmanager
    def _servers(self) -> Iterator[None]:
        with self.server or contextlib.nullcontext(), self.replica or contextlib.nullcontext():
            if self.server is not None and self.replica is not None:
                _follow(self.replica, self.server)
            yield

    @contextlib.contextmanager
    def _network(self) -> Iterator[None]:
        pid = self.nursery.start(run_proxy, self.server.port, self.proxy, WEATHER) if self.server is not None else None
        yield
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            self.nursery.wait([pid])

    # -- faults --------------------------------------------------------------------------------------------------------

    def _start(self, number: int) -> None:
        post = Post(self.place(direct=number % 2 == 0), str(self.board), asynchronous=self._is_async(number))
        self.workers[self.nursery.start(work, post, self.random.random())] = number

    @staticmethod
    def _is_async(number: int) -> bool:
        return number % 4 == 3

    def _suffices(self, least: Mapping[str, int]) -> bool:
        over = sum(number for (number,) in ROUND.iter_unpack(self.board.read_bytes()))
        seen = self.figures.counts | Counter({"keyed runs": over})
        return all(seen[what] >= number for what, number in least.items())

    def _spoil(self, end: float, least: Mapping[str, int]) -> None:
        next_kill = next_freeze = next_deploy = time.monotonic()
        next_restart = time.monotonic() + 1.0
        while (now := time.monotonic()) < end or (now < end + PATIENCE and not self._suffices(least)):
            for pid, thaws in list(self.frozen.items()):
                if now >= thaws:
                    del self.frozen[pid]
                    os.kill(pid, signal.SIGCONT)
            self._look_after_deploys()
            awake = [pid for pid in self.workers if pid not in self.frozen]
            if now >= next_kill and awake:
                self._kill(self.random.choice(awake), again=True)
                next_kill = now + self.random.uniform(0.05, 0.3)
            elif now >= next_freeze and len(awake) > PROCESSES / 2:
                self._freeze(self.random.choice(awake))
                next_freeze = now + self.random.uniform(0.2, 0.8)
            elif now >= next_deploy and (deployed := [pid for pid in awake if not self._is_async(self.workers[pid])]):
                self._deploy(self.random.choice(deployed))
                next_deploy = now + self.random.uniform(0.3, 1.0)
            elif now >= next_restart and self.server is not None:
                if self.figures.counts["restarts of redis"] % 2:
                    self._fail_over()
                else:
                    self._kill_server(self.server)
                    time.sleep(self.random.uniform(0.0, LEASE * 0.7))
                    self.server.start()
                self.figures.counts["restarts of redis"] += 1
                next_restart = time.monotonic() + self.random.uniform(1.0, 4.0)
            time.sleep(0.005)

    def _freeze(self, pid: int) -> None:
        before = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        self.frozen[pid] = time.monotonic() + LEASE * self.random.uniform(1.1, 2.0)
        self.freezes.append((pid, before, self.frozen[pid]))  # where processors are busy, it goes on for a while
        self.figures.counts["freezes"] += 1

    def _kill_server(self, server: RedisServer) -> None:
        """Kill the server. While its file waits for an fsync, Redis replies before it has written to the file, for two
        seconds at most: what it acknowledged in this time may be lost."""
        with server.client() as client:
            before = time.monotonic()
            delayed = client.info("persistence")["aof_pending_bio_fsync"]
        server.kill()
        if delayed:
            self.lost.append((before - _POSTPONED, time.monotonic()))

    def _fail_over(self) -> None:
        """Promote the replica, which lacks the writes of the last moments, and give it the address of the primary."""
        old, new = self.server, self.replica
        assert old is not None
        assert new is not None
        _wait_for_sync(new)
        with new.client() as client:
            began = time.monotonic()
            client.replicaof("NO", "ONE")
        time.sleep(self.random.uniform(0.02, 0.2))
        old.kill()
        self.lost.append((began, time.monotonic()))
        with new.client() as client:
            new.port, old.port = old.port, free_port()
            client.config_set("port", new.port)
        shutil.rmtree(old.directory)
        _follow(old.start(), new)
        self.server, self.replica = new, old
        self.figures.counts["failovers"] += 1

    def _deploy(self, pid: int) -> None:
        """Have a process stop by SIGTERM, as a deploy does, and start the next one beside it."""
        os.kill(pid, signal.SIGTERM)
        self.stopping[pid] = time.monotonic()
        self.figures.counts["deploys"] += 1
        self._start(self.workers.pop(pid))

    def _look_after_deploys(self) -> None:
        """What is told to stop must do so, by itself."""
        for pid, since in list(self.stopping.items()):
            code = self.nursery.ended(pid)
            hangs = code is None and time.monotonic() > since + PATIENCE
            if hangs:
                os.kill(pid, signal.SIGABRT)
                self.nursery.wait([pid])
            if hangs or code is not None:
                del self.stopping[pid]
            if hangs or code not in {None, 0, -signal.SIGTERM}:  # Told so before it could hear it, it just dies.
                self.figures.wrong.append(f"a process told to stop {'did not' if hangs else f'ended with {code}'}")

    def _kill(self, pid: int, *, again: bool) -> None:
        number = self.workers.pop(pid)
        self.frozen.pop(pid, None)
        os.kill(pid, signal.SIGKILL)
        _, code = self.nursery.wait([pid])
        if code != -signal.SIGKILL:
            self.figures.wrong.append(f"a process ended with exit code {code}")
        if again:
            self.figures.counts["kills"] += 1
            self._start(number)

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def _calm(self, store: Any) -> None:
        """Each run that is not over is resumed, without an operator, within one and a half leases."""
        world = World(Ledger(str(self.folder / "ledger")))
        watched = Watched(store, Journal(str(self.folder / "journal")))
        end = time.monotonic() + 20 * LEASE
        with Engine(store=watched, lease=30.0, workflows=saga_of(world).values()) as engine:
            time.sleep(LEASE)
            while engine.recover() or self._open(store):
                if time.monotonic() > end:
                    self.figures.wrong += (f"{key} does not end" for key in self._open(store))
                    return

    @staticmethod
    def _open(store: Any) -> list[str]:
        return [
            record.key
            for status in ("running", "waiting", "parked", "incomplete")
            for record in store.list_runs(status=status)
            if not record.held
        ]

    def _audit(self, store: Any) -> None:
        effects, words = effects_of(self.folder / "ledger"), words_of(self.folder / "journal")
        workflows = saga_of(World(Ledger(str(self.folder / "ledger"))))
        counts = self.figures.counts
        sendings: dict[str, list[list[Any]]] = {}
        for line in lines_of(sendings_of(self.place(direct=True))):
            sendings.setdefault(line[0], []).append(line)
            counts[f"values sent: {line[2]}"] += 1
        for key in sorted(effects.keys() | words.keys()):
            record = store.find(key)
            did, said = effects.get(key, []), words.get(key, [])
            wf = workflows[int(key.partition(".")[0]) % len(workflows)]
            if any(began <= word.heard and word.sent <= ended for word in said for began, ended in self.lost):
                counts["keys of which writes were lost"] += 1
                found = audit_after_loss(did, record, wf)
            else:
                found = audit(did, said, record, wf, self._was_frozen)
            mine = [] if record is None else [effect for effect in did if effect.run_id == record.run_id]
            ended = mine and not record.held and not _is_withdrawn(record, mine)
            if ended and record.status not in SAGAS[wf.name][1]:  # for instance refunded by a deploy
                found.append(f"it ended with {record.status}")
            self.figures.wrong += (f"{key} ({wf.name}): {one}" for one in found)
            if found:
                lines: list[Effect | Word] = [*did, *said]
                lines.sort(key=lambda line: line.at if isinstance(line, Effect) else line.heard)
                freezes = [freeze for freeze in self.freezes if any(line.pid == freeze[0] for line in lines)]
                self.figures.stories.append("\n".join(map(str, (*lines, record, freezes))))
            sent = sendings.get(key, [])
            reported = [*((word.sent, word.heard) for word in said), *((line[3], line[4]) for line in sent)]
            if not any(began <= to and since <= ended for since, to in reported for began, ended in self.lost):
                self.figures.wrong += (f"{key} ({wf.name}): {one}" for one in _received(record, sent))
            runs = {word.run_id for word in said}
            counts["keyed runs"] += len(runs)
            counts["owners"] += len({(word.run_id, word.fence) for word in said if word.verb == "claim"})
            counts["effects"] += len(did)
            counts["effects twice"] += len(did) - len({effect.step_key for effect in did})
            counts[f"ended {'held' if record is None or record.held else record.status}"] += 1

    def _operate(self) -> None:
        """The commands of an operator on what the storm has left, also for a user who may only read."""
        place = self.place(direct=True)
        if self.server is None:
            self.figures.wrong += complaints(f"sqlite:{place.address}", most=10)
            return
        options = ("--prefix", place.prefix)
        self.figures.wrong += complaints(reader_of(place.address, place.prefix), *options, may_decide=False, most=10)
        self.figures.wrong += complaints(place.address, *options, most=10)

    def _was_frozen(self, effect: Effect, since: float) -> bool:
        frozen = any(pid == effect.pid and since <= to and begins <= effect.at for pid, begins, to in self.freezes)
        self.figures.counts["effects of zombies"] += frozen
        return frozen


def _is_withdrawn(record: Any, effects: list[Effect]) -> bool:
    """Whether the run was withdrawn before it began. A late copy of a claim, sent again by a process that had been
    frozen, has the run id of an earlier run: their effects are those of that run, with lower fences."""
    withdrawn = record.status == Status.FAILURE and record.seq <= 1
    return withdrawn and all(effect.fence < record.fence - 1 for effect in effects)


def _received(record: Any, sendings: list[list[Any]]) -> list[str]:
    """What is wrong with the value that a run has got: at most one counts, and that is its result."""
    counted = {line[1] for line in sendings if line[2] == "counts"}
    asked = {line[1] for line in sendings}
    if len(counted) > 1:
        return [f"{len(counted)} values count: {sorted(counted)}"]
    got = None if record is None or record.status != Status.SUCCESS else record.results.get("approved")
    if got is None:
        return []
    if counted and got not in counted:
        return [f"it has got {got}, and {counted} counts"]
    return [] if got == "no one" or got in asked else [f"it has got {got}, which was never sent"]


def _follow(replica: RedisServer, primary: RedisServer) -> None:
    with replica.client() as client:
        client.replicaof("127.0.0.1", str(primary.port))
    _wait_for_sync(replica)


def _wait_for_sync(replica: RedisServer) -> None:
    """Wait until a replica has all that its primary has, on disk too."""
    with replica.client() as client:
        until(lambda: client.info("replication")["master_link_status"] == "up", "a replica that follows")
        until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], "a replica that keeps what it has")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.durable.storm", description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000, help="keyed runs, of all eras")
    parser.add_argument("--seconds", type=float, default=60.0, help="of an era")
    parser.add_argument("--store", choices=["redis", "sqlite", "both"], default="both")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    arguments = parser.parse_args()
    wrong = 0
    for kind in ("redis", "sqlite") if arguments.store == "both" else (arguments.store,):
        total, era = Figures(), arguments.seed
        while total.counts["keyed runs"] < arguments.runs:
            with tempfile.TemporaryDirectory() as folder, Nursery() as nursery:
                figures = Storm(kind, Path(folder), nursery, era).rage(arguments.seconds)
            total.seconds += figures.seconds
            total.counts += figures.counts
            total.wrong += figures.wrong
            print(f"{kind}, seed {era}: {figures}", flush=True)
            for one in (*figures.wrong[:20], *figures.stories[:5]):
                print(f"  {one}", flush=True)
            era += 1
        print(f"{kind}, all: {total}", flush=True)
        wrong += len(total.wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
