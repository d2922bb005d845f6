"""Values that this process sends to waits."""

from __future__ import annotations

import contextvars
import os
import socket
from collections.abc import Mapping
from typing import Any

from .._kernel.settings import Settings
from ..events import ValueSent
from ..run import Sent
from .interrupts import hold_sigint

__all__ = ["announce", "made_here"]


def made_here(
    settings: Settings,
    value: Any,
    id: str | None,  # noqa: A002
    carrier: Mapping[str, str],
) -> Sent:
    """Build the Sent for a value that this process sends."""
    return Sent(value, settings.wall(), socket.gethostname(), os.getpid(), id, carrier)


def announce(settings: Settings, key: str, name: str) -> dict[str, str]:
    """Report to the hooks that a value is about to be sent. Returns the carrier to be recorded with it."""
    carrier: dict[str, str] = {}
    if ValueSent in settings.hooks.wanted:
        with hold_sigint():
            event = ValueSent("", "", settings.clock(), {}, name, key, carrier)
            settings.hooks.emit(event, contextvars.copy_context())
    return carrier
