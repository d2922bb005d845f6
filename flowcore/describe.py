"""Drawings of a plan for people: as text, as Mermaid, as DOT. They only read the plan."""

from __future__ import annotations

from typing import Final

from .errors import encodable, safe_repr
from .plan import Node, Plan

__all__ = ["described", "dot", "mermaid", "plain", "text"]

_LINES: Final = 40  # steps that a repr shows
_NAME: Final = 60  # characters of a name that a drawing shows
_ASCII: Final = str.maketrans(
    {
        "·": "-",
        "─": "-",
        "┬": "+",
        "├": "|",
        "└": "+",
        "←": "<-",
        "×": "x",
        "…": "...",
        "↶": "(undo)",
        "◆": "(pivot)",
        "⏱": "timeout",
    }
)
_IN_MERMAID: Final = {char: f"#{ord(char)};" for char in "#&<>`"} | {'"': "#quot;"}


def text(plan: Plan, name: str) -> str:
    """Return the plan as text: one line per step, layer by layer, with retries, limits, undo and dependencies."""
    layers = plan.layers()
    lines = [f"Workflow {safe_repr(name)} · {_count(len(plan.nodes), 'step')} · {_count(len(layers), 'layer')}"]
    wide = len(str(len(layers)))
    drawn = 0
    for number, layer in enumerate(layers, 1):
        for place, step in enumerate(layer):
            if drawn == _LINES:
                return "\n".join([*lines, f"  … and {len(plan.nodes) - drawn} more"])
            node = plan.by_name[step.name]
            last = place == len(layer) - 1
            joint = "─" if len(layer) == 1 else "┬" if place == 0 else "└" if last else "├"
            label = f"{number:>{wide}}" if place == 0 else " " * wide
            lines.append(f"  {label} {joint} {described(node)}")
            drawn += 1
    return "\n".join(lines)


def plain(drawn: str, stream: object) -> str:
    """Return a drawn plan that a text stream can encode. All marks become ASCII if it lacks one of them."""
    if encodable(drawn, stream) == drawn:
        return drawn
    return encodable(drawn.translate(_ASCII), stream)


def mermaid(plan: Plan) -> str:
    """Return the plan as a Mermaid flowchart, top down; a dotted edge leads to each undo."""
    lines = ["flowchart TD"]
    for node in plan.nodes:
        left, right = ("[", "]") if node.wait is None else ("([", "])")
        lines.append(f'    s{node.index}{left}"{_for_mermaid(node.name)}"{right}')
        lines.extend(f"    s{before} --> s{node.index}" for before in node.predecessors)
        if node.compensation is not None:
            lines.append(f'    s{node.index} -. undo .-> u{node.index}(("↶"))')
    return "\n".join(lines) + "\n"


def dot(plan: Plan, name: str) -> str:
    """Return the plan in Graphviz's DOT language."""
    lines = [f'digraph "{_for_dot(name)}" {{', "    rankdir=LR;", "    node [shape=box, style=rounded];"]
    for node in plan.nodes:
        dashed = ", peripheries=2" if node.compensation is not None else ""
        rounded = "" if node.wait is None else ', style="rounded,dashed"'
        lines.append(f'    s{node.index} [label="{_for_dot(node.name)}"{dashed}{rounded}];')
        lines.extend(f"    s{before} -> s{node.index};" for before in node.predecessors)
    return "\n".join([*lines, "}"]) + "\n"


def described(node: Node) -> str:
    """Return one line about a step: its name, retries, limits, undo and dependencies."""
    marks = [
        *(["↶"] if node.compensation is not None else []),
        *(["◆"] if node.step.pivot else []),
        *([f"×{node.max_attempts}"] if node.max_attempts > 1 else []),
        *([f"⏱ {node.timeout:g} s"] if node.timeout is not None else []),
        *(
            [f"⏳{f' {node.wait.timeout:g} s' if node.wait.timeout is not None else ''}"]
            if node.wait is not None
            else []
        ),
        *(["?"] if node.when is not None else []),
    ]
    before = ", ".join(_clipped(name) for name in node.dependencies[:_LINES])
    more = f" and {len(node.dependencies) - _LINES} more" if len(node.dependencies) > _LINES else ""
    arrow = [f"← {before}{more}"] if node.dependencies else []
    return "  ".join([" ".join([_clipped(node.name), *marks]), *arrow])


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _clipped(name: str) -> str:
    clean = name if name.isprintable() else safe_repr(name)[1:-1]
    clean = clean.encode("utf-8", "backslashreplace").decode("utf-8")
    return clean if len(clean) <= _NAME else clean[:_NAME] + "…"


def _for_mermaid(name: str) -> str:
    """Return a name escaped for use in double quotes, where Mermaid may show it as HTML or Markdown."""
    return "".join(_IN_MERMAID.get(char, char) for char in _clipped(name))


def _for_dot(name: str) -> str:
    """Return a name escaped for use in double quotes."""
    return _clipped(name).replace("\\", "\\\\").replace('"', '\\"')
