"""Replay a seed and print what happens: `python -m tests.simulator 4711`. A range, `0-10000`, looks for failures."""

import sys
from collections.abc import Iterator

from .model import judged_twice
from .specs import StepSpec, Trial, from_seed, tried


def reported(trial: Trial) -> Iterator[str]:
    """Yield the lines of the story of a trial."""
    spec, simulation = trial.spec, trial.simulation
    for step in spec.steps:
        plain = StepSpec(step.name)
        said = {name: getattr(step, name) for name in StepSpec.__dataclass_fields__}
        yield f"step {step.name}: " + ", ".join(f"{k}={v!r}" for k, v in said.items() if v != getattr(plain, k))
    said = {name: getattr(spec, name) for name in type(spec).__dataclass_fields__ if name != "steps"}
    yield ", ".join(f"{k}={v!r}" for k, v in said.items())
    begins = sorted((call.events_before, number) for number, call in enumerate(simulation.calls))
    for index, event in enumerate([*simulation.events, None]):
        while begins and begins[0][0] <= index:
            call = simulation.calls[begins.pop(0)[1]]
            end = "never" if call.ended is None else f"{call.ended - simulation.began:.3f}"
            left = "" if call.given_up is None else f", given up at {call.given_up - simulation.began:.3f}"
            failed = ", failed" if call.failed else ""
            yield f"{call.began - simulation.began:8.3f}     call {call.what} {call.step} {call.attempt} -> {end}{left}{failed}"
        if event is not None:
            names = ("step", "attempt", "undo", "outcome", "delay", "order", "error")
            words = " ".join(f"{name}={getattr(event, name)!s:.60}" for name in names if hasattr(event, name))
            yield f"{event.at - simulation.began:8.3f} {type(event).__name__} {words}"
    if simulation.cancelled is not None:
        yield f"cancelled at {simulation.cancelled - simulation.began:.3f}"
    yield simulation.run.explain()


def main() -> None:
    for word in sys.argv[1:]:
        first, _, last = word.partition("-")
        for seed in range(int(first), int(last or first) + 1):
            trial = tried(from_seed(seed))
            broken = judged_twice(trial)
            if not last:
                print(*reported(trial), sep="\n")
            if broken or not last:
                print(f"seed {seed}: ", "; ".join(broken) or "all promises kept")


if __name__ == "__main__":
    main()
