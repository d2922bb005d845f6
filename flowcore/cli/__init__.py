"""The command `flowcore`, with which an operator inspects and manages the runs in a store from a shell.

click parses the command line, because it checks arguments, writes the help and completes in bash, zsh and fish by itself;
rich draws tables and the live view, because it knows terminals, widths and encodings. Both come with the extra `cli`.
"""

from .app import run

__all__ = ["run"]
