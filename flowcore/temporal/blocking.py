"""A Temporal task queue for callers without an event loop, such as the command line."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from temporalio.client import Client
from temporalio.envconfig import ClientConfig

from ..errors import StoreUnavailable
from ..stores.codec import Codec
from .operating import Operators
from .store import TemporalStore

__all__ = ["BlockingTemporalStore"]

P = ParamSpec("P")
T = TypeVar("T")
_PREFIX: Final = "flowcore:"


def _blocking(
    verb: Callable[Concatenate[Operators, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[BlockingTemporalStore, P], T]:
    """Turn an async verb into a function that waits for its result."""

    @functools.wraps(verb)
    def call(self: BlockingTemporalStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        async def asked() -> T:
            return await verb(await self.opened(), *args, **kwargs)

        return asyncio.run(asked())

    return call


class BlockingTemporalStore:
    """The verbs of `TemporalStore` for operators, as plain functions. Thread-safe, but not for the thread of a running
    event loop.

    `address`: host and port. TLS and API keys come from Temporal's own environment variables and configuration file
    (TEMPORAL_TLS, TEMPORAL_API_KEY and so on). Each call of a verb opens a connection of its own.
    """

    name = "temporal"
    durable = True
    blocks = True

    def __init__(
        self, address: str, namespace: str, task_queue: str, *, prefix: str = _PREFIX, codec: Codec | None = None
    ) -> None:
        self._address, self._namespace, self._task_queue = address, namespace, task_queue
        self._codec = codec
        self.namespace = prefix

    find = _blocking(Operators.find)
    head = _blocking(Operators.head)
    get_run = _blocking(Operators.get_run)
    list_runs = _blocking(Operators.list_runs)
    counts = _blocking(Operators.counts)
    doctor = _blocking(Operators.doctor)
    send = _blocking(Operators.send)
    hold = _blocking(Operators.hold)
    resume = _blocking(Operators.resume)
    undo = _blocking(Operators.undo)
    cancel = _blocking(Operators.cancel)
    release = _blocking(Operators.release)
    erase = _blocking(Operators.erase)
    gc = _blocking(Operators.gc)

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    async def opened(self) -> TemporalStore:
        """The async store, with a connection on the running loop. Raises StoreUnavailable if Temporal is
        unreachable."""
        config = ClientConfig.load_client_connect_config()
        config["target_host"], config["namespace"] = self._address, self._namespace
        try:
            client = await Client.connect(**config)
        except RuntimeError as error:
            raise StoreUnavailable(f"Temporal is unreachable at {self._address} ({error}). Retry the call.") from error
        return TemporalStore(client, self._task_queue, prefix=self.namespace, codec=self._codec)
