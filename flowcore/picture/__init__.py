"""Pictures of a run, drawn from one description as an HTML page or as lines of text; and of a workflow's graph."""

from .graph import graph_svg
from .terminal import gantt
from .timeline import Bar, Kind, Row, Timeline, in_words
from .webpage import fragment, page, svg

__all__ = ["Bar", "Kind", "Row", "Timeline", "fragment", "gantt", "graph_svg", "in_words", "page", "svg"]
