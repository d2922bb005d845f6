"""The demo's wait: an order that waits for a person, and what it survives meanwhile.

The order waits for its approval while its service is killed and deployed anew, and its store is restarted. Then another
process gets the approval, and the payment provider's webhook comes before the charge call has returned.
"""

import http.client
import json
import time
from collections.abc import Callable
from typing import Any

from audit import history
from flowcore.status import Status
from flowcore.stores import RedisStore, RunRecord, SQLiteStore
from running import DemoError, Redis, Service, scrape
from telling import Story, counts

HANG = 2.0  # seconds after a charge until its call returns
PATIENCE = 30.0  # seconds to wait for events that usually take one or two
ORDER = {"sku": "lamp", "quantity": 2, "cents": 9800, "card": "tok_hang_after_charge", "address": "home"}
DONE = ("reserved", "charged", "shipped", "notified")


class Waiting:
    """Lets an order wait in `store` while `service` and `server` are stopped and started again.

    `options`: those of the service. `mark`: the suffix of the order's key.
    """

    def __init__(
        self,
        story: Story,
        service: Service,
        store: SQLiteStore | RedisStore,
        server: Redis | None,
        mark: str,
        *options: str,
    ) -> None:
        self._story, self._service, self._store, self._server = story, service, store, server
        self._options = options
        self._key = f"lamp-1{mark}"
        self._ref = f"guest/{self._key}"
        self._placed = 0.0

    def run(self) -> None:
        """Run and report all of it. Every deviation is a failed check."""
        story = self._story
        story.chapter(f"An order of {ORDER['quantity']} lamps has to be approved")
        self._placed = time.monotonic()
        self._say(f"POST /purchases -> {self._post('/purchases', ORDER)[0]}: process {self._pid} forgets it")
        self._still_waits("it waits for a person, and for no process")
        story.chapter("What it outlives")
        self._service.kill()
        self._say(f"kill -9 {self._pid}")
        self._service.start(*self._options)
        self._still_waits(f"started again as {self._pid}: the order waits")
        before = self._pid
        self._service.stop()
        self._service.start(*self._options)
        self._still_waits(f"a deploy, SIGTERM to {before} and a new version as {self._pid}: the order waits")
        if self._server is not None:
            self._server.restart()
            self._still_waits("the Redis was killed, and started again from its file: the order waits")
        story.chapter(f"The approval comes, to process {self._pid}")
        decision = self._post(f"/approvals/{self._ref}", {"by": "Ann"})[0]
        story.check(decision == 202, f"Ann approves -> {decision}")
        again = self._post(f"/approvals/{self._ref}", {"by": "Bob", "approved": False})[0]
        story.check(again == 409, f"Bob, who comes second, refuses -> {again}")
        self._webhook()
        self._wait(lambda: self._record().status is Status.SUCCESS, "the order to be done")
        self._books()

    def _webhook(self) -> None:
        """Send the provider's webhook twice, before the charge call has returned."""
        self._wait(lambda: "charged" in history(self._service.ledger, self._ref), "the charge")
        event = {"id": "evt_1", "ref": self._ref, "cents": ORDER["cents"]}
        first, second = self._post("/webhooks/payments", event)[0], self._post("/webhooks/payments", event)[0]
        early = self._record().steps["charge"].status is Status.RUNNING
        self._story.check(
            (first, second) == (202, 202) and early,
            f"the webhook of the payment comes twice -> {first}, {second}, while the charge call is still under way",
        )

    def _books(self) -> None:
        story, entries, record = self._story, history(self._service.ledger, self._ref), self._record()
        self._say(f"in the books: {', '.join(entries)}; {record.results['decide']}")
        story.check(entries == DONE, "each effect is there once", [] if entries == DONE else list(entries))
        status, body = self._ask("GET", f"/orders/{self._key}")
        story.check(status == 201, f"GET /orders/{self._key} -> {status}: {body.get('message', body)}")
        story.check(record.takeovers == 0, "no process took it over from another: it had none")
        waited = sum(
            sample.value
            for sample in scrape(self._service.port)
            if sample.name == "flowcore_wait_duration_seconds_sum" and sample.labels["step"] == "approved"
        )
        story.check(
            0 < waited <= time.monotonic() - self._placed + 1,
            f"flowcore_wait_duration_seconds  approved: {waited:.1f} s, over all processes",
        )
        taken = counts(scrape(self._service.port), "flowcore_run_recoveries_total", "decision")
        story.check(not any(taken.values()), "flowcore_run_recoveries_total  0")

    # -- looking and asking --------------------------------------------------------------------------------------------

    @property
    def _pid(self) -> int:
        return self._service.process.pid

    def _say(self, text: str) -> None:
        self._story.say(f"  {text}")

    def _record(self) -> RunRecord:
        record = self._store.find(self._ref)
        if record is None:
            raise DemoError(f"The store has no order {self._ref}.")
        return record

    def _still_waits(self, text: str) -> None:
        record = self._record()
        stands = (record.status, record.waiting_for, record.expires)
        self._story.check(
            stands == (Status.WAITING, ("approved",), None)
            and history(self._service.ledger, self._ref) == ("reserved",),
            text,
            [] if stands == (Status.WAITING, ("approved",), None) else [f"its record says {stands}"],
        )

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        give_up = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > give_up:
                raise DemoError(f"Timed out waiting for {what}.")
            time.sleep(0.01)

    def _post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self._service.port, timeout=PATIENCE)
        headers = {"Content-Type": "application/json", "Idempotency-Key": self._key}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        said: dict[str, Any] = json.loads(response.read())
        connection.close()
        return response.status, said
