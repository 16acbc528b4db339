"""GET /v1/status tells why nothing is sent: real processes whose databases are brought into each state."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.chassis.errors import Unavailable
from services.chassis.http import server
from services.chassis.http.operations import operations
from services.chassis.rpc.health import Readiness
from services.chassis.rpc.server import Service, listening
from services.chassis.settings import Address
from tests.fakes.echo_service import NAME, EchoServicer, FakeStore, Settings, add_echo
from tests.fakes.gateway import running_gateway, until
from tests.integration import test_gateway_process
from tests.processes import Process, process

DAY_MS = 86_400_000
JOB = """
    INSERT INTO job (queue, id, priority, state, due_at, payload, created_at, expires_at)
    VALUES (:queue, 'job_1', 0, :state, :due_at, '', :due_at, :expires_at)
"""
PAUSE = """
    INSERT INTO rate_limit (queue, paused_at, paused_until, reason) VALUES (:queue, :now, :until, :reason)
    ON CONFLICT (queue) DO UPDATE SET paused_at = :now, paused_until = :until, reason = :reason
"""


class Pair:
    """A gateway and an sms service, each a process with a SQLite file of its own."""

    def __init__(self, folder: Path, gateway: Process) -> None:
        self._folder = folder
        self._gateway = gateway

    def write(self, database: str, statement: str, **values: Any) -> None:
        with closing(sqlite3.connect(self._folder / f"{database}.db", timeout=10)) as connection, connection:
            connection.execute(statement, values)

    async def status(self) -> dict[str, Any]:
        url = f"http://{self._gateway.listening['http']}/v1/status"
        async with aiohttp.ClientSession() as http, http.get(url) as response:
            answer: dict[str, Any] = await response.json()
            return answer

    async def eventually(self, who: str, reasons: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}

        async def holds() -> bool:
            found.update((await self.status())[who])
            return bool(found["reasons"] == reasons)

        try:
            await until(holds)
        except TimeoutError:
            raise AssertionError(found) from None
        return found


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    sms = {
        "SMS_LISTEN": "127.0.0.1:0",
        "SMS_OPERATIONS_LISTEN": "127.0.0.1:0",
        "SMS_DATABASE_URL": f"sqlite:///{tmp_path}/sms.db",
        "TWILIO_ACCOUNT_SID": "AC00000000000000000000000000000000",
        "TWILIO_AUTH_TOKEN": "token",
        "TWILIO_PHONE_NUMBER": "+15005550006",
        "TWILIO_API_BASE": "http://127.0.0.1:1",
        "SMS_PEPPER": "a pepper of sixteen",
    }
    with process("services.sms", sms) as service:
        known = {
            "SMS_TARGET": service.listening["grpc"],
            "SMS_OPERATIONS": f"http://{service.listening['operations']}",
        }
        with process("gateway", test_gateway_process.settings(tmp_path) | known) as gateway:
            yield Pair(tmp_path, gateway)


def now() -> int:
    return time.time_ns() // 1_000_000


@pytest.mark.parametrize("reason", ["PROVIDER_CREDENTIALS", "THROTTLED", "OPERATOR"])
async def test_a_paused_queue_is_told_with_its_reason_and_its_end(pair: Pair, reason: str) -> None:
    assert (await pair.eventually("sms", []))["status"] == "SERVING"
    for database, queue in (("sms", "twilio"), ("gateway", "email")):
        pair.write(database, PAUSE, queue=queue, now=now(), until=1_900_000_000_000, reason=reason)

    for who, queue in (("sms", "sms"), ("gateway", "email")):
        found = await pair.eventually(who, [reason])
        assert found["status"] == "DEGRADED"
        assert (found["queues"][queue]["paused"], found["queues"][queue]["paused_until"]) == (
            reason,
            "2030-03-17T17:46:40Z",
        )


@pytest.mark.parametrize(
    ("state", "seconds", "reasons"),
    [
        ("dead", 300, ["DEAD_LETTERS"]),
        ("dead", 0, ["DEAD_LETTERS"]),
        ("queued", 300, ["HELD", "OVERDUE"]),
        ("queued", 7200, ["HELD", "OVERDUE"]),
        ("queued", 0, ["HELD"]),
    ],
)
async def test_what_is_given_up_or_overdue_is_told(pair: Pair, state: str, seconds: int, reasons: list[str]) -> None:
    for database, queue, provider in (("sms", "sms", "twilio"), ("gateway", "payments", "payments")):
        if state == "queued":  # or the worker would take it
            pair.write(database, PAUSE, queue=provider, now=now(), until=now() + DAY_MS, reason="HELD")
        due_at = now() - 1000 * seconds
        pair.write(database, JOB, queue=queue, state=state, due_at=due_at, expires_at=now() + DAY_MS)

    for who, queue in (("sms", "sms"), ("gateway", "payments")):
        found = await pair.eventually(who, reasons)
        assert found["status"] == "DEGRADED"
        assert found["queues"][queue]["dead"] == (state == "dead")
        assert (found["queues"][queue]["oldest_due_seconds"] > 60) is ("OVERDUE" in reasons)


@asynccontextmanager
async def unready(store: FakeStore) -> AsyncIterator[dict[str, Any]]:
    """A service that takes no work, and where the gateway asks it."""
    settings = Settings.model_validate({"listen": "127.0.0.1:0", "operations_listen": "127.0.0.1:0"})
    readiness = Readiness(store)
    async with (
        readiness.monitored(),
        listening(settings, readiness, [Service(NAME, add_echo, EchoServicer())]) as address,
        server.listening(operations(settings, readiness, {}), Address("127.0.0.1", 0)) as operator,
    ):
        yield {"email_target": str(address), "email_operations": f"http://{operator}"}


@pytest.mark.parametrize("reason", ["STORE_FULL", "STORE_UNAVAILABLE", "STORE_LOCKED"])
async def test_a_service_that_takes_no_work_is_told_with_its_reason(tmp_path: Path, reason: str) -> None:
    store = FakeStore()
    store.fail_with = Unavailable("no", reason=reason)
    async with (
        unready(store) as known,
        running_gateway(f"sqlite:///{tmp_path}/gateway.db", working=False, **known) as gateway,
        gateway.http.get(f"http://{gateway.address}/v1/status") as response,
    ):
        found = (await response.json())["email"]
    assert (found["status"], found["reasons"]) == ("NOT_SERVING", [reason])
