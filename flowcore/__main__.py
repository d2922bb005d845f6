"""`python -m flowcore`: the command line for operators."""

import sys

from flowcore import __version__


def main() -> None:
    """Run the command line; `--version` needs no extra."""
    if sys.argv[1:] == ["--version"]:
        print(f"flowcore {__version__}")  # noqa: T201 - it speaks to a person
        return
    try:
        import click  # noqa: F401 - an extra, looked for before the commands that need it are imported
        import rich  # noqa: F401
    except ImportError:
        sys.exit("The flowcore command needs click and rich: pip install 'flowcore[cli]'")
    from flowcore.cli import run

    run()


if __name__ == "__main__":
    main()
