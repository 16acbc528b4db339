"""
Twilio's status callbacks: https://www.twilio.com/docs/messaging/guides/track-outbound-message-status

They come in any order, late, and twice.
"""

import re
from urllib.parse import parse_qs

from services.chassis.errors import CredentialsRefused, ExternalServiceError, ProviderRejected, ProviderThrottled
from services.chassis.rpc.validation import printable
from services.messaging.events import Event, IgnoredEvent, InvalidEvent, StatusEvent
from services.messaging.provider import OptedOut
from services.sms.twilio_codes import CODES, alarm
from topsmile.common.v1 import common_pb2 as common

#: `canceled` and what is received are none of ours.
STATUSES = {
    **dict.fromkeys(("accepted", "scheduled", "queued", "sending", "sent"), "SENT"),
    **dict.fromkeys(("delivered", "read"), "DELIVERED"),
    **dict.fromkeys(("failed", "undelivered"), "UNDELIVERED"),
}
#: What became of it where the error code says whose doing it was; else UNDELIVERED.
ENDS: dict[type[ExternalServiceError], str] = {
    OptedOut: "SUPPRESSED",
    CredentialsRefused: "FAILED",
    ProviderThrottled: "FAILED",
}

MAX_DETAIL = 300


def read(event: common.ProviderEvent) -> Event:
    if not printable(event.event_id):
        return InvalidEvent("its event_id is not printable")
    try:
        form = parse_qs(event.body.decode(), strict_parsing=True, max_num_fields=100)
    except ValueError:  # UnicodeDecodeError too
        return InvalidEvent("the body is no form")
    if any("\0" in value for values in form.values() for value in values):
        return InvalidEvent("the form holds a NUL, which no database keeps")
    query = parse_qs(event.query, max_num_fields=100) if event.query.count("&") < 100 else {}

    def first(*names: str) -> str:
        return next((form[name][0] for name in names if name in form), "")

    sid, twilio_status, code = first("MessageSid", "SmsSid"), first("MessageStatus", "SmsStatus"), first("ErrorCode")
    number = int(code) if re.fullmatch("[0-9]{1,9}", code) else 0
    if not event.event_id or not sid or not twilio_status:
        return InvalidEvent("it lacks an event_id, MessageSid or MessageStatus")
    status, reason = _outcome(STATUSES.get(twilio_status, ""), number)
    if not status:
        return IgnoredEvent("nothing here depends on this status")
    attempt = query.get("attempt", [""])[0]
    return StatusEvent(
        provider="twilio",
        event_id=event.event_id,
        status=status,
        provider_message_id=sid,
        # Which attempt at which text it was, by the URL that we gave.
        message_id=query.get("sms_id", [""])[0].replace("\0", ""),
        attempt=int(attempt) if re.fullmatch("[0-9]{1,9}", attempt) else 0,
        detail=f"Twilio {code} {first('ErrorMessage')}".strip()[:MAX_DETAIL] if code else "",
        failure_reason=reason,
    )


def _outcome(status: str, code: int) -> tuple[str, str]:
    """Return a text's status and failure_reason: the code tells whose fault it is that it was not delivered."""
    kind = CODES.get(code)
    if status != "UNDELIVERED" and kind is not OptedOut:  # that one counts whatever Twilio calls it
        return status, ""
    alarm(code, kind)
    kind = kind or ProviderRejected
    return ENDS.get(kind, "UNDELIVERED"), kind.default_reason
