"""A process without a web server: it runs the orders whose numbers it reads, and resumes those of dead processes.

    python worker.py < numbers

$FLOWCORE_STORE names its store. SIGTERM ends the interpreter by SystemExit, which parks the runs of the engine.
"""

import signal
import sys
from types import FrameType

from flowcore import Engine
from orders import open_store, order


def stop(number: int, frame: FrameType | None) -> None:
    """End the process, as `kill` and supervisors expect."""
    sys.exit(0)


def main() -> None:
    """Run the orders whose numbers are read, then stay to resume the orders of other processes."""
    signal.signal(signal.SIGTERM, stop)
    with Engine(store=open_store(), workflows=[order], recover_every=0.2, grace=5) as engine:
        for line in sys.stdin:
            engine.submit(order, {"number": line.strip()}, idempotency_key=line.strip())
        while True:
            signal.pause()


if __name__ == "__main__":
    main()
