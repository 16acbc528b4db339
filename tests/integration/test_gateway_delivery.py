"""From the inbox to the service that owns the event: once, through the breaker, whatever is down meanwhile."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway import inbox
from services.chassis.errors import InvalidRequest, NotSent, Unavailable, Violation
from services.chassis.rpc.authentication import parse_tokens
from tests.fakes.gateway import RunningGateway, running_gateway, until


def event(number: int, kind: str = "payment_intent.succeeded") -> bytes:
    return json.dumps({"id": f"evt_{number}", "type": kind, "livemode": True, "account": "acct_1"}).encode()


def mailed(number: int) -> bytes:
    return json.dumps(
        [{"event": "delivered", "timestamp": number, "sg_message_id": "x", "email": "a@b.example"}]
    ).encode()


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(f"sqlite:///{tmp_path}/gateway.db") as built:
        yield built


async def outcomes(gateway: RunningGateway) -> list[str]:
    return sorted(row["outcome"] for row in await gateway.stored())


async def test_each_provider_s_event_reaches_its_own_service_as_it_came(database_url: str) -> None:
    async with running_gateway(database_url) as gateway:
        await gateway.stripe(event(1))
        await gateway.mails(mailed(1))
        await gateway.text(b"MessageSid=SM1&MessageStatus=sent", "?attempt=att_1")

        async def applied() -> bool:
            return await outcomes(gateway) == ["APPLIED"] * 3

        await until(applied)
        (stripe,) = gateway.payments.events.applied.values()
        assert (stripe.event_id, stripe.account, stripe.type) == ("evt_1", "acct_1", "payment_intent.succeeded")
        assert (stripe.body, stripe.livemode) == (event(1), True)
        assert stripe.received_time.seconds > 1_700_000_000
        assert stripe.provider == "stripe"
        (mail,) = gateway.email.events.applied.values()
        assert json.loads(mail.body) == json.loads(mailed(1))[0]
        assert mail.provider == "sendgrid"
        (text,) = gateway.sms.events.applied.values()
        assert (text.query, text.body) == ("attempt=att_1", b"MessageSid=SM1&MessageStatus=sent")
        assert text.provider == "twilio"
        assert {job["payload"] for job in await gateway.jobs()} == {b""}


async def test_what_the_service_wants_later_it_gets_later(gateway: RunningGateway) -> None:
    gateway.payments.events.outcomes = ["RETRY"]
    await gateway.stripe(event(1))
    await until(lambda: bool(gateway.payments.events.applied))
    assert gateway.payments.events.received == {"evt_1": 2}


async def test_a_rejected_event_is_done_and_recorded(gateway: RunningGateway) -> None:
    gateway.payments.events.outcomes = ["REJECTED"]
    await gateway.stripe(event(1))

    async def recorded() -> bool:
        return await outcomes(gateway) == ["REJECTED"]

    await until(recorded)
    assert [job["state"] for job in await gateway.jobs()] == ["done"]


async def test_a_call_that_can_never_be_right_is_a_dead_letter_that_keeps_its_event(gateway: RunningGateway) -> None:
    gateway.payments.fail_with = InvalidRequest([Violation("events", "too many")])
    await gateway.stripe(event(1))

    async def dead() -> bool:
        return await outcomes(gateway) == ["DEAD"]

    await until(dead)
    assert [job["state"] for job in await gateway.jobs()] == ["dead"]
    assert (await gateway.stored())[0]["body"] == event(1)


async def test_a_stopped_service_gets_a_handful_of_calls_and_then_everything_once(gateway: RunningGateway) -> None:
    await gateway.email.stop()
    for number in range(60):
        assert await gateway.mails(mailed(number)) == 200
        assert await gateway.stripe(event(number)) == 200
    await until(lambda: gateway.clients.email.breaker.state == "OPEN")
    await until(lambda: len(gateway.payments.events.applied) == 60)  # the others go on

    await gateway.email.start()
    await until(lambda: len(gateway.email.events.applied) == 60)
    assert set(gateway.email.events.received.values()) == {1}
    burnt = sum(job["failures"] for job in await gateway.jobs() if job["queue"] == "email")
    assert burnt <= 30
    assert gateway.clients.payments.breaker.state == "CLOSED"


async def test_an_open_breaker_burns_no_attempt(gateway: RunningGateway) -> None:
    gateway.clients.email.breaker.force_open()
    await gateway.mails(mailed(1))
    await gateway.stripe(event(1))
    await until(lambda: bool(gateway.payments.events.applied))
    (job,) = [job for job in await gateway.jobs() if job["queue"] == "email"]
    assert (job["state"], job["failures"], gateway.email.calls.total()) == ("queued", 0, 0)

    gateway.clients.email.breaker.release()
    await until(lambda: bool(gateway.email.events.applied))


async def test_a_provider_s_outage_told_by_a_live_service_opens_no_breaker(gateway: RunningGateway) -> None:
    gateway.sms.fail_with = NotSent("twilio", None, "not reached")
    for number in range(12):
        await gateway.text(b"MessageSid=SM%d&MessageStatus=sent" % number)
    await until(lambda: gateway.sms.calls["ApplyEvents"] >= 12)
    assert gateway.clients.sms.breaker.state == "CLOSED"

    gateway.sms.fail_with = None
    await until(lambda: len(gateway.sms.events.applied) == 12)


async def test_a_service_that_has_given_up_is_not_asked_again_behind_the_queue_s_back(gateway: RunningGateway) -> None:
    gateway.sms.fail_with = Unavailable("later")
    await gateway.text(b"MessageSid=SM1&MessageStatus=sent")
    await until(lambda: gateway.sms.calls["ApplyEvents"] == 1)
    assert gateway.sms.calls["ApplyEvents"] == 1  # no retry behind the queue's back


async def test_a_refused_token_pauses_the_queue_and_loses_nothing(tmp_path: Path) -> None:
    async with running_gateway(f"sqlite:///{tmp_path}/gateway.db") as gateway:
        await gateway.payments.stop()
        open_door = gateway.payments.settings
        gateway.payments.settings = open_door.model_copy(
            update={"auth_tokens": parse_tokens(f"somebody:admin:{'0' * 64}")}
        )
        await gateway.payments.start()
        await gateway.stripe(event(1))

        async def paused() -> bool:
            return [job["note"] for job in await gateway.jobs()] == ["PROVIDER_CREDENTIALS"]

        await until(paused)
        (job,) = await gateway.jobs()
        assert (job["state"], job["failures"]) == ("queued", 0)


async def test_bodies_are_forgotten_after_a_week_and_ids_after_five(database_url: str) -> None:
    async with running_gateway(database_url) as gateway:
        await gateway.stripe(event(1))
        await until(lambda: bool(gateway.payments.events.applied))

        async def applied() -> bool:
            return await outcomes(gateway) == ["APPLIED"]

        await until(applied)
        await gateway.database.run(inbox.forget)
        assert (await gateway.stored())[0]["body"] == event(1)

        gateway.database.offset_ms = inbox.BODIES_KEPT_MS + 60_000
        await gateway.database.run(inbox.forget)
        assert [row["body"] for row in await gateway.stored()] == [b""]

        gateway.database.offset_ms = inbox.IDS_KEPT_MS + 60_000
        await gateway.database.run(inbox.forget)
        assert await gateway.stored() == []


@pytest.mark.parametrize("number", [7, 8, 9])
async def test_event_that_was_given_up_keeps_its_body_for_a_replay_and_goes_after_five_weeks(
    database_url: str, number: int
) -> None:
    async with running_gateway(database_url) as gateway:
        gateway.payments.fail_with = InvalidRequest([Violation("events", "no")])
        await gateway.stripe(event(number))
        await until(lambda: outcome_is(gateway, "DEAD"))

        gateway.database.offset_ms = inbox.IDS_KEPT_MS - 60_000
        await gateway.database.run(inbox.forget)
        assert [row["body"] for row in await gateway.stored()] == [event(number)]

        gateway.database.offset_ms = inbox.IDS_KEPT_MS + 60_000
        await gateway.database.run(inbox.forget)
        assert await gateway.stored() == []


@pytest.mark.parametrize("first", ["REJECTED", "pending", "DEAD"])
async def test_an_event_in_another_body_is_delivered_unless_it_was_applied(database_url: str, first: str) -> None:
    old, modern = (
        json.dumps({**json.loads(event(1)), "api_version": version}).encode() for version in ("2020", "2026")
    )
    async with running_gateway(database_url) as gateway:
        if first == "pending":
            await gateway.payments.stop()
        if first == "DEAD":
            gateway.payments.fail_with = InvalidRequest([Violation("events", "no")])
        else:
            gateway.payments.events.outcomes = ["REJECTED"]
        await gateway.stripe(old)
        if first != "pending":
            await until(lambda: outcome_is(gateway, first))
        gateway.payments.fail_with = None
        for _ in range(2):
            assert await gateway.stripe(modern) == 200
        if first == "pending":
            await gateway.payments.start()

        await until(lambda: applied_once(gateway))
        for body in (old, modern, old):
            assert await gateway.stripe(body) == 200
        assert len(await gateway.stored()) == 2


async def outcome_is(gateway: RunningGateway, wanted: str) -> bool:
    return wanted in await outcomes(gateway)


async def applied_once(gateway: RunningGateway) -> bool:
    return "APPLIED" in await outcomes(gateway) and "" not in await outcomes(gateway)
