"""The colours of the dashboards. A colour has the same meaning on every panel."""

from typing import Final

__all__ = [
    "FAILED",
    "HELD",
    "NEUTRAL",
    "OF_DECISIONS",
    "OF_HITS",
    "OF_RUNS",
    "OF_STATUSES",
    "OF_UNDOS",
    "REPLAYED",
    "SUCCESS",
    "UNDONE",
    "WAITING",
    "WORKING",
]

SUCCESS: Final = "#73BF69"
"""green: success"""
FAILED: Final = "#F2495C"
"""red: failure"""
UNDONE: Final = "#B877D9"
"""purple: failed and cleanly undone"""
REPLAYED: Final = "#5794F2"
"""blue: the result of an earlier run was returned"""
WAITING: Final = "#FF9830"
"""orange: not done yet, or needs attention"""
HELD: Final = "#FF5CA8"
"""pink: a person must decide"""
WORKING: Final = "#56A3A6"
"""teal: time spent on the work itself"""
NEUTRAL: Final = "#8E8E9A"
"""grey: neither good nor bad"""

_PALE_BLUE: Final = "#8AB8FF"
_YELLOW: Final = "#FADE2A"

OF_RUNS: Final = {
    "success": SUCCESS,
    "compensated": UNDONE,
    "failure": FAILED,
    "compensation_failed": HELD,
    "incomplete": WAITING,
    "parked": _YELLOW,
    "lost": NEUTRAL,
}
OF_HITS: Final = {
    "replayed": REPLAYED,
    "adopted": _PALE_BLUE,
    "in_progress": _YELLOW,
    "mismatch": WAITING,
    "held": HELD,
}
OF_UNDOS: Final = {"success": UNDONE, "failure": HELD, "timeout": FAILED}
OF_DECISIONS: Final = {"forward": SUCCESS, "undo": UNDONE, "hold": HELD}
OF_STATUSES: Final = {"held": HELD, "parked": _YELLOW, "incomplete": WAITING, "expired": FAILED, "overdue": NEUTRAL}
