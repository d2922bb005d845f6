"""The graph of a workflow as SVG, from left to right. With a run, each step is coloured by its outcome in that run."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Final

from ..describe import described
from ..plan import Node, Plan
from ..run import StepReport
from ..status import Status

__all__ = ["graph_svg"]

_HIGH: Final = 34  # height of a box
_ROW: Final = 52
_GAP: Final = 70  # width between two layers
_CHARACTER: Final = 7.4  # width of a character of the font
_SMALLEST: Final = 70  # least width of a box

_STYLE: Final = """
.flowcore-graph { color-scheme: light dark; --ink: #1c2128; --line: #8c959f; --box: #f6f8fa; --work: #1a7f5a; --bad: #c62b3b;
  --wait: #b7791f; --undo: #7a4fbf; max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) { .flowcore-graph { --ink: #e6edf3; --line: #6e7a87; --box: #161b22; --work: #3fb98a;
  --bad: #ff7b86; --wait: #e3a84a; --undo: #b392f0; } }
.flowcore-graph text { font: 12.5px ui-monospace, monospace; fill: var(--ink); text-anchor: middle; }
.flowcore-graph rect { fill: var(--box); stroke: var(--line); stroke-width: 1.5; }
.flowcore-graph path { fill: none; stroke: var(--line); stroke-width: 1.5; }
.flowcore-graph .head { fill: var(--line); stroke: none; }
.flowcore-graph .pivot rect { stroke-width: 3; } .flowcore-graph .undo rect { stroke-dasharray: 6 3; }
.flowcore-graph .success rect { stroke: var(--work); stroke-width: 2.5; }
.flowcore-graph .failed rect { stroke: var(--bad); stroke-width: 2.5; }
.flowcore-graph .waits rect { stroke: var(--wait); stroke-width: 2.5; }
.flowcore-graph .undone rect { stroke: var(--undo); stroke-width: 2.5; } .flowcore-graph .not-run { opacity: .55; }
"""
_FAILED: Final = frozenset({Status.FAILURE, Status.TIMEOUT, Status.CANCELLED, Status.UNKNOWN})
_WAITS: Final = frozenset({Status.RUNNING, Status.WAITING})


def graph_svg(plan: Plan, name: str, reports: Mapping[str, StepReport] | None = None) -> str:
    """Return an SVG that is a file of its own or a part of a page. `reports`: the report of each step, by name. Dashed
    boxes are steps with a compensation, thick ones are pivots. Green steps succeeded, red ones failed, purple ones were
    undone, amber ones are running or waiting, and pale ones did not run."""
    layers = _placed(plan)
    widths = [max(_SMALLEST, *(len(_label(node)) * _CHARACTER + 24 for node in layer)) for layer in layers]
    lefts = [20 + sum(widths[:column]) + column * _GAP for column in range(len(layers))]
    tall = max(map(len, layers), default=0) * _ROW + 24
    boxes: dict[int, tuple[float, float, float]] = {}  # left, right and middle, by the step's index
    for layer, left, width in zip(layers, lefts, widths, strict=True):
        top = (tall - len(layer) * _ROW) / 2
        for place, node in enumerate(layer):
            boxes[node.index] = left, left + width, top + place * _ROW + _ROW / 2
    wide = (lefts[-1] + widths[-1] if layers else 0) + 20
    title = _text(f"workflow {name}: {len(plan.nodes)} steps")
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="flowcore-graph" width="{wide:.0f}" height="{tall}" '
            f'viewBox="0 0 {wide:.0f} {tall}" role="img" aria-label="{title}">'
        ),
        f"<style>{_STYLE}</style>",
        *(_edge(boxes[before], boxes[node.index]) for node in plan.nodes for before in node.predecessors),
        *(_box(node, boxes[node.index], None if reports is None else reports.get(node.name)) for node in plan.nodes),
    ]
    return "\n".join([*parts, "</svg>"])


def _placed(plan: Plan) -> list[list[Node]]:
    """Return the layers, each ordered by the positions of the steps that it depends on, so that few lines cross."""
    places: dict[int, float] = {}
    layers: list[list[Node]] = []
    for steps in plan.layers():
        nodes = [plan.by_name[step.name] for step in steps]
        nodes.sort(key=lambda node: _mean([places[before] for before in node.predecessors]))
        layers.append(nodes)
        for place, node in enumerate(nodes):
            places[node.index] = place - len(nodes) / 2
    return layers


def _mean(places: Sequence[float]) -> float:
    return sum(places) / len(places) if places else 0.0


def _edge(begin: tuple[float, float, float], end: tuple[float, float, float]) -> str:
    (_, right, from_y), (left, _, to_y) = begin, end
    bend = max(20.0, (left - right) / 2)
    curve = f"M{right:.0f} {from_y:.0f}C{right + bend:.0f} {from_y:.0f} {left - bend:.0f} {to_y:.0f} {left - 7:.0f} {to_y:.0f}"
    head = f"M{left:.0f} {to_y:.0f}l-8 -4v8z"
    return f'<path d="{curve}"/><path class="head" d="{head}"/>'


def _box(node: Node, box: tuple[float, float, float], report: StepReport | None) -> str:
    left, right, middle = box
    classes = [
        *(["pivot"] if node.step.pivot else []),
        *(["undo"] if node.compensation is not None else []),
        *([] if report is None else [_colour(report)]),
    ]
    title = described(node) if report is None else f"{described(node)}: {_outcome(report)}"
    return (
        f'<g class="{" ".join(classes)}"><title>{_text(title)}</title>'
        f'<rect x="{left:.0f}" y="{middle - _HIGH / 2:.0f}" width="{right - left:.0f}" height="{_HIGH}" rx="6"/>'
        f'<text x="{(left + right) / 2:.0f}" y="{middle + 4:.0f}">{_text(_label(node))}</text></g>'
    )


def _colour(report: StepReport) -> str:
    if report.undo == Status.SUCCESS:
        return "undone"
    if report.undo is not None or report.status in _FAILED:
        return "failed"
    if report.status in _WAITS:
        return "waits"
    return "success" if report.status == Status.SUCCESS else "not-run"


def _outcome(report: StepReport) -> str:
    undo = "" if report.undo is None else ", undone" if report.undo == Status.SUCCESS else ", undo failed"
    return f"{report.status}{undo}"


def _label(node: Node) -> str:
    name = node.name if node.name.isprintable() else ascii(node.name)[1:-1]
    return name if len(name) <= 28 else name[:27] + "…"


def _text(text: str) -> str:
    """Return `text` for use in markup: escaped, and without characters that XML does not allow."""
    return html.escape("".join(char if char.isprintable() else "�" for char in text), quote=True)
