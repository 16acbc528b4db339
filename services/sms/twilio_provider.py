"""
Twilio's Messages: https://www.twilio.com/docs/messaging/api/message-resource

Spoken through Twilio's library, but over our own way out: its transport ignores timeouts, repeats POSTs, and loses the
headers of an error.
"""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import urlencode, urlsplit

from twilio.base.exceptions import TwilioException
from twilio.http import AsyncHttpClient
from twilio.http.response import Response
from twilio.rest import Client

from services.chassis.errors import (
    CredentialsRefused,
    ExternalServiceError,
    OutcomeUnknown,
    ProviderRefusedInput,
    ProviderThrottled,
)
from services.chassis.outbound.breaker import CircuitBreaker
from services.chassis.outbound.client import Outbound, ProviderResponse, outbound, retry_after
from services.chassis.queue.rate_limit import RateLimit
from services.messaging.provider import Provider, Receipt
from services.messaging.sender import SEND_TIMEOUT
from services.sms import twilio_events
from services.sms.rendering import Text
from services.sms.settings import Settings
from services.sms.twilio_codes import CODES, alarm

#: For answers without a code that says more.
STATUSES: Mapping[int, type[ExternalServiceError]] = {
    401: CredentialsRefused,
    403: CredentialsRefused,
    404: CredentialsRefused,  # no such account: nothing else is named in our URLs
    408: OutcomeUnknown,
    429: ProviderThrottled,
}
#: Seconds, where a 429 does not say.
THROTTLE_PAUSE = 1.0
TRIAL = "Sent from your Twilio trial account - "
#: Texts to one recipient in a day that are looked through.
LOOKED_THROUGH = 200


@asynccontextmanager
async def twilio(settings: Settings) -> AsyncIterator[Provider[Text]]:
    """Open the connections to Twilio."""
    base, per_second = settings.twilio_api_base, settings.twilio_per_second
    async with outbound(base, service="twilio", auth=settings.credentials, timeout=SEND_TIMEOUT) as http:
        sender = TwilioProvider(
            http, base, settings.twilio_account_sid, settings.twilio_phone_number, settings.public_url or ""
        )
        yield Provider(
            "twilio",
            sender.send,
            CircuitBreaker("twilio"),
            RateLimit(per_second, burst=max(1, int(per_second))),
            twilio_events.read,
            find=lambda text, since: sender.find(text.recipient, text.body, since),
            # Twilio lists what it takes within seconds, and its callbacks are faster.
            patience=60.0,
            ask_every=10.0,
        )


class TwilioProvider:
    name: ClassVar[str] = "twilio"

    def __init__(self, http: Outbound, base: str, account_sid: str, sender: str, public_url: str = "") -> None:
        # The environment is not to be read behind our settings' back (TWILIO_REGION and the like).
        client = Client(account_sid, "", http_client=_Transport(http), environment={"": ""})
        client.api.base_url = base
        self._messages = client.messages
        self._sender = sender
        self._public_url = public_url.rstrip("/")

    async def send(self, text: Text) -> Receipt:
        form: dict[str, Any] = {"validity_period": text.valid_for}
        if self._public_url:
            # The first callback of a lost answer proves that it was a yes.
            query = urlencode({"sms_id": text.sms_id, "attempt": text.attempt})
            form["status_callback"] = f"{self._public_url}/webhooks/twilio/status?{query}"
        sent = await self._messages.create_async(to=text.recipient, from_=self._sender, body=text.body, **form)
        if not sent.sid:
            raise OutcomeUnknown(self.name, sent, "Twilio took it and told no id")
        return _receipt(sent)

    async def find(self, recipient: str, body: str, since: datetime) -> Sequence[Receipt]:
        day = since.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        try:
            listed = await self._messages.list_async(to=recipient, date_sent_after=day, limit=LOOKED_THROUGH)
        except TwilioException as error:
            raise OutcomeUnknown(self.name, error, "Twilio's list cannot be read") from error
        return [
            _receipt(found)
            for found in listed
            if (found.body or "").removeprefix(TRIAL).strip() == body.strip()
            and (found.date_created is None or found.date_created >= since)
        ]


def _receipt(message: Any) -> Receipt:
    return Receipt(message.sid, int(message.num_segments or 0))


class _Transport(AsyncHttpClient):  # type: ignore[misc]  # twilio has no types
    """Raises our errors itself, so that neither of the library's two families of exceptions is ever made."""

    def __init__(self, http: Outbound) -> None:
        super().__init__(logging.getLogger("twilio"), is_async=True)
        self._http = http

    async def request(  # noqa: PLR0917 - the library's signature
        self,
        method: str,
        url: str,
        params: Mapping[str, object] | None = None,
        data: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,  # noqa: ARG002 - Outbound has it
        timeout: float | None = None,  # noqa: ARG002 - ours come from the deadline
        allow_redirects: bool = False,  # noqa: ARG002 - never
    ) -> Response:
        address = urlsplit(url)
        answer = await self._http.request(
            method,
            address.path + (f"?{address.query}" if address.query else ""),
            params={name: str(value) for name, value in (params or {}).items()} or None,
            form={name: str(value) for name, value in data.items()} if data else None,
            headers=headers,
        )
        if not 200 <= answer.status < 300:
            raise refusal(answer)
        answer.json()  # raises OutcomeUnknown
        return Response(answer.status, answer.body.decode(), answer.headers)


def refusal(answer: ProviderResponse) -> ExternalServiceError:
    """Name what an answer other than 2xx means. Twilio's words may hold a number: they stay in `original`."""
    body = answer.json()
    body = body if isinstance(body, dict) else {}
    code = body["code"] if isinstance(body.get("code"), int) else 0
    kind = CODES.get(code) or STATUSES.get(answer.status)
    if 400 <= answer.status < 500:
        alarm(code, kind)
        kind = kind or ProviderRefusedInput
    original = f"Twilio {code or answer.status}: {body.get('message') or body.get('detail') or ''}".removesuffix(": ")
    error = (kind or OutcomeUnknown)("twilio", original, f"Twilio answered {answer.status}, code {code}")
    if isinstance(error, ProviderThrottled):
        error.retry_after = retry_after(answer.headers) or THROTTLE_PAUSE
        error.retryable = False  # the whole queue waits, not this text alone
    return error
