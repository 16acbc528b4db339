"""
The whole system as it is run for real, with everything in reach of a kill: five processes and their databases.

On SQLite it is what `make run` starts, under its supervisor; on PostgreSQL two replicas of each process and a cluster
that syncs, which a small keeper of our own starts again.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

import aiohttp

from chaos.database import PostgresFiles, SQLiteFiles, Stores
from chaos.disk import Disk
from chaos.front import Front, Replica
from chaos.processes import children, command_of
from launch.settings import PROCESSES, complete
from launch.system import System as Launched

ROOT = Path(__file__).parent.parent
SERVICES = ("payments", "email", "sms")
#: Below the range that outgoing connections take theirs from: nobody else gets the port of a process that is down.
PORTS = range(21_000, 29_000)
#: The providers' limits are not what is tried here.
PACES = {"STRIPE_PER_SECOND": "100", "SENDGRID_PER_SECOND": "100", "TWILIO_PER_SECOND": "100"}


class Keeper(Protocol):
    """Starts what has ended, until told to stop."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def pids(self, name: str) -> list[int]: ...


class Supervised:
    """`make run`'s supervisor keeps the processes; it may be killed too."""

    def __init__(self, settings: Mapping[str, str], folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._launched = Launched(settings, folder)
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._launched.start()
        self._watch = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await asyncio.to_thread(self._launched.stop)

    def pids(self, name: str) -> list[int]:
        supervisor = self._supervisor()
        if name == "supervisor":
            return supervisor
        module = PROCESSES[name][0]
        return [pid for parent in supervisor for pid in children(parent) if command_of(pid)[-1:] == [module]]

    def _supervisor(self) -> list[int]:
        return [pid for pid in children(os.getpid()) if "supervisor.supervisord" in command_of(pid)]

    async def _keep(self) -> None:
        """Start the system again when its supervisor is gone."""
        while True:
            await asyncio.sleep(0.2)
            if not self._supervisor():
                self._launched.stop()  # is over: this only collects it
                self._launched = Launched(self._settings, self._folder)
                self._launched.start()


class Kept:
    """A process each for these names, started again a moment after it ends."""

    def __init__(self, settings: Mapping[str, Mapping[str, str]], folder: Path, dice: random.Random) -> None:
        self._settings, self._folder, self._dice = settings, folder, dice
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, IO[bytes]] = {}
        self._watches: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        (self._folder / "log").mkdir(parents=True, exist_ok=True)
        for name in self._settings:
            self._logs[name] = (self._folder / "log" / f"{name}.log").open("ab")
            self._start(name)
        self._watches = [asyncio.create_task(self._keep(name)) for name in self._settings]

    async def stop(self) -> None:
        for watch in self._watches:
            watch.cancel()
        for process in self._running.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self._running.values():
            try:
                await asyncio.to_thread(process.wait, 20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for log in self._logs.values():
            log.close()

    def pids(self, name: str) -> list[int]:
        process = self._running[name]
        return [process.pid] if process.poll() is None else []

    def _start(self, name: str) -> None:
        self._running[name] = subprocess.Popen(
            [sys.executable, "-m", "launch.child", PROCESSES[process_of(name)][0]],
            cwd=ROOT,
            env=dict(self._settings[name]),
            stdout=self._logs[name],
            stderr=subprocess.STDOUT,
        )

    async def _keep(self, name: str) -> None:
        while True:
            await asyncio.sleep(0.05)
            if self._running[name].poll() is not None:
                await asyncio.sleep(self._dice.uniform(0.0, 0.5))
                self._start(name)


def process_of(name: str) -> str:
    """`sms-2` is a replica of sms."""
    return name.partition("-")[0]


class System:
    """Where everything is. `names` are the processes, each replica by itself."""

    def __init__(  # noqa: PLR0917 - its parts, each of another kind
        self,
        keeper: Keeper,
        places: Mapping[str, Mapping[str, str]],
        stores: Stores,
        disk: Disk,
        fronts: Mapping[str, Front],
        folder: Path,
    ) -> None:
        self._keeper = keeper
        self._places = places  #: Name → the settings it runs with.
        self.stores = stores
        self.disk = disk
        self.fronts = fronts
        self.folder = folder

    @property
    def names(self) -> list[str]:
        return list(self._places)

    @property
    def gateway(self) -> str:
        return self.fronts["callers"].url

    @property
    def sandbox(self) -> str:
        return f"http://{self._places['sandbox']['SANDBOX_LISTEN']}"

    def target(self, service: str) -> str:
        return targets([place for name, place in self._places.items() if process_of(name) == service], service)

    def replicas(self, process: str) -> list[str]:
        """Where the supervisor and PostgreSQL are one, they are their own replica."""
        return [name for name in self._places if process_of(name) == process] or [process]

    def pids(self, name: str) -> list[int]:
        return self.stores.pids() if name == "postgres" else self._keeper.pids(name)

    def readiness(self, name: str) -> str:
        process, place = process_of(name), self._places[name]
        if process == "sandbox":
            return f"{self.sandbox}/healthz"
        return f"http://{place[f'{process.upper()}_OPERATIONS_LISTEN']}/readyz"

    async def ready(self, http: aiohttp.ClientSession, name: str) -> bool:
        try:
            async with http.get(self.readiness(name), timeout=aiohttp.ClientTimeout(2)) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def wait(self, http: aiohttp.ClientSession, seconds: float = 90.0) -> None:
        """Until every process is ready; TimeoutError names those that are not."""
        left = set(self.names)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while left:
                    left -= {name for name in left if await self.ready(http, name)}
                    await asyncio.sleep(0.1)
        if left:
            raise TimeoutError(f"not ready: {', '.join(sorted(left))}; see {self.folder}/log")


def targets(places: Sequence[Mapping[str, str]], service: str) -> str:
    return "ipv4:" + ",".join(place[f"{service.upper()}_LISTEN"] for place in places)


def free_ports(count: int, dice: random.Random) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        port = dice.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port) if port not in found else None
    return found


def plain() -> dict[str, str]:
    """Nothing of the caller's settings reaches the system: no real key, no other system's address."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, **PACES, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}", "PYTHONUNBUFFERED": "1"}


@asynccontextmanager
async def running(database: str, folder: Path, replicas: int = 2) -> AsyncIterator[System]:
    """Start the system in an empty folder; whatever happens, nothing of it is left behind but its logs."""
    dice = random.Random()
    many = replicas if database == "postgres" else 1
    names = ["sandbox", *(f"{p}-{n}" if many > 1 else p for p in (*SERVICES, "gateway") for n in range(1, many + 1))]
    ports = iter(free_ports(2 * len(names) + 2, dice))
    public = {"callers": next(ports), "webhooks": next(ports)}
    async with AsyncExitStack() as stack:
        disk = stack.enter_context(Disk.mounted(folder / "disk", 1500 if database == "postgres" else 64))
        stores = await stack.enter_async_context(
            PostgresFiles.started(disk.folder) if database == "postgres" else SQLiteFiles.started(disk.folder)
        )
        places = {name: settings_of(name, {"listen": next(ports), "operations": next(ports)}, stores) for name in names}
        shared = shared_settings(places, public, folder)
        places = {name: {**shared, **place} for name, place in places.items()}
        fronts = {name: Front(gateways(places)) for name in public}
        for name, front in fronts.items():
            await stack.enter_async_context(front.opened(public[name]))
        keeper: Keeper = (
            Kept(places, folder, dice)
            if database == "postgres"
            else Supervised({**shared, **{k: v for place in places.values() for k, v in place.items()}}, folder)
        )
        await keeper.start()
        stack.push_async_callback(keeper.stop)
        yield System(keeper, places, stores, disk, fronts, folder)


def settings_of(name: str, ports: Mapping[str, int], stores: Stores) -> dict[str, str]:
    """What is a replica's own."""
    prefix = process_of(name).upper()
    own = {f"{prefix}_LISTEN": f"127.0.0.1:{ports['listen']}"}
    if prefix == "SANDBOX":
        return own
    if prefix == "GATEWAY":
        own["GATEWAY_ADMIN_LISTEN"] = "127.0.0.1:0"  # nobody calls it here
    operations = f"127.0.0.1:{ports['operations']}"
    return {**own, f"{prefix}_OPERATIONS_LISTEN": operations, f"{prefix}_DATABASE_URL": stores.url(process_of(name))}


def shared_settings(places: Mapping[str, Mapping[str, str]], public: Mapping[str, int], folder: Path) -> dict[str, str]:
    """What all have in common: where they find each other, and the secrets."""
    webhooks = f"http://127.0.0.1:{public['webhooks']}"
    found = {"SANDBOX_WEBHOOK_TARGET": webhooks, "PUBLIC_URL": webhooks}
    for service in SERVICES:
        replicas = [place for name, place in places.items() if process_of(name) == service]
        found[f"{service.upper()}_TARGET"] = targets(replicas, service)
    return complete({**plain(), **first_of_each(places), **found}, folder)


def first_of_each(places: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for place in places.values():
        settings = {**place, **settings}
    return settings


def gateways(places: Mapping[str, Mapping[str, str]]) -> list[Replica]:
    found = []
    for name, place in places.items():
        if process_of(name) == "gateway":
            host, _, port = place["GATEWAY_LISTEN"].rpartition(":")
            found.append(Replica(name, host, int(port)))
    return found


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder.absolute()
