"""A Ray cluster of several nodes on this machine, for tests.

Each node is `ray start --block` in a session of its own, on 127.0.0.1 only, with a token, and
reports to nobody. Leaving the `with` ends all its processes, whatever happened.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import psutil

ROOT = Path(__file__).parent.parent
PATIENCE = 120.0  # seconds: the machine may be slow, and shared
STORE_BYTES = 80 << 20  # the least that Ray takes
# `ray start --address` would not take 127.0.0.1 for the address that it is.
NODE = f"""
import signal, sys
from ray._private.node import Node
from ray._private.parameter import RayParams
parameters = RayParams(
    gcs_address=sys.argv[1], node_name=sys.argv[2], num_cpus=int(sys.argv[3]), num_gpus=0,
    node_ip_address="127.0.0.1", object_store_memory={STORE_BYTES}, min_worker_port=0,
    max_worker_port=0, include_log_monitor=False,
)
Node(parameters, head=False, shutdown_at_exit=False, spawn_reaper=False)
signal.pause()
"""
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
        self._seen: set[psutil.Process] = set()

    def processes(self) -> set[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen.update(psutil.Process(self._process.pid).children(recursive=True))
        return {process for process in self._seen if process.is_running()}

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
        processes = self.processes()
        self._process.kill()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        psutil.wait_procs(processes, timeout=10)


class RayCluster:
    """A head, and the nodes that are added. Use it as a context manager."""

    def __init__(self, *, cpus: int = 1) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: it holds sockets
        self.environment = ray_environment(secrets.token_hex(32))
        self._nodes: list[Node] = []
        port, client = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        self.client_address = f"ray://127.0.0.1:{client}"
        try:
            self.head = self._start(
                "head",
                [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--head",
                 f"--port={port}", "--node-ip-address=127.0.0.1", "--num-gpus=0",
                 f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats",
                 "--node-name=head", f"--ray-client-server-port={client}",
                 f"--num-cpus={cpus}", "--include-dashboard=false",
                 f"--temp-dir={self._folder}"],
            )  # fmt: skip
            self._wait_for_port(port)
        except BaseException:
            self.close()
            raise

    def add_node(
        self, name: str, *, cpus: int = 1, inside: Sequence[str] = (), path: Path | None = None
    ) -> Node:
        """Start a node; `inside` is what it is started with (a sandbox), `path` its own code."""
        command = [sys.executable, "-c", NODE, self.address, name, str(cpus)]
        return self._start(name, [*inside, *command], path)

    def _start(
        self,
        name: str,
        command: Sequence[str],
        path: Path | None = None,
    ) -> Node:
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment | ({"PYTHONPATH": str(path)} if path else {}),
                start_new_session=True,
            )
        node = Node(name, process)
        self._nodes.append(node)
        return node

    def _wait_for_port(self, port: int) -> None:
        until = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            assert time.monotonic() < until, self.log("head")
            assert not self.head.ended(), self.log("head")
            time.sleep(0.1)

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def wait_for(self, count: int) -> None:
        """Wait until so many nodes are there, the head among them."""
        code = (
            "import logging, ray, sys, time\n"
            "ray.init(sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)\n"
            "while sum(n['Alive'] for n in ray.nodes()) < int(sys.argv[2]): time.sleep(0.1)\n"
        )
        subprocess.run(
            [sys.executable, "-c", code, self.address, str(count)],
            env=self.environment,
            check=True,
            timeout=PATIENCE,
        )

    def processes(self) -> set[psutil.Process]:
        return set().union(*(node.processes() for node in self._nodes))

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


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Press Ctrl-C."""
    process.send_signal(signal.SIGINT)
