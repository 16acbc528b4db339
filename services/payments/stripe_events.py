"""Parse one of Stripe's events, before its payment is known."""

import json
import re
from dataclasses import dataclass
from typing import Any

from services.payments.provider import PaymentSnapshot
from services.payments.stripe_intents import OURS, snapshot_of
from topsmile.common.v1 import common_pb2 as common


@dataclass(frozen=True)
class IgnoredEvent:
    """An event whose outcome does not depend on our records."""

    outcome: common.EventOutcome.ValueType
    detail: str


@dataclass(frozen=True)
class ObjectReference:
    """A PaymentIntent that has changed. Only Stripe has its state. `unreadable`: why the event does not hold it."""

    intent_id: str
    payment_id: str = ""
    unreadable: str = ""


Reading = IgnoredEvent | ObjectReference | PaymentSnapshot


EVENT = re.compile(r"[!-~]{1,255}")
INTENT, PAYMENT = re.compile(r"pi_[A-Za-z0-9_]{1,200}"), re.compile(r"pay_[A-Za-z0-9_]{1,200}")


def foreign(detail: str) -> IgnoredEvent:
    return IgnoredEvent(common.EVENT_OUTCOME_IGNORED_FOREIGN, detail)


def rejected(detail: str) -> IgnoredEvent:
    return IgnoredEvent(common.EVENT_OUTCOME_REJECTED, detail)


def read(event: common.ProviderEvent, *, livemode: bool) -> Reading:
    """
    Parse an event of our own account and mode; ignore all others.

    A connected account writes its own metadata, and could name one of our payments in it.
    """
    try:
        body = json.loads(event.body)
    except (ValueError, RecursionError):
        return rejected("the body must be JSON")
    if not isinstance(body, dict) or not EVENT.fullmatch(event.event_id) or body.get("id") != event.event_id:
        return rejected("the body must be the event with this id")
    if bool(body.get("livemode")) != livemode:
        return foreign(f"livemode is not {str(livemode).lower()}")
    if event.account or body.get("account") or body.get("context"):
        return foreign("the event is of a connected account")
    try:
        return _subject(body)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        detail = f"the event must have the form that Stripe documents: {type(error).__name__}"
        return _reference(body, detail) or rejected(detail)


def _subject(body: dict[str, Any]) -> Reading:
    if body.get("object") == "v2.core.event":  # a thin event only names its object
        related = body.get("related_object") or {}
        return (
            ObjectReference(_id(related["id"]))
            if related.get("type") == "payment_intent"
            else foreign("the event is about no payment")
        )
    if not str(body["type"]).startswith("payment_intent."):
        return foreign("nothing here depends on this type of event")
    intent = body["data"]["object"]
    snapshot = snapshot_of(intent, at=int(body["created"]))
    return snapshot if snapshot.status != "UNKNOWN" else ObjectReference(_id(intent["id"]), _ours(intent))


def _reference(body: dict[str, Any], unreadable: str) -> ObjectReference | None:
    """Return the PaymentIntent that an unreadable event names. None if it names none."""
    try:
        intent = body["data"]["object"]
        return ObjectReference(_id(intent["id"]), _ours(intent), unreadable)
    except (LookupError, TypeError, ValueError):
        return None


def _ours(intent: dict[str, Any]) -> str:
    metadata = intent.get("metadata")
    named = metadata.get(OURS) if isinstance(metadata, dict) else None
    return named if isinstance(named, str) and PAYMENT.fullmatch(named) else ""


def _id(value: object) -> str:
    if not isinstance(value, str) or not INTENT.fullmatch(value):
        raise ValueError("must be the id of a PaymentIntent")
    return value
