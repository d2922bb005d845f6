"""Redis does what it is asked, and the reply is lost on its way: the run ends right, and each effect is there once."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis.asyncio.retry
import redis.retry
from redis.backoff import NoBackoff

from flowcore import StoreUnavailable
from flowcore.stores.base import Claim, Claimed
from flowcore.stores.redis import index_scripts, operator_scripts, scripts
from flowcore.stores.redis.index_scripts import DUE
from flowcore.stores.redis.lua import Script
from flowcore.stores.redis.operator_scripts import DECIDE, RELEASE
from flowcore.stores.redis.scripts import CHECKPOINT, CLAIM, FINISH, RENEW, WITHDRAW
from tests.durable.audit import audit
from tests.durable.crash import Place
from tests.durable.engines import DRIVERS, STORES, recover_until, run
from tests.durable.ledger import Journal, Ledger, effects_of, words_of
from tests.durable.proxy import Proxy
from tests.durable.sagas import World, saga
from tests.durable.watched import Fuse, Watched
from tests.stores.redis_servers import RedisServer, until

VERBS = {"claim": CLAIM, "checkpoint": CHECKPOINT, "finish": FINISH}
LEASE = 5.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), port=0) as server:
        with server.client() as client:  # a lost "I do not know that script" would prove nothing
            for value in {**vars(scripts), **vars(operator_scripts), **vars(index_scripts)}.values():
                if isinstance(value, Script):
                    client.script_load(value.text)
        yield server


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def far(place: Callable[[str], Place], proxy: Proxy) -> Place:
    """A place whose replies may be lost."""
    return replace(place("redis"), address=f"redis://127.0.0.1:{proxy.port}/0")


def resending(driver: str, times: int) -> dict[str, Any]:
    """How often the client itself asks again: redis-py's own option. Where it does not, the engine does."""
    kind = redis.asyncio.retry.Retry if driver == "asyncio" else redis.retry.Retry
    return {"retry": kind(NoBackoff(), times)}


@pytest.mark.parametrize("resends", [0, 2])
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("name", ["success", "compensated", "retried"])
def test_a_run_ends_right_whichever_reply_is_lost(
    far: Place, proxy: Proxy, name: str, driver: str, resends: int
) -> None:
    world, seen = World(Ledger(far.ledger)), Counter[str]()
    wf = saga(name, world)
    with far.store(asynchronous=driver == "asyncio", **resending(driver, resends)) as store:

        def go(key: str) -> str:
            fuse = Fuse("", 0, lambda: None)
            ended = run(driver, Watched(store, Journal(far.journal), fuse), wf, key, LEASE)
            seen.update(fuse.seen)
            assert not ended.replayed  # it is our own run, and we know it
            return ended.status

        status = go("nothing lost")
        cases = [(verb, number) for verb in VERBS for number in range(seen[f"after {verb}"])]
        for verb, number in cases:
            proxy.lose_reply_to(VERBS[verb], after=number)
            assert go(f"{verb} {number}") == status
        assert proxy.losses == len(cases) > 3
    effects, words = effects_of(far.ledger), words_of(far.journal)
    wanted = [(effect.step, effect.what) for effect in effects["nothing lost"]]
    with far.store() as store:
        for verb, number in cases:
            key = f"{verb} {number}"
            assert [(effect.step, effect.what) for effect in effects[key]] == wanted
            assert not audit(effects[key], words[key], store.find(key), wf)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_heartbeat_whose_reply_is_lost_costs_nothing(far: Place, proxy: Proxy, driver: str) -> None:
    fuse = Fuse("", 0, lambda: None)
    world = World(Ledger(far.ledger), beaten=lambda: fuse.seen["after renew"] > 1)
    proxy.lose_reply_to(RENEW)
    with far.store(asynchronous=driver == "asyncio", **resending(driver, 0)) as store:
        ended = run(driver, Watched(store, Journal(far.journal), fuse), saga("slow", world), "k", 0.3)
    assert (ended.status, proxy.losses) == ("compensated", 1)
    effects = [(effect.step, effect.what) for effect in effects_of(far.ledger)["k"]]
    assert effects == [("a", "do"), ("b", "do"), ("b", "undo"), ("a", "undo")]


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_claim_that_is_never_answered_is_refused_and_leaves_the_key_free(
    far: Place, proxy: Proxy, driver: str
) -> None:
    wf = saga("success", World(Ledger(far.ledger)))
    proxy.lose_reply_to(CLAIM, times=math.inf)
    proxy.lose_reply_to(WITHDRAW)
    unanswered = pytest.raises(StoreUnavailable)
    with far.store(asynchronous=driver == "asyncio", **resending(driver, 0)) as store, unanswered:
        run(driver, store, wf, "k", 0.6)
    assert proxy.losses >= 2  # a claim at least, and the withdrawal
    assert effects_of(far.ledger) == {}
    proxy.lose_reply_to(CLAIM, times=0)
    with far.store() as store:
        assert run("threads", store, wf, "k", LEASE, wait=None).status == "success"  # there is no lease to wait for
    assert [effect.step for effect in effects_of(far.ledger)["k"]] == ["a", "b", "c"]


@pytest.mark.parametrize("driver", DRIVERS)
def test_recovery_continues_by_itself_after_lost_replies(far: Place, proxy: Proxy, driver: str) -> None:
    wf = saga("success", World(Ledger(far.ledger)))
    claim = Claim("k", "1" * 32, wf.name, None, wf.freeze().graph, {}, {"key": "k"}, lease=0.0, begins=("a",))
    with far.store() as near:
        assert isinstance(near.claim(claim), Claimed)  # and then its owner died
        proxy.lose_reply_to(DUE)
        proxy.lose_reply_to(CLAIM)
        proxy.lose_reply_to(FINISH)

        with far.store(asynchronous=driver == "asyncio", **resending(driver, 0)) as store:
            recover_until(driver, store, wf, 0.02, lambda: near.find("k").status == "success")
    assert proxy.losses == 3
    assert [effect.step for effect in effects_of(far.ledger)["k"]] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("verb", "script", "more", "generation"),
    [
        ("undo", DECIDE, ["undo b"], 0),
        ("resume", DECIDE, ["undo b"], 0),
        ("release", RELEASE, ["do a", "do b", "undo b", "undo a"], 1),
    ],
)
@pytest.mark.parametrize("driver", DRIVERS)
def test_an_operators_word_whose_reply_is_lost_counts_once(
    far: Place, proxy: Proxy, driver: str, verb: str, script: Script, more: list[str], generation: int
) -> None:
    broken = True
    wf = saga("held", World(Ledger(far.ledger), broken=lambda: broken))
    with far.store() as near, far.store(asynchronous=driver == "asyncio") as store:
        assert run(driver, store, wf, "k", LEASE).held
        broken = False
        with far.store(**resending("threads", 0)) as operators:
            proxy.lose_reply_to(script)
            with pytest.raises(StoreUnavailable):
                getattr(operators, verb)("k")
            getattr(operators, verb)("k")
        assert run(driver, store, wf, "k", LEASE).status == "compensated"
        assert near.find("k").generation == generation
    effects = [f"{effect.what} {effect.step}" for effect in effects_of(far.ledger)["k"]]
    assert effects == ["do a", "do b", *["failed undo b"] * 3, "undo a", *more]


@pytest.mark.parametrize(
    ("verb", "status", "effects"),
    [("resume", "success", ["do a", "do b", "do c"]), ("undo", "compensated", ["undo a"])],
)
def test_a_run_that_is_held_and_let_go_goes_the_way_that_was_decided_though_both_replies_are_lost(
    far: Place, proxy: Proxy, verb: str, status: str, effects: list[str]
) -> None:
    wf = saga("success", World(Ledger(far.ledger)))
    claim = Claim("k", "1" * 32, wf.name, None, wf.freeze().graph, {}, {"key": "k"}, lease=0.0, begins=("a",))
    with far.store() as near, far.store(**resending("threads", 0)) as operators:
        claimed = near.claim(claim)
        assert isinstance(claimed, Claimed)  # and then its owner died
        for word in ("hold", verb):
            proxy.lose_reply_to(DECIDE)
            with pytest.raises(StoreUnavailable):
                getattr(operators, word)("k")
            assert near.find("k").held == (word == "hold")
            getattr(operators, word)("k")
            assert near.find("k").held == (word == "hold")
        assert near.find("k").fence == claimed.fence + 1
        recover_until("threads", near, wf, 0.02, lambda: near.find("k").status == status)
    assert [f"{effect.what} {effect.step}" for effect in effects_of(far.ledger)["k"]] == effects


class Resends:
    """A store whose client hears no answer to a claim, and sends it again much later, as redis-py does by itself."""

    def __init__(self, store: Any, meanwhile: Callable[[], None]) -> None:
        self._store = store
        self._meanwhile = meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def claim(self, claim: Claim) -> Any:
        assert isinstance(self._store.claim(claim), Claimed)
        self._meanwhile()
        return self._store.claim(claim)


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("name", ["success", "compensated"])
def test_a_claim_that_is_sent_again_after_others_have_ended_its_run_begins_nothing(
    place: Callable[[str], Place], kind: str, driver: str, name: str
) -> None:
    here = place(kind)
    wf = saga(name, World(Ledger(here.ledger)))
    with here.store() as store:

        def others() -> None:
            until(lambda: store.list_runs(status="expired"), "the end of the lease")
            assert not run("threads", store, wf, "k", LEASE).replayed

        ended = run(driver, Resends(store, others), wf, "k", 0.05)
        assert (ended.status, ended.replayed, ended.id) == (name, True, store.find("k").run_id)
    assert len({effect.fence for effect in effects_of(here.ledger)["k"]}) == 1


@pytest.mark.parametrize(("kind", "driver"), [("sqlite", "threads"), ("redis", "asyncio")])
def test_a_claim_that_is_sent_again_after_two_others_have_had_the_key_begins_no_second_run_of_its_id(
    place: Callable[[str], Place], kind: str, driver: str
) -> None:
    here = place(kind)
    wf = saga("compensated", World(Ledger(here.ledger)))
    ids: list[str] = []
    with here.store() as store:

        def others() -> None:
            until(lambda: store.list_runs(status="expired"), "the end of the lease")
            ids.extend(run("threads", store, wf, "k", LEASE).id for _ in range(2))

        with pytest.raises(
            StoreUnavailable, match=r"the claim for key 8254c329a92850f6 too late \(more than one lease\)"
        ):
            run(driver, Resends(store, others), wf, "k", 0.05)
        assert len({effect.run_id for effect in effects_of(here.ledger)["k"]}) == len(set(ids)) == 2
        last = run(driver, store, wf, "k", LEASE)
        assert (last.status, last.id in ids) == ("compensated", False)
