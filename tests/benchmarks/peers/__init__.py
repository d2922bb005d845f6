"""Other libraries that run graphs of steps, where they are installed: `pip install --group bench`."""

from __future__ import annotations

from importlib import import_module

from ..subjects import Subject

__all__ = ["installed"]

PEERS = {
    "hamilton_": "apache-hamilton",
    "burr_": "apache-burr",
    "pydantic_graph_": "pydantic-graph",
    "sagaz_": "sagaz",
    "taskflow_": "taskflow",
}
"""module in this folder -> distribution"""


def installed() -> tuple[list[type[Subject]], list[str]]:
    """The subjects that can be measured here, and a sentence about each library that cannot."""
    subjects: list[type[Subject]] = []
    missing: list[str] = []
    for module, distribution in PEERS.items():
        try:
            subjects.extend(import_module(f".{module}", __package__).SUBJECTS)
        except ImportError as error:
            missing.append(f"{distribution} is left out: {error}.")
    return subjects, missing
