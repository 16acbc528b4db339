"""What one of Stripe's events says, before anything is known of the payment it may be about."""

import json
import re
from dataclasses import dataclass
from typing import Any

from services.payments.provider import PaymentSnapshot
from services.payments.stripe_intents import OURS, snapshot_of
from topsmile.common.v1 import common_pb2 as common


@dataclass(frozen=True)
class IgnoredEvent:
    """An outcome that needs no look at our records."""

    outcome: common.EventOutcome.ValueType
    detail: str


@dataclass(frozen=True)
class ObjectReference:
    """Something happened to a PaymentIntent; what, only Stripe can say. `unreadable`: why the event does not."""

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
    Read an event, believing only what our own account says about our own world.

    A connected account writes its own metadata, and could name a payment of ours in it.
    """
    try:
        body = json.loads(event.body)
    except (ValueError, RecursionError):
        return rejected("the body is not JSON")
    if not isinstance(body, dict) or not EVENT.fullmatch(event.event_id) or body.get("id") != event.event_id:
        return rejected("the body is not the event of that id")
    if bool(body.get("livemode")) != livemode:
        return foreign(f"livemode is not {str(livemode).lower()}")
    if event.account or body.get("account") or body.get("context"):
        return foreign("of a connected account")
    try:
        return _subject(body)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        detail = f"not as Stripe documents it: {type(error).__name__}"
        return _reference(body, detail) or rejected(detail)


def _subject(body: dict[str, Any]) -> Reading:
    if body.get("object") == "v2.core.event":  # thin: it names its object, which has to be fetched
        related = body.get("related_object") or {}
        return (
            ObjectReference(_id(related["id"])) if related.get("type") == "payment_intent" else foreign("of no payment")
        )
    if not str(body["type"]).startswith("payment_intent."):
        return foreign("of a type that nothing here depends on")
    intent = body["data"]["object"]
    snapshot = snapshot_of(intent, at=int(body["created"]))
    return snapshot if snapshot.status != "UNKNOWN" else ObjectReference(_id(intent["id"]), _ours(intent))


def _reference(body: dict[str, Any], unreadable: str) -> ObjectReference | None:
    """Read what an event names, where nothing else of it can be understood."""
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
        raise ValueError("no id of a PaymentIntent")
    return value
