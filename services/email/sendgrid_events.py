"""
SendGrid's events: https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event

What a webhook's item says about one of our emails, or why it says nothing.
"""

import json
from typing import Any, NamedTuple

from topsmile.common.v1 import common_pb2 as common

STATUSES = {
    "processed": "SENT",
    "deferred": "DEFERRED",
    "delivered": "DELIVERED",
    "bounce": "BOUNCED",  # type `blocked` too: that server refused, if only this time
    "dropped": "DROPPED",
    "spamreport": "COMPLAINED",
}
#: Opened, clicked, unsubscribed: nothing that became of the mail.
ENGAGEMENT = {"open", "click", "unsubscribe", "group_unsubscribe", "group_resubscribe"}
#: Reasons of a drop that are about the address and not about the mail.
SUPPRESSIONS = {"bounced address", "unsubscribed address", "spam reporting address", "invalid"}
NOT_SENT = {"DROPPED", "SUPPRESSED"}
DETAIL_AT_MOST = 500
END_OF_TIME = 253_402_300_800  # the year 10000, where Timestamp ends


class Fact(NamedTuple):
    """`detail` is the provider's and may quote the recipient's address: for the record only."""

    event_id: str
    email_id: str
    status: str
    happened_at: int
    provider_message_id: str
    detail: str
    failure_reason: str


class Unfit(NamedTuple):
    """An event that changes nothing, whatever is stored."""

    outcome: common.EventOutcome.ValueType
    why: str


def _rejected(why: str) -> Unfit:
    return Unfit(common.EVENT_OUTCOME_REJECTED, why)


def _ignored(why: str) -> Unfit:
    return Unfit(common.EVENT_OUTCOME_IGNORED_FOREIGN, why)


def read(event: common.ProviderEvent) -> Fact | Unfit:
    if not event.event_id or _text(event.event_id) != event.event_id:
        return _rejected("no usable event_id")
    try:
        item: Any = json.loads(event.body)
    except (ValueError, RecursionError):
        return _rejected("not JSON")
    if not isinstance(item, dict) or not isinstance(item.get("event"), str):
        return _rejected("no event of SendGrid's")
    return _foreign(item) or _fact(event.event_id, item)


def _foreign(item: dict[str, Any]) -> Unfit | None:
    email_id, kind = item.get("email_id"), item["event"]
    if not isinstance(email_id, str) or not email_id.startswith("eml_"):
        return _ignored("not about an email of ours")
    if kind in ENGAGEMENT:
        return _ignored(f"{kind} changes no status")
    return None if kind in STATUSES else _ignored("of a type that is not known here")


def _fact(event_id: str, item: dict[str, Any]) -> Fact | Unfit:
    seconds = item.get("timestamp")
    if type(seconds) is not int or not 0 < seconds < END_OF_TIME:
        return _rejected("no timestamp")
    status, said = STATUSES[item["event"]], _text(item.get("reason") or item.get("response"))
    if status == "DROPPED" and said.strip().lower() in SUPPRESSIONS:
        status = "SUPPRESSED"
    return Fact(
        event_id=event_id,
        email_id=_text(item["email_id"]),
        status=status,
        happened_at=seconds * 1000,
        provider_message_id=_text(item.get("sg_message_id")).partition(".")[0],  # what follows is the recipient's place
        detail=said,
        failure_reason="PROVIDER_REJECTED" if status in NOT_SENT else "",
    )


def _text(value: object) -> str:
    """Keep what both databases can: PostgreSQL takes no NUL, and neither takes half a surrogate pair."""
    if not isinstance(value, str):
        return ""
    return value.replace("\0", "").encode(errors="replace").decode()[:DETAIL_AT_MOST]
