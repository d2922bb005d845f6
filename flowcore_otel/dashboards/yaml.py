"""Writes the subset of YAML that rules and Kubernetes objects need, so that no library has to be installed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

__all__ = ["to_yaml"]


def to_yaml(content: Mapping[str, Any]) -> str:
    """Return a document of mappings, lists, strings, numbers and booleans. Strings of several lines stay readable."""
    return "\n".join(_mapping(content, "")) + "\n"


def _mapping(content: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in content.items():
        yield from _entry(f"{indent}{key}:", value, indent)


def _entry(head: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        yield head
        yield from _mapping(cast("Mapping[str, Any]", value), indent + "  ")
    elif isinstance(value, list) and value:
        yield head
        for item in cast("Sequence[Any]", value):
            yield from _item(item, indent)
    elif isinstance(value, str) and ("\n" in value.rstrip("\n") or '"' in value):
        yield f"{head} |{'' if value.endswith(chr(10)) else '-'}"
        yield from (f"{indent}  {line}".rstrip() for line in value.removesuffix("\n").split("\n"))
    else:
        yield f"{head} {json.dumps(value, ensure_ascii=False)}"


def _item(item: Any, indent: str) -> Iterator[str]:
    if not isinstance(item, dict):
        yield f"{indent}- {json.dumps(item, ensure_ascii=False)}"
        return
    lines = list(_mapping(cast("Mapping[str, Any]", item), indent + "  "))
    yield f"{indent}- {lines[0].lstrip()}"
    yield from lines[1:]
