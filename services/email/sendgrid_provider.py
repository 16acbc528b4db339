"""
SendGrid's mail/send: https://www.twilio.com/docs/sendgrid/api-reference/mail-send

Its own library builds the mail, ours sends it: theirs follows a 302 as a GET and calls that a success.
"""

import base64
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ClassVar

from sendgrid.helpers.mail import (
    Attachment,
    ClickTracking,
    Content,
    CustomArg,
    From,
    OpenTracking,
    To,
    TrackingSettings,
)
from sendgrid.helpers.mail import Mail as SendGridMail

from services.chassis.errors import (
    CredentialsRefused,
    OutcomeUnknown,
    ProviderRefusedInput,
    ProviderRejected,
    ProviderThrottled,
    ServiceError,
)
from services.chassis.outbound.breaker import CircuitBreaker
from services.chassis.outbound.client import Outbound, ProviderResponse, outbound, retry_after
from services.chassis.queue.rate_limit import RateLimit
from services.email import sendgrid_events
from services.email.rendering import Mail
from services.email.requests import Mailbox
from services.email.settings import Settings
from services.messaging.provider import Provider, Receipt

#: Seconds until used-up credits are tried again, and a throttled call that was not told when.
QUOTA_PAUSE, THROTTLE_PAUSE = 60.0, 5.0
# 404 and 405 mean that SENDGRID_API_BASE is not SendGrid: our configuration, as a refused key is.
CONFIGURATION = {401, 403, 404, 405}
REFUSED_INPUT = {400, 413, 415, 422}
#: Without a charset, which SendGrid answers with a 400; it is UTF-8.
CALENDAR = "text/calendar; method=REQUEST"


@asynccontextmanager
async def sendgrid(settings: Settings, timeout: float) -> AsyncIterator[Provider[Mail]]:
    """Open the connections to SendGrid; `timeout` in seconds is for one request."""
    key = {"Authorization": f"Bearer {settings.sendgrid_api_key.get_secret_value()}"}
    async with outbound(settings.sendgrid_api_base, service="sendgrid", headers=key, timeout=timeout) as http:
        yield Provider(
            "sendgrid",
            SendGridProvider(http, settings.from_email).send,
            CircuitBreaker("sendgrid"),
            RateLimit(settings.sendgrid_per_second, burst=20),
            sendgrid_events.read,
            # SendGrid cannot be asked about a mail: its events prove that a lost answer was a yes.
            find=None,
        )


class SendGridProvider:
    name: ClassVar[str] = "sendgrid"

    def __init__(self, http: Outbound, sender: Mailbox, clock: Callable[[], float] = time.time) -> None:
        self._http = http
        self._sender = sender
        self._clock = clock

    async def send(self, mail: Mail) -> Receipt:
        answer = await self._http.request("POST", "/v3/mail/send", json=self.body(mail))
        if answer.status != 202:
            raise self._refusal(answer)
        return Receipt(answer.headers.get("X-Message-Id", ""))

    def body(self, mail: Mail) -> dict[str, object]:
        built = SendGridMail(
            From(self._sender.address, self._sender.name or None),
            To(mail.recipient.address, mail.recipient.name or None),
            mail.subject,
            mail.text,
            mail.html,
        )
        # Events bring these back: the first one proves that a lost answer was a yes.
        built.add_custom_arg(CustomArg("email_id", mail.email_id))
        built.add_custom_arg(CustomArg("attempt", str(mail.attempt)))
        # A patient's reading is nobody's business, and rewritten links look like fraud.
        built.tracking_settings = TrackingSettings(ClickTracking(False, False), OpenTracking(False))
        if mail.invitation is not None:
            # Google and Outlook show the part of the mail as an invitation, others open the file.
            built.add_content(Content(CALENDAR, mail.invitation.decode()))
            encoded = base64.b64encode(mail.invitation).decode()
            built.add_attachment(Attachment(encoded, "consulta.ics", CALENDAR, "attachment"))
        body: dict[str, object] = built.get()
        return body

    def _refusal(self, answer: ProviderResponse) -> ServiceError:
        status = answer.status
        description = f"SendGrid answered {status}"
        if status == 401 and b"maximum credits exceeded" in answer.body.lower():
            return self._throttled(answer, "SendGrid's credits are used up", QUOTA_PAUSE, reason="QUOTA")
        if status == 429:
            return self._throttled(answer, description, retry_after(answer.headers, self._clock()) or THROTTLE_PAUSE)
        if status in CONFIGURATION:
            return CredentialsRefused(self.name, answer, description)
        if status in REFUSED_INPUT:
            return ProviderRefusedInput(self.name, answer, f"{description}{_field(answer)}")
        if 400 <= status < 500 and status != 408:
            return ProviderRejected(self.name, answer, description)
        return OutcomeUnknown(
            self.name, answer, description
        )  # a 200 too: that is their sandbox mode, nobody gets a mail

    def _throttled(
        self, answer: ProviderResponse, description: str, seconds: float, *, reason: str | None = None
    ) -> ProviderThrottled:
        error = ProviderThrottled(self.name, answer, description, retry_after=seconds, reason=reason)
        error.retryable = False  # the whole queue waits, not this mail alone
        return error


def _field(answer: ProviderResponse) -> str:
    """Name the field it found fault with; its sentence may quote an address."""
    answered = answer.json()
    errors = answered.get("errors") if isinstance(answered, dict) else None
    fields = [str(error["field"]) for error in errors or () if isinstance(error, dict) and error.get("field")]
    return f": {', '.join(fields)[:200]}" if fields else ""
