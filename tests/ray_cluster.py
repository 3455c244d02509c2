"""A Ray cluster of several nodes on this machine, for tests.

Each node is a process with its children, in a session of its own, on 127.0.0.1 only, with a token,
and reports to nobody. Leaving the `with` ends all its processes, whatever happened.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil

ROOT = Path(__file__).parent.parent
PATIENCE = 120.0  # seconds: the machine may be slow, and shared
STORE_BYTES = 80 << 20  # the least that Ray takes
# As `ray start`, which would not take 127.0.0.1 for the address that it is, and starts in the head
# processes that nobody asks. Says so when the node is there.
NODE = """
import json, signal, sys
from ray._private.node import Node
from ray._private.parameter import RayParams
options = json.loads(sys.argv[1])
head = "gcs_address" not in options
Node(RayParams(**options), head=head, shutdown_at_exit=False, spawn_reaper=False)
print("is there", flush=True)
signal.pause()
"""
OPTIONS = {
    "node_ip_address": "127.0.0.1",
    "object_store_memory": STORE_BYTES,
    "num_gpus": 0,
    "min_worker_port": 0,
    "max_worker_port": 0,
    "include_log_monitor": False,
    "include_dashboard": False,
    "no_monitor": True,
}
HEARING = "ray::Node"  # what Ray calls the processes that hear


def ray_environment(token: str) -> dict[str, str]:
    """Return what a process of the cluster, or one that asks it, is started with."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        # As on macOS: Ray then keeps to 127.0.0.1, whatever addresses there are.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_raylet_start_wait_time_s": f"{PATIENCE:.0f}",
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Node:
    """One node: its first process, and all that came of it."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def processes(self) -> list[psutil.Process]:
        """All of its session: some outlive those that started them for a while."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def hearing(self) -> list[psutil.Process]:
        """The processes that hear on this node now."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[:1] and process.cmdline()[0].startswith(HEARING):
                    found.append(process)
        return found

    def ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        """End all of it at once, as a power cut does."""
        while processes := self.processes():  # one may have started another meanwhile
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.poll()
            psutil.wait_procs(processes, timeout=10)
        self._process.wait()


class RayCluster:
    """A head, and the nodes that are added. Use it as a context manager.

    `cpus` are the head's; `client`: whether ray://HOST:PORT is answered, too.
    """

    def __init__(self, *, cpus: int = 1, client: bool = False) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: it holds sockets
        self.environment = ray_environment(secrets.token_hex(32))
        self._nodes: list[Node] = []
        port, client_port = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        self.client_address = f"ray://127.0.0.1:{client_port}"
        options = {"gcs_server_port": port, "temp_dir": str(self._folder)}
        if client:
            options["ray_client_server_port"] = client_port
        try:
            self.head = self._start("head", options | {"num_cpus": cpus})
            self.wait_for(self.head)
            if client:
                self._wait_for_port(client_port)
        except BaseException:
            self.close()
            raise

    def add_node(
        self, name: str, *, cpus: int = 1, inside: Sequence[str] = (), path: Path | None = None
    ) -> Node:
        """Start a node; `inside` is what it is started with (a sandbox), `path` its own code.

        See `wait_for`. It is started when the one before is there: at once they would take the
        same sockets.
        """
        self.wait_for(*(node for node in self._nodes[-1:] if not node.ended()))
        return self._start(name, {"gcs_address": self.address, "num_cpus": cpus}, inside, path)

    def _start(
        self,
        name: str,
        options: Mapping[str, object],
        inside: Sequence[str] = (),
        path: Path | None = None,
    ) -> Node:
        text = json.dumps({**OPTIONS, **options, "node_name": name})
        with self._log(name).open("wb") as log:
            process = subprocess.Popen(
                [*inside, sys.executable, "-c", NODE, text],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment | ({"PYTHONPATH": str(path)} if path else {}),
                start_new_session=True,
            )
        node = Node(name, process)
        self._nodes.append(node)
        return node

    def wait_for(self, *nodes: Node) -> None:
        """Wait until these nodes are there."""
        until = time.monotonic() + PATIENCE
        for node in nodes:
            while "is there" not in (log := self._log(node.name).read_text(errors="replace")):
                assert not node.ended(), log
                assert time.monotonic() < until, log
                time.sleep(0.05)

    def _wait_for_port(self, port: int) -> None:
        until = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            assert time.monotonic() < until, port
            time.sleep(0.1)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def processes(self) -> list[psutil.Process]:
        return [process for node in self._nodes for process in node.processes()]

    def close(self) -> None:
        for node in reversed(self._nodes):
            node.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        left = self.processes()
        assert error is not None or left == []  # no process may outlive its test
