"""The operator's command against every process of a running system."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.whole import Whole, whole
from tests.fakes.gateway import until
from tests.integration.test_admin_command import WHY, rows_of
from tests.postgres_cluster import Cluster

#: Setting of the address → queues, breakers.
PROCESSES = {
    "PAYMENTS_LISTEN": (["stripe"], ["stripe"]),
    "EMAIL_LISTEN": (["email"], ["sendgrid"]),
    "SMS_LISTEN": (["sms"], ["twilio"]),
    "GATEWAY_ADMIN_LISTEN": (["email", "payments", "sms"], ["email", "payments", "sms"]),
}
PAYMENT: dict[str, Any] = {
    "amount": {"amount_minor": 15000, "currency": "BRL"},
    "patient_id": "p1",
    "payer": {"name": "Ana Souza", "email": "ana@example.com"},
}


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    databases = {}
    if request.param == "postgres":
        server: Cluster = request.getfixturevalue("postgres")
        databases = {f"{name}_DATABASE_URL": server.database() for name in ("PAYMENTS", "EMAIL", "SMS", "GATEWAY")}
    with whole(tmp_path_factory.mktemp("operate"), databases) as running:
        yield running


@pytest.mark.parametrize("listener", PROCESSES)
async def test_every_process_shows_its_queues_and_breakers(system: Whole, listener: str) -> None:
    queues, breakers = PROCESSES[listener]
    target = system.settings[listener]

    assert [row["queue"] for row in await rows_of(target, "queues")] == queues
    assert [(row["breaker"], row["mode"]) for row in await rows_of(target, "breakers")] == [
        (name, "BREAKER_MODE_AUTOMATIC") for name in breakers
    ]


async def test_breaker_held_open_at_the_gateway_refuses_payments_until_it_is_released(system: Whole) -> None:
    target = system.settings["GATEWAY_ADMIN_LISTEN"]
    await rows_of(target, "breakers", "payments", "open", *WHY)
    held = await system.ask("POST", "/v1/payments", {**PAYMENT, "appointment_id": "held"}, "held")
    status = (await system.ask("GET", "/v1/status"))[1]["payments"]
    await rows_of(target, "breakers", "payments", "automatic", *WHY)
    made = await system.ask("POST", "/v1/payments", {**PAYMENT, "appointment_id": "held"}, "held")

    assert (held[0], held[1]["reason"], status["breaker"]) == (503, "BREAKER_OPEN", "OPEN")
    assert made[0] == 201


async def test_paused_stripe_queue_refuses_payments_until_it_is_resumed(system: Whole) -> None:
    target = system.settings["PAYMENTS_LISTEN"]
    await rows_of(target, "pause", "stripe", *WHY)
    paused = await system.ask("POST", "/v1/payments", {**PAYMENT, "appointment_id": "paused"}, "paused")

    async def degraded() -> bool:
        return "PAUSED" in (await system.ask("GET", "/v1/status"))[1]["payments"]["reasons"]

    await until(degraded)
    await rows_of(target, "resume", "stripe", *WHY)
    made = await system.ask("POST", "/v1/payments", {**PAYMENT, "appointment_id": "paused"}, "paused")
    audit = await rows_of(target, "audit", "--of", "stripe")

    assert (paused[0], paused[1]["reason"]) == (503, "PAUSED")
    assert made[0] == 201
    assert [row["method"] for row in audit] == ["ResumeQueue", "PauseQueue"]
