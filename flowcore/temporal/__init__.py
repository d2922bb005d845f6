"""Run flowcore's workflows on Temporal: `TemporalEngine` starts them, and the workers of `temporal_worker` run their
steps.

Needs the extra `temporal`. The page "From flowcore to Temporal" of the guide says what is the same as on the other
engines, and what cannot be.
"""

from __future__ import annotations

from .engine import TemporalEngine
from .store import TemporalStore
from .worker import temporal_worker

__all__ = ["TemporalEngine", "TemporalStore", "temporal_worker"]
