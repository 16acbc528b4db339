"""Webhooks over HTTP: verified, committed, then 200; what is refused leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import structlog
from prometheus_client import REGISTRY

from services.chassis.database.transactions import rows
from tests.fakes import signing
from tests.fakes.gateway import (
    OLD_STRIPE_SECRET,
    OLD_TWILIO_TOKEN,
    PUBLIC_URL,
    STRIPE_SECRET,
    TWILIO_SHARED_KEY,
    TWILIO_TOKEN,
    RunningGateway,
    running_gateway,
    until,
)
from tests.postgres_cluster import BINARIES, cluster

SAMPLES = Path(__file__).parents[3] / "shared/provider-specs/stripe_event_samples.json"
EVENT = b'{"id":"evt_1","type":"payment_intent.succeeded","livemode":false}'
MAILED = {"email": "ana@example.com", "event": "delivered", "timestamp": 1770000000, "sg_message_id": "x.filter1"}
TEXTED = b"MessageSid=SM1&MessageStatus=delivered&To=%2B5511912345678&Empty="

GARBAGE = {
    "empty": b"",
    "not UTF-8": b'{"id":"\xff\xfe","type":"x"}',
    "null": b"null",
    "text": b'"x"',
    "a list of no objects": b"[1, null]",
    "number": b"1",
    "cut off": b'{"id":"evt_1",',
    "deep": b"[" * 200_000,
    "no id": b'{"type":"x"}',
    "id is no text": b'{"id":1,"type":"x"}',
    "NUL": b'{"id":"evt_\\u0000","type":"x"}',
    "lone surrogate": b'{"id":"evt_\\ud800","type":"x"}',
    "NaN": b'{"id":NaN,"type":"x"}',
    "endless": b'{"id":"evt_1","type":"x","created":1e400}',
    "endless below": b'[{"id":"evt_1","type":"x","a":[-1e999]}]',
    "half a character as a name": b'{"id":"evt_1","type":"x","\\ud83d":1}',
    "half a character below": b'[{"event":"x","a":{"\\uDE00":1}}]',
    "deeper than is read": b'{"id":"evt_1","type":"x","a":' + b"[" * 120 + b"]" * 120 + b"}",
    "deep list": b'[{"a":' * 60 + b"1" + b"}]" * 60,
    "endless digits": b'{"id":"evt_1","type":"x","a":' + b"9" * 5000 + b"}",
    "UTF-16": '{"id":"evt_1","type":"x"}'.encode("utf-16"),
}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(f"sqlite:///{tmp_path}/gateway.db", working=False) as built:
        yield built


@pytest.fixture
async def anywhere(database_url: str) -> AsyncIterator[RunningGateway]:
    """The same on either database."""
    async with running_gateway(database_url, working=False) as built:
        yield built


async def refused(gateway: RunningGateway, path: str, body: bytes, headers: dict[str, str]) -> str:
    status, problem = await gateway.post(path, body, headers)
    assert status == 400
    assert await gateway.stored() == []
    assert await gateway.jobs() == []
    return str(problem["reason"])


async def raw(gateway: RunningGateway, sent: bytes, *, then_close: bool = True) -> bytes:
    """Send bytes as they are, and read what comes back."""
    reader, writer = await asyncio.open_connection(*gateway.address)
    writer.write(sent)
    await writer.drain()
    if then_close:
        writer.write_eof()
    answer = await asyncio.wait_for(reader.read(65536), 15)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_an_event_and_its_job_are_stored_before_200(anywhere: RunningGateway) -> None:
    assert await anywhere.stripe(EVENT) == 200

    (event,) = await anywhere.stored()
    (job,) = await anywhere.jobs()
    assert (event["provider"], event["event_id"], event["type"]) == ("stripe", "evt_1", "payment_intent.succeeded")
    assert event["body"] == EVENT
    assert (job["queue"], job["id"], job["state"]) == ("payments", "event:evt_1", "queued")


async def test_the_same_event_again_is_200_and_nothing_new(anywhere: RunningGateway) -> None:
    for _ in range(3):
        assert await anywhere.stripe(EVENT) == 200
    assert len(await anywhere.stored()) == len(await anywhere.jobs()) == 1


async def test_two_accounts_may_use_one_event_id(gateway: RunningGateway) -> None:
    assert await gateway.stripe(EVENT) == 200
    assert await gateway.stripe(b'{"id":"evt_1","type":"x","account":"acct_1"}') == 200
    assert {event["account"] for event in await gateway.stored()} == {"", "acct_1"}


@pytest.mark.skipif(not SAMPLES.exists(), reason="Stripe's sample events are not here")
async def test_stripe_s_own_events_are_taken_as_they_are(gateway: RunningGateway) -> None:
    samples = json.loads(SAMPLES.read_text(encoding="utf-8"))
    for event in samples:
        assert await gateway.stripe(json.dumps(event, indent=2, ensure_ascii=False).encode()) == 200
    assert len(await gateway.stored()) == len({(event.get("account"), event["id"]) for event in samples})


async def test_an_unknown_type_is_taken(gateway: RunningGateway) -> None:
    assert await gateway.stripe(b'{"id":"evt_1","type":"nobody.has.seen.this"}') == 200


async def test_several_v1_and_a_rotated_secret_are_taken(gateway: RunningGateway) -> None:
    moment = int(time.time())
    good = signing.stripe(EVENT, OLD_STRIPE_SECRET, moment)
    header = {"Stripe-Signature": f"t={moment},v1={'0' * 64},v1={good}"}
    assert (await gateway.post("/webhooks/stripe", EVENT, header))[0] == 200


@pytest.mark.parametrize(("age", "status"), [(290, 200), (301, 400), (-290, 200), (-310, 400)])
async def test_an_old_or_future_signature_is_refused(gateway: RunningGateway, age: int, status: int) -> None:
    assert await gateway.stripe(EVENT, age=age) == status
    assert len(await gateway.stored()) == (1 if status == 200 else 0)


async def test_a_garbled_stripe_header_is_400(gateway: RunningGateway) -> None:
    for signature in ["", "t=1", "t=,v1=", "v1=abc", "t=abc,v1=abc", "té=1,v1=ÿ", "=,=,=", "," * 5000]:
        assert await refused(gateway, "/webhooks/stripe", EVENT, {"Stripe-Signature": signature}) == "BAD_SIGNATURE"


async def test_a_missing_stripe_header_is_400(gateway: RunningGateway) -> None:
    assert await refused(gateway, "/webhooks/stripe", EVENT, {}) == "BAD_SIGNATURE"


async def test_a_header_that_is_no_ascii_is_400(gateway: RunningGateway) -> None:
    start = b"POST /webhooks/stripe HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
    request = start + b"Stripe-Signature: t=1,v1=\xff\xfe\r\n\r\n{}"
    assert (await raw(gateway, request)).startswith(b"HTTP/1.1 400")
    assert await gateway.stored() == []


async def test_a_body_that_is_no_event_is_400_though_it_is_signed(gateway: RunningGateway) -> None:
    for body in GARBAGE.values():
        headers = signing.stripe_header(body, STRIPE_SECRET, int(time.time()))
        await refused(gateway, "/webhooks/stripe", body, headers)


async def test_the_same_garbage_is_400_from_sendgrid(gateway: RunningGateway) -> None:
    for body in GARBAGE.values():
        await refused(gateway, "/webhooks/sendgrid", body, gateway.sendgrid.header(body, int(time.time())))


@pytest.mark.parametrize("batch", [b"[]", b"[]\r\n", b" [ ] "])
async def test_an_empty_batch_that_is_signed_is_taken(anywhere: RunningGateway, batch: bytes) -> None:
    assert await anywhere.mails(batch) == 200
    assert await anywhere.stored() == await anywhere.jobs() == []
    stranger = signing.SendGridKey().header(batch, int(time.time()))
    assert (await anywhere.post("/webhooks/sendgrid", batch, stranger))[0] == 400


@pytest.mark.parametrize("text", ["\\ud83d\\ude00", "ação", "\\u0000", "1e308", "\\\\ud800 written out", "a" * 5000])
async def test_an_unusual_event_that_is_json_is_taken(gateway: RunningGateway, text: str) -> None:
    body = f'{{"id":"evt_1","type":"x","text":"{text}","list":{"[" * 90}{"]" * 90}}}'.encode()
    assert await gateway.stripe(body) == 200
    assert await gateway.mails(b'[{"event":"delivered","reason":"%b"}]' % text.encode()) == 200


REJECTED = "topsmile_webhooks_rejected_total"


def rejected(provider: str, reason: str) -> float:
    return REGISTRY.get_sample_value(REJECTED, {"provider": provider, "reason": reason}) or 0.0


@pytest.mark.parametrize(
    ("path", "headers", "reason"),
    [
        ("stripe", {}, "SIGNATURE_MISSING"),
        ("stripe", {"Stripe-Signature": "v1=1"}, "SIGNATURE_MALFORMED"),
        ("stripe", {"Stripe-Signature": "t=x,v1=1"}, "TIMESTAMP_MALFORMED"),
        ("stripe", {"Stripe-Signature": "t=1,v1=1"}, "TIMESTAMP_TOO_OLD"),
        ("stripe", {"Stripe-Signature": "t=99999999999,v1=1"}, "TIMESTAMP_IN_FUTURE"),
        ("stripe", signing.stripe_header(EVENT, "whsec_stranger", int(time.time()) + 60), "SIGNATURE_MISMATCH"),
        ("stripe", {"Content-Encoding": "gzip"}, "SIGNATURE_MISSING"),
        ("sendgrid", {}, "SIGNATURE_MISSING"),
        ("sendgrid", signing.SendGridKey().header(EVENT, int(time.time())), "SIGNATURE_MISMATCH"),
        ("twilio/status", {}, "SIGNATURE_MISSING"),
        ("twilio/status", {"X-Twilio-Signature": "x"}, "SIGNATURE_MISMATCH"),
        (
            "twilio/status",
            {"X-Twilio-Signature": "x", "X-Twilio-Webhooks-Signature-Settings": "key=k,algorithm=HMAC_SHA256"},
            "KEY_UNKNOWN",
        ),
    ],
)
async def test_a_refused_webhook_says_why_in_the_log_and_in_a_metric(
    gateway: RunningGateway, path: str, headers: dict[str, str], reason: str
) -> None:
    provider = path.partition("/")[0]
    before = rejected(provider, reason)
    with structlog.testing.capture_logs() as lines:
        assert await refused(gateway, f"/webhooks/{path}", EVENT, headers) == "BAD_SIGNATURE"
    assert rejected(provider, reason) == before + 1
    [line] = [line for line in lines if line["event"] == "webhook.rejected"]
    assert (line["log_level"], line["provider"], line["reason"]) == ("warning", provider, reason)
    for secret in (STRIPE_SECRET, "whsec_stranger", EVENT.decode(), *headers.values()):
        assert len(secret) < 5 or secret not in repr(lines)


async def test_what_is_refused_for_its_body_is_told_and_counted_too(gateway: RunningGateway) -> None:
    for body, reason in ((b"{", "MALFORMED_JSON"), (b"[1]", "MALFORMED_EVENT"), (b'{"id":"x"}', "MALFORMED_EVENT")):
        before = rejected("stripe", reason)
        assert await gateway.stripe(body) == 400
        assert rejected("stripe", reason) == before + 1


async def test_garbage_is_400_from_twilio(gateway: RunningGateway) -> None:
    for body in [b"", b"null", b"[]", b"\xff\xfe", b"a=%FF", b"&" * 1000, b"MessageSid=SM1", b"{}"]:
        url = f"{PUBLIC_URL}/webhooks/twilio/status"
        signed = signing.twilio_header(url, b"" if b"\xff" in body else body, TWILIO_TOKEN)
        await refused(gateway, "/webhooks/twilio/status", body, signed)


@pytest.mark.parametrize(
    ("path", "max_bytes"), [("stripe", 1 << 20), ("sendgrid", 2 << 20), ("twilio/status", 64 << 10)]
)
async def test_a_declared_length_above_the_limit_is_413_before_a_byte_is_read(
    gateway: RunningGateway, path: str, max_bytes: int
) -> None:
    for length in (max_bytes + 1, 10 << 20):
        request = f"POST /webhooks/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()
        assert (await raw(gateway, request, then_close=False)).startswith(b"HTTP/1.1 413")
    assert await gateway.stored() == []


async def test_a_streamed_body_is_cut_at_the_limit(gateway: RunningGateway) -> None:
    request = b"POST /webhooks/twilio/status HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    request += b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    answer = await raw(gateway, request + b"8001\r\n" + b"x" * 0x8001 + b"\r\n", then_close=False)
    assert answer.startswith(b"HTTP/1.1 413")


async def test_the_largest_body_that_is_allowed_is_taken(gateway: RunningGateway) -> None:
    body = b'{"id":"evt_1","type":"x","padding":"' + b"x" * ((1 << 20) - 38) + b'"}'
    assert len(body) == 1 << 20
    assert await gateway.stripe(body) == 200


async def test_a_body_that_ends_early_leaves_nothing(gateway: RunningGateway) -> None:
    await raw(gateway, b"POST /webhooks/stripe HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{}")
    assert await gateway.stored() == []


async def test_webhooks_are_posted(gateway: RunningGateway) -> None:
    async with gateway.http.get(f"http://{gateway.address}/webhooks/stripe") as answer:
        assert (answer.status, answer.headers["allow"]) == (405, "POST")


async def test_what_does_not_fit_on_the_disk_is_503_with_retry_after_and_is_taken_later(
    gateway: RunningGateway,
) -> None:
    limit = "PRAGMA max_page_count = "
    await gateway.database.run(rows, limit + "1")  # the size it has
    body = b'{"id":"evt_1","type":"x","padding":"' + b"x" * 500_000 + b'"}'
    headers = signing.stripe_header(body, STRIPE_SECRET, int(time.time()))
    async with gateway.http.post(f"http://{gateway.address}/webhooks/stripe", data=body, headers=headers) as answer:
        problem: Any = await answer.json(content_type=None)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert problem["reason"].startswith("STORE_")
    assert await gateway.stored() == []

    await gateway.database.run(rows, limit + "1000000")
    assert await gateway.stripe(body) == 200


@pytest.mark.skipif(BINARIES is None, reason="no PostgreSQL binaries here (initdb)")
async def test_what_the_database_does_not_take_is_503_and_is_taken_when_it_is_back() -> None:
    with cluster() as server:
        async with running_gateway(server.database(), working=False) as gateway:
            server.kill()
            assert await gateway.stripe(EVENT) == 503
            server.start()
            await until(lambda: _taken(gateway))
            assert len(await gateway.stored()) == 1


async def _taken(gateway: RunningGateway) -> bool:
    return await gateway.stripe(EVENT) == 200


async def test_a_batch_is_split_and_repeated_items_are_one(anywhere: RunningGateway) -> None:
    bounced = MAILED | {"event": "bounce", "email": "rui@example.com"}
    assert (
        await anywhere.mails(json.dumps([MAILED, bounced, MAILED | {"sg_event_id": "other"}]).encode() + b"\r\n") == 200
    )
    assert await anywhere.mails(json.dumps([MAILED]).encode()) == 200

    stored = await anywhere.stored()
    assert {(event["type"], json.loads(event["body"])["email"]) for event in stored} == {
        ("delivered", "ana@example.com"),
        ("bounce", "rui@example.com"),
    }
    assert {job["queue"] for job in await anywhere.jobs()} == {"email"}
    assert "@" not in "".join(event["event_id"] for event in stored)


@pytest.mark.parametrize(
    "differing", [{"email_id": "eml_2"}, {"attempt": "2"}, {"smtp-id": "<b@x>"}, {"type": "blocked"}]
)
async def test_two_bounces_of_an_address_in_one_second_are_two_events(
    anywhere: RunningGateway, differing: dict[str, str]
) -> None:
    bounced = {"email": "ana@example.com", "event": "bounce", "timestamp": 1770000000, "type": "bounce"}
    first = bounced | {"email_id": "eml_1", "attempt": "1", "smtp-id": "<a@x>"}
    assert await anywhere.mails(json.dumps([first, first | differing, first]).encode()) == 200

    assert [json.loads(event["body"]) for event in await anywhere.stored() if json.loads(event["body"]) != first] == [
        first | differing
    ]
    assert len(await anywhere.stored()) == 2


async def test_sendgrid_repeats_for_a_day(gateway: RunningGateway) -> None:
    body = json.dumps([MAILED]).encode()
    assert await gateway.mails(body, age=27 * 3600) == 400
    assert await gateway.mails(body, age=25 * 3600) == 200


async def test_sendgrid_s_rotated_key_is_taken_and_no_other(gateway: RunningGateway) -> None:
    body, moment = json.dumps([MAILED]).encode(), int(time.time())
    stranger = signing.SendGridKey()
    assert await refused(gateway, "/webhooks/sendgrid", body, stranger.header(body, moment)) == "BAD_SIGNATURE"
    assert (await gateway.post("/webhooks/sendgrid", body, gateway.old_sendgrid.header(body, moment)))[0] == 200


async def test_a_garbled_sendgrid_signature_is_400(gateway: RunningGateway) -> None:
    for signature in ["", "é", "a", "AAAA", "====", "MEUCIQ=="]:
        headers = gateway.sendgrid.header(b"[]", int(time.time()))
        headers["X-Twilio-Email-Event-Webhook-Signature"] = signature
        await refused(gateway, "/webhooks/sendgrid", b"[]", headers)


async def test_a_garbled_sendgrid_timestamp_is_400(gateway: RunningGateway) -> None:
    for moment in ["", "x", "1e9", "99999999999999999999", "-1", "²"]:
        headers = gateway.sendgrid.header(b"[]", int(time.time()))
        headers["X-Twilio-Email-Event-Webhook-Timestamp"] = moment
        await refused(gateway, "/webhooks/sendgrid", b"[]", headers)


async def test_a_status_callback_is_stored_with_its_query(anywhere: RunningGateway) -> None:
    for token in (TWILIO_TOKEN, OLD_TWILIO_TOKEN):
        assert await anywhere.text(TEXTED, "?attempt=att_1", token) == 200

    (event,) = await anywhere.stored()
    (job,) = await anywhere.jobs()
    assert (event["type"], event["query"], event["body"]) == ("delivered", "attempt=att_1", TEXTED)
    assert job["queue"] == "sms"


JSON_TEXTED = b'{"MessageSid":"SM1","MessageStatus":"delivered","To":"+5511912345678","ErrorCode":null,"NumSegments":1}'


@pytest.mark.parametrize("query", ["", "?sms_id=sms_1", "?sms_id=sms_1&x=%C3%A9"])
async def test_a_json_callback_is_verified_by_its_body_s_hash_and_stored_as_a_form(
    anywhere: RunningGateway, query: str
) -> None:
    url, headers = signing.twilio_json(f"{PUBLIC_URL}/webhooks/twilio/status{query}", JSON_TEXTED, TWILIO_TOKEN)
    path = url.removeprefix(PUBLIC_URL)
    for wrong in (JSON_TEXTED.replace(b"SM1", b"SM2"), JSON_TEXTED + b" ", b"", b"{}"):
        assert await refused(anywhere, path, wrong, headers) == "BAD_SIGNATURE"
    assert await refused(anywhere, path + "0", JSON_TEXTED, headers) == "BAD_SIGNATURE"
    assert (await anywhere.post(path, JSON_TEXTED, headers))[0] == 200

    (event,) = await anywhere.stored()
    form = {"MessageSid": ["SM1"], "MessageStatus": ["delivered"], "To": ["+5511912345678"], "NumSegments": ["1"]}
    assert parse_qs(event["body"].decode(), strict_parsing=True) == form
    assert event["query"].startswith(query.removeprefix("?"))


@pytest.mark.parametrize(
    "body", [b"[]", b"null", b"1", b"{}", b'{"MessageSid":1e999}', b"\xff", b"{", b'{"MessageSid":{}}']
)
async def test_a_json_callback_that_is_none_is_400_though_it_is_signed(gateway: RunningGateway, body: bytes) -> None:
    url, headers = signing.twilio_json(f"{PUBLIC_URL}/webhooks/twilio/status", body, TWILIO_TOKEN)
    await refused(gateway, url.removeprefix(PUBLIC_URL), body, headers)


@pytest.mark.parametrize("query", ["", "?sms_id=sms_1", "?sms_id=sms_1&x=y"])
async def test_a_callback_signed_with_a_shared_key_is_taken(gateway: RunningGateway, query: str) -> None:
    path = f"/webhooks/twilio/status{query}"
    signature, settings = signing.twilio_shared(PUBLIC_URL + path, TEXTED, "key_1", TWILIO_SHARED_KEY)
    headers = {
        "X-Twilio-Signature": signature.decode(),
        "X-Twilio-Webhooks-Signature-Settings": settings.decode(),
        "Content-Type": "application/x-www-form-urlencoded",
    }
    assert await refused(gateway, path, TEXTED + b"0", headers) == "BAD_SIGNATURE"
    assert (await gateway.post(path, TEXTED, headers))[0] == 200


async def test_a_callback_s_address_is_part_of_the_proof(gateway: RunningGateway) -> None:
    headers = signing.twilio_header(f"{PUBLIC_URL}/webhooks/twilio/status?attempt=att_1", TEXTED, TWILIO_TOKEN)
    assert await refused(gateway, "/webhooks/twilio/status?attempt=att_2", TEXTED, headers) == "BAD_SIGNATURE"
    elsewhere = signing.twilio_header("https://other.example/webhooks/twilio/status", TEXTED, TWILIO_TOKEN)
    assert await refused(gateway, "/webhooks/twilio/status", TEXTED, elsewhere) == "BAD_SIGNATURE"


async def test_too_many_requests_at_once_are_503_with_retry_after(tmp_path: Path) -> None:
    async with (
        running_gateway(f"sqlite:///{tmp_path}/gateway.db", working=False, max_concurrent=0) as gateway,
        gateway.http.post(f"http://{gateway.address}/webhooks/stripe", data=EVENT) as answer,
    ):
        problem: Any = await answer.json(content_type=None)
        assert (answer.status, answer.headers["retry-after"], problem["reason"]) == (503, "1", "SHEDDING")


async def test_a_sender_that_is_slow_takes_nobody_s_turn(tmp_path: Path) -> None:
    async with running_gateway(f"sqlite:///{tmp_path}/gateway.db", working=False, max_concurrent=1) as gateway:
        _, writer = await asyncio.open_connection(*gateway.address)
        writer.write(b"POST /webhooks/stripe HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n{}")
        await writer.drain()
        await asyncio.sleep(0.1)
        async with gateway.http.post(f"http://{gateway.address}/webhooks/stripe", data=EVENT) as answer:
            assert answer.status == 400  # its signature was looked at
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("count", [2, 20, 100])
async def test_requests_above_the_limit_wait_and_are_all_stored(tmp_path: Path, count: int) -> None:
    async with running_gateway(f"sqlite:///{tmp_path}/gateway.db", working=False, max_concurrent=1) as gateway:
        bodies = [b'{"id":"evt_%d","type":"x"}' % number for number in range(count)]
        assert await asyncio.gather(*map(gateway.stripe, bodies)) == [200] * count
        assert {bytes(event["body"]) for event in await gateway.stored()} == set(bodies)


@pytest.mark.parametrize("calls", [1, 3, 20])
async def test_calls_to_a_service_that_hangs_take_no_turn_of_webhooks_and_of_others(tmp_path: Path, calls: int) -> None:
    async with running_gateway(f"sqlite:///{tmp_path}/gateway.db", working=False, max_concurrent=1) as gateway:
        gateway.payments.hang = 5.0
        waiting = [asyncio.create_task(gateway.get(f"/v1/payments/pay_{number}")) for number in range(calls)]
        await asyncio.sleep(0.2)
        async with asyncio.timeout(1.5):
            stored = await gateway.stripe(EVENT)
            other, problem = await gateway.get("/v1/emails/unknown")
        for call in waiting:
            call.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    assert (stored, other, problem["reason"]) == (200, 404, "NOT_FOUND")


@pytest.mark.parametrize("count", [1, 5, 50])
async def test_clients_that_leave_while_they_wait_keep_no_turn(tmp_path: Path, count: int) -> None:
    head = b"POST /webhooks/stripe HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    async with running_gateway(f"sqlite:///{tmp_path}/gateway.db", working=False, max_concurrent=1) as gateway:
        for _ in range(count):
            _, writer = await asyncio.open_connection(*gateway.address)
            writer.write(head)
            await writer.drain()
            writer.transport.abort()
        async with asyncio.timeout(2):
            assert await gateway.stripe(EVENT) == 200
