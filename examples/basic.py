"""Two steps, one after the other: the second uses what the first returned.

    python examples/basic.py

`depends_on=` names the steps that must be done first; `ctx[step]` is the result of such a step, with its type.
"""

from flowcore import Context, Workflow

wf = Workflow("greeting")


@wf.step
def find_name(ctx: Context) -> str:
    """A step is a plain function of `ctx`; the run's initial values are in it."""
    return str(ctx["email"]).partition("@")[0].capitalize()


@wf.step(depends_on=find_name)
def greet(ctx: Context) -> str:
    return f"Hello, {ctx[find_name]}!"


if __name__ == "__main__":
    print(wf, end="\n\n")

    run = wf.run({"email": "ada@example.org"})

    print(f"\n{run[greet]}")
