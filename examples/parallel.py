"""Steps that do not depend on each other run at the same time.

    python examples/parallel.py

A step starts as soon as its own dependencies are done; no step waits for a whole layer. Here the three quotes *meet*:
each waits at a barrier until all three are there, which only works if they really run at once.
"""

from threading import Barrier

from flowcore import Context, Engine, Workflow

all_three = Barrier(3, timeout=10)

wf = Workflow("cheapest")


@wf.step
def route(ctx: Context) -> str:
    return f"{ctx['from']}-{ctx['to']}"


@wf.step(depends_on=route)
def by_train(ctx: Context) -> int:
    all_three.wait()
    return 49


@wf.step(depends_on=route)
def by_bus(ctx: Context) -> int:
    all_three.wait()
    return 19


@wf.step(depends_on=route)
def by_plane(ctx: Context) -> int:
    all_three.wait()
    return 87


@wf.step(depends_on=[by_train, by_bus, by_plane])
def choose(ctx: Context) -> str:
    quotes = {"train": ctx[by_train], "bus": ctx[by_bus], "plane": ctx[by_plane]}
    best = min(quotes, key=lambda way: quotes[way])
    return f"{ctx[route]} by {best} for {quotes[best]}"


if __name__ == "__main__":
    for number, layer in enumerate(wf.layers(), start=1):
        print(f"{number}. {', '.join(step.name for step in layer)}")

    with Engine() as engine:
        run = engine.run(wf, {"from": "Oslo", "to": "Bergen"})

    print(f"\n{run[choose]}; all three were asked at the same time")
