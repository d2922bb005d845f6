"""Copies of an asyncio client for other event loops: its connections belong to the loop that they were made on."""

from __future__ import annotations

import inspect
from typing import Any, Final

__all__ = ["another", "close"]

_OF_ONE_POOL: Final = {
    # Options that a pool itself adds to those of its connections. They are not copied: the new pool adds its own.
    "connection_pool",
    "himport_registry",
    "maint_notifications_pool_handler",
    "oss_cluster_maint_notifications_handler",
}


def another(client: Any) -> Any:
    """Return a client of redis.asyncio with the same options and its own connections. The caller closes it."""
    if hasattr(client, "nodes_manager"):
        return _cluster(client)
    pool = client.connection_pool
    twin = type(client)(connection_pool=_pool(pool))
    twin.auto_close_connection_pool = True  # the pool is this client's alone
    return twin


async def close(client: Any) -> None:
    """Close a client that `another` made."""
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    for sentinel in () if manager is None else manager.sentinels:
        await sentinel.aclose()
    await client.aclose()


def _pool(pool: Any) -> Any:
    options = {name: value for name, value in pool.connection_kwargs.items() if name not in _OF_ONE_POOL}
    options |= {"connection_class": pool.connection_class, "max_connections": pool.max_connections}
    manager = getattr(pool, "sentinel_manager", None)
    if manager is not None:
        options |= {"is_master": pool.is_master, "check_connection": pool.check_connection}
        return type(pool)(pool.service_name, _sentinel(manager), **options)
    if hasattr(pool, "timeout"):  # a BlockingConnectionPool, which waits for a free connection
        options["timeout"] = pool.timeout
    return type(pool)(**options)


def _sentinel(manager: Any) -> Any:
    known = [sentinel.connection_pool.connection_kwargs for sentinel in manager.sentinels]
    addresses = [(options["host"], options["port"]) for options in known]
    return type(manager)(addresses, manager.min_other_sentinels, manager.sentinel_kwargs, **manager.connection_kwargs)


def _cluster(client: Any) -> Any:
    """Copy a cluster's client, whose options are on its connections, on itself and on its nodes manager."""
    nodes, options = client.nodes_manager, client.connection_kwargs
    make: Any = client.__class__
    known = inspect.signature(make).parameters
    places = {
        "retry": (client, "retry"),
        "reinitialize_steps": (client, "reinitialize_steps"),
        "require_full_coverage": (nodes, "require_full_coverage"),
        "address_remap": (nodes, "address_remap"),
        "dynamic_startup_nodes": (nodes, "_dynamic_startup_nodes"),
    }
    return make(
        startup_nodes=[type(node)(node.host, node.port) for node in nodes.startup_nodes.values()],
        ssl="ssl_cert_reqs" in options,
        **{name: value for name, value in options.items() if name in known},
        **{name: getattr(place, attribute) for name, (place, attribute) in places.items() if hasattr(place, attribute)},
    )
