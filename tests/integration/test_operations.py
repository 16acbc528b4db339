"""The operations listener over real HTTP."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from services.chassis.errors import Unavailable
from services.chassis.http import server
from services.chassis.http.operations import operations
from services.chassis.metrics import queues
from services.chassis.rpc.health import CACHE_SECONDS, Readiness
from services.chassis.settings import Address
from tests.fakes.echo_service import FakeStore, Settings

TOKENS = ",".join(
    f"{name}:{scopes}:{hashlib.sha256(name.encode()).hexdigest()}"
    for name, scopes in (("operator", "admin"), ("clinic", "read+send"))
)


@asynccontextmanager
async def operator(store: FakeStore, **settings: str) -> AsyncIterator[aiohttp.ClientSession]:
    chosen = Settings.model_validate({"operations_listen": "127.0.0.1:0", **settings})
    app = operations(chosen, Readiness(store), {"provider": lambda: "OPEN"})
    async with (
        server.listening(app, Address("127.0.0.1", 0)) as address,
        aiohttp.ClientSession(f"http://{address}") as http,
    ):
        yield http


async def test_readiness_depends_on_the_database_and_not_on_providers() -> None:
    store = FakeStore()
    async with operator(store) as http:
        ready = await http.get("/readyz")
        store.fail_with = Unavailable("no space left", reason="STORE_FULL")
        await asyncio.sleep(CACHE_SECONDS)
        full, alive = await http.get("/readyz"), await http.get("/healthz")

        assert (ready.status, await ready.json()) == (200, {"status": "ready", "provider": "OPEN", "queues": queues})
        assert (full.status, (await full.json())["reason"]) == (503, "STORE_FULL")
        assert alive.status == 200


@pytest.mark.parametrize(("askers", "takes"), [(300, 0.0), (50, 0.3), (1, 0.0)])
async def test_readiness_is_checked_once_a_second_for_all_callers(askers: int, takes: float) -> None:
    store = FakeStore()
    store.takes = takes
    async with operator(store) as http:
        for _ in range(2):
            answers = await asyncio.gather(*(http.get("/readyz") for _ in range(askers)))
            assert {answer.status for answer in answers} == {200}
        assert store.checks == 1
        await asyncio.sleep(CACHE_SECONDS)
        await http.get("/readyz")

    assert store.checks == 2


async def test_cancelled_caller_does_not_cancel_the_readiness_check_of_others() -> None:
    store = FakeStore()
    store.takes = 0.5
    readiness = Readiness(store)
    first, *others = [asyncio.create_task(readiness.check_cached()) for _ in range(4)]
    await asyncio.sleep(0.1)
    first.cancel()
    await asyncio.gather(*others)

    assert (first.cancelled(), store.checks, readiness.ready) == (True, 1, True)


@pytest.mark.parametrize(
    ("path", "token", "tokens", "status"),
    [
        ("/healthz", None, TOKENS, 200),
        ("/readyz", None, TOKENS, 200),
        ("/metrics", None, TOKENS, 401),
        ("/metrics", "nobody", TOKENS, 401),
        ("/metrics", "clinic", TOKENS, 403),
        ("/metrics", "operator", TOKENS, 200),
        ("/metrics", None, None, 403),
        ("/nothing", None, TOKENS, 401),
    ],
)
async def test_operations_off_loopback_need_an_admin_except_health(
    path: str, token: str | None, tokens: str | None, status: int
) -> None:
    settings = {"operations_listen": "0.0.0.0:0"} | ({"auth_tokens": tokens} if tokens else {})
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with operator(
        FakeStore(), **settings
    ) as http:  # bound to loopback all the same: it is the setting that counts
        assert (await http.get(path, headers=headers)).status == status


async def test_operations_on_loopback_need_no_token() -> None:
    async with operator(FakeStore(), auth_tokens=TOKENS) as http:
        assert (await http.get("/metrics")).status == 200
