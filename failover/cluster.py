"""
Three PostgreSQL nodes under Patroni, with etcd, on loopback: python -m failover.cluster (Ctrl-C ends it)

Debian's packages are enough: apt-get install patroni etcd-server postgresql
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from string import Template
from tempfile import mkdtemp
from typing import Any

import aiohttp

TEMPLATE = Path(__file__).with_name("patroni.yml")
BINARIES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
#: PostgreSQL refuses to run as root.
USER = "postgres" if os.geteuid() == 0 else None
#: Seconds a node may take to answer its REST interface; a frozen one never does.
PATIENCE = 1.0
DATABASES = ("payments", "email", "sms", "gateway")


def missing() -> list[str]:
    """Name the Debian packages that are not here."""
    programs = {"patroni": "patroni", "etcd-server": "etcd", "util-linux": "setpriv"}
    return [name for name, program in programs.items() if not shutil.which(program)] + (
        [] if BINARIES is not None and (BINARIES / "initdb").exists() else ["postgresql"]
    )


def free_ports(many: int) -> list[int]:
    """Ports that were free just now, all different."""
    probes = [socket.socket() for _ in range(many)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def spawn(command: Sequence[str], folder: Path, log: str) -> subprocess.Popen[bytes]:
    """Start a program that ends when we do, however we end."""
    with (folder / log).open("ab") as output:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command],
            user=USER,
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def parents() -> dict[int, int]:
    """Every process's parent."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            found[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    return found


class Node:
    """One machine's worth: Patroni and the PostgreSQL that it keeps."""

    def __init__(self, name: str, folder: Path, port: int, rest: int, etcd: int) -> None:
        self.name = name
        self.port = port
        self.rest = f"http://127.0.0.1:{rest}"
        self._folder = folder
        self._patroni: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        values = {"name": name, "port": port, "rest": rest, "etcd": etcd, "folder": folder, "binaries": BINARIES}
        (folder / "patroni.yml").write_text(Template(TEMPLATE.read_text()).substitute(values))
        if USER:
            shutil.chown(folder, USER)

    def start(self) -> None:
        self._patroni = spawn(["patroni", str(self._folder / "patroni.yml")], self._folder, "patroni.log")

    def restart_ended(self) -> None:
        """Start Patroni again if it has ended by itself, as a machine's init would."""
        if self._patroni is not None and self._patroni.poll() is not None:
            self.start()

    def kill(self) -> None:
        """End the whole node as a power cut does, but for the disk."""
        self._send(signal.SIGKILL, [*self._patroni_pid(), *self._postgres()])
        if self._patroni is not None:
            self._patroni.wait()

    def kill_postgres(self) -> None:
        self._send(signal.SIGKILL, self._postgres())

    def freeze(self) -> None:
        self._send(signal.SIGSTOP, [*self._patroni_pid(), *self._postgres()])

    def thaw(self) -> None:
        # PostgreSQL first, as it may be: for a moment it still believes that it is the primary.
        self._send(signal.SIGCONT, [*self._postgres(), *self._patroni_pid()])

    def terminate(self) -> None:
        self._send(signal.SIGTERM, self._patroni_pid())

    def wait(self, seconds: float) -> None:
        """Wait for an orderly end, and make it one by force when that takes too long."""
        if self._patroni is not None:
            try:
                self._patroni.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        self._send(signal.SIGKILL, self._postgres())

    def _patroni_pid(self) -> list[int]:
        return [self._patroni.pid] if self._patroni is not None and self._patroni.poll() is None else []

    def _postgres(self) -> list[int]:
        """The server and its children, if the pid in its file is still its own."""
        try:
            server = int((self._folder / "data" / "postmaster.pid").read_text().split()[0])
            if str(self._folder / "data").encode() not in Path(f"/proc/{server}/cmdline").read_bytes():
                return []
        except (OSError, ValueError, IndexError):
            return []
        return [server, *(pid for pid, parent in parents().items() if parent == server)]

    def _send(self, number: signal.Signals, pids: Sequence[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


class Cluster:
    def __init__(self, folder: Path, http: aiohttp.ClientSession) -> None:
        client, peer, *ports = free_ports(8)
        self._folder = folder
        self._http = http
        self._etcd = spawn(_etcd(folder, client, peer), folder, "etcd.log")
        self.nodes = [
            Node(f"node{n}", folder / f"node{n}", port, rest, client)
            for n, (port, rest) in enumerate(zip(ports[::2], ports[1::2], strict=True), 1)
        ]

    def url(self, database: str) -> str:
        """All hosts: whichever takes writes is used."""
        return f"postgresql://postgres@{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}/{database}"

    async def start(self) -> None:
        for node in self.nodes:
            node.start()
        leader = await self.whole(120.0)
        for name in DATABASES:
            self.psql(leader, "postgres", f"CREATE DATABASE {name}")

    async def leader(self) -> Node | None:
        """Return the node that holds the leader's lock."""
        answers = await asyncio.gather(*(self._ask(node, "/primary") for node in self.nodes))
        return next((node for node, answer in zip(self.nodes, answers, strict=True) if answer is not None), None)

    async def whole(self, seconds: float) -> Node:
        """
        Wait until every node takes connections and one of them is in step with the leader; returns the leader.

        What the leader tells of a node may be older than the node's last end, so each is asked itself.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for node in self.nodes:
                node.restart_ended()
            leader = await self.leader()
            response = await self._ask(leader, "/cluster") if leader else None
            members = response["members"] if response else []
            well = [member for member in members if member["state"] in ("running", "streaming")]
            roles = {member["role"] for member in well}
            if leader is not None and len(well) == len(self.nodes) and {"leader", "sync_standby"} <= roles:
                up = await asyncio.gather(*(self._ask(node, "/health") for node in self.nodes))
                if all(up):
                    return leader
            await asyncio.sleep(0.2)
        raise TimeoutError(f"the cluster is not whole after {seconds:.0f} s: see {self._folder}")

    def psql(self, node: Node, database: str, sql: str) -> str:
        assert BINARIES is not None
        where = ["-h", "127.0.0.1", "-p", str(node.port), "-U", "postgres", "-d", database]
        return subprocess.run(
            [str(BINARIES / "psql"), *where, "-qAtc", sql], check=True, capture_output=True, text=True, timeout=20
        ).stdout

    def stop(self) -> None:
        for node in self.nodes:
            node.thaw()
            node.terminate()
        for node in self.nodes:
            node.wait(20)
        self._etcd.terminate()
        self._etcd.wait(10)

    async def _ask(self, node: Node, path: str) -> Any:
        """What a node's Patroni says; None where it says no, or nothing."""
        with suppress(aiohttp.ClientError, TimeoutError):
            timeout = aiohttp.ClientTimeout(PATIENCE)
            async with self._http.get(node.rest + path, timeout=timeout) as answer:
                return await answer.json(content_type=None) if answer.status == 200 else None
        return None


def _etcd(folder: Path, client: int, peer: int) -> list[str]:
    here, there = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    options = {
        "data-dir": folder / "etcd",
        "listen-client-urls": here,
        "advertise-client-urls": here,
        "listen-peer-urls": there,
        "initial-advertise-peer-urls": there,
        "initial-cluster": f"default={there}",
    }
    return ["etcd", *(f"--{name}={value}" for name, value in options.items())]


def _keep_logs(folder: Path, kept: Path) -> None:
    for log in folder.glob("*/patroni.log"):
        shutil.copy(log, kept / f"{log.parent.name}.log")


@asynccontextmanager
async def cluster(kept: Path | None = None) -> AsyncIterator[Cluster]:
    """Run a new cluster while the body runs; what it stored goes with it, but for logs that are `kept`."""
    folder = Path(mkdtemp(prefix="topsmile-failover-"))
    if USER:
        shutil.chown(folder, USER)
    try:
        async with aiohttp.ClientSession() as http:
            running = Cluster(folder, http)
            try:
                await running.start()
                yield running
            finally:
                running.stop()
    finally:
        if kept is not None:
            _keep_logs(folder, kept)
        shutil.rmtree(folder, ignore_errors=True)


async def main() -> int:
    if lacking := missing():
        print(f"missing: apt-get install {' '.join(lacking)}")
        return 1
    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    async with cluster() as running:
        for name in DATABASES:
            print(f"{name.upper()}_DATABASE_URL={running.url(name)}", flush=True)
        await over.wait()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
