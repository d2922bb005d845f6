"""The demo: starts the checkout service, sends it a few hundred orders at once, and shows the results.

    python examples/service/demo.py            # or: make demo
    python examples/service/demo.py --serve    # keep it running
    python examples/service/demo.py --kill     # kill -9 it in the middle, and see its orders resumed
    python examples/service/demo.py --wait     # an order waits for a person, over a kill -9, a deploy and a restart

Exits with 0 only if the books add up, every client got a response that the input expects, and the metrics agree with
both.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from pathlib import Path
from types import FrameType

import waiting
from audit import audit
from flowcore import StoreError
from flowcore.stores import RedisStore, SQLiteStore
from killing import HANG, LEASE, Killing
from replay import Answer, Line, read_orders, replay
from running import DemoError, Redis, Service, own_redis, own_temporal, scrape, serving
from stores import TEMPORAL, known, looked_into, spoken
from telling import Story, tell_books, tell_failure, tell_metrics, tell_outcomes, tell_replay, tell_where_next
from timeline import Span, read_spans

HERE = Path(__file__).parent
TIMELINE_KIND = "no carrier"  # the kind of order whose trace is drawn
OWN = ("sqlite", "redis", "temporal")  # stores that the demo starts and removes; any other store is the user's


def demo(options: argparse.Namespace, folder: Path) -> int:
    """Run the demo. Returns the exit code."""
    story = Story()
    wanted = options.store or ("sqlite" if options.kill or options.wait else "memory")
    mark = "" if wanted in {*OWN, "memory"} else f"-{os.getpid():x}{int(time.time()):x}"
    lines = read_orders(options.orders, mark)
    with own_store(wanted, folder) as (store, runs, server):
        settings = [f"--store={store}", *([f"--lease={LEASE}"] if options.kill or options.wait else [])]
        settings += [f"--hang={waiting.HANG}"] if options.wait else []
        hang = [] if options.wait else [f"--hang={HANG}"]
        with serving(options.service, options.port, folder, *settings, *hang) as service:
            if runs is not None and options.wait:
                story.say(f"{story.paint('flowcore demo', 'bold')}: a checkout service on {service.url}")
                story.say(f"runs are kept in {spoken(store)}")
                waiting.Waiting(story, service, runs, server, mark, *settings).run()
                if story.failed:
                    story.say(f"\n{story.failed} checks FAILED; ledger, spans and log are kept in {folder}")
                return 1 if story.failed else 0
            story.say(
                f"{story.paint('flowcore demo', 'bold')}: a checkout service on {service.url}, "
                f"{len(lines)} requests for {len({line.key for line in lines})} orders, {options.clients} clients at once"
            )
            if runs is not None:
                story.say(f"runs are kept in {spoken(store)}")
            if runs is not None and options.kill:
                answers = Killing(story, service, runs, mark).run(lines, options.clients, *settings)
                tell_outcomes(story, answers)
                tell_books(story, answers, audit(service.ledger))
            else:
                answers = orders(options, story, service, lines)
            if story.failed:
                story.say(f"\n{story.failed} checks FAILED; ledger, spans and log are kept in {folder}")
            else:
                replayed = next((answer for answer in answers if answer.replayed), answers[0])
                tell_where_next(story, service, replayed, serve=options.serve)
                if options.serve:
                    service.process.wait()
    return 1 if story.failed else 0


def orders(options: argparse.Namespace, story: Story, service: Service, lines: list[Line]) -> list[Answer]:
    """Send the orders and report the results. Returns the answers that the clients got."""
    start = time.monotonic()
    answers = replay(service.port, lines, options.clients)
    seconds = time.monotonic() - start
    longest = sorted(answer.seconds for answer in answers)[len(answers) * 95 // 100]
    story.say(f"all answered in {seconds:.1f} s, 95 % of them within {longest * 1e3:.0f} ms")
    story.say(f"ProgressHook in the service's log: {service.progress()}")

    failed = next((a for a in answers if a.line.kind == TIMELINE_KIND and "run" in a.body), None)
    replayed = next((a for a in answers if a.replayed and a.line.when == "after"), None)
    spans = wait_for_spans(service.spans, {str(a.body["run"]) for a in (failed, replayed) if a is not None})
    if failed:
        tell_failure(story, failed, spans)
    if replayed:
        tell_replay(story, replayed, spans)
    tell_outcomes(story, answers)
    tell_books(story, answers, audit(service.ledger))
    tell_metrics(story, answers, scrape(service.port), spans)
    return answers


@contextmanager
def own_store(wanted: str, folder: Path) -> Iterator[tuple[str, SQLiteStore | RedisStore | None, Redis | None]]:
    """Provide the store that `wanted` names, and stop its server in the end, if the demo has started one.

    Yields the store's name for the service, the store itself, or None where the demo does not read it, and the demo's
    own Redis, if any. Raises DemoError or StoreError.
    """
    with ExitStack() as stack:
        store, server = wanted, None
        if wanted == "redis":
            server = stack.enter_context(own_redis(folder))
            store = server.url
        elif wanted == "sqlite":
            store = f"sqlite:{folder / 'runs.db'}"
        elif wanted == "temporal":
            store = stack.enter_context(own_temporal(folder))
        runs = None
        if store != "memory" and not store.startswith(TEMPORAL):
            runs = stack.enter_context(looked_into(store))
            runs.list_runs(status="held")  # raises if the store is unreachable
        yield store, runs, server


def main() -> int:
    parser = argparse.ArgumentParser(description="Starts the checkout service and sends it a few hundred orders.")
    parser.add_argument("--serve", action="store_true", help="keep the service running")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--clients", type=int, default=8, help="how many send at once (default: 8)")
    parser.add_argument("--orders", type=Path, default=HERE / "orders.jsonl", help="another file of orders")
    parser.add_argument("--service", type=Path, default=HERE / "app.py", help="another service")
    parser.add_argument(
        "--store",
        type=lambda word: word if word in OWN else known(word),
        help="memory (default), sqlite:PATH, redis://..., temporal://...; sqlite, redis, temporal: one that ends with the demo",
    )
    parser.add_argument("--kill", action="store_true", help="kill -9 the service in the middle; see it taken over")
    parser.add_argument("--wait", action="store_true", help="an order waits for a person, over a kill -9 and a deploy")
    options = parser.parse_args()
    if options.wait and (options.kill or options.store == "memory" or (options.store or "").startswith("temporal")):
        parser.error("--wait goes without --kill, and needs --store sqlite or redis, or one of yours")
    if options.kill and (options.store or "").startswith("temporal"):
        parser.error("--kill looks into a store as operators do: give it --store sqlite or redis, or one of yours")
    if options.kill and options.store == "memory":
        parser.error("runs in memory end with the process: --kill needs --store sqlite or redis, or one of yours")

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an encoding without bars must not end the demo
    signal.signal(signal.SIGTERM, _end)  # so that a terminated demo stops its service
    folder = Path(tempfile.mkdtemp(prefix="flowcore-demo-"))
    keep = False
    try:
        code = demo(options, folder)
        keep = code != 0
    except (DemoError, StoreError) as error:
        print(error, file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("\nstopped")
        code = 0 if options.serve else 130
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return code


def _end(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(143)


def wait_for_spans(path: Path, run_ids: set[str]) -> list[Span]:
    """Return all spans once the file has the whole traces of these runs: the root of a run is written last."""
    give_up = time.monotonic() + 10
    while True:
        spans = read_spans(path)
        finished = {span.id for span in spans}
        runs = [span for span in spans if span.attributes.get("flowcore.run.id") in run_ids]
        complete = {str(span.attributes["flowcore.run.id"]) for span in runs if span.parent in finished}
        if complete >= run_ids:
            return spans
        if time.monotonic() > give_up:
            raise DemoError(f"The service wrote no complete trace of {len(run_ids - complete)} runs to {path.name}.")
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
