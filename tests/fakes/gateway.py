"""The gateway, listening, with its workers and watcher running, in front of three fakes that can be stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
from pydantic import SecretStr

from gateway.__main__ import MIGRATIONS
from gateway.app import application
from gateway.clients import Clients, connected
from gateway.delivery import deliveries
from gateway.settings import Settings, parse_public_keys
from gateway.watcher import Watcher
from services.chassis.database.connect import connect
from services.chassis.database.transactions import Database, rows
from services.chassis.http import server
from services.chassis.lifecycle import Worker
from services.chassis.rpc.authentication import parse_tokens
from services.chassis.settings import Address
from tests.fakes import signing
from tests.fakes.services import FakeEmail, FakePayments, FakeSms

STRIPE_SECRET, OLD_STRIPE_SECRET = "whsec_new", "whsec_old"
TWILIO_TOKEN, OLD_TWILIO_TOKEN, TWILIO_SHARED_KEY = "twilio_new", "twilio_old", "twilio_shared"
PUBLIC_URL = "https://localhost"


class RunningGateway:
    def __init__(self) -> None:
        self.payments = FakePayments()  # type: ignore[abstract]  # the gateway calls no other methods
        self.email = FakeEmail()  # type: ignore[abstract]  # as above
        self.sms = FakeSms()  # type: ignore[abstract]  # as above
        self.sendgrid, self.old_sendgrid = signing.SendGridKey(), signing.SendGridKey()
        self.offset = 0.0  #: Seconds that the gateway's clock is ahead of ours.
        self.address = Address("", 0)
        self.database: Database
        self.clients: Clients
        self.http: aiohttp.ClientSession
        self.watcher: Watcher

    def clock(self) -> float:
        return time.time() + self.offset

    def settings(self, **changes: Any) -> Settings:
        variables: dict[str, Any] = {
            "listen": Address("127.0.0.1", 0),
            "operations_listen": Address("127.0.0.1", 0),
            "database_url": "sqlite:///unused.db",
            "stripe_webhook_secret": (SecretStr(STRIPE_SECRET), SecretStr(OLD_STRIPE_SECRET)),
            "sendgrid_webhook_public_key": parse_public_keys(f"{self.sendgrid.public},{self.old_sendgrid.public}"),
            "twilio_auth_token": (SecretStr(TWILIO_TOKEN), SecretStr(OLD_TWILIO_TOKEN)),
            "twilio_shared_keys": {"key_1": TWILIO_SHARED_KEY.encode()},
            "public_url": PUBLIC_URL,
            "payments_target": self.payments.target,
            "email_target": self.email.target,
            "sms_target": self.sms.target,
            "payments_operations": "http://127.0.0.1:1",
            "email_operations": "http://127.0.0.1:1",
            "sms_operations": "http://127.0.0.1:1",
        }
        if "auth_tokens" in changes:
            changes["auth_tokens"] = parse_tokens(changes["auth_tokens"])
        return Settings(**(variables | changes))

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        async with self.http.get(f"http://{self.address}{path}", headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    async def post(
        self, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        async with self.http.post(f"http://{self.address}{path}", data=body, headers=headers) as answer:
            text = await answer.read()
            return answer.status, (await answer.json(content_type=None)) if text else {}

    async def stripe(self, body: bytes, secret: str = STRIPE_SECRET, age: int = 0) -> int:
        moment = int(time.time()) - age
        return (await self.post("/webhooks/stripe", body, signing.stripe_header(body, secret, moment)))[0]

    async def mails(self, body: bytes, age: int = 0) -> int:
        moment = int(time.time()) - age
        return (await self.post("/webhooks/sendgrid", body, self.sendgrid.header(body, moment)))[0]

    async def text(self, body: bytes, query: str = "", token: str = TWILIO_TOKEN) -> int:
        path = f"/webhooks/twilio/status{query}"
        return (await self.post(path, body, signing.twilio_header(PUBLIC_URL + path, body, token)))[0]

    async def stored(self) -> list[Any]:
        found = await self.database.read(rows, "SELECT * FROM inbox ORDER BY received_at, event_id")
        return [dict(row) for row in found]

    async def jobs(self) -> list[Any]:
        return [dict(row) for row in await self.database.read(rows, "SELECT * FROM job ORDER BY queue, id")]


@asynccontextmanager
async def running_gateway(
    database_url: str, *, working: bool = True, max_concurrent: int = 500, seconds: float = 10.0, **changes: Any
) -> AsyncIterator[RunningGateway]:
    built = RunningGateway()
    async with AsyncExitStack() as stack:
        for fake in (built.payments, built.email, built.sms):
            await fake.start()
            stack.push_async_callback(fake.stop)
        settings = built.settings(**changes)
        built.database = await stack.enter_async_context(connect(database_url, MIGRATIONS))
        built.clients = await stack.enter_async_context(connected(settings))
        built.http = await stack.enter_async_context(aiohttp.ClientSession())
        workers = deliveries(built.database, built.clients)

        def wake(queue: str) -> None:
            workers[queue].wake()

        built.watcher = Watcher(built.database, built.clients, wake)
        if working:
            await stack.enter_async_context(running([*workers.values(), built.watcher]))
        app = application(
            settings,
            built.database,
            built.clients,
            wake,
            clock=built.clock,
            max_concurrent=max_concurrent,
            seconds=seconds,
        )
        built.address = await stack.enter_async_context(server.listening(app, settings.listen))
        yield built


@asynccontextmanager
async def running(workers: Sequence[Worker]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        yield
    finally:
        for worker in workers:
            worker.stop()
        await asyncio.gather(*tasks)


async def until(holds: Callable[[], Awaitable[bool] | bool], within: float = 20.0) -> None:
    async with asyncio.timeout(within):
        while True:
            answer = holds()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.02)
