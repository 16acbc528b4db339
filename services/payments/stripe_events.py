"""What one of Stripe's events says, before anything is known of the payment it may be about."""

import json
from dataclasses import dataclass
from typing import Any

from services.payments.provider import Standing
from services.payments.stripe_intents import OURS, standing_of
from topsmile.common.v1 import common_pb2 as common


@dataclass(frozen=True)
class Ruled:
    """An outcome that needs no look at our records."""

    outcome: common.EventOutcome.ValueType
    detail: str


@dataclass(frozen=True)
class Hint:
    """Something happened to a PaymentIntent; what, only Stripe can say."""

    intent_id: str


Reading = Ruled | Hint | Standing


def foreign(detail: str) -> Ruled:
    return Ruled(common.EVENT_OUTCOME_IGNORED_FOREIGN, detail)


def rejected(detail: str) -> Ruled:
    return Ruled(common.EVENT_OUTCOME_REJECTED, detail)


def read(event: common.ProviderEvent, *, livemode: bool) -> Reading:
    """
    Read an event, believing only what our own account says about our own world.

    A connected account writes its own metadata, and could name a payment of ours in it.
    """
    try:
        body = json.loads(event.body)
    except (ValueError, RecursionError):
        return rejected("the body is not JSON")
    if not isinstance(body, dict) or not event.event_id or body.get("id") != event.event_id:
        return rejected("the body is not the event of that id")
    if bool(body.get("livemode")) != livemode:
        return foreign(f"livemode is not {str(livemode).lower()}")
    if event.account or body.get("account") or body.get("context"):
        return foreign("of a connected account")
    try:
        return _subject(body)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return rejected(f"not as Stripe documents it: {type(error).__name__}")


def _subject(body: dict[str, Any]) -> Reading:
    if body.get("object") == "v2.core.event":  # thin: it names its object, which has to be fetched
        related = body.get("related_object") or {}
        return Hint(str(related["id"])) if related.get("type") == "payment_intent" else foreign("of no payment")
    if not str(body["type"]).startswith("payment_intent."):
        return foreign("of a type that nothing here depends on")
    intent = body["data"]["object"]
    if not (intent["metadata"] or {}).get(OURS):
        return foreign(f"no payment of ours: no {OURS}")
    return standing_of(intent, at=int(body["created"]))
