"""One run as a picture: described once, drawn as an HTML page and as lines in a terminal."""

from .terminal import gantt
from .timeline import Bar, Kind, Row, Timeline, in_words
from .webpage import fragment, page, svg

__all__ = ["Bar", "Kind", "Row", "Timeline", "fragment", "gantt", "in_words", "page", "svg"]
