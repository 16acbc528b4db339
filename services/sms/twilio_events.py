"""
Twilio's status callbacks: https://www.twilio.com/docs/messaging/guides/track-outbound-message-status

They come in any order, late, and twice.
"""

from dataclasses import dataclass
from urllib.parse import parse_qs

from topsmile.common.v1 import common_pb2 as common

#: Who refused, and why, is in the error code; `canceled` and what is received are none of ours.
STATUSES = {
    **dict.fromkeys(("accepted", "scheduled", "queued", "sending", "sent"), "SENT"),
    **dict.fromkeys(("delivered", "read"), "DELIVERED"),
    **dict.fromkeys(("failed", "undelivered"), "UNDELIVERED"),
}
OPTED_OUT = "21610"


@dataclass(frozen=True)
class StatusEvent:
    event_id: str
    provider_message_id: str
    #: Which sms this was an attempt at, by the URL that we gave; empty where the URL is not ours.
    sms_id: str
    #: Ours; empty for what nothing here depends on.
    status: str
    detail: str


def read(event: common.ProviderEvent) -> StatusEvent | str:
    """Read a callback; a sentence says why it cannot be."""
    try:
        form = parse_qs(event.body.decode(), strict_parsing=True, max_num_fields=100)
    except ValueError:  # UnicodeDecodeError too
        return "the body is no form"
    query = parse_qs(event.query, max_num_fields=100) if event.query.count("&") < 100 else {}

    def first(*names: str) -> str:
        return next((form[name][0] for name in names if name in form), "")

    sid, told, code = first("MessageSid", "SmsSid"), first("MessageStatus", "SmsStatus"), first("ErrorCode")
    if not event.event_id or not sid or not told:
        return "it lacks an event_id, MessageSid or MessageStatus"
    status = "SUPPRESSED" if code == OPTED_OUT else STATUSES.get(told, "")
    detail = f"Twilio {code} {first('ErrorMessage')}".strip() if code else ""
    return StatusEvent(event.event_id, sid, query.get("sms_id", [""])[0], status, detail[:300])
