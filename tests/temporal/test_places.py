"""A codec on Temporal that binds each text to the place where it is stored: every text is read at the place for which it
was written."""

from typing import Any

from flowcore import Status, Workflow
from flowcore.stores.codec import JsonCodec
from flowcore.stores.sealing import Place

from .conftest import Temporal


class Bound:
    """Writes the place in front of each text, and refuses a text from another place."""

    plain = True

    def dumps(self, value: Any, annotation: Any, place: Place) -> str:
        return f"{place.run} {place.field}|{JsonCodec().dumps(value, annotation)}"

    def loads(self, text: str, annotation: Any, place: Place) -> Any:
        where, _, rest = text.partition("|")
        if where != f"{place.run} {place.field}":
            raise ValueError(f"a text for {where} was found at {place.run} {place.field}")
        return JsonCodec().loads(rest, annotation)


def test_every_text_is_read_at_its_place(temporal: Temporal) -> None:
    wf = Workflow("places", undo="never")
    tries: list[int] = []

    @wf.step
    def write(ctx: Any) -> str:
        ctx["written"] = [ctx["given"]]
        return "result"

    wf.wait("sent", depends_on="write")
    wf.wait("default", timeout=0.1, default={"by": "default"}, depends_on="write")
    wf.sleep("nap", 0.1)

    @wf.step(depends_on=["sent", "default", "nap"])
    def read(ctx: Any) -> Any:
        if not tries:
            tries.append(1)
            raise ValueError("once")
        return [ctx[name] for name in ("given", "written", "write", "sent", "default", "nap")]

    expected = [1, [1], "result", "yes", {"by": "default"}, None]

    async def main() -> None:
        async with temporal.open(wf, codec=Bound()) as engine:
            for key in ("k", None):
                tries.clear()
                future = engine.submit(wf, {"given": 1}, idempotency_key=key, check=False)
                await future.recorded()
                assert await engine.send(key or future.run_id, "sent", "yes")
                run = await future
                assert run.status is Status.INCOMPLETE
                found = await engine.store.find(key or run.id)
                assert found is not None
                assert found.values == {"given": 1, "written": [1]}
                if key is not None:
                    run = await engine.run(wf, {"given": 1}, idempotency_key=key)
                    assert run["read"] == expected

    temporal.run(main)
