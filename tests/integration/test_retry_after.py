"""The Retry-After of each provider over real HTTP, read by one parser and limited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from services.chassis.errors import ProviderThrottled
from services.chassis.outbound.client import outbound
from services.email.rendering import Mail
from services.email.requests import Mailbox
from services.email.sendgrid_provider import SendGridProvider
from services.payments.requests import PaymentRequest
from services.payments.stripe_provider import StripeProvider
from services.sms.rendering import Text
from services.sms.twilio_provider import TwilioProvider
from tests.fakes.payments_service import payment_request
from tests.fakes.sandbox_bench import ACCOUNT, TWILIO_TOKEN, sandbox_bench

Send = Callable[[], Awaitable[object]]


@asynccontextmanager
async def stripe(url: str) -> AsyncIterator[Send]:
    async with outbound(url, service="stripe") as http:
        provider = StripeProvider(http, url, "sk_test_1")
        yield lambda: provider.create(
            provider.prepare("pay_1", PaymentRequest.from_request(payment_request())), "key-1"
        )


@asynccontextmanager
async def sendgrid(url: str) -> AsyncIterator[Send]:
    async with outbound(url, service="sendgrid", headers={"Authorization": "Bearer SG.test"}) as http:
        provider = SendGridProvider(http, Mailbox("clinica@example.com"))
        mail = Mail("eml_1", 1, Mailbox("ana@example.com"), "Lembrete", "Olá", "<p>Olá</p>")
        yield lambda: provider.send(mail)


@asynccontextmanager
async def twilio(url: str) -> AsyncIterator[Send]:
    async with outbound(url, service="twilio", auth=(ACCOUNT, TWILIO_TOKEN)) as http:
        provider = TwilioProvider(http, url, ACCOUNT, "+15005550006")
        yield lambda: provider.send(Text("sms_1", 1, "+5511912345678", "Ola", valid_for=600))


@pytest.mark.parametrize("provider", [stripe, sendgrid, twilio])
@pytest.mark.parametrize(
    ("retry_after", "waited"),
    [
        ("45", 45.0),
        ("0", 1.0),
        ("31536000", 600.0),
        ("1" * 400, 600.0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 600.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 1.0),
    ],
)
async def test_throttled_call_waits_for_retry_after_up_to_ten_minutes(
    tmp_path: Path, provider: Callable[[str], AbstractAsyncContextManager[Send]], retry_after: str, waited: float
) -> None:
    async with sandbox_bench(tmp_path / "sandbox.db") as bench, provider(bench.url) as send:
        await bench.fault(provider=provider.__name__, kind="throttle", retry_after=retry_after)
        with pytest.raises(ProviderThrottled) as throttled:
            await send()

    assert throttled.value.retry_after == waited


@pytest.mark.parametrize("provider", [stripe, sendgrid, twilio])
@pytest.mark.parametrize("nonsense", ["soon", "-5", "inf", "nan", "1e9", "Mon, 99 Foo 2026"])
async def test_throttled_call_with_invalid_retry_after_waits_the_default(
    tmp_path: Path, provider: Callable[[str], AbstractAsyncContextManager[Send]], nonsense: str
) -> None:
    async with sandbox_bench(tmp_path / "sandbox.db") as bench, provider(bench.url) as send:
        await bench.fault(provider=provider.__name__, kind="throttle", retry_after=nonsense)
        with pytest.raises(ProviderThrottled) as throttled:
            await send()

    assert throttled.value.retry_after is None or 1.0 <= throttled.value.retry_after <= 5.0
