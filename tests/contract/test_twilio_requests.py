"""What leaves for Twilio is what Twilio's specification allows, and each of its answers has one meaning here."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from jsonschema import Draft202012Validator
from structlog.testing import capture_logs

from services.chassis.errors import (
    CredentialsRefused,
    ExternalServiceError,
    NotSent,
    OutcomeUnknown,
    ProviderRefusedInput,
    ProviderRejected,
    ProviderThrottled,
)
from services.chassis.outbound.client import outbound
from services.messaging.provider import OptedOut, Receipt
from services.sms.rendering import Text
from services.sms.twilio_provider import TwilioProvider

ROOT = Path(__file__).parent.parent.parent
SPECIFICATION = ROOT.parent / "shared/provider-specs/twilio_messages.json"
ACCOUNT = "AC" + "0" * 32
TEXT = Text("sms_1", 2, "+5511912345678", "Ola", valid_for=600)
NOON = datetime(2026, 3, 12, 12, tzinfo=UTC)


class Twilio:
    """Give the set answer, and keep every request."""

    def __init__(self, status: int = 201, body: object = None, headers: dict[str, str] | None = None) -> None:
        self.status, self.headers = status, headers or {}
        self.body = {"sid": "SM1", "num_segments": "1"} if body is None else body
        self.received: list[tuple[web.Request, str]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.received.append((request, await request.text()))
        text = self.body if isinstance(self.body, str) else json.dumps(self.body)
        return web.Response(status=self.status, text=text, headers=self.headers, content_type="application/json")


@asynccontextmanager
async def provider(twilio: Twilio, public_url: str = "https://clinic.example/") -> AsyncIterator[TwilioProvider]:
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", twilio.answer)
    async with TestServer(app) as server:
        base = str(server.make_url("")).rstrip("/")
        async with outbound(base, service="twilio", auth=("SK1", "secret")) as http:
            yield TwilioProvider(http, base, ACCOUNT, "+15005550006", public_url)


def operation(path: str, method: str) -> dict[str, Any]:
    if not SPECIFICATION.exists():
        pytest.skip("Twilio's specification is not here: ../shared/provider-specs")
    found: dict[str, Any] = json.loads(SPECIFICATION.read_text())["paths"][path.replace(ACCOUNT, "{AccountSid}")][
        method
    ]
    return found


async def test_sending_is_one_post_that_the_specification_allows() -> None:
    twilio = Twilio()
    async with provider(twilio) as sending:
        receipt = await sending.send(TEXT)

    ((request, body),) = twilio.received
    form = dict(parse_qsl(body, strict_parsing=True))
    assert receipt == Receipt("SM1", 1)
    assert request.headers["Authorization"] == "Basic U0sxOnNlY3JldA=="
    assert form == {
        "To": TEXT.recipient,
        "From": "+15005550006",
        "Body": "Ola",
        "ValidityPeriod": "600",
        "StatusCallback": "https://clinic.example/webhooks/twilio/status?sms_id=sms_1&attempt=2",
    }
    content = operation(request.path, "post")["requestBody"]["content"]["application/x-www-form-urlencoded"]
    schema = {**content["schema"], "additionalProperties": False}
    Draft202012Validator(schema).validate({**form, "ValidityPeriod": int(form["ValidityPeriod"])})


async def test_without_a_public_url_no_callback_is_asked_for() -> None:
    twilio = Twilio()
    async with provider(twilio, public_url="") as sending:
        await sending.send(TEXT)

    assert "StatusCallback" not in dict(parse_qsl(twilio.received[0][1]))


def listed(body: str, sid: str, created: str = "Thu, 12 Mar 2026 12:00:01 +0000") -> dict[str, object]:
    return {"sid": sid, "body": body, "num_segments": "2", "date_created": created}


async def test_looking_for_a_text_asks_by_recipient_and_day_and_compares_the_words() -> None:
    earlier = "Thu, 12 Mar 2026 11:00:00 +0000"
    messages = [
        listed("Ola", "SM1"),
        listed("Other", "SM2"),
        listed("Ola", "SM3", earlier),
        listed("Sent from your Twilio trial account - Ola", "SM4"),
    ]
    twilio = Twilio(200, {"messages": messages, "page": 0})
    async with provider(twilio) as looking:
        found = await looking.find(TEXT.recipient, "Ola", NOON)

    ((request, _),) = twilio.received
    assert found == [Receipt("SM1", 2), Receipt("SM4", 2)]
    allowed = {parameter["name"] for parameter in operation(request.path, "get")["parameters"]}
    assert request.query.keys() <= allowed
    assert (request.query["To"], request.query["DateSent>"]) == (TEXT.recipient, "2026-03-12T00:00:00Z")


PROBLEM = {"type": "https://www.twilio.com/docs/errors", "title": "Bad", "status": 400}


@pytest.mark.parametrize(
    ("status", "body", "meaning"),
    [
        *((400, {"code": code}, ProviderRefusedInput) for code in (21211, 21614, 21602, 21617, 35111, 35119, 99999)),
        *((400, {"code": code}, ProviderRejected) for code in (21408, 21608, 21612)),
        (400, {"code": 21610}, OptedOut),
        (400, {**PROBLEM, "code": 21610}, OptedOut),  # as RFC 9457
        *(
            (400, {"code": code}, CredentialsRefused)
            for code in (10001, 20003, 20005, 21212, 21606, 21609, 21661, 30034)
        ),
        (400, {"code": 21635}, ProviderRefusedInput),
        (401, "<html>", CredentialsRefused),
        (403, {"code": 20403}, CredentialsRefused),
        (400, {"code": 21611}, ProviderThrottled),
        (429, {"code": 20429}, ProviderThrottled),
        (429, "", ProviderThrottled),
        (404, {"code": 20404}, CredentialsRefused),  # the account is all that its URL names
        (404, "", CredentialsRefused),
        (400, {"code": 14107}, ProviderThrottled),
        (400, "[]", ProviderRefusedInput),
        (302, "", OutcomeUnknown),
        (408, "", OutcomeUnknown),
        (500, {"code": 20500}, OutcomeUnknown),
        (503, "<html>", OutcomeUnknown),
        (201, '{"sid": "SM', OutcomeUnknown),
        (201, {}, OutcomeUnknown),
    ],
)
async def test_each_answer_has_one_meaning(status: int, body: object, meaning: type[ExternalServiceError]) -> None:
    twilio = Twilio(status, body)
    async with provider(twilio) as sending:
        with pytest.raises(ExternalServiceError) as raised:
            await sending.send(TEXT)

    assert type(raised.value) is meaning
    assert TEXT.recipient not in raised.value.message
    assert len(twilio.received) == 1


@pytest.mark.parametrize(("status", "code"), [(400, 99999), (400, 21999), (422, 30999), (400, 0)])
async def test_a_refusal_that_is_not_in_the_table_is_final_and_an_alarm(status: int, code: int) -> None:
    with capture_logs() as logs:
        async with provider(Twilio(status, {"code": code})) as sending:
            with pytest.raises(ProviderRefusedInput):
                await sending.send(TEXT)

    assert {
        "event": "provider.unexpected",
        "service": "twilio",
        "what": "error_code",
        "code": code,
        "log_level": "error",
    } in logs


@pytest.mark.parametrize(("status", "code"), [(401, 20003), (400, 21606), (403, 0), (400, 21408), (400, 21608)])
async def test_a_refusal_of_our_account_is_an_alarm(status: int, code: int) -> None:
    with capture_logs() as logs:
        async with provider(Twilio(status, {"code": code})) as sending:
            with pytest.raises((CredentialsRefused, ProviderRejected)):
                await sending.send(TEXT)

    assert {
        "event": "provider.unexpected",
        "service": "twilio",
        "what": "account_refused",
        "code": code,
        "log_level": "error",
    } in logs


async def test_a_429_says_how_long_to_wait() -> None:
    for header, seconds in (("7", 7.0), ("", 1.0), ("soon", 1.0), ("100000", 600.0)):
        async with provider(Twilio(429, "", {"Retry-After": header})) as sending:
            with pytest.raises(ProviderThrottled) as raised:
                await sending.send(TEXT)
        assert (raised.value.retry_after, raised.value.retryable) == (seconds, False)


async def test_a_list_that_cannot_be_read_proves_nothing() -> None:
    async with provider(Twilio(200, {"unexpected": [], "more": []})) as looking:
        with pytest.raises(OutcomeUnknown):
            await looking.find(TEXT.recipient, "Ola", NOON)


async def test_what_was_never_reached_was_not_asked() -> None:
    async with outbound("http://127.0.0.1:1", service="twilio") as http:
        with pytest.raises(NotSent):
            await TwilioProvider(http, "http://127.0.0.1:1", ACCOUNT, "+15005550006").send(TEXT)
