"""
SendGrid's events: https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event

What a webhook's item says about one of our emails, or why it says nothing.
"""

import json
from typing import Any

from services.messaging.events import Event, IgnoredEvent, InvalidEvent, StatusEvent
from topsmile.common.v1 import common_pb2 as common

STATUSES = {
    "processed": "SENT",
    "deferred": "DEFERRED",
    "delivered": "DELIVERED",
    "bounce": "BOUNCED",
    "dropped": "DROPPED",
    "spamreport": "COMPLAINED",
}
#: Opened, clicked, unsubscribed: nothing that became of the mail.
ENGAGEMENT = {"open", "click", "unsubscribe", "group_unsubscribe", "group_resubscribe"}
#: Reasons of a drop that are about the address and not about the mail.
SUPPRESSIONS = {"bounced address", "unsubscribed address", "spam reporting address", "invalid"}
NOT_SENT = {"DROPPED", "SUPPRESSED"}
#: The type of a bounce that is about this mail: the address is good, and SendGrid does not suppress it.
BLOCKED = "blocked"
DETAIL_AT_MOST = 500
END_OF_TIME = 253_402_300_800  # the year 10000, where Timestamp ends


def read(event: common.ProviderEvent) -> Event:
    if not event.event_id or _text(event.event_id) != event.event_id:
        return InvalidEvent("no usable event_id")
    try:
        item: Any = json.loads(event.body)
    except (ValueError, RecursionError):
        return InvalidEvent("not JSON")
    if not isinstance(item, dict) or not isinstance(item.get("event"), str):
        return InvalidEvent("no event of SendGrid's")
    return _ignored(item) or _status_event(event, item)


def _ignored(item: dict[str, Any]) -> IgnoredEvent | None:
    if not _email_id(item) and not _message_id(item):
        return IgnoredEvent("not about an email of ours")
    if item["event"] in ENGAGEMENT:
        return IgnoredEvent(f"{item['event']} changes no status")
    return None if item["event"] in STATUSES else IgnoredEvent("of a type that is not known here")


def _status_event(event: common.ProviderEvent, item: dict[str, Any]) -> Event:
    seconds = item.get("timestamp")
    if type(seconds) is not int or not 0 < seconds < END_OF_TIME:
        return InvalidEvent("no timestamp")
    status, detail = STATUSES[item["event"]], _text(item.get("reason") or item.get("response"))
    if status == "DROPPED" and detail.strip().lower() in SUPPRESSIONS:
        status = "SUPPRESSED"
    elif status == "BOUNCED" and item.get("type") == BLOCKED:
        status = "DROPPED"
    # In a deferral it is SendGrid's own count.
    attempt = "" if status == "DEFERRED" else _text(item.get("attempt"))
    return StatusEvent(
        provider="sendgrid",
        event_id=event.event_id,
        status=status,
        provider_message_id=_message_id(item),
        message_id=_email_id(item),
        attempt=int(attempt) if attempt.isascii() and attempt.isdecimal() and len(attempt) < 10 else 0,
        happened_at=seconds * 1000,
        detail=detail,
        failure_reason="PROVIDER_REJECTED" if status in NOT_SENT else "",
        received_at=min(max(event.received_time.seconds, 0), END_OF_TIME) * 1000,
    )


def _email_id(item: dict[str, Any]) -> str:
    email_id = _text(item.get("email_id"))
    return email_id if email_id.startswith("eml_") else ""


def _message_id(item: dict[str, Any]) -> str:
    """Return the id that SendGrid answered; what follows its first dot is the recipient's place."""
    return _text(item.get("sg_message_id")).partition(".")[0]


def _text(value: object) -> str:
    """Keep what both databases can: PostgreSQL takes no NUL, and neither takes half a surrogate pair."""
    if not isinstance(value, str):
        return ""
    return value.replace("\0", "").encode(errors="replace").decode()[:DETAIL_AT_MOST]
