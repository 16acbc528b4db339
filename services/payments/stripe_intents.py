"""Convert Stripe's PaymentIntent, a dict from a response or an event, into our words."""

from collections.abc import Mapping
from typing import Any, Literal

import structlog

from services.chassis import metrics
from services.payments.provider import Decline, PaymentSnapshot, Status, Step

OURS = "topsmile_payment_id"

STATUSES: dict[str, Status] = {
    "requires_payment_method": "AWAITING_METHOD",
    "requires_confirmation": "AWAITING_CUSTOMER",
    "requires_action": "AWAITING_CUSTOMER",
    "processing": "PROCESSING",
    "requires_capture": "AUTHORIZED",
    "succeeded": "SUCCEEDED",
    "canceled": "CANCELED",
}
METHODS = {"card": "CARD", "pix": "PIX", "boleto": "BOLETO"}
# The payer's next step by the action's type: the method, and the fields of its text and its URL.
ACTIONS: dict[str, tuple[Literal["PIX", "BOLETO"], str, str]] = {
    "pix_display_qr_code": ("PIX", "data", "image_url_png"),
    "boleto_display_details": ("BOLETO", "number", "hosted_voucher_url"),
}
#: In these statuses the latest charge pays the PaymentIntent. In all others it is a failed attempt.
PAYING = ("processing", "requires_capture", "succeeded")
EXPIRED_CODE = "payment_intent_payment_attempt_expired"


log = structlog.get_logger()


def snapshot_of(intent: Mapping[str, Any], at: int | None = None) -> PaymentSnapshot:
    """
    Convert a PaymentIntent. Every field that Stripe's SDK types as optional may be null or absent.

    A status that is not known here becomes UNKNOWN and a warning. Raise LookupError, TypeError, ValueError or
    AttributeError if it does not have the form that Stripe documents.
    """
    error = intent.get("last_payment_error") or {}
    step = _step(intent.get("next_action") or {})
    return PaymentSnapshot(
        intent_id=_text(intent["id"]),
        payment_id=_text((intent.get("metadata") or {}).get(OURS) or ""),
        status=_status(intent),
        amount_minor=_integer(intent["amount"]),
        currency=_text(intent["currency"]).upper(),
        captured_minor=_integer(intent.get("amount_received") or 0),
        livemode=intent["livemode"] is True,
        client_secret=_text(intent.get("client_secret") or ""),
        method=step.method if step else _method(intent),
        decline=decline_of(error) if error else None,
        step=step,
        expired=error.get("code") == EXPIRED_CODE and intent["status"] in ("requires_payment_method", "canceled"),
        at=_paid_at(intent) if at is None else at,
    )


def decline_of(error: Mapping[str, Any]) -> Decline:
    return Decline(code_of(error.get("decline_code")) or code_of(error.get("code")), code_of(error.get("advice_code")))


def code_of(value: object) -> str:
    """Return an optional code of Stripe's errors. Empty if it is no text."""
    return value if isinstance(value, str) else ""


def unexpected(what: str, **more: object) -> None:
    """Log and count a response that Stripe does not document, or that its SDK does not know yet."""
    metrics.provider_unexpected_total.labels("stripe", what).inc()
    log.warning("provider.unexpected", service="stripe", what=what, **more)


def _status(intent: Mapping[str, Any]) -> Status:
    text = _text(intent["status"])
    if text not in STATUSES:
        unexpected("payment_intent_status", status=text[:60], payment_intent=_text(intent["id"]))
    return STATUSES.get(text, "UNKNOWN")


def _method(intent: Mapping[str, Any]) -> str:
    """
    Return the payment method from the charge, if the PaymentIntent contains it.

    Without the charge, the method is known only if a single one is offered.
    """
    if details := _paying_charge(intent).get("payment_method_details"):
        return METHODS.get(details.get("type"), "OTHER")
    offered = intent.get("payment_method_types") or []
    chosen = intent.get("payment_method") or intent.get("latest_charge")
    return METHODS.get(offered[0], "OTHER") if chosen and len(offered) == 1 else ""


def _paid_at(intent: Mapping[str, Any]) -> int | None:
    created = _paying_charge(intent).get("created")
    return _integer(created) if created and intent["status"] == "succeeded" else None


def _paying_charge(intent: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the charge that pays it. Empty if it is not expanded, or if it is a failed attempt."""
    charge = intent.get("latest_charge")
    return charge if isinstance(charge, Mapping) and intent["status"] in PAYING else {}


def _step(action: Mapping[str, Any]) -> Step | None:
    kind = action.get("type")
    shown = action.get(kind) if kind in ACTIONS else None
    if kind is None or not shown:
        return None
    method, text, url = ACTIONS[kind]
    return Step(
        method, _text(shown.get(text) or ""), _text(shown.get(url) or ""), _integer(shown.get("expires_at") or 0)
    )


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"must be a whole number, not {type(value).__name__}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be text, not {type(value).__name__}")
    return value
