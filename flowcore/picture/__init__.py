"""One run as a picture: described once, drawn as an HTML page and as lines in a terminal. And the graph of a workflow."""

from .graph import graph_svg
from .terminal import gantt
from .timeline import Bar, Kind, Row, Timeline, in_words
from .webpage import fragment, page, svg

__all__ = ["Bar", "Kind", "Row", "Timeline", "fragment", "gantt", "graph_svg", "in_words", "page", "svg"]
