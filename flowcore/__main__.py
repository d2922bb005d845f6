"""`python -m flowcore`: the command line for operators."""

import sys

from flowcore import __version__


def main() -> None:
    """Run the command line. `--version` works without the extra `cli`."""
    if sys.argv[1:] == ["--version"]:
        print(f"flowcore {__version__}")  # noqa: T201 - the command's output
        return
    try:
        from flowcore.cli import run
    except ImportError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.exit("The flowcore command needs click and rich: pip install 'flowcore[cli]'")
    run()


if __name__ == "__main__":
    main()
