"""All processes, two replicas of each, on databases that move."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from failover.cluster import Cluster, free_ports
from launch.settings import PROCESSES, complete

ROOT = Path(__file__).parent.parent
SERVICES = ("payments", "email", "sms")
REPLICAS = 2
#: Nothing else of the caller's environment gets in: no real provider's key can.
BARE = ("PATH", "HOME", "LANG", "TMPDIR")


class System:
    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._plan: dict[str, tuple[str, Mapping[str, str]]] = {}  #: Replica → (its module, its settings).
        self.ended: list[str] = []
        given = {name: os.environ[name] for name in BARE if name in os.environ}
        given["SANDBOX_LISTEN"] = f"127.0.0.1:{free_ports(1)[0]}"
        replicas: dict[str, list[dict[str, str]]] = {}
        for process in (*SERVICES, "gateway"):
            given[f"{process.upper()}_DATABASE_URL"] = cluster.url(process)
            replicas[process] = [_listeners(process) for _ in range(REPLICAS)]
            given |= replicas[process][0]
        for process in SERVICES:
            given[f"{process.upper()}_TARGET"] = target(own[f"{process.upper()}_LISTEN"] for own in replicas[process])
        # As fast as the machine: no provider's pace is what is measured here.
        given |= {"STRIPE_PER_SECOND": "200", "SENDGRID_PER_SECOND": "200", "TWILIO_PER_SECOND": "200"}
        self.settings = complete(given, folder)
        self.gateways = [f"http://{own['GATEWAY_LISTEN']}" for own in replicas["gateway"]]
        self.sandbox = f"http://{self.settings['SANDBOX_LISTEN']}"
        self._plan["sandbox"] = ("sandbox", self.settings)
        for process, each in replicas.items():
            for number, own in enumerate(each, 1):
                self._plan[f"{process}-{number}"] = (PROCESSES[process][0], {**self.settings, **own})

    def start(self, seconds: float = 90.0) -> None:
        (self._folder / "log").mkdir(parents=True, exist_ok=True)
        for name in self._plan:
            self._start(name)
        until = time.monotonic() + seconds
        left = {self._readiness(name) for name in self._plan}
        while left := {url for url in left if not _answers(url)}:
            if time.monotonic() > until:
                raise TimeoutError(f"not ready: {', '.join(sorted(left))}; see {self._folder}/log")
            time.sleep(0.2)

    def restart_ended(self) -> None:
        """Start again what ended of its own accord, as a supervisor does, and remember it."""
        for name, process in self._running.items():
            if process.poll() is not None:
                self.ended.append(name)
                self._start(name)

    def stop(self) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, name: str) -> None:
        module, settings = self._plan[name]
        with (self._folder / "log" / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", "launch.child", module],
                cwd=ROOT,
                env={**settings, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _readiness(self, name: str) -> str:
        process = name.partition("-")[0]
        if process == "sandbox":
            return f"{self.sandbox}/healthz"
        return f"http://{self._plan[name][1][f'{process.upper()}_OPERATIONS_LISTEN']}/readyz"


def target(addresses: Iterator[str]) -> str:
    """Several replicas as one gRPC target."""
    return f"ipv4:{','.join(addresses)}"


def _listeners(process: str) -> dict[str, str]:
    listen, operations = free_ports(2)
    own = {
        f"{process.upper()}_LISTEN": f"127.0.0.1:{listen}",
        f"{process.upper()}_OPERATIONS_LISTEN": f"127.0.0.1:{operations}",
    }
    return {**own, "GATEWAY_ADMIN_LISTEN": "127.0.0.1:0"} if process == "gateway" else own  # nobody calls it here


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
