"""The whole system for a test: five real processes on free ports, each of which may be killed and started again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from launch.demo import Clinic
from launch.settings import PROCESSES, complete
from launch.system import System
from tests.processes import Process
from topsmile.email.v1 import email_pb2_grpc
from topsmile.sms.v1 import sms_pb2_grpc


class Whole(System):
    """Without a supervisor: what a test kills stays away until the test starts it again."""

    def __init__(self, folder: Path, given: Mapping[str, str] | None = None) -> None:
        super().__init__(complete(given or {}, folder, free_ports=True), folder)
        self.running: dict[str, Process] = {}

    def up(self, *names: str) -> None:
        for name in names or PROCESSES:
            module, _, _ = PROCESSES[name]
            self.running[name] = Process(module, self.settings)

    def down(self) -> None:
        for process in self.running.values():
            process.kill()

    async def ask(self, method: str, path: str, body: object = None, key: str = "", token: str = "") -> tuple[int, Any]:
        """Ask the gateway, or with a whole URL anybody."""
        url = path if "://" in path else self.gateway + path
        headers = {"Idempotency-Key": key} if key else {}
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)) as http,
            http.request(method, url, json=body, headers=headers) as answer,
        ):
            return answer.status, await answer.json()

    async def ledger(self, provider: str) -> list[Any]:
        """What a provider has accepted, oldest first."""
        _, ledger = await self.ask("GET", f"{self.sandbox}/_sandbox/ledger?provider={provider}&limit=1000")
        return [entry for entry in ledger["entries"] if entry["outcome"] == "accepted" and entry["method"] == "POST"]

    async def metric(self, process: str, name: str) -> dict[str, float]:
        """The series of a metric by their labels, as they are written."""
        url = f"http://{self.settings[f'{process.upper()}_OPERATIONS_LISTEN']}/metrics"
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            lines = (await answer.text()).splitlines()
        return {
            line.split("{")[1].split("}")[0]: float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{")
        }


@contextmanager
def whole(folder: Path, given: Mapping[str, str] | None = None) -> Any:
    system = Whole(folder, given)
    try:
        system.up()
        yield system
    except BaseException:  # shown by pytest with the failure
        for name, process in system.running.items():
            print(f"--- {name}", *[line for line in process.lines if '"OK"' not in line][-30:], sep="\n")  # noqa: T201
        raise
    finally:
        system.down()


@asynccontextmanager
async def clinic(system: Whole) -> AsyncIterator[Clinic]:
    async with (
        aiohttp.ClientSession() as http,
        system.channel("email") as email,
        system.channel("sms") as sms,
    ):
        yield Clinic(system, http, email_pb2_grpc.EmailServiceStub(email), sms_pb2_grpc.SmsServiceStub(sms))


async def eventually(look: Callable[[], Awaitable[Any]], seconds: float = 30.0) -> Any:
    """Look until there is something to see."""
    until = time.monotonic() + seconds
    while not (found := await look()):
        assert time.monotonic() < until, f"not within {seconds:.0f} s"
        await asyncio.sleep(0.1)
    return found
