"""The main story, over five real processes: what it promises when nothing fails, and when something does."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.demo import Demo, play
from tests.e2e.whole import Whole, clinic, eventually, whole
from tests.postgres_cluster import Cluster

SERVICES = ("payments", "email", "sms", "gateway")


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Whole]:
    with whole(tmp_path) as running:
        yield running


def mails(entries: list[Any]) -> Counter[str]:
    """How often each mail was accepted."""
    return Counter(entry["request"]["custom_args"]["email_id"] for entry in entries)


def texts(entries: list[Any]) -> Counter[tuple[str, str]]:
    return Counter((entry["request"]["To"], entry["request"]["Body"]) for entry in entries)


async def test_the_story_plays_on_postgresql(tmp_path: Path, postgres: Cluster) -> None:
    databases = {f"{name.upper()}_DATABASE_URL": postgres.database() for name in SERVICES}
    with whole(tmp_path, databases) as system:
        await play(system, Demo())


async def test_email_down_stops_nobody_else_and_its_mails_go_out_once_it_is_back(system: Whole) -> None:
    system.running["email"].kill()
    async with clinic(system) as patient:
        payment = await patient.create_payment()
        await patient.pay(payment["payment_id"])
        await eventually(lambda: patient.paid(payment["payment_id"]))
        text = await eventually(lambda: patient.receipt_texted(""))
        await eventually(lambda: patient.sms_delivered(text))
        status, legs = await system.ask(
            "POST",
            "/v1/appointments/a1/confirmation",
            {
                "patient": {"name": "Ana", "email": "ana@example.com", "phone": "+5511912345678"},
                "appointment": {"start_time": "2030-03-14T17:30:00Z"},
            },
            key="while email is down",
        )
        assert (status, legs["sms"]["status"]) == (207, "MESSAGE_STATUS_QUEUED")
        assert legs["email"]["error"]["reason"] in {"OUTCOME_UNKNOWN", "NOT_SENT", "UNAVAILABLE", "BREAKER_OPEN"}
        assert await system.ledger("sendgrid") == []

        system.up("email")
        receipt = await eventually(patient.receipt_mailed, 90)
        await eventually(lambda: patient.email_delivered(receipt))

    assert list(mails(await system.ledger("sendgrid")).values()) == [1]


async def test_an_appointment_that_cannot_be_told_of_is_the_caller_s_error_over_http(system: Whole) -> None:
    future = "2030-03-14T17:30:00Z"
    wrong: list[tuple[dict[str, str], str, str]] = [
        ({"start_time": "0001-01-01T00:00:00Z"}, "+5511912345678", "appointment.start_time"),
        ({"start_time": "9999-12-31T23:59:59Z"}, "+5511912345678", "appointment.start_time"),
        ({"start_time": "2001-03-14T17:30:00Z"}, "+5511912345678", "appointment.start_time"),
        ({"start_time": future, "time_zone": "Etc/GMT+3"}, "+5511912345678", "appointment.time_zone"),
        ({"start_time": future, "time_zone": "localtime"}, "+5511912345678", "appointment.time_zone"),
        ({"start_time": future}, "21 9xxxx xxxx", "patient.phone"),
        ({"start_time": future}, "(11) 9123-4567/8", "patient.phone"),
    ]
    for n, (appointment, phone, field) in enumerate(wrong):
        body = {"patient": {"name": "Ana", "phone": phone}, "appointment": appointment}
        for route in ("confirmation", "reminder"):
            status, legs = await system.ask("POST", f"/v1/appointments/a1/{route}", body, key=f"{route} {n}")
            assert (status, [error["field"] for error in legs["sms"]["error"]["errors"]]) == (422, [field]), body

    assert await system.ledger("twilio") == []


async def test_a_gateway_killed_at_any_moment_loses_no_event_and_tells_nobody_twice(system: Whole) -> None:
    payments = []
    for n in range(10):
        body = {
            "amount": {"amount_minor": 1000 + n, "currency": "BRL"},
            "appointment_id": f"a{n}",
            "patient_id": "p",
            "payer": {"name": "Ana", "email": f"ana{n}@example.com", "phone": f"+551191234567{n}"},
        }
        status, answer = await system.ask("POST", "/v1/payments", body, key=f"k{n}")
        assert status == 201
        payments.append(answer["payment"]["payment_id"])
    for n, payment in enumerate(payments):
        await system.ask("POST", f"{system.sandbox}/_sandbox/payments/{payment}/pay")
        if n % 3 == 2:
            await asyncio.sleep(0.05 * n)
            system.running["gateway"].kill()
            system.up("gateway")

    async def everybody_was_told() -> bool:
        return len(await system.ledger("sendgrid")) >= 10 and len(await system.ledger("twilio")) >= 10

    await eventually(everybody_was_told, 90)
    await asyncio.sleep(2)
    assert sorted(mails(await system.ledger("sendgrid")).values()) == [1] * 10
    assert sorted(texts(await system.ledger("twilio")).values()) == [1] * 10
    for payment in payments:
        _, answer = await system.ask("GET", f"/v1/payments/{payment}")
        assert answer["payment"]["status"] == "PAYMENT_STATUS_SUCCEEDED"


async def test_a_refused_stripe_key_fails_nothing_and_raises_the_alarm(system: Whole) -> None:
    fault = {"provider": "stripe", "kind": "status", "status": 401, "times": 0}
    await system.ask("POST", f"{system.sandbox}/_sandbox/faults", fault)
    body = {"amount": {"amount_minor": 1000, "currency": "BRL"}, "appointment_id": "a", "patient_id": "p"}
    status, problem = await system.ask("POST", "/v1/payments", body, key="k")
    assert (status, problem["reason"]) == (503, "PROVIDER_CREDENTIALS")

    async def alarmed() -> bool:
        paused = await system.metric("payments", "topsmile_queue_paused")
        return paused.get('queue="stripe",reason="PROVIDER_CREDENTIALS"') == 1.0

    await eventually(alarmed)
    status, problem = await system.ask("POST", "/v1/payments", {**body, "appointment_id": "b"}, key="k2")
    assert (status, problem["reason"]) == (503, "PROVIDER_CREDENTIALS")
    assert (await system.metric("payments", "topsmile_queue_dead"))['queue="stripe"'] == 0.0
