"""A thread of a worker that sends the heartbeats of its activities while its event loop is blocked.

The SDK sends a heartbeat in the worker's event loop, from any thread. So a step that blocks the loop for a
lease would cost every step of its worker their leases, and each of them would run again elsewhere.
"""

# The SDK has no public function for a heartbeat without the loop. Without the private one, only the loop sends them.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, Final

from temporalio.bridge.proto import ActivityHeartbeat
from temporalio.client import Client
from temporalio.converter import WithSerializationContext
from temporalio.worker import Worker

from .beats import Beats

__all__ = ["Pulse"]

_CHECKS: Final = 6
"""how often in a lease the thread looks whether the loop has sent the heartbeats"""
_BLOCKED: Final = 0.5
"""part of a lease without a heartbeat after which the loop is blocked"""


class Pulse:
    """The heartbeats of one worker's activities while its loop is blocked. The thread ends with the last activity."""

    worker: Worker | None = None

    def __init__(self, client: Client) -> None:
        self._converter = client.data_converter
        codec: Any = self._converter.payload_codec
        self._works = not isinstance(codec, WithSerializationContext)  # which must know the activity
        self._lock = threading.Lock()
        self._all: set[Beats] = set()  # (lock)
        self._wake = threading.Event()

    async def encode(self, beats: Beats) -> None:
        """Encode what the heartbeats of an activity say by now."""
        if self._works and (beats.payloads is None or beats.changed.is_set()):
            beats.changed.clear()
            with contextlib.suppress(Exception):  # the client's codec; heartbeats from the loop go through it too
                beats.payloads = await self._converter.encode([beats.details()])

    def add(self, beats: Beats) -> None:
        """Look after the heartbeats of an activity from now on."""
        with self._lock:
            begins = not self._all
            self._all.add(beats)
            if begins:
                self._wake = threading.Event()
                threading.Thread(
                    target=self._watch, args=(self._wake,), name="flowcore-heartbeats", daemon=True
                ).start()

    def remove(self, beats: Beats) -> None:
        """The activity has ended."""
        with self._lock:
            self._all.discard(beats)
            if not self._all:
                self._wake.set()

    def _watch(self, over: threading.Event) -> None:
        pause = 0.0
        while not over.wait(pause):
            with self._lock:
                watched = list(self._all)
            pause = min((beats.lease for beats in watched), default=1.0) / _CHECKS
            for beats in watched:
                if time.monotonic() - beats.at > beats.lease * _BLOCKED:
                    with contextlib.suppress(Exception):  # another version of the SDK, or a worker that has ended
                        self._send(beats)

    def _send(self, beats: Beats) -> None:
        bridge: Any = None if self.worker is None else self.worker._bridge_worker
        if bridge is not None and beats.payloads is not None:
            heartbeat = ActivityHeartbeat(task_token=beats.token, details=beats.payloads)
            bridge.record_activity_heartbeat(heartbeat)
            beats.at = time.monotonic()
