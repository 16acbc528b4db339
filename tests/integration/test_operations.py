"""The operator's listener, called over real HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from services.chassis import web
from services.chassis.errors import Unavailable
from services.chassis.health import Readiness
from services.chassis.operations import operations
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
        web.listening(app, Address("127.0.0.1", 0)) as address,
        aiohttp.ClientSession(f"http://{address}") as http,
    ):
        yield http


async def test_ready_is_whether_it_can_store_and_a_provider_is_only_a_fact() -> None:
    store = FakeStore()
    async with operator(store) as http:
        ready = await http.get("/readyz")
        store.fail_with = Unavailable("no space left", reason="STORE_UNAVAILABLE")
        full, alive = await http.get("/readyz"), await http.get("/healthz")

        assert (ready.status, await ready.json()) == (200, {"status": "ready", "provider": "OPEN"})
        assert (full.status, (await full.json())["reason"]) == (503, "STORE_UNAVAILABLE")
        assert alive.status == 200


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
async def test_off_loopback_all_but_health_needs_an_admin(
    path: str, token: str | None, tokens: str | None, status: int
) -> None:
    settings = {"operations_listen": "0.0.0.0:0"} | ({"auth_tokens": tokens} if tokens else {})
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with operator(
        FakeStore(), **settings
    ) as http:  # bound to loopback all the same: it is the setting that counts
        assert (await http.get(path, headers=headers)).status == status


async def test_on_loopback_it_is_open() -> None:
    async with operator(FakeStore(), auth_tokens=TOKENS) as http:
        assert (await http.get("/metrics")).status == 200
