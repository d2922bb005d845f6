"""One run as one HTML file, without scripts and network access, readable on paper, on a phone and in dark mode."""

from __future__ import annotations

import html
import math
import time
from typing import Final

from .timeline import Bar, Kind, Row, Timeline, in_words, milliseconds

__all__ = ["fragment", "page", "svg"]

_WIDE: Final = 720  # width of the time axis, in units of the picture
_NAMES: Final = 190  # width of the column of names, left of the axis
_RIGHT: Final = 120  # width of the figures, right of the axis
_LINE: Final = 26  # height of a step's line
_NAME: Final = 28  # characters of a name that fit into the column

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2128; --soft: #57606a; --line: #d0d7de; --ground: #ffffff; --work: #1a7f5a;
  --bad: #c62b3b; --wait: #b7791f; --undo: #7a4fbf; --panel: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa7b4; --line: #3a434d; --ground: #0d1117;
  --work: #3fb98a; --bad: #ff7b86; --wait: #e3a84a; --undo: #b392f0; --panel: #161b22; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 2rem auto; max-width: 68rem;
  padding: 0 1rem; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
.outcome { border: 1px solid currentColor; border-radius: .3rem; padding: 0 .5rem; font-size: .9rem; white-space: nowrap; }
.success { color: var(--work); } .failure, .compensation_failed, .lost { color: var(--bad); }
.compensated { color: var(--undo); } .parked, .incomplete, .queued, .waiting, .running { color: var(--wait); }
.soft { color: var(--soft); margin: 0; overflow-wrap: anywhere; }
.sentence { font-size: 1.05rem; margin: 1rem 0; }
.scroll { overflow-x: auto; }
svg { min-width: 40rem; width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .soft { fill: var(--soft); } svg .critical { font-weight: 700; }
.grid { stroke: var(--line); } .takeover { stroke: var(--ink); stroke-dasharray: 4 3; }
.wait { fill: var(--wait); } .work { fill: var(--work); } .failed { fill: var(--bad); } .backoff { fill: url(#stripes); }
.undo { fill: var(--undo); } .undo-failed { fill: var(--bad); stroke: var(--undo); stroke-width: 2; }
.late { fill: none; stroke: var(--bad); stroke-dasharray: 3 2; } .outline { fill: none; stroke: var(--ink); stroke-width: 1.5; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td:first-child { min-width: 7rem; } td:last-child, td:first-child { overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; } td.number, th.number { text-align: right; white-space: nowrap; }
pre { background: var(--panel); padding: 1rem; border-radius: .4rem; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; }
@media print { body { margin: 0; max-width: none; font-size: 11px; } .scroll { overflow: visible; } svg { min-width: 0; } }
"""


def page(
    timeline: Timeline,
    story: str,
    *,
    key_hash: str | None = None,
    trace_url: str | None = None,
    usual: float | None = None,
) -> str:
    """Return the whole page. `story`: the text of `explain()`. `key_hash`: the hash of the key, as in spans.
    `trace_url`: a template with `{trace_id}`. `usual`: how many seconds a run of this workflow usually takes."""
    rows = timeline.rows
    facts = [f"run {timeline.run_id}"]
    if timeline.started is not None:
        facts.append(time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(timeline.started)))
    facts.append(milliseconds(timeline.seconds))
    if key_hash is not None:
        facts.append(f"key hash {key_hash}")
    if timeline.owner is not None:
        facts.append(f"owner {timeline.owner}")
    sentence = in_words(timeline)
    if usual:
        sentence += f" A run of this workflow usually takes {milliseconds(usual)}."
    title = f"{timeline.workflow}: {timeline.status}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body><main>\n"
        f'<h1>{_text(timeline.workflow)} <span class="outcome {_class(timeline.status)}">{_text(timeline.status)}</span></h1>\n'
        f'<p class="soft">{_text(" · ".join(facts))}{_trace_link(timeline, trace_url)}</p>\n'
        f'<p class="sentence">{_text(sentence)}</p>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Waterfall">{svg(timeline)}</div>\n'
        '<p class="soft">Outlined: the critical path. Thin: waiting for a worker. Striped: backing off. Hollow: completed '
        "late. Purple: compensation. Dashed line: another owner took over.</p>\n"
        f"<h2>Steps</h2>\n{_table(rows)}\n<h2>What happened</h2>\n<pre>{_text(story)}</pre>\n</main></body></html>\n"
    )


def fragment(timeline: Timeline, story: str) -> str:
    """Return the waterfall and the story as HTML for a notebook's page."""
    style = (
        _STYLE.replace(":root", ".flowcore-run")
        .replace("body {", ".flowcore-run {")
        .replace("margin: 2rem auto", "margin: 0")
    )
    return f'<style>{style}</style><div class="flowcore-run">{svg(timeline)}<pre>{_text(story)}</pre></div>'


def svg(timeline: Timeline) -> str:
    """Return the waterfall alone as SVG: a line for each step, with what its time was spent on."""
    span = max([timeline.seconds, *(bar.end for row in timeline.rows for bar in row.bars), 1e-9])
    high = len(timeline.rows) * _LINE + 30
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_NAMES + _WIDE + _RIGHT} {high}" role="img" '
            f'aria-label="{_text(in_words(timeline))}">'
        ),
        (
            '<defs><pattern id="stripes" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
            '<rect width="3" height="6" class="wait"/></pattern></defs>'
        ),
    ]
    for tick in ticks(span):
        at = _at(tick, span)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{high - 22}"/>')
        moment = _text(milliseconds(tick) if tick else "0")
        parts.append(f'<text class="soft" x="{at:.1f}" y="{high - 6}" text-anchor="middle">{moment}</text>')
    for number, row in enumerate(timeline.rows):
        parts.append(_line(row, number * _LINE, span))
    for at, label in timeline.takeovers:
        x = _NAMES + _WIDE * min(at / span, 1.0)
        parts.append(
            f'<line class="takeover" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{high - 22}"><title>{_text(label)}</title></line>'
        )
    return "".join([*parts, "</svg>"])


def ticks(span: float) -> list[float]:
    """Return up to six round times from 0 to `span`, in seconds."""
    step = 10.0 ** math.floor(math.log10(span / 5))
    step = next(step * factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
    return [step * number for number in range(int(span / step + 1e-9) + 1)]


def _line(row: Row, top: int, span: float) -> str:
    emphasis = ' class="critical"' if row.critical else ""
    name = row.name if len(row.name) <= _NAME else row.name[: _NAME - 1] + "…"
    parts = [
        f'<g><title>{_text(row.name)}: {_text(row.status)}</title><text x="{_NAMES - 8}" y="{top + 17}" text-anchor="end"{emphasis}>{_text(name)}</text>'
    ]
    parts.extend(_bar(bar, top, span) for bar in row.bars)
    forward = [bar for bar in row.bars if bar.kind not in {Kind.UNDO, Kind.UNDO_FAILED}]
    if row.critical and forward:
        begin, end = forward[0].start, max(bar.end for bar in forward)
        parts.append(
            f'<rect class="outline" x="{_at(begin, span):.1f}" y="{top + 2}" width="{_long(end - begin, span):.1f}" height="20" rx="3"/>'
        )
    if row.bars:
        end = max(bar.end for bar in row.bars)
        parts.append(
            f'<text class="soft" x="{_at(end, span) + 6:.1f}" y="{top + 17}">{_text(milliseconds(sum(bar.seconds for bar in row.bars)))}</text>'
        )
    return "".join([*parts, "</g>"])


def _bar(bar: Bar, top: int, span: float) -> str:
    thin = bar.kind in {Kind.WAIT, Kind.BACKOFF}
    y, height = (top + 9, 6) if thin else (top + 4, 16)
    label = f"{bar.kind} {milliseconds(bar.seconds)}{': ' + bar.label if bar.label else ''}"
    return (
        f'<rect class="{_class(bar.kind)}" x="{_at(bar.start, span):.1f}" y="{y}" width="{_long(bar.seconds, span):.1f}" '
        f'height="{height}" rx="2"><title>{_text(label)}</title></rect>'
    )


def _at(seconds: float, span: float) -> float:
    return _NAMES + _WIDE * max(0.0, seconds) / span


def _long(seconds: float, span: float) -> float:
    return max(2.0, _WIDE * seconds / span)


def _table(rows: list[Row]) -> str:
    lines = [
        (
            '<div class="scroll" tabindex="0" role="region" aria-label="Steps"><table><thead><tr><th>step</th><th>outcome</th>'
            '<th class="number">attempts</th><th class="number">worked</th><th class="number">backed off</th>'
            '<th class="number">waited</th><th>depends on</th><th>error</th></tr></thead><tbody>'
        )
    ]
    for row in rows:
        worked = row.seconds(Kind.WORK, Kind.FAILED, Kind.LATE)
        undone = row.seconds(Kind.UNDO, Kind.UNDO_FAILED)
        outcome = row.status + (f", undone in {milliseconds(undone)}" if undone else "")
        cells = (
            ("", row.name + (" ◆" if row.critical else "")),
            ("", outcome),
            ("number", str(row.attempts)),
            ("number", milliseconds(worked) if row.bars else ""),
            ("number", milliseconds(row.seconds(Kind.BACKOFF)) if row.seconds(Kind.BACKOFF) else ""),
            ("number", milliseconds(row.seconds(Kind.WAIT)) if row.seconds(Kind.WAIT) else ""),
            ("", ", ".join(row.depends_on)),
            ("", row.error),
        )
        lines.append("<tr>" + "".join(f'<td class="{kind}">{_text(cell)}</td>' for kind, cell in cells) + "</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def _trace_link(timeline: Timeline, template: str | None) -> str:
    if template is None or timeline.trace_id is None or not template.startswith(("https://", "http://", "/")):
        return ""
    return f' · <a href="{_text(template.replace("{trace_id}", timeline.trace_id))}">trace</a>'


def _class(word: str) -> str:
    return word.replace(" ", "-") if word.replace(" ", "").replace("_", "").isalpha() else "other"


def _text(text: str) -> str:
    """Return `text` for use in markup: escaped, and without characters that HTML does not allow."""
    safe = "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)
    return html.escape(safe, quote=True)
