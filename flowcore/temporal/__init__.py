"""The same workflows on Temporal: `TemporalEngine` starts them, the workers of `temporal_worker` run their steps.

Needs the extra `temporal`. What is the same as on the other engines, and what cannot be, is in the guide's page
"From flowcore to Temporal".
"""

from __future__ import annotations

from .engine import TemporalEngine
from .store import TemporalStore
from .worker import temporal_worker

__all__ = ["TemporalEngine", "TemporalStore", "temporal_worker"]
